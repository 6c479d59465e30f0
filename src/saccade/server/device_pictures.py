"""Pictures for a model on a GPU: gathered into batches, decoded, inferred and suppressed there.

    receiver    looks at headers, appends what the card can decode
    gatherer    fills a free batch and closes it
    launcher,   see `saccade.cuda.batches`; the reader also writes the answers
    reader

A batch is closed when it is full, at once if the card has nothing to do, and else as late as it can
be without keeping the card waiting: when decoding it takes as long as the batch before it still
runs. So batches are small where little is asked for and grow with what is asked for; there is no
window to tune.

Thresholds: the kernels keep what the contract keeps. Boxes are suppressed best first, so which of
them are kept above a higher score does not depend on those below it: a higher score is cut out of
the answer, exactly. A lower score, another IoU or another number of boxes go the ordinary way: the
CPU decodes and suppresses, and the card infers for that picture alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from saccade.cuda.batches import FinishedBatch, OpenBatch
from saccade.cuda.nvjpeg import MappedJpeg, shape_for_gpu
from saccade.errors import EngineError, PictureError
from saccade.pipeline.device import DeviceSession
from saccade.pipeline.device_run import fits_bytes
from saccade.server.answers import answers_of
from saccade.server.batching import Batching
from saccade.server.forms import DRAWN_FORMS
from saccade.server.loading_device import OnDevice
from saccade.server.problems import problem_of
from saccade.server.wire import Detect, Done, Failed
from saccade.types import Contract, Detections, Thresholds

__all__ = ["DevicePictures", "cut", "end_if_lost", "is_cut"]

Given = tuple[float | None, float | None, int | None]


def is_cut(given: Given, kept: Thresholds) -> bool:
    """Whether a request's thresholds can be had from what is kept by others, by leaving out boxes.

    Args:
        given: score, iou and max_detections, each None for those of `kept`.
        kept: What the boxes were kept by.
    """
    score, iou, most = given
    return (
        (score is None or score >= kept.score)
        and (iou is None or iou == kept.iou)
        and most in (None, kept.max_detections)
    )


def cut(found: Detections, given: Given) -> Detections:
    """The boxes above a request's score.

    Args:
        found: Best first.
        given: As for `is_cut`, which must hold.
    """
    score = given[0]
    if score is None:
        return found
    num = int(np.count_nonzero(found.scores > np.float32(score)))
    if num == len(found):
        return found
    points = found.keypoints_xy
    return Detections(
        boxes_xyxy=found.boxes_xyxy[:num],
        scores=found.scores[:num],
        classes=found.classes[:num],
        keypoints_xy=None if points is None else points[:num],
    )


class _Waiting(NamedTuple):
    """A JPEG that the card can decode, or pixels: its task, content, width and height."""

    task: Detect
    data: bytes | MappedJpeg | np.ndarray
    wh: tuple[int, int]


class DevicePictures:
    """The batches of one model.

    Args:
        on_device: What the model has on the GPU.
        contract: Of the model.
        batching: What is known of runs.
        answer: Called with a finished picture: (task, Done without a payload, content, replies).
        send: Called with replies.

    Attributes:
        num_on_gpu: Pictures given to the card's decoder.
        num_on_cpu: Pictures that the CPU decoded for the card's batches.
    """

    def __init__(
        self,
        on_device: OnDevice,
        contract: Contract,
        batching: Batching,
        *,
        answer: Callable[[Any, Done, list[memoryview], list[Any]], None],
        send: Callable[[list[Any]], None],
    ) -> None:
        self.num_on_gpu = 0
        self.num_on_cpu = 0
        self._session = on_device.session
        self._room = on_device.room
        self._batches = on_device.batches
        self._contract = contract
        self._thresholds = contract.detect
        self._max_batch = batching.max_batch
        self._batching = batching
        self._answer = answer
        self._send = send
        self._is_closed = False
        self._is_timed = False  # whether the gatherer wakes up by itself
        self._waiting: deque[_Waiting] = deque()
        self._news = threading.Condition()
        self._batches.start(self._finish, self._wake)
        self._gatherer = threading.Thread(target=self._gather, name="saccade-gatherer", daemon=True)
        self._gatherer.start()

    def take(self, task: Detect, data: bytes | MappedJpeg) -> bool:
        """Take a picture, if the card can decode it and its request wants what the path keeps.

        Args:
            task: The request.
            data: The file; mapped memory is left alone until the answer is sent.
        """
        if not self._is_ours(task):
            return False
        wh = shape_for_gpu(data if isinstance(data, bytes) else data.view)
        if wh is None or wh[0] * wh[1] > self._room.max_pixels:
            return False
        if not fits_bytes(self._room, 3 * wh[0] * wh[1], is_encoded=True):
            return False
        self._waiting.append(_Waiting(task, data, wh))
        self.num_on_gpu += 1
        return True

    def take_pixels(self, task: Detect, decode: Callable[[], np.ndarray]) -> bool:
        """Take a picture that the CPU decodes, if its request wants what the path keeps.

        Args:
            task: The request.
            decode: Gives (h, w, 3) uint8 RGB that nobody else changes.

        Raises:
            PictureError: It cannot be decoded.
        """
        if not self._is_ours(task):
            return False
        pixels = decode()
        if not fits_bytes(self._room, pixels.nbytes, is_encoded=False):
            return False
        self._waiting.append(_Waiting(task, pixels, (pixels.shape[1], pixels.shape[0])))
        self.num_on_cpu += 1
        self.notify()
        return True

    def _is_ours(self, task: Detect) -> bool:
        # Gray is decoded as gray, which the kernels do not take as pixels.
        return (
            task.form not in DRAWN_FORMS
            and is_cut(task.thresholds, self._thresholds)
            and self._contract.input.color != "gray"
        )

    def notify(self) -> None:
        """Say that something was taken; once for several."""
        is_timed = self._is_timed and self._batches.num_running
        if not is_timed or len(self._waiting) >= self._max_batch:
            self._wake()

    def _wake(self) -> None:
        with self._news:
            self._news.notify()

    # Gathering.

    def _gather(self) -> None:
        while (batch := self._batches.open()) is not None:
            with self._news:
                self._wait_to_close()
            if self._is_closed:
                return
            refused: list[Any] = []
            self._fill(batch, refused)
            self._batches.submit(batch)
            if refused:
                self._send(refused)

    def _wait_to_close(self) -> None:
        while not self._is_closed and (num := len(self._waiting)) < self._max_batch:
            left_s = self._batches.closes_in(num) if num else None
            if left_s is not None and left_s <= 0:
                return
            self._is_timed = left_s is not None
            self._news.wait(left_s)
            self._is_timed = False

    def _fill(self, batch: OpenBatch, refused: list[Any]) -> None:
        waiting = self._waiting
        while waiting:
            one = waiting[0]
            try:
                if isinstance(one.data, np.ndarray):
                    is_in = batch.add(one.data, one.task)
                else:
                    is_in = batch.add_jpeg(one.data, one.wh, one.task)
                if not is_in:
                    return
            except PictureError as exc:
                refused.append(_failed(one.task, exc))
            waiting.popleft()

    # Answers.

    def _finish(self, done: FinishedBatch) -> None:
        """Write the answers of a batch; runs in the reader's thread."""
        num = len(done.items)
        self._batching.ran(num, done.graph_s)
        good: list[tuple[Detect, Detections, tuple[int, int]]] = []
        replies: list[Any] = []
        failures = set()
        for task, found, wh in zip(done.items, done.found, done.wh, strict=True):
            if isinstance(found, Detections):
                good.append((task, cut(found, task.thresholds), wh))
                continue
            replies.append(_failed(task, found))
            if isinstance(found, EngineError):
                failures.add(found)
        began_s = time.perf_counter()
        contents = self._contents(good)
        writing_s = time.perf_counter() - began_s
        spent_s = (done.decode_s, 0.0, done.graph_s, writing_s)
        decode, prepare, infer, suppress = (int(1e9 * seconds / num) for seconds in spent_s)
        times = (decode, prepare, infer, suppress)
        for (task, _, _), content in zip(good, contents, strict=True):
            reply = Done(task.id, len(content), (), times, num)
            self._answer(task, reply, [memoryview(content)], replies)
        self._send(replies)
        if failures and not good:
            end_if_lost(self._session)

    def _contents(self, good: Sequence[tuple[Detect, Detections, tuple[int, int]]]) -> list[bytes]:
        return answers_of(
            [task.form for task, _, _ in good],
            [found for _, found, _ in good],
            [wh for _, _, wh in good],
            self._contract,
        )

    def close(self) -> None:
        """Finish what was taken; closing twice is no error."""
        self._is_closed = True
        self._wake()
        self._batches.close()


def end_if_lost(session: DeviceSession) -> None:
    """End this process if its device does not answer any more.

    Nothing of what it has on the card can be used again, in this process. The front answers what
    it holds with 503 and starts another.
    """
    try:
        session.device.make_current()
        session.device.synchronize()
    except EngineError as exc:
        sys.stderr.write(f"saccade: this engine process ends: {exc}\n")
        os._exit(1)


def _failed(task: Detect, exc: Exception) -> Failed:
    problem = problem_of(exc)
    return Failed(task.id, problem.kind, str(problem))
