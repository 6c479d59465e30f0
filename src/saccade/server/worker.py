"""An engine process: threads that take tasks from the fronts' lines and answer on them.

One thread at a time waits for the next task. With tasks in hand it first lets another thread
wait, then brings the pictures from bytes to boxes without handing them over; if the work is
shorter than waking a thread, it does the work and goes on waiting itself. Requests that are there
at the same time share a run, see `saccade.server.batching`.

Pictures for a model on a GPU go another way, see `saccade.server.device_pictures`: there the card
does what these threads do here, and they do only what it cannot.

Run by a front as `python -m saccade.server.worker SOCKET_FD ARENA_FD DOOR_FD THREADS DEVICE`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec
import numpy as np

from saccade.errors import EngineError, InputError, PictureError
from saccade.pipeline.stages import Lane, Stages, StageTimes
from saccade.server.answers import answer_of
from saccade.server.batching import Batching
from saccade.server.dtypes import datatype_of
from saccade.server.forms import DRAWN_FORMS
from saccade.server.lines import Lines
from saccade.server.loading import ServedModel, open_model
from saccade.server.loading_options import LoadOptions
from saccade.server.problems import problem_of
from saccade.server.regions import Regions
from saccade.server.tensors import Known, TensorRunner, array_of
from saccade.server.wire import (
    INLINE_BYTES,
    PACKET_BYTES,
    SHORT_S,
    Detect,
    Done,
    Failed,
    Forget,
    Infer,
    Load,
    Loaded,
    Open,
    Piece,
    TensorPart,
    Unload,
)
from saccade.types import Detections, Placement, Slot
from saccade.vision.decode import Decoder
from saccade.vision.place import single_threaded_cv2

if TYPE_CHECKING:
    from saccade.cuda.nvjpeg import MappedJpeg
    from saccade.server.device_pictures import DevicePictures

__all__ = ["main", "work"]

_MAX_THRESHOLDS_KEPT = 64
_REPLIES_TOGETHER = 16
_MAX_BACKLOG = 256
_PIECE_BYTES = PACKET_BYTES - 256


class _Tools:
    """What one thread needs to run one model."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.tensors: TensorRunner | None = None
        self.lane: Lane | None = None
        self.slot: Slot | None = None
        self._stages: dict[tuple[float | None, float | None, int | None], Stages] = {}

    def open_lane(self) -> tuple[Lane, Slot]:
        """This thread's decoder and buffers."""
        if self.lane is None or self.slot is None:
            self.lane = Lane(self.stages((None, None, None)))
            self.slot = self.served.engine.open_slot(self.served.size_hw)
        return self.lane, self.slot

    def stages(self, given: tuple[float | None, float | None, int | None]) -> Stages:
        """The pipeline with a request's thresholds."""
        found = self._stages.get(given)
        if found is None:
            served = self.served
            assert served.detector is not None
            if len(self._stages) >= _MAX_THRESHOLDS_KEPT:
                self._stages.clear()
            found = self._stages[given] = served.detector.stages(
                served.detector.thresholds(*given),
                batch=served.plan.batch,
                max_pixels=served.max_pixels,
                scaled_decode=served.scaled_decode,
            )
        return found


class _Placed(NamedTuple):
    """A picture that waits for its run: its task, thresholds, place, pixels and times."""

    task: Detect
    stages: Stages
    placement: Placement
    picture: np.ndarray | None
    times: StageTimes


