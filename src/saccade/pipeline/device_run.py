"""A job on one GPU: an iterator over results, in order, and what it took."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.cuda.path import PathOptions, PathStats, Picture
from saccade.cuda.runtime import ALIGNMENT
from saccade.errors import BuildError, EngineError, PictureError
from saccade.pipeline.device_feed import DeviceFeed, Fed
from saccade.pipeline.device_memory import MemoryPart
from saccade.pipeline.stages import StageTimes
from saccade.types import Fallback, Plan, Result, Thresholds

if TYPE_CHECKING:
    from saccade.pipeline.device import DeviceSession
    from saccade.pipeline.sources import SourceItem

__all__ = ["DeviceReport", "DeviceRun", "fits", "fits_bytes", "named", "room_for"]

# A kernel may read past the end of a picture; sizes are rounded up.
_SLACK = 4 * ALIGNMENT


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a job did on one GPU.

    Attributes:
        device: "cuda:N" and the card's name.
        num_pictures: Pictures that went through the network.
        num_batches: Inferences.
        decoded_on_gpu: Pictures.
        decoded_on_cpu: Kind to number of pictures that the GPU does not decode.
        wall_s: Seconds from the first picture to the last result.
        gpu_busy_s: Seconds in which the network and what is around it ran.
        feeding_s: Seconds in which the thread that fills batches worked.
        decoding_s: Of these, seconds inside nvJPEG's calls.
        allocations_at_load: Blocks of device and pinned memory reserved before the first picture.
        allocations_while_running: Reserved after the first batch; more than 0 only where pictures
            came that are larger than any before.
        memory: By part, what was predicted before load and what was measured.
    """

    device: str
    num_pictures: int
    num_batches: int
    decoded_on_gpu: int
    decoded_on_cpu: dict[str, int]
    wall_s: float
    gpu_busy_s: float
    feeding_s: float
    decoding_s: float
    allocations_at_load: int
    allocations_while_running: int
    memory: tuple[MemoryPart, ...]

    @property
    def gpu_busy(self) -> float:
        """Share of the time in which the GPU worked on batches."""
        return self.gpu_busy_s / self.wall_s if self.wall_s else 0.0

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """What ran on the CPU in place of the GPU."""
        return tuple(
            Fallback(f"decoding of {number} {kind}", "on the GPU", "on the CPU")
            for kind, number in sorted(self.decoded_on_cpu.items())
        )


def fits(options: PathOptions, fed: Fed) -> bool:
    """Whether a picture fits the room of a batch, which must be told in the options."""
    return fits_bytes(options, fed.num_bytes, is_encoded=isinstance(fed.picture, bytes))


def fits_bytes(options: PathOptions, num_bytes: int, *, is_encoded: bool) -> bool:
    """Whether pixels of so many bytes fit the room of a batch, which must be told in the options.

    Args:
        options: Of the path.
        num_bytes: Of the picture's pixels.
        is_encoded: Whether the GPU decodes it.
    """
    assert options.source_bytes is not None
    assert options.staging_bytes is not None
    room = options.source_bytes if is_encoded else min(options.source_bytes, options.staging_bytes)
    return _needed(num_bytes) <= room


def _needed(num_bytes: int) -> int:
    """Bytes that a picture of so many takes in device memory, where rows may be padded."""
    return num_bytes + num_bytes // 16 + _SLACK


