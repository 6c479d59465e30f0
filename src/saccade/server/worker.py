"""An engine process: threads that take tasks from one socket and answer on it.

One thread at a time waits for the next task. With a task in hand it first lets another thread
wait, then brings the picture from bytes to boxes without handing it over; if the work is shorter
than waking a thread, it does the work and goes on waiting itself.

Run by the front as `python -m saccade.server.worker SOCKET_FD ARENA_FD THREADS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

import msgspec
import numpy as np

from saccade.errors import EngineError, PictureError, SaccadeError
from saccade.pipeline.stages import Lane, Stages, StageTimes
from saccade.server.answers import answer_of
from saccade.server.arena import map_arena
from saccade.server.dtypes import datatype_of
from saccade.server.loading import ServedModel, open_model
from saccade.server.loading_options import LoadOptions
from saccade.server.problems import problem_of
from saccade.server.regions import Regions
from saccade.server.tensors import TensorRunner, array_of
from saccade.server.wire import (
    INLINE_BYTES,
    PACKET_BYTES,
    Detect,
    Done,
    Failed,
    Forget,
    Infer,
    Load,
    Loaded,
    Piece,
    Task,
    TensorPart,
    Unload,
)
from saccade.types import Slot
from saccade.vision.place import single_threaded_cv2

__all__ = ["main"]

# Work that takes less than this is done by the thread that waits for tasks.
_SHORT_S = 0.0003
_MAX_THRESHOLDS_KEPT = 64
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


class EngineProcess:
    """All models of one device, and the threads that run them.

    Args:
        sock: Packets from and to the front.
        arena: Memory shared with it.
        num_threads: Threads that run tasks.
    """

    def __init__(self, sock: socket.socket, arena: memoryview, num_threads: int) -> None:
        self._sock = sock
        self._arena = arena
        self._models: dict[int, ServedModel] = {}
        self._short: dict[int, float] = {}
        self._turn = threading.Lock()
        self._is_over = False
        self._regions = Regions()
        self._num_threads = num_threads
        self._orders: queue.SimpleQueue[Any] = queue.SimpleQueue()

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
            self._do(self._orders.get(), {})

    def _work(self) -> None:
        buffer = bytearray(PACKET_BYTES + 4096)
        view = memoryview(buffer)
        decode = msgspec.msgpack.Decoder(Task).decode
        tools: dict[int, _Tools] = {}
        turn, receive = self._turn, self._sock.recv_into
        while True:
            turn.acquire()
            has_turn = True
            try:
                while True:
                    num = 0 if self._is_over else receive(buffer)
                    if num == 0:
                        self._is_over = True
                        return
                    task = decode(view[:num])
                    if type(task) is not Infer and type(task) is not Detect:
                        self._orders.put(task)
                        continue
                    if type(task) is Detect or self._short.get(task.model, 1.0) > _SHORT_S:
                        turn.release()
                        has_turn = False
                    self._do(task, tools)
                    if not has_turn:
                        break
            finally:
                if has_turn:
                    turn.release()

    def _do(self, task: Any, tools: dict[int, _Tools]) -> None:
        try:
            if type(task) is Detect:
                self._detect(task, self._tools_for(task.model, tools))
            elif type(task) is Infer:
                self._infer(task, self._tools_for(task.model, tools))
            elif type(task) is Load:
                self._load(task)
            elif type(task) is Unload:
                served = self._models.pop(task.model, None)
                tools.pop(task.model, None)
                if served is not None:
                    served.close()
                self._send(Loaded(task.id, b"{}"))
            elif type(task) is Forget:
                self._regions.forget(task.key)
                self._send(Loaded(task.id, b"{}"))
            else:
                self._send(Loaded(task.id, self._status()))
        except SaccadeError as exc:
            self._send(Failed(task.id, problem_of(exc).kind, str(exc)))
        except Exception as exc:
            # The thread's boundary: the caller hears of it, the log holds the trace.
            sys.excepthook(type(exc), exc, exc.__traceback__)
            self._send(Failed(task.id, "internal", str(problem_of(exc))))

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
        served = open_model(task.name, task.path, options)
        self._models[task.model] = served
        try:
            self._warm_up(served)
        except BaseException:
            del self._models[task.model]
            served.close()
            raise
        self._send(Loaded(task.id, msgspec.json.encode(served.details())))

    def _warm_up(self, served: ServedModel) -> None:
        slot = served.engine.open_slot(served.size_hw)
        slot.run(served.plan.batch)

    def _infer(self, task: Infer, tools: _Tools) -> None:
        begun_ns = time.perf_counter_ns()
        runner = tools.tensors
        if runner is None:
            runner = tools.tensors = TensorRunner(tools.served)
        payload = (
            self._arena[task.block : task.block + task.capacity]
            if task.block >= 0
            else memoryview(task.payload)
        )
        feeds = {}
        for part in task.inputs:
            data = (
                payload[part.offset : part.offset + part.num_bytes]
                if part.region is None
                else self._regions.view(part.region)
            )
            feeds[part.name] = array_of(part, data)
        fed_ns = time.perf_counter_ns()
        outputs, items = runner.run(feeds)
        run_ns = time.perf_counter_ns()
        parts: list[TensorPart] = []
        pieces: list[memoryview] = []
        at = 0
        for name, region in task.outputs:
            array = np.ascontiguousarray(outputs[name])
            view = memoryview(array.reshape(-1).view(np.uint8).data)
            num_bytes = len(view)
            datatype = datatype_of(str(array.dtype))
            if region is None:
                parts.append(TensorPart(name, datatype, array.shape, at, num_bytes))
                pieces.append(view)
                at += num_bytes
            else:
                self._regions.write(region, view, name)
                parts.append(TensorPart(name, datatype, array.shape, 0, num_bytes, region))
        times = (0, fed_ns - begun_ns, run_ns - fed_ns, 0)
        done = Done(task.id, at, tuple(parts), times, items, items)
        self._answer(task, done, pieces)
        spent_s = (time.perf_counter_ns() - begun_ns) / 1e9
        before_s = self._short.get(task.model, spent_s)
        self._short[task.model] = before_s + 0.1 * (spent_s - before_s)

    def _detect(self, task: Detect, tools: _Tools) -> None:
        served = tools.served
        if served.detector is None:
            raise PictureError(
                f"a model must be a detector to be given pictures, {served.name} is not: "
                f"{served.why_no_detector}"
            )
        lane, slot = tools.open_lane()
        stages = tools.stages(task.thresholds)
        lane.times = times = StageTimes()
        if task.region is not None:
            data: Any = self._regions.view(task.region)
        elif task.block >= 0:
            data = self._arena[task.block : task.block + task.num_bytes]
        else:
            data = task.payload
        lane.is_encoded = True
        picture = lane.timed("decode", lane.decoder.decode, data)
        placement = stages.prepare(lane, picture, slot, 0)
        outputs = stages.infer(lane, slot, 1)
        found = stages.suppress(lane, outputs, [placement])[0]
        content = answer_of(task.form, found, placement.source_wh, picture, stages.contract)
        wall = times.wall_s
        spent = (
            int(wall["decode"] * 1e9),
            int(wall["prepare"] * 1e9),
            int(wall["infer"] * 1e9),
            int(wall["suppress"] * 1e9),
        )
        self._answer(task, Done(task.id, len(content), (), spent), [memoryview(content)])

    def _answer(self, task: Infer | Detect, done: Done, pieces: list[memoryview]) -> None:
        """Send a payload the cheapest way that it fits."""
        num = done.num_bytes
        if num <= INLINE_BYTES:
            payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._send(msgspec.structs.replace(done, payload=bytes(payload)))
            return
        if num <= task.capacity:
            at = task.block
            for piece in pieces:
                self._arena[at : at + len(piece)] = piece
                at += len(piece)
            self._send(msgspec.structs.replace(done, in_block=True))
            return
        count = 0
        for piece in pieces:
            for at in range(0, len(piece), _PIECE_BYTES):
                self._send(Piece(task.id, bytes(piece[at : at + _PIECE_BYTES])))
                count += 1
        self._send(msgspec.structs.replace(done, num_pieces=count))

    def _send(self, reply: Any) -> None:
        try:
            self._sock.send(msgspec.msgpack.encode(reply))
        except (BrokenPipeError, ConnectionResetError):
            self._is_over = True  # the front has gone; there is nobody to tell

    def _status(self) -> bytes:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm") as file:
            rss_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return json.dumps(
            {
                "pid": os.getpid(),
                "rss_bytes": rss_bytes,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "num_threads": self._num_threads,
                "num_models": len(self._models),
            }
        ).encode()


def main() -> None:
    """Work as an engine process."""
    socket_fd, arena_fd, num_threads = map(int, sys.argv[1:4])
    # The front decides when to stop; a Ctrl-C in the terminal reaches all processes of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sock = socket.socket(fileno=socket_fd)
    sock.setblocking(True)
    with single_threaded_cv2(), contextlib.closing(sock):
        EngineProcess(sock, map_arena(arena_fd), num_threads).run()
    # Engines of runtimes may hold threads of their own; there is nothing left to wait for.
    os._exit(0)


if __name__ == "__main__":
    main()
