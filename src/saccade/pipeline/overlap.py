"""Overlapped execution: every thread takes whatever is furthest downstream and ready.

A pool of threads shares one job. Each thread asks for its next task and gets, in this order:

1. a full batch that waits for the engine (if fewer than `streams` are running),
2. the next picture, to be decoded and written into the batch that is being filled,
3. nothing: it sleeps until one of the above turns up.

So no core idles while there is work, and a picture that was begun is finished before another is
begun. With batches of one, a thread takes a picture from file to boxes without handing it over,
which keeps its pixels in that core's cache.

Order: results leave in the order of their pictures. Back-pressure: at most `window` pictures lie
between the oldest result that was not fetched and the newest picture that was begun; memory is
bounded by that, not by the job.
"""

from __future__ import annotations

import enum
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from saccade.errors import PictureError
from saccade.pipeline.stages import Lane, Stages, StageTimes
from saccade.types import Placement, Result, Slot

if TYPE_CHECKING:
    from saccade.pipeline.sources import SourceItem

__all__ = ["Overlapped"]


class _Numbered(NamedTuple):
    """A picture and its place in the order of results."""

    place: int
    item: SourceItem


class _Task(enum.Enum):
    PULL = enum.auto()
    STOP = enum.auto()


@dataclass(slots=True, eq=False)
class _Batch:
    """A slot that is being filled: its pictures, by position."""

    slot: Slot
    items: list[_Numbered] = field(default_factory=list)
    placements: list[Placement | None] = field(default_factory=list)
    num_prepared: int = 0

    @property
    def is_prepared(self) -> bool:
        return self.num_prepared == len(self.items)


