"""Batches that a server fills as pictures arrive: several in flight on one path.

`DevicePath.run` takes an iterator and flushes when it ends; here the caller says when a batch is
full enough. Who does what:

    caller     opens a batch, adds pictures, submits it
    launcher   has them decoded, enqueues the slot's graph
    reader     waits for the oldest batch, reads its boxes, hands them over, frees the slot

Other work with the same engine goes into the same stream between two batches, see `enqueue`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from saccade.cuda.nvjpeg import MappedJpeg
from saccade.cuda.path import DevicePath
from saccade.cuda.runtime import Stream
from saccade.cuda.slots import Load, Picture, Slot
from saccade.errors import EngineError, SaccadeError
from saccade.types import Detections

__all__ = ["Batches", "FinishedBatch", "OpenBatch"]

_WEIGHT = 0.1
# What decoding a batch takes beside its pictures, and until who waits for it is awake.
_DECODE_S = 0.0008
# Waiting for the card keeps a core busy, so it begins this long before the end is expected.
_SPIN_S = 0.0003
# A picture's boxes, or what is wrong with it.
Found = Detections | SaccadeError


class OpenBatch:
    """A batch that is being filled. For one thread, until it is submitted.

    Attributes:
        items: What the caller gave with each picture.
        wh: Width and height of each picture.
    """

    __slots__ = ("_feeder", "items", "load", "places", "wh")

    def __init__(self, slot: Slot, feeder: Any) -> None:
        self.load = Load(slot)
        self._feeder = feeder
        self.items: list[Any] = []
        self.wh: list[tuple[int, int]] = []
        self.places: list[int] = []

    def add(self, picture: Picture, item: Any) -> bool:
        """Put a picture into the batch, decoding it on the CPU if it is no JPEG for the GPU.

        Returns:
            False if there is no room left; the batch is as it was.

        Raises:
            PictureError: It cannot be used; the batch is as it was.
        """
        return self._keep(self._feeder.add(self.load, picture), item)

    def add_jpeg(self, data: bytes | MappedJpeg, wh: tuple[int, int], item: Any) -> bool:
        """Put a JPEG into the batch that `shape_for_gpu` has looked at; it is kept alive.

        Args:
            data: The file; its memory must not change until the batch is done.
            wh: What `shape_for_gpu` said.
            item: For `items`.

        Returns:
            False if there is no room left; the batch is as it was.

        Raises:
            PictureError: It is larger than a batch's room.
        """
        return self._keep(self._feeder.add_jpeg(self.load, data, wh), item)

    def _keep(self, placed: tuple[int, tuple[int, int]] | None, item: Any) -> bool:
        if placed is None:
            return False
        self.places.append(placed[0])
        self.wh.append(placed[1])
        self.items.append(item)
        return True


class FinishedBatch:
    """What became of a batch.

    Attributes:
        items: As in OpenBatch.
        wh: As in OpenBatch.
        found: For each picture its boxes, or what is wrong with it.
        decode_s: Seconds in which it was decoded and launched.
        graph_s: Seconds in which the card prepared, inferred and suppressed.
    """

    __slots__ = ("decode_s", "found", "graph_s", "items", "wh")

    def __init__(
        self, batch: OpenBatch, found: list[Found], decode_s: float, graph_s: float
    ) -> None:
        self.items = batch.items
        self.wh = batch.wh
        self.found = found
        self.decode_s = decode_s
        self.graph_s = graph_s


class _Running:
    """A batch on its way, and when it is expected to be done."""

    __slots__ = ("batch", "decode_s", "ends_s", "errors")

    def __init__(self, batch: OpenBatch) -> None:
        self.batch = batch
        self.decode_s = 0.0
        self.ends_s = 0.0
        self.errors: dict[int, SaccadeError] = {}


class Batches:
    """Has a path to itself until it is closed. Open, add and submit are for one thread.

    Args:
        path: Nobody else may use it.

    Attributes:
        num_running: Batches that were launched and are not done.
        num_waiting: Batches that were submitted and are not launched.
    """

    def __init__(self, path: DevicePath) -> None:
        self._exit = contextlib.ExitStack()
        self._exit.enter_context(path.alone())
        self._path = path
        self._device, self._feeder, self._work = path.parts()
        self._on_done: Callable[[FinishedBatch], None]
        self._on_free: Callable[[], None]
        self._launching = threading.Lock()
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._submitted: queue.SimpleQueue[OpenBatch | None] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[_Running | None] = queue.SimpleQueue()
        self._count = threading.Lock()
        self.num_running = 0
        self.num_waiting = 0
        # Estimates: when what was launched is done, how long a graph runs and a picture decodes.
        self._ends_s = 0.0
        self._graph_s = 0.0
        self._picture_s = 0.0
        for slot in path.slots:
            self._free.put(slot)
        self._threads: list[threading.Thread] = []

    def start(self, on_done: Callable[[FinishedBatch], None], on_free: Callable[[], None]) -> None:
        """Take batches from now on.

        Args:
            on_done: Called in the reader's thread with each batch, in the order of submission. One
                that failed as a whole has the failure in place of each picture's boxes.
            on_free: Called in the threads of this object when `num_running` or `num_waiting` has
                become smaller.
        """
        self._on_done, self._on_free = on_done, on_free
        for name, work in (("launcher", self._launch_all), ("reader", self._read_all)):
            thread = threading.Thread(target=work, name=f"saccade-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def open(self) -> OpenBatch | None:
        """An empty batch, as soon as a slot is free; None once this is closed."""
        slot = self._free.get()
        return None if slot is None else OpenBatch(slot, self._feeder)

    def submit(self, batch: OpenBatch) -> None:
        """Have a batch done. An empty one is given back."""
        if not batch.items:
            self._free.put(batch.load.slot)
            return
        self._step(waiting=1)
        self._submitted.put(batch)

    def closes_in(self, num: int) -> float | None:
        """How long a batch may still be filled without keeping the card waiting.

        The card takes as long for one picture as for a full batch, so what is left open longest
        does most; but it must be decoded when the batch before it is done.

        Args:
            num: Pictures that it would have.

        Returns:
            Seconds, 0 to submit it now; None as long as another is on its way to the card.
        """
        if self.num_waiting or self.num_running > 1:
            return None
        if not self.num_running:
            return 0.0
        decode_s = _DECODE_S + num * self._picture_s
        return max(0.0, self._ends_s - time.perf_counter() - decode_s)

    def enqueue(self, work: Callable[[Stream], None]) -> None:
        """Enqueue other work with the engine behind the batches launched so far.

        Args:
            work: Given the stream; what it enqueues runs before later batches. It must not wait.
        """
        with self._launching:
            self._device.make_current()
            work(self._work)

    def _step(self, *, waiting: int = 0, running: int = 0) -> None:
        with self._count:
            self.num_waiting += waiting
            self.num_running += running

    def _launch_all(self) -> None:
        self._device.make_current()
        while (batch := self._submitted.get()) is not None:
            running = _Running(batch)
            began_s = time.perf_counter()
            try:
                self._launch(batch, running.errors)
            except Exception as exc:  # every picture of the batch hears of it
                running.errors = dict.fromkeys(batch.places, _as_ours(exc))
            now_s = time.perf_counter()
            running.decode_s = now_s - began_s
            each_s = max(0.0, running.decode_s - _DECODE_S) / len(batch.places)
            self._picture_s = _mean(self._picture_s, each_s)
            running.ends_s = self._ends_s = max(now_s, self._ends_s) + self._graph_s
            self._step(waiting=-1, running=1)
            self._launched.put(running)
            self._on_free()
        self._launched.put(None)

    def _launch(self, batch: OpenBatch, errors: dict[int, SaccadeError]) -> None:
        slot = batch.load.slot
        errors.update(self._feeder.flush(batch.load))
        with self._launching:
            self._path.launch(slot)

    def _read_all(self) -> None:
        self._device.make_current()
        while (running := self._launched.get()) is not None:
            finished = self._read(running)
            if finished.graph_s:
                self._graph_s = _mean(self._graph_s, finished.graph_s)
            self._step(running=-1)
            if not self.num_running:
                self._ends_s = time.perf_counter()
            self._free.put(running.batch.load.slot)
            self._on_free()
            self._on_done(finished)

    def _read(self, running: _Running) -> FinishedBatch:
        batch, errors = running.batch, running.errors
        slot, graph_s = batch.load.slot, 0.0
        found: list[Found] = []
        if len(errors) < len(batch.places):
            try:
                _sleep_until(running.ends_s - _SPIN_S)
                slot.done.wait()
                graph_s = slot.done.ms_since(slot.begun) / 1e3
            except EngineError as exc:
                errors = dict.fromkeys(batch.places, exc)
        read = self._path.boxes_of(slot).read
        for place in batch.places:
            error = errors.get(place)
            if error is None:
                try:
                    found.append(read(place))
                    continue
                except EngineError as exc:  # too many candidates: this picture's trouble alone
                    error = exc
            found.append(error)
        return FinishedBatch(batch, found, running.decode_s, graph_s)

    def close(self) -> None:
        """Finish what was submitted and give the path back; closing twice is no error."""
        self._free.put(None)
        self._submitted.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._exit.close()


def _mean(before: float, now: float) -> float:
    """An estimate that follows; the first value is taken as it is."""
    return before + _WEIGHT * (now - before) if before else now


def _sleep_until(when_s: float) -> None:
    pause_s = when_s - time.perf_counter()
    if pause_s > 0:
        time.sleep(pause_s)


def _as_ours(exc: Exception) -> SaccadeError:
    if isinstance(exc, SaccadeError):
        return exc
    return EngineError(
        f"a batch must be launched, launching failed ({type(exc).__name__}: {exc}); "
        "send the pictures again"
    )