class EngineProcess:
    """All models of one device, and the threads that run them.

    Args:
        lines: The fronts.
        num_threads: Threads that run tasks.
        device: Where models run that do not say, "cpu" or "cuda:N".
    """

    def __init__(self, lines: Lines, num_threads: int, device: str = "cpu") -> None:
        self._lines = lines
        self._device = device
        self._models: dict[int, ServedModel] = {}
        self._batching: dict[int, Batching] = {}
        self._task_s: dict[int, float] = {}
        # Of models on a GPU.
        self._pictures: dict[int, DevicePictures] = {}
        self._regions = Regions()
        self._num_threads = num_threads
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Who holds the turn may receive, and use what follows.
        self._turn = threading.Lock()
        self._backlog: deque[Any] = deque()
        self._num_idle = 0

    def run(self) -> None:
        """Work until the front closes its end."""
        threads = [
            threading.Thread(target=self._work, name=f"saccade-engine-{i}", daemon=True)
            for i in range(self._num_threads)
        ]
        threading.Thread(target=self._manage, name="saccade-engine-models", daemon=True).start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _manage(self) -> None:
        """Loading may take seconds and does not keep a thread from the requests."""
        while True:
            self._order(self._orders.get())

    def _order(self, task: Any) -> None:
        try:
            if type(task) is Load:
                self._load(task)
            elif type(task) is Unload:
                served = self._models.pop(task.model, None)
                self._batching.pop(task.model, None)
                self._task_s.pop(task.model, None)
                pictures = self._pictures.pop(task.model, None)
                if pictures is not None:
                    pictures.close()
                if served is not None:
                    served.close()
                self._send([Loaded(task.id, b"{}")])
            elif type(task) is Forget:
                self._regions.forget(task.key)
                self._send([Loaded(task.id, b"{}")])
            elif type(task) is Open:
                self._regions.open(task.region)
                self._send([Loaded(task.id, b"{}")])
            else:
                self._send([Loaded(task.id, self._status())])
        except Exception as exc:  # the thread's boundary
            self._send([_failed(task, exc)])

    # The threads that run tasks.

    def _work(self) -> None:
        tools: dict[int, _Tools] = {}
        replies: list[Any] = []
        self._num_idle += 1
        while True:
            with self._turn:
                while (tasks := self._next_tasks()) and self._is_short(tasks[0]):
                    self._do(tasks, tools, replies)
                    if len(replies) >= _REPLIES_TOGETHER or not self._backlog:
                        self._send(replies)
                        replies = []
                if not tasks:
                    return
                self._num_idle -= 1
            self._do(tasks, tools, replies)
            self._send(replies)
            if any(type(reply) is Failed and reply.kind == "engine" for reply in replies):
                self._look_after_device(tasks[0].model)
            replies = []
            self._num_idle += 1  # an estimate: threads may lose one another's step

    def _look_after_device(self, model: int) -> None:
        served = self._models.get(model)
        if served is not None and served.on_device is not None:
            from saccade.server.device_pictures import end_if_lost

            end_if_lost(served.on_device.session)

    def _is_short(self, task: Any) -> bool:
        return type(task) is Infer and self._task_s.get(task.model, 1.0) < SHORT_S

    def _next_tasks(self) -> list[Any]:
        """Wait for work. Tasks that come together are of one kind and one model; none at the
        end."""
        backlog = self._backlog
        while not backlog:
            if not self._receive(wait=True):
                return []
        first = backlog.popleft()
        batching = self._batching.get(first.model)
        if batching is None or batching.max_batch == 1:
            return [first]
        while len(backlog) < _MAX_BACKLOG and self._receive(wait=False):
            pass
        return self._gather(first, batching)

    def _gather(self, first: Any, batching: Batching) -> list[Any]:
        tasks = [first]
        while True:
            age_s = time.perf_counter() - first.arrived_s
            same = [t for t in self._backlog if t.model == first.model and type(t) is type(first)]
            wanted = batching.share(1 + len(same), self._num_idle, age_s)
            for task in same[: wanted - len(tasks)]:
                self._backlog.remove(task)
                tasks.append(task)
            wait_s = batching.wait_s(len(tasks), age_s) if not self._backlog else 0.0
            if wait_s <= 0 or not self._receive_within(wait_s):
                return tasks

    def _receive_within(self, seconds: float) -> bool:
        return self._lines.wait(seconds) and self._receive(wait=False)

    def _receive(self, *, wait: bool) -> bool:
        """Take a packet; False if there is none or there will be none."""
        tasks = self._lines.receive(wait=wait)
        taken: set[int] = set()
        for task in tasks:
            if type(task) is Infer or type(task) is Detect:
                if self._pictures and type(task) is Detect and self._take_for_gpu(task):
                    taken.add(task.model)
                    continue
                self._backlog.append(task)
                batching = self._batching.get(task.model)
                if batching is not None and batching.max_batch > 1:
                    batching.arrived(task.arrived_s)
            else:
                self._orders.put(task)
        for model in taken:
            self._pictures[model].notify()
        return bool(tasks) or (wait and not self._lines.is_over)

    def _take_for_gpu(self, task: Detect) -> bool:
        """Give a picture to the batches of its model, if it is one for a GPU's decoder."""
        pictures = self._pictures.get(task.model)
        if pictures is None:
            return False
        data: bytes | MappedJpeg
        try:
            if task.region is not None:
                # Copied: its owner could change it after it was looked at.
                data = bytes(self._regions.view(task.region))
            elif task.block >= 0:
                from saccade.cuda.nvjpeg import MappedJpeg

                view = self._lines.block(task)[: task.num_bytes]
                data = MappedJpeg(self._lines.address(task), view)
            else:
                data = task.payload
        except InputError:  # it goes the ordinary way, where the error has a caller to tell
            return False
        return pictures.take(task, data)

    def _do(self, tasks: list[Any], tools: dict[int, _Tools], replies: list[Any]) -> None:
        begun_s = time.perf_counter()
        first = tasks[0]
        try:
            mine = self._tools_for(first.model, tools)
            run = self._detect if type(first) is Detect else self._infer
            run(tasks, mine, replies)
        except Exception as exc:  # the thread's boundary: callers hear of it
            answered = {reply.id for reply in replies}
            replies += [_failed(task, exc) for task in tasks if task.id not in answered]
            return
        spent_s = (time.perf_counter() - begun_s) / len(tasks)
        before_s = self._task_s.get(first.model, spent_s)
        self._task_s[first.model] = before_s + 0.1 * (spent_s - before_s)

    def _tools_for(self, model: int, tools: dict[int, _Tools]) -> _Tools:
        served = self._models.get(model)
        if served is None:
            raise EngineError("a model must be loaded to be run, this one is not; try again")
        mine = tools.get(model)
        if mine is None or mine.served is not served:
            for key in [key for key in tools if key not in self._models]:
                del tools[key]
            mine = tools[model] = _Tools(served)
        return mine

    def _load(self, task: Load) -> None:
        options = msgspec.json.decode(task.options, type=LoadOptions)
        others = (one.on_device for one in self._models.values())
        taken_bytes = sum(one.own_bytes for one in others if one is not None)
        served = open_model(task.name, task.path, options, taken_bytes=taken_bytes)
        try:
            slot = served.engine.open_slot(served.size_hw)
            slot.run(served.plan.batch)
            if served.on_device is not None:
                served.on_device.session.measure()
        except BaseException:
            served.close()
            raise
        batching = Batching(served.plan.batch, options.latency_ms / 1000)
        self._batching[task.model] = batching
        self._models[task.model] = served
        if served.on_device is not None:
            self._pictures[task.model] = self._open_pictures(served, batching)
        # What a runtime leaves behind is most of all objects and stays: looking through it takes
        # the collector a tenth of a second, in which nothing is answered.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._send([Loaded(task.id, msgspec.json.encode(served.details()))])

    def _open_pictures(self, served: ServedModel, batching: Batching) -> DevicePictures:
        from saccade.server.device_pictures import DevicePictures

        assert served.on_device is not None
        assert served.detector is not None
        return DevicePictures(
            served.on_device,
            served.detector.contract,
            batching,
            answer=self._answer,
            send=self._send,
        )

    def _payload(self, task: Infer | Detect) -> memoryview:
        return self._lines.block(task) if task.block >= 0 else memoryview(task.payload)

    # Tensors.

    def _infer(self, tasks: list[Infer], tools: _Tools, replies: list[Any]) -> None:
        """Run tasks together where they fit together; one that is wrong fails alone."""
        runner = tools.tensors
        if runner is None:
            runner = tools.tensors = TensorRunner(tools.served)
        if len(tasks) == 1 and (known := runner.known(tasks[0])) is not None:
            self._infer_again(tasks[0], known, replies)
            return
        begun_ns = time.perf_counter_ns()
        fed: list[tuple[Infer, dict[str, np.ndarray], int]] = []
        for task in tasks:
            try:
                feeds = self._feeds(task)
                fed.append((task, feeds, runner.check(feeds)))
            except Exception as exc:
                replies.append(_failed(task, exc))
        fed_ns = time.perf_counter_ns()
        outputs: Mapping[str, np.ndarray] | None = None
        for group in runner.groups(fed):
            run_ns = time.perf_counter_ns()
            total = sum(num for _, _, num in group)
            try:
                outputs = runner.run([feeds for _, feeds, _ in group], total)
            except Exception as exc:
                replies += [_failed(task, exc) for task, _, _ in group]
                continue
            end_ns = time.perf_counter_ns()
            self._batching[tasks[0].model].ran(len(group), (end_ns - run_ns) / 1e9)
            times = (0, (fed_ns - begun_ns) // len(tasks), end_ns - run_ns, 0)
            at = 0
            for task, _, num in group:
                try:
                    self._reply_tensors(task, outputs, (at, num, total), times, replies)
                except Exception as exc:
                    replies.append(_failed(task, exc))
                at += num
        if len(tasks) == len(fed) == 1 and outputs is not None:
            runner.remember(tasks[0], fed[0][1], fed[0][2], outputs)

    def _infer_again(self, task: Infer, known: Known, replies: list[Any]) -> None:
        """Run a task that is like the last one."""
        begun_ns = time.perf_counter_ns()
        payload = self._payload(task)
        for target, start, end in known.targets:
            target[:] = payload[start:end]
        fed_ns = time.perf_counter_ns()
        outputs = known.slot.run(known.num)
        end_ns = time.perf_counter_ns()
        self._batching[task.model].ran(1, (end_ns - fed_ns) / 1e9)
        times = (0, fed_ns - begun_ns, end_ns - fed_ns, 0)
        if outputs is not known.outputs:
            place = (0, known.num, known.num)
            self._reply_tensors(task, outputs, place, times, replies)
            return
        done = Done(task.id, known.num_bytes, known.parts, times, known.num, known.num)
        self._answer(task, done, known.views, replies)

    def _feeds(self, task: Infer) -> dict[str, np.ndarray]:
        payload, feeds = self._payload(task), {}
        for part in task.inputs:
            if part.region is None:
                data = payload[part.offset : part.offset + part.num_bytes]
            else:
                data = self._regions.view(part.region)
            feeds[part.name] = array_of(part, data)
        return feeds

    def _reply_tensors(
        self,
        task: Infer,
        outputs: Mapping[str, np.ndarray],
        place: tuple[int, int, int],
        times: tuple[int, int, int, int],
        replies: list[Any],
    ) -> None:
        """Answer with this task's rows of a run's outputs."""
        first, num, total = place
        parts: list[TensorPart] = []
        pieces: list[memoryview] = []
        at = 0
        for name, region in task.outputs:
            array = outputs[name]
            if num != total:
                array = array[first : first + num]
            array = np.ascontiguousarray(array)
            view = memoryview(array.reshape(-1).view(np.uint8).data)
            num_bytes = len(view)
            datatype = datatype_of(array.dtype.name)
            if region is None:
                parts.append(TensorPart(name, datatype, array.shape, at, num_bytes))
                pieces.append(view)
                at += num_bytes
            else:
                self._regions.write(region, view, name)
                parts.append(TensorPart(name, datatype, array.shape, 0, num_bytes, region))
        share = (times[0], times[1], times[2] * num // total, times[3])
        self._answer(task, Done(task.id, at, tuple(parts), share, total, num), pieces, replies)

    # Pictures.

    def _detect(self, tasks: list[Detect], tools: _Tools, replies: list[Any]) -> None:
        """Decode and place each picture, infer together, suppress each by its own thresholds."""
        served = tools.served
        if served.detector is None:
            raise PictureError(
                f"a model must be a detector to be given pictures, {served.name} is not: "
                f"{served.why_no_detector}"
            )
        lane, slot = tools.open_lane()
        pictures = self._pictures.get(tasks[0].model)
        if pictures is not None:
            tasks = [task for task in tasks if not self._decode_for_gpu(task, pictures, replies)]
            if not tasks:
                return
        if len(tasks) == 1:
            self._detect_one(tasks[0], tools, lane, slot, replies)
            return
        placed: list[_Placed] = []
        for task in tasks:
            lane.times = times = StageTimes()
            try:
                stages = tools.stages(task.thresholds)
                picture = self._decode(task, lane)
                placement = stages.prepare(lane, picture, slot, len(placed))
                kept = picture if task.form in DRAWN_FORMS else None
                if kept is not None:
                    kept = kept.copy()  # the lane's next picture takes its place
                placed.append(_Placed(task, stages, placement, kept, times))
            except Exception as exc:
                replies.append(_failed(task, exc))
        if not placed:
            return
        lane.times = times = StageTimes()
        begun_s = time.perf_counter()
        outputs = placed[0].stages.infer(lane, slot, len(placed))
        self._batching[tasks[0].model].ran(len(placed), time.perf_counter() - begun_s)
        infer_ns = int(times.wall_s["infer"] * 1e9) // len(placed)
        placements = [one.placement for one in placed]
        # Heads read all pictures of a run at once; each set of thresholds has its own reading.
        for stages in {id(one.stages): one.stages for one in placed}.values():
            try:
                found = stages.suppress(lane, outputs, placements)
            except Exception as exc:
                replies += [_failed(one.task, exc) for one in placed if one.stages is stages]
                continue
            for one, its in zip(placed, found, strict=True):
                if one.stages is stages:
                    one.times.wall_s["suppress"] = times.wall_s["suppress"] / len(placed)
                    self._reply_picture(one, its, infer_ns, len(placed), replies)

    def _detect_one(
        self, task: Detect, tools: _Tools, lane: Lane, slot: Slot, replies: list[Any]
    ) -> None:
        lane.times = times = StageTimes()
        stages = tools.stages(task.thresholds)
        picture = self._decode(task, lane)
        placement = stages.prepare(lane, picture, slot, 0)
        outputs = stages.infer(lane, slot, 1)
        found = stages.suppress(lane, outputs, [placement])[0]
        infer_s = times.wall_s["infer"]
        self._batching[task.model].ran(1, infer_s)
        one = _Placed(task, stages, placement, picture, times)
        self._reply_picture(one, found, int(infer_s * 1e9), 1, replies)

    def _decode_for_gpu(self, task: Detect, pictures: DevicePictures, replies: list[Any]) -> bool:
        """Decode what the card cannot, and let the card do the rest; False if it cannot either."""
        decoder = Decoder("rgb", max_pixels=self._models[task.model].max_pixels)
        try:
            return pictures.take_pixels(task, lambda: decoder.decode(self._encoded(task)).copy())
        except Exception as exc:
            replies.append(_failed(task, exc))
            return True

    def _decode(self, task: Detect, lane: Lane) -> np.ndarray:
        lane.is_encoded = True
        return lane.timed("decode", lane.decoder.decode, self._encoded(task))

    def _encoded(self, task: Detect) -> Any:
        if task.region is not None:
            return self._regions.view(task.region)
        if task.block >= 0:
            return self._lines.block(task)[: task.num_bytes]
        return task.payload

    def _reply_picture(
        self, one: _Placed, found: Detections, infer_ns: int, batch: int, replies: list[Any]
    ) -> None:
        task, wall_s = one.task, one.times.wall_s
        picture: Any = one.picture
        if task.form in DRAWN_FORMS and one.stages.scaled_decode:
            # Boxes are in pixels of the full picture; it was decoded at a smaller scale.
            rule = one.stages.contract.input
            decoder = Decoder(rule.color, bits=rule.bits, max_pixels=one.stages.max_pixels)
            picture = decoder.decode(self._payload(task)[: task.num_bytes])
        content = answer_of(task.form, found, one.placement.source_wh, picture, one.stages.contract)
        spent = (
            int(wall_s["decode"] * 1e9),
            int(wall_s["prepare"] * 1e9),
            infer_ns,
            int(wall_s["suppress"] * 1e9),
        )
        done = Done(task.id, len(content), (), spent, batch)
        self._answer(task, done, [memoryview(content)], replies)

    # Answers.

    def _answer(
        self,
        task: Infer | Detect,
        done: Done,
        pieces: Sequence[memoryview],
        replies: list[Any],
    ) -> None:
        """Hand back a payload the cheapest way that it fits."""
        num = done.num_bytes
        if num <= INLINE_BYTES:
            done.payload = b"".join(pieces)
            if num + sum(len(getattr(reply, "payload", b"")) for reply in replies) > INLINE_BYTES:
                self._send(replies)
                replies.clear()
            replies.append(done)
            return
        if num <= task.capacity:
            block, at = self._lines.block(task), 0
            for piece in pieces:
                block[at : at + len(piece)] = piece
                at += len(piece)
            done.in_block = True
            replies.append(done)
            return
        for piece in pieces:
            for at in range(0, len(piece), _PIECE_BYTES):
                self._send([Piece(task.id, bytes(piece[at : at + _PIECE_BYTES]))])
                done.num_pieces += 1
        replies.append(done)

    def _send(self, replies: list[Any]) -> None:
        if replies:
            self._lines.send(replies)

    def _status(self) -> bytes:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pictures = list(self._pictures.values())
        with open("/proc/self/statm") as file:
            rss_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return json.dumps(
            {
                "pid": os.getpid(),
                "device": self._device,
                "rss_bytes": rss_bytes,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "num_threads": self._num_threads,
                "num_models": len(self._models),
                "decoded_on_gpu": sum(one.num_on_gpu for one in pictures),
                "decoded_on_cpu": sum(one.num_on_cpu for one in pictures),
            }
        ).encode()


def _failed(task: Any, exc: Exception) -> Failed:
    """An error as a reply; one that is our fault goes to the log with its trace."""
    problem = problem_of(exc)
    if problem.kind == "internal":
        sys.excepthook(type(exc), exc, exc.__traceback__)
    return Failed(task.id, problem.kind, str(problem))


def main() -> None:
    """Work as an engine process."""
    *fds, num_threads = map(int, sys.argv[1:5])
    work(*fds, num_threads=num_threads, device=sys.argv[5])


def work(socket_fd: int, arena_fd: int, door_fd: int, *, num_threads: int, device: str) -> NoReturn:
    """Work as an engine process until the first front has gone.

    Args:
        socket_fd: The first front's line.
        arena_fd: Memory shared with it.
        door_fd: Where lines of further fronts come in.
        num_threads: Threads that run tasks.
        device: Where models run, "cpu" or "cuda:N".
    """
    # The front decides when to stop; a Ctrl-C in the terminal reaches all processes of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock, door = socket.socket(fileno=socket_fd), socket.socket(fileno=door_fd)
    sock.setblocking(True)
    door.setblocking(True)
    lines = Lines(sock, arena_fd, door)
    with single_threaded_cv2(), contextlib.closing(lines):
        EngineProcess(lines, num_threads, device).run()
    # Engines of runtimes may hold threads of their own; there is nothing left to wait for.
    os._exit(0)


if __name__ == "__main__":
    main()