class Overlapped:
    """An iterator over results; its threads live as long as it is not exhausted or closed.

    Args:
        stages: What happens to each picture.
        slots: Static buffers, all of one engine; more than `streams` lets one batch be filled
            while others run.
        source: Pictures in order.
        batch: Pictures per inference.
        streams: Inferences at the same time.
        workers: Threads.
    """

    def __init__(
        self,
        stages: Stages,
        slots: list[Slot],
        source: Iterator[SourceItem],
        *,
        batch: int,
        streams: int,
        workers: int,
    ) -> None:
        self.times = StageTimes()
        self._stages = stages
        self._source = source
        self._batch_size = batch
        self._streams = streams
        # Enough for every slot to fill up and every thread to hold one, twice over.
        self._window = 2 * (batch * len(slots) + workers)
        lock = threading.Lock()
        self._workers_wake = threading.Condition(lock)
        self._consumer_wakes = threading.Condition(lock)
        self._free = list(slots)
        self._filling: _Batch | None = None
        self._ready: deque[_Batch] = deque()
        self._running = 0
        self._decoding = 0
        self._is_pulling = False
        self._is_exhausted = False
        self._num_pulled = 0
        self._num_emitted = 0
        self._results: dict[int, Result] = {}
        self._failure: BaseException | None = None
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"saccade-worker-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        with self._consumer_wakes:
            while self._num_emitted not in self._results:
                if self._is_exhausted and self._num_emitted == self._num_pulled:
                    break
                if self._is_closed:
                    break
                self._consumer_wakes.wait()
            result = self._results.pop(self._num_emitted, None)
            if result is not None:
                self._num_emitted += 1
                self._workers_wake.notify_all()
                return result
        self.close()
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def close(self) -> None:
        """Stop the threads and wait for them. Results that were not fetched are dropped."""
        with self._workers_wake:
            self._is_closed = True
            self._workers_wake.notify_all()
        for thread in self._threads:
            thread.join()
        self._results.clear()

    # What follows runs on the worker threads. Methods that end in _locked hold the lock.

    def _work(self) -> None:
        lane = Lane(self._stages)
        try:
            while True:
                task = self._next_task()
                if task is _Task.STOP:
                    break
                if isinstance(task, _Batch):
                    self._run(lane, task)
                else:
                    self._pull(lane)
        except BaseException as exc:  # a thread's boundary: forwarded to the consumer
            with self._workers_wake:
                self._failure = self._failure or exc
                self._is_closed = True
                self._workers_wake.notify_all()
                self._consumer_wakes.notify_all()
        finally:
            with self._workers_wake:
                self.times.add(lane.times)

    def _next_task(self) -> _Batch | _Task:
        with self._workers_wake:
            while True:
                if self._is_closed:
                    return _Task.STOP
                if self._ready and self._running < self._streams:
                    self._running += 1
                    return self._ready.popleft()
                if self._may_pull_locked():
                    self._is_pulling = True
                    return _Task.PULL
                if self._close_partial_locked():
                    continue
                if self._is_finished_locked():
                    self._workers_wake.notify_all()
                    self._consumer_wakes.notify_all()
                    return _Task.STOP
                self._workers_wake.wait()

    def _may_pull_locked(self) -> bool:
        has_room = self._num_pulled < self._num_emitted + self._window
        return has_room and not self._is_exhausted and not self._is_pulling

    def _close_partial_locked(self) -> bool:
        """Send a part-filled batch on its way if nothing can fill it up: the source has ended, or
        the window is full of results that wait for it."""
        batch = self._filling
        if batch is None or self._decoding or self._is_pulling or not batch.is_prepared:
            return False
        self._filling = None
        self._ready.append(batch)
        return True

    def _is_finished_locked(self) -> bool:
        is_idle = not (self._decoding or self._running or self._ready or self._filling)
        return self._is_exhausted and not self._is_pulling and is_idle

    def _pull(self, lane: Lane) -> None:
        """Take the next picture and bring it as far as a batch. One thread pulls at a time, but
        not while it decodes."""
        try:
            item = next(self._source, None)
        except BaseException as exc:  # forwarded: raised after the results before it
            self._failure, item = exc, None
        with self._workers_wake:
            self._is_pulling = False
            if item is None:
                self._is_exhausted = True
                self._workers_wake.notify_all()
                self._consumer_wakes.notify_all()
                return
            numbered = _Numbered(self._num_pulled, item)
            self._num_pulled += 1
            self._decoding += 1
            self._workers_wake.notify_all()
        self._begin(lane, numbered)

    def _begin(self, lane: Lane, numbered: _Numbered) -> None:
        place, item = numbered
        try:
            picture = self._stages.decode(lane, item)
        except PictureError as exc:
            self._post({place: Result(item.index, item.name, error=exc)}, decoded=1)
            return
        batch, position = self._reserve(lane, numbered)
        if batch is None:
            return
        placement = self._stages.prepare(lane, picture, batch.slot, position)
        with self._workers_wake:
            batch.placements[position] = placement
            batch.num_prepared += 1
            self._decoding -= 1
            if len(batch.items) == self._batch_size and batch.is_prepared:
                self._ready.append(batch)
            self._workers_wake.notify_all()

    def _reserve(self, lane: Lane, numbered: _Numbered) -> tuple[_Batch | None, int]:
        """A position in the batch that is being filled. While all slots are busy this thread runs
        batches that are ready, since nothing else can free a slot."""
        while True:
            with self._workers_wake:
                while True:
                    if self._is_closed:
                        return None, 0
                    if self._filling is None and self._free:
                        self._filling = _Batch(self._free.pop())
                    if self._filling is not None:
                        return self._take_position_locked(numbered)
                    if self._ready and self._running < self._streams:
                        self._running += 1
                        ready = self._ready.popleft()
                        break
                    self._workers_wake.wait()
            self._run(lane, ready)

    def _take_position_locked(self, numbered: _Numbered) -> tuple[_Batch, int]:
        batch = self._filling
        assert batch is not None
        batch.items.append(numbered)
        batch.placements.append(None)
        if len(batch.items) == self._batch_size:
            self._filling = None
        return batch, len(batch.items) - 1

    def _run(self, lane: Lane, batch: _Batch) -> None:
        placements = [placement for placement in batch.placements if placement is not None]
        outputs = self._stages.infer(lane, batch.slot, len(placements))
        found = self._stages.suppress(lane, outputs, placements)
        results = {
            place: Result(item.index, item.name, placement.source_wh, detections)
            for (place, item), placement, detections in zip(
                batch.items, placements, found, strict=True
            )
        }
        self._post(results, freed=batch.slot)

    def _post(
        self, results: dict[int, Result], *, decoded: int = 0, freed: Slot | None = None
    ) -> None:
        with self._workers_wake:
            self._decoding -= decoded
            if freed is not None:
                self._running -= 1
                self._free.append(freed)
            self._results.update(results)
            if self._num_emitted in self._results:
                self._consumer_wakes.notify()
            self._workers_wake.notify_all()
