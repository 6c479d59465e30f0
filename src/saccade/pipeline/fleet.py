"""One job on several devices: one process each, pictures dealt out, results in order.

    this process          chunk 0        chunk 1        chunk 2    ...   results 0, 1, 2, ...
                             |              |              |                  ^
    its own process       cuda:0         cuda:1         cuda:0    --------->  in order

A process gets its next chunk when it returns one, so a faster card does more. A process that dies
or fails ends the job with an error, after the results before the first picture that is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Any

from saccade.errors import EngineError, InputError, SaccadeError
from saccade.pipeline.devices import device_name
from saccade.pipeline.fleet_wire import Job, unpacked
from saccade.pipeline.sources import SourceItem
from saccade.pipeline.stages import StageTimes
from saccade.profiler.machine import num_cores
from saccade.types import Fallback, Result

if TYPE_CHECKING:
    from saccade.pipeline.detector import Detector
    from saccade.pipeline.device_run import DeviceReport
    from saccade.pipeline.run import RunOptions
    from saccade.types import Thresholds

__all__ = ["Fleet", "start_fleet"]

_COMMAND = (sys.executable, "-m", "saccade.pipeline.fleet_worker")
_MIN_CHUNK = 16
# Chunks that a process may hold: what its slots and readers keep busy, and one to spare.
_CREDITS = 12
_GRACE_S = 10.0


def start_fleet(
    detector: Detector,
    source: Iterator[SourceItem],
    thresholds: Thresholds,
    options: RunOptions,
) -> Fleet:
    """Start one process per device of the options.

    Raises:
        InputError: A device has no such name, or a GPU is named twice.
        SaccadeError: A process could not load.
    """
    devices = tuple(device_name(device) for device in options.devices)
    twice = sorted({d for d in devices if d != "cpu" and devices.count(d) > 1})
    if twice:
        raise InputError(
            f"--devices must name each GPU once, {', '.join(twice)} is named more often; leave "
            "the repeats out, one process keeps a GPU busy"
        )
    cores = max(1, num_cores() // len(devices))
    own = dataclasses.replace(
        options,
        devices=(),
        is_strict=False,
        workers=options.workers or cores,
    )
    jobs = [
        Job(
            detector.model,
            detector.contract,
            dataclasses.replace(detector.plan(batch=options.batch), device=device),
            thresholds,
            own if device != "cpu" else dataclasses.replace(own, streams=own.streams or cores),
            detector.gpu_memory,
        )
        for device in devices
    ]
    return Fleet(jobs, source)


@dataclass(slots=True, eq=False)
class _Member:
    """One process.

    Attributes:
        device: What it runs on.
        process: Itself.
        pipe: To it and from it.
        chunks: Numbers of the chunks it holds, oldest first.
        is_told: Whether it knows that nothing more comes.
        is_done: Whether it has said that it is done.
    """

    device: str
    process: subprocess.Popen[bytes]
    pipe: Connection
    chunks: deque[int] = field(default_factory=deque)
    is_told: bool = False
    is_done: bool = False

    def exit_words(self) -> str:
        """What ended the process."""
        try:
            code = self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its pipe and does not end"
        if code >= 0:
            return f"ended by itself with exit code {code}"
        name = signal.Signals(-code).name
        why = ", most likely because memory ran out" if code == -signal.SIGKILL else ""
        return f"was ended by signal {-code} ({name}){why}"


class Fleet(Iterator[Result]):
    """Results of a job that several processes share, in the order of its pictures.

    Args:
        jobs: One per process: what to load, and how it runs.
        source: Pictures in order.

    Attributes:
        plan: Of the first process.
        times: Seconds per stage, summed over all processes; complete at the end.
        reports: One per GPU, complete at the end.
        fallbacks: What ran otherwise than the plans say.

    Raises:
        SaccadeError: A process could not load; the others are ended.
    """

    def __init__(self, jobs: Sequence[Job], source: Iterator[SourceItem]) -> None:
        self.plan = jobs[0].plan
        self.times = StageTimes()
        self.reports: list[DeviceReport] = []
        self.fallbacks: tuple[Fallback, ...] = ()
        self._source = source
        self._chunk_size = max(_MIN_CHUNK, *(job.plan.batch for job in jobs))
        self._items: dict[int, list[SourceItem]] = {}
        self._ready: dict[int, list[Result]] = {}
        self._results: deque[Result] = deque()
        self._num_dealt = self._num_emitted = 0
        self._failure: BaseException | None = None
        self._failed_at: int | None = None
        self._is_exhausted = False
        self._members: list[_Member] = []
        self._window = 4 * _CREDITS * len(jobs)
        try:
            for job in jobs:
                self._members.append(_start(job))
            for member in self._members:
                self._greet(member)
        except BaseException:
            self.close()
            raise

    def _greet(self, member: _Member) -> None:
        """Wait until a process has loaded."""
        try:
            kind, told = member.pipe.recv()
        except (EOFError, OSError):
            raise EngineError(
                f"the process for {member.device} must load the network, it "
                f"{member.exit_words()}; look at what it printed above"
            ) from None
        if kind == "failed":
            raise told

    def __next__(self) -> Result:
        while not self._results:
            if self._emit():
                continue
            if self._failed_at == self._num_emitted:
                failure = self._failure
                self.close()
                assert failure is not None
                raise failure
            if all(member.is_done for member in self._members):
                if self._failure is not None:
                    raise self._failure
                raise StopIteration
            self._deal()
            self._receive()
        return self._results.popleft()

    def _emit(self) -> bool:
        done = self._ready.pop(self._num_emitted, None)
        if done is None:
            return False
        is_whole = len(done) == len(self._items[self._num_emitted])
        self._results.extend(done)
        if is_whole:
            del self._items[self._num_emitted]
            self._num_emitted += 1
        return True

    def _deal(self) -> None:
        """Give chunks to whoever may have one, the least busy first.

        The process that holds up the order may always have one: what it holds may wait for more
        to fill its batch.
        """
        while self._failure is None and not self._is_exhausted:
            able = [m for m in self._members if len(m.chunks) < _CREDITS and not m.is_done]
            if self._num_dealt - self._num_emitted >= self._window:
                able = [m for m in able if self._num_emitted in m.chunks]
            if not able:
                break
            chunk = self._next_chunk()
            if chunk:
                self._send(min(able, key=lambda m: len(m.chunks)), chunk)
        if self._is_exhausted or self._failure is not None:
            for member in self._members:
                if not member.is_told:
                    member.is_told = True
                    with contextlib.suppress(OSError):  # its end will be read
                        member.pipe.send(("end", None))

    def _next_chunk(self) -> list[SourceItem]:
        chunk: list[SourceItem] = []
        try:
            chunk.extend(islice(self._source, self._chunk_size))
        except BaseException as exc:  # raised after the results before it
            self._failure = self._failure or exc
        self._is_exhausted = self._is_exhausted or len(chunk) < self._chunk_size
        return chunk

    def _send(self, member: _Member, chunk: list[SourceItem]) -> None:
        number, self._num_dealt = self._num_dealt, self._num_dealt + 1
        self._items[number] = [_named(item) for item in chunk]
        member.chunks.append(number)
        with contextlib.suppress(OSError):  # its end will be read
            member.pipe.send(("chunk", chunk))

    def _receive(self) -> None:
        """Take in what has come, waiting for something if nothing has."""
        pipes: dict[Any, _Member] = {m.pipe: m for m in self._members if not m.is_done}
        for pipe in wait(list(pipes)):
            member = pipes[pipe]
            try:
                kind, told = member.pipe.recv()
            except (EOFError, OSError):
                self._lose(member)
                continue
            if kind == "results":
                self._take(member, told)
            elif kind == "failed":
                self._fail(member, told)
            else:
                member.is_done = True
                self.times.add(told["times"])
                self.fallbacks = tuple(dict.fromkeys((*self.fallbacks, *told["fallbacks"])))
                if told["report"] is not None:
                    self.reports.append(told["report"])

    def _take(self, member: _Member, told: Any) -> None:
        number = member.chunks[0]
        items = self._items[number]
        self._ready[number] = unpacked(told, items)
        if len(self._ready[number]) == len(items):
            member.chunks.popleft()

    def _lose(self, member: _Member) -> None:
        num = sum(len(self._items[number]) for number in member.chunks)
        self._fail(
            member,
            EngineError(
                f"the process for {member.device} must stay alive, it {member.exit_words()} with "
                f"up to {num} pictures under way; the results before the first of these are kept: "
                "go on with --resume, and leave that device out if it comes back"
            ),
        )

    def _fail(self, member: _Member, error: SaccadeError) -> None:
        member.is_done = True
        at = member.chunks[0] if member.chunks else self._num_dealt
        if self._failed_at is None or at < self._failed_at:
            self._failed_at, self._failure = at, error

    def close(self) -> None:
        """End the processes. Results that were not fetched are dropped."""
        for member in self._members:
            member.is_done = True
            member.pipe.close()
            if member.process.poll() is None:
                member.process.terminate()
        for member in self._members:
            try:
                member.process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()


def _named(item: SourceItem) -> SourceItem:
    return SourceItem(item.index, item.name, item.kind, None, item.error)


def _start(job: Job) -> _Member:
    ours, theirs = Pipe()
    os.set_inheritable(theirs.fileno(), True)
    process = subprocess.Popen(
        [*_COMMAND, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    member = _Member(job.plan.device, process, ours)
    with contextlib.suppress(OSError):  # its end will be read
        ours.send(job)
    return member