def room_for(options: PathOptions, num_bytes: int) -> PathOptions:
    """Options with room for one picture of so many bytes."""
    wanted = -(-_needed(num_bytes) // (1 << 20)) << 20
    return dataclasses.replace(
        options,
        source_bytes=max(wanted, options.source_bytes or 0),
        staging_bytes=max(wanted, options.staging_bytes or 0),
    )


class DeviceRun(Iterator[Result]):
    """Results of one job, in the order of its pictures.

    Where a picture comes that does not fit the room of a batch, the batches under way are finished
    and the room is made anew, larger; if there is no memory for that, the picture is an error.

    Attributes:
        plan: How it runs.
        engine_fallbacks: What the engine runs otherwise than the plan says.
        times: Zero: on a GPU the stages are one; see the report.

    Args:
        session: Used by this job alone until it is closed.
        source: Pictures in order.
        thresholds: What is kept.
        options: Of the path.
        workers: Threads that read files and decode what the GPU cannot.
    """

    def __init__(
        self,
        session: DeviceSession,
        source: Iterator[SourceItem],
        thresholds: Thresholds,
        options: PathOptions,
        *,
        workers: int,
    ) -> None:
        self.plan: Plan = session.plan
        self.engine_fallbacks = session.fallbacks
        self.times = StageTimes()
        self._session = session
        self._thresholds = thresholds
        self._options = options
        self._path = session.path(thresholds, options)
        self._before = dataclasses.replace(self._path.stats)
        self._at_load = self._path.num_allocations
        self._warm: int | None = None
        self._grown = 0
        self._feed = DeviceFeed(
            source,
            session.contract.input.color,
            max_pixels=options.max_pixels,
            workers=workers,
            decodes_on_gpu=options.decodes_on_gpu,
        )
        self._done = PathStats()
        self._began_s = time.perf_counter()
        self._ended_s: float | None = None
        self._results = self._work()

    def __next__(self) -> Result:
        try:
            return next(self._results)
        except StopIteration:
            self._end()
            raise
        except EngineError:
            self._session.mark_lost()
            raise

    def _end(self) -> None:
        if self._ended_s is None:
            self._ended_s = time.perf_counter()
            self._session.measure()

    def _work(self) -> Iterator[Result]:
        waiting: deque[SourceItem] = deque()
        # The picture that did not fit the room.
        held: deque[Fed] = deque()
        is_over = False

        def pictures() -> Iterator[Picture]:
            nonlocal is_over
            while True:
                fed = held.popleft() if held else next(self._feed, None)
                if fed is None:
                    is_over = True
                    return
                if not fits(self._options, fed):
                    held.append(fed)
                    return
                waiting.append(fed.item)
                yield fed.picture

        while not is_over:
            path = self._path
            # Closed here and not some time later: the path does one job at a time.
            running: Any = path.run(pictures())
            with contextlib.closing(running) as results:
                for result in results:
                    if self._warm is None and path.stats.num_batches > self._before.num_batches:
                        self._warm = path.num_allocations
                    yield named(result, waiting.popleft())
            if held:
                yield from self._grow(held)

    def _grow(self, held: deque[Fed]) -> Iterator[Result]:
        """Make room for the picture that did not fit, or give its error in its place."""
        fed, before = held[0], self._options
        self._keep_stats()
        try:
            self._options = room_for(before, fed.num_bytes)
            self._path = self._session.path(self._thresholds, self._options)
        except (BuildError, EngineError) as exc:
            held.clear()
            self._options = before
            self._path = self._session.path(self._thresholds, before)
            yield Result(
                fed.item.index,
                fed.item.name,
                error=PictureError(
                    f"{fed.item.name}: a picture must fit into the GPU's memory, its pixels have "
                    f"{fed.num_bytes} bytes ({exc}); make it smaller, or lower the batch"
                ),
            )
        self._grown += self._path.num_allocations
        self._before = dataclasses.replace(self._path.stats)
        self._warm = self._path.num_allocations

    def _keep_stats(self) -> None:
        """Add what the path has done since the last time to the sums."""
        path = self._path
        for field in dataclasses.fields(PathStats):
            more = getattr(path.stats, field.name) - getattr(self._before, field.name)
            setattr(self._done, field.name, getattr(self._done, field.name) + more)
        self._grown += path.num_allocations - (self._warm or path.num_allocations)
        self._before = dataclasses.replace(path.stats)
        self._warm = path.num_allocations

    @property
    def reports(self) -> tuple[DeviceReport, ...]:
        """What was done so far: one report."""
        return (self.report(),)

    def report(self) -> DeviceReport:
        """What was done so far."""
        self._keep_stats()
        done, device = self._done, self._session.device
        return DeviceReport(
            device=f"{self._session.plan.device} ({device.name})",
            num_pictures=done.num_pictures,
            num_batches=done.num_batches,
            decoded_on_gpu=done.decoded_on_gpu,
            decoded_on_cpu=dict(self._feed.on_cpu),
            wall_s=(self._ended_s or time.perf_counter()) - self._began_s,
            gpu_busy_s=done.gpu_busy_s,
            feeding_s=done.feeding_s,
            decoding_s=done.decoding_s,
            allocations_at_load=self._at_load,
            allocations_while_running=self._grown,
            memory=self._session.memory.parts(),
        )

    def close(self) -> None:
        """Stop the job. Results that were not fetched are dropped."""
        self._feed.close()
        self._results.close()  # type: ignore[attr-defined]  # a generator


def named(result: Result, item: SourceItem) -> Result:
    """A result with the name and place of its picture."""
    error = result.error
    if isinstance(error, PictureError) and item.kind == "path" and item.name not in str(error):
        error = PictureError(f"{item.name}: {error}")
    return dataclasses.replace(result, index=item.index, path=item.name, error=error)
