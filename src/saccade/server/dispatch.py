"""The queue: what is admitted, what goes next, and to which engine process.

Requests wait here, not in engine processes, which are given just enough not to run dry. So a
request that is cancelled, or whose time is up, costs nothing; one of higher priority overtakes at
once; and no model starves another: among models that have work waiting, the one that has had the
least time of the engines goes next.

Source: start-time fair queueing, P. Goyal, H. M. Vin, H. Cheng, 1996.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from saccade.server.arena import Arena
from saccade.server.board import Board
from saccade.server.engines import Line
from saccade.server.models import ModelEntry
from saccade.server.problems import Problem
from saccade.server.stats import Stats
from saccade.server.wire import INLINE_BYTES, MAX_INLINE_WAITING_BYTES, SHORT_S, Done

__all__ = ["DEFAULT_PRIORITY", "DEFAULT_SCHEDULE", "Dispatcher", "Job", "Schedule"]

DEFAULT_PRIORITY = 5
# An engine process holds at least two requests per thread, and as many short ones as make up this
# much work per thread: while an answer travels here and the next request there, it has work.
_AHEAD_S = 0.002
_MAX_AHEAD = 256
_now = time.perf_counter


class Schedule(NamedTuple):
    """When a request wants its answer.

    Attributes:
        priority: 1 goes first, 9 last.
        timeout_s: After how long the caller does not want it any more; 0 for never.
    """

    priority: int = DEFAULT_PRIORITY
    timeout_s: float = 0.0


DEFAULT_SCHEDULE = Schedule()


class Job:
    """One run of one model, from its being taken to its answer.

    Args:
        entry: The model.
        parts: The payload in pieces.
        num_bytes: Its length.
        make: Makes the message: (id, payload, block, size, arrived_s) -> task.
        on_end: Called once, with Done and the answer's payload, or with a Problem and b"".
        schedule: When.

    Attributes:
        block: The arena block that the payload is in already, or -1. It is the job's until an
            engine process has it.
    """

    __slots__ = (
        "arrived_s",
        "block",
        "deadline_s",
        "entry",
        "is_over",
        "make",
        "num_bytes",
        "on_end",
        "parts",
        "priority",
        "sent_s",
        "timer",
    )

    def __init__(
        self,
        entry: ModelEntry,
        parts: Sequence[bytes | memoryview],
        num_bytes: int,
        make: Callable[[int, bytes, int, int, float], Any],
        on_end: Callable[[Any, bytes], None],
        schedule: Schedule = DEFAULT_SCHEDULE,
    ) -> None:
        self.entry = entry
        self.parts = parts
        self.num_bytes = num_bytes
        self.make = make
        self.on_end = on_end
        self.block = -1
        self.priority = schedule.priority
        self.arrived_s = _now()
        timeout_s = schedule.timeout_s
        self.deadline_s = self.arrived_s + timeout_s if timeout_s else math.inf
        self.sent_s = 0.0
        self.is_over = False
        self.timer: asyncio.TimerHandle | None = None


class _Queue:
    """What waits for one model."""

    __slots__ = ("entry", "heap", "num_live", "start_s")

    def __init__(self, entry: ModelEntry) -> None:
        self.entry = entry
        self.heap: list[tuple[int, int, Job]] = []
        self.num_live = 0
        self.start_s = 0.0  # virtual time at which its next request starts


class Dispatcher:
    """Takes jobs and hands them to engine processes.

    Args:
        arena: Where payloads go that are too long for a message.
        stats: Where is counted.
        loop: The front's.
        max_queue: Jobs that may wait per model.
        max_queue_bytes: Bytes that may wait in all.
        board: Where fronts say what engine processes hold; None if there is one front.

    Attributes:
        engines: The processes.
        ahead: Requests per thread that an engine process is given.
    """

    def __init__(
        self,
        arena: Arena,
        stats: Stats,
        loop: asyncio.AbstractEventLoop,
        *,
        max_queue: int,
        max_queue_bytes: int,
        board: Board | None = None,
    ) -> None:
        self.engines: list[Any] = []
        self._board = board
        self.ahead = 2
        self.num_open = 0
        self._arena = arena
        self._stats = stats
        self._loop = loop
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._queued_bytes = 0
        self._queues: dict[int, _Queue] = {}
        self._num_queued = 0
        self._virtual_s = 0.0
        self._numbers = itertools.count()
        self._ahead_s: dict[int, float] = {}

    def submit(self, job: Job) -> None:
        """Take a job: it goes to an engine process, or waits, or ends at once with a Problem."""
        entry = job.entry
        entry.num_open += 1
        self.num_open += 1
        if not self._num_queued:
            engine = self._free_engine()
            if engine is not None and self._hand_over(job, engine):
                return
        if self._is_full(entry, job):
            self._end(job, self._overloaded(entry), b"")
            return
        queue = self._queues.get(entry.key)
        if queue is None:
            queue = self._queues[entry.key] = _Queue(entry)
        if not queue.num_live:
            queue.start_s = max(queue.start_s, self._virtual_s)
        heapq.heappush(queue.heap, (job.priority, next(self._numbers), job))
        queue.num_live += 1
        self._num_queued += 1
        self._queued_bytes += job.num_bytes
        entry.stats.num_queued += 1
        if job.deadline_s < math.inf:
            delay_s = job.deadline_s - _now()
            job.timer = self._loop.call_later(max(0.0, delay_s), self._time_up, job)

    def cancel(self, job: Job) -> None:
        """The caller has gone. What has not begun never will."""
        if not job.is_over:
            problem = Problem("unavailable", "a caller must wait for its answer", "it left", "")
            problem.reason = "cancelled"
            self._drop(job, problem)

    def pump(self) -> None:
        """Hand over what can be."""
        while self._num_queued:
            engine = self._free_engine()
            if engine is None:
                return
            queue = self._next_queue()
            job = self._pop(queue)
            if not self._hand_over(job, engine):
                heapq.heappush(queue.heap, (job.priority, -next(self._numbers), job))
                self._count_queued(queue, job, 1)
                return

    def suit(self, entry: ModelEntry) -> None:
        """Hold enough in engine processes for this model too: a batch gathers while one runs."""
        self.ahead = max(self.ahead, entry.details["plan"]["batch"] + 1)

    def forget(self, entry: ModelEntry) -> None:
        """Drop the queue of a model that has no requests any more."""
        self._queues.pop(entry.key, None)

    # Choosing.

    def _free_engine(self) -> Line | None:
        best: Line | None = None
        fewest = 1 << 30
        board = self._board
        for engine in self.engines:
            if not engine.is_up:
                continue
            num = len(engine.tickets) if board is None else board.held_by_all(engine.number)
            if num < fewest:
                best, fewest = engine, num
        if best is None or fewest < self.ahead * best.num_threads:
            return best
        # Whatever other fronts do, each has its share.
        if board is not None and len(best.tickets) * board.num_fronts < (
            self.ahead * best.num_threads
        ):
            return best
        ahead_s = self._ahead_s.get(best.number, 0.0)
        if fewest < _MAX_AHEAD and ahead_s < _AHEAD_S * best.num_threads:
            return best
        return None

    def _next_queue(self) -> _Queue:
        live = [queue for queue in self._queues.values() if queue.num_live]
        return live[0] if len(live) == 1 else min(live, key=lambda queue: queue.start_s)

    def _pop(self, queue: _Queue) -> Job:
        while True:
            job = heapq.heappop(queue.heap)[2]
            if not job.is_over:
                self._count_queued(queue, job, -1)
                return job

    def _count_queued(self, queue: _Queue, job: Job, by: int) -> None:
        queue.num_live += by
        self._num_queued += by
        self._queued_bytes += by * job.num_bytes
        queue.entry.stats.num_queued += by

    def _is_full(self, entry: ModelEntry, job: Job) -> bool:
        if self._queued_bytes + job.num_bytes > self._max_queue_bytes:
            return True
        return entry.stats.num_queued >= self._max_queue

    def _overloaded(self, entry: ModelEntry) -> Problem:
        threads = sum(engine.num_threads for engine in self.engines) or 1
        wait_s = entry.stats.num_queued * entry.cost_s / threads
        return Problem(
            "overloaded",
            f"at most {self._max_queue} requests may wait for model {entry.name!r}",
            f"{entry.stats.num_queued} do",
            "try again later",
            retry_after_s=max(1, math.ceil(wait_s)),
        )

    # Handing over and ending.

    def _hand_over(self, job: Job, engine: Line) -> bool:
        """Send a job; False if there is no room for its payload now."""
        block, payload = job.block, b""
        num_bytes = job.num_bytes
        room = max(num_bytes, min(job.entry.answer_bytes, self._arena.num_bytes // 8))
        waiting = engine.waiting_bytes + num_bytes
        if block >= 0:
            num_bytes, job.block = 0, -1
        elif room > INLINE_BYTES or (num_bytes and waiting > MAX_INLINE_WAITING_BYTES):
            taken = self._arena.take(room)
            if taken is None:
                return False
            block = at = taken
            view = self._arena.view
            for part in job.parts:
                view[at : at + len(part)] = part
                at += len(part)
            num_bytes = 0
        elif num_bytes:
            payload = job.parts[0] if len(job.parts) == 1 else b"".join(job.parts)  # type: ignore[assignment]
        job.parts = ()
        entry, make, number, arrived_s = job.entry, job.make, engine.number, job.arrived_s
        board = self._board
        queue = self._queues.get(entry.key)
        cost_s = entry.cost_s
        if queue is not None:
            self._virtual_s = max(self._virtual_s, queue.start_s)
            queue.start_s = self._virtual_s + cost_s
        self._ahead_s[number] = self._ahead_s.get(number, 0.0) + cost_s
        job.sent_s = _now()
        entry.stats.num_running += 1

        def on_reply(reply: Any, content: bytes) -> None:
            self._ahead_s[number] -= cost_s
            entry.stats.num_running -= 1
            if not engine.tickets:
                self._ahead_s[number] = 0.0
            if board is not None:
                board.hold(number, len(engine.tickets))
            if not job.is_over:
                self._end(job, reply, content)
            if self._num_queued:
                self.pump()

        engine.send(
            lambda i, b, c: make(i, payload, b, c, arrived_s),
            on_reply,
            block=block,
            num_bytes=num_bytes,
            is_short=cost_s < SHORT_S,
        )
        if board is not None:
            board.hold(number, len(engine.tickets))
        return True

    def _time_up(self, job: Job) -> None:
        if job.is_over:
            return
        waited_ms = (_now() - job.arrived_s) * 1000
        self._drop(
            job,
            Problem(
                "timeout",
                "a request must be answered within its timeout",
                f"this one waited for {waited_ms:.0f} ms",
                "allow more time, or send less",
            ),
        )

    def _drop(self, job: Job, problem: Problem) -> None:
        """End a job from outside. If it waits, it stays in its heap until it comes up."""
        if not job.sent_s:
            queue = self._queues.get(job.entry.key)
            if queue is not None:
                self._count_queued(queue, job, -1)
                self._tidy(queue)
        self._end(job, problem, b"")

    def _tidy(self, queue: _Queue) -> None:
        """Keep a heap from holding mostly jobs that are over."""
        if len(queue.heap) > 64 and len(queue.heap) > 2 * queue.num_live:
            queue.heap = [item for item in queue.heap if not item[2].is_over]
            heapq.heapify(queue.heap)

    def _end(self, job: Job, reply: Any, content: bytes) -> None:
        job.is_over = True
        job.parts = ()
        if job.block >= 0:
            self._arena.give_back(job.block)
            job.block = -1
        if job.timer is not None:
            job.timer.cancel()
        entry, now_s = job.entry, _now()
        entry.num_open -= 1
        self.num_open -= 1
        self._count(job, entry, reply, now_s)
        job.on_end(reply, content)

    def _count(self, job: Job, entry: ModelEntry, reply: Any, now_s: float) -> None:
        stats, total_s = entry.stats, now_s - job.arrived_s
        if type(reply) is not Done:
            stats.fail(reply.reason, total_s)
            return
        decode, prepare, infer, suppress = reply.times_ns
        spent_s = (decode + prepare + infer + suppress) / 1e9
        entry.cost_s += 0.1 * (spent_s + 20e-6 - entry.cost_s)
        # The next answers of this model get a block that they fit into.
        entry.answer_bytes = max(entry.answer_bytes, reply.num_bytes)
        stats.num_ok += 1
        stats.num_items += reply.items
        stats.ok_ns += int(total_s * 1e9)
        stages = stats.stages
        stages["queue"].observe(max(0.0, total_s - spent_s))
        if decode or suppress:
            stages["decode"].observe(decode / 1e9)
            stages["suppress"].observe(suppress / 1e9)
        stages["prepare"].observe(prepare / 1e9)
        stages["infer"].observe(infer / 1e9)
        stages["total"].observe(total_s)
        share = reply.items / reply.batch
        stats.num_executions += share
        sums = stats.batches.setdefault(reply.batch, [0.0, 0, 0, 0])
        sums[0] += share
        sums[1] += int((decode + prepare) * share)
        sums[2] += int(infer * share)
        sums[3] += int(suppress * share)
        stats.last_ms = int(time.time() * 1000)
