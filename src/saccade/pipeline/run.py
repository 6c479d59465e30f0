"""Run a detector over many pictures, serially or overlapped."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from saccade.errors import InputError, PictureError
from saccade.pipeline.overlap import Overlapped
from saccade.pipeline.sources import SourceItem, expand
from saccade.pipeline.stages import Lane, Stages, StageTimes
from saccade.profiler.machine import num_cores
from saccade.types import Fallback, Placement, Result, Slot, Thresholds
from saccade.vision.decode import DEFAULT_MAX_PIXELS
from saccade.vision.place import single_threaded_cv2

if TYPE_CHECKING:
    from saccade.pipeline.detector import Detector
    from saccade.pipeline.device_run import DeviceReport, DeviceRun
    from saccade.pipeline.fleet import Fleet

__all__ = ["Run", "RunOptions", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a job is run. None means: as the bundle was built, else as this machine suggests.

    Attributes:
        batch: Pictures per inference; default 1, or what the graph fixes. On a GPU default 32.
        streams: Inferences at the same time; default one per core. On a GPU batches in flight,
            default 4.
        threads: Threads inside one inference; default 1.
        workers: Threads that decode, prepare and suppress; default one per core. On a GPU they
            read files and decode what the GPU cannot.
        is_overlapped: False runs one stage of one picture after the other: the reference. On a
            GPU the network alone then runs there, everything around it on the CPU.
        is_strict: True raises the first picture's error instead of reporting it in its place.
        max_pixels: Larger pictures are refused before they are decoded.
        scaled_decode: Decode JPEGs much larger than the input at a fraction of their size. This
            changes answers; default no.
        devices: "cuda:0" and so on: one process for each, which share the job; the detector's own
            device is not used then. "cpu" may be given as well, also more than once.
    """

    batch: int | None = None
    streams: int | None = None
    threads: int | None = None
    workers: int | None = None
    is_overlapped: bool = True
    is_strict: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    scaled_decode: bool | None = None
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "streams", "threads", "workers", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    def settled(self, suggested: RunOptions | None) -> RunOptions:
        """These options with what they leave open taken from a bundle's; what is given wins.

        The batch, streams and workers stay open where neither says anything.
        """
        base = suggested or RunOptions()
        given = {
            name: getattr(self, name) if getattr(self, name) is not None else getattr(base, name)
            for name in ("batch", "streams", "workers", "threads", "scaled_decode")
        }
        given["threads"] = given["threads"] or 1
        given["scaled_decode"] = bool(given["scaled_decode"])
        return dataclasses.replace(self, **given)


def run(
    detector: Detector,
    inputs: Any,
    *,
    thresholds: Thresholds | None = None,
    options: RunOptions | None = None,
    **more: Any,
) -> Run:
    """Find objects in many pictures.

    Args:
        detector: From `saccade.load`.
        inputs: Files, folders, globs, lists, bytes or (h, w, 3) uint8 RGB arrays, alone or in a
            sequence; or an iterator of SourceItem.
        thresholds: In place of the contract's.
        options: How to run; or give the fields of RunOptions by name.

    Returns:
        An iterator of Result in the order of the inputs: each has detections or an error. Its
        threads end when it is exhausted, closed, or left as a context manager.

    Raises:
        InputError: The call is wrong. One bad picture is not: it is a Result with an error.
    """
    if options is None:
        options = RunOptions(**more)
    elif more:
        raise InputError(f"give options or {', '.join(sorted(more))}, not both")
    source = inputs if isinstance(inputs, Iterator) else iter(expand(inputs))
    return Run(detector, source, thresholds or detector.contract.detect, options)


class Run:
    """A job under way: an iterator over results, and what the stages took so far.

    Attributes:
        plan: How it runs; with several devices, on the first.
        engine_fallbacks: What the engine runs otherwise than the plan says.
    """

    def __init__(
        self,
        detector: Detector,
        source: Iterator[SourceItem],
        thresholds: Thresholds,
        options: RunOptions,
    ) -> None:
        options = options.settled(detector.suggested)
        self._is_strict = options.is_strict
        self._is_closed = False
        self.engine_fallbacks: tuple[Fallback, ...] = ()
        # What is entered here is left in close().
        self._exit = contextlib.ExitStack()
        try:
            if options.devices:
                self._results: _Results = self._on_devices(detector, source, thresholds, options)
            elif detector.is_on_gpu and options.is_overlapped:
                self._results = self._on_gpu(detector, source, thresholds, options)
            else:
                self._results = self._on_cpu(detector, source, thresholds, options)
        except BaseException:
            self._exit.close()
            raise

    def _on_cpu(
        self,
        detector: Detector,
        source: Iterator[SourceItem],
        thresholds: Thresholds,
        options: RunOptions,
    ) -> Overlapped | _Serial:
        cores = num_cores()
        streams = (options.streams or cores) if options.is_overlapped else 1
        self.plan = detector.plan(
            batch=options.batch, streams=streams, threads=options.threads or 1
        )
        stages = detector.stages(
            thresholds,
            batch=self.plan.batch,
            max_pixels=options.max_pixels,
            scaled_decode=bool(options.scaled_decode),
        )
        engine = detector.engine(self.plan)
        size_hw = detector.contract.input.size_hw
        if not options.is_overlapped:
            slots = [engine.open_slot(size_hw)]
        elif self.plan.batch == 1:
            slots = [
                engine.open_slot(size_hw) for _ in range(max(streams, options.workers or cores))
            ]
        else:
            slots = [engine.open_slot(size_hw) for _ in range(streams + 1)]
        self.engine_fallbacks = engine.fallbacks
        self._exit.enter_context(single_threaded_cv2())
        if not options.is_overlapped:
            return _Serial(stages, slots[0], source, self.plan.batch)
        return Overlapped(
            stages,
            slots,
            source,
            batch=self.plan.batch,
            streams=streams,
            workers=options.workers or cores,
        )

    def _on_gpu(
        self,
        detector: Detector,
        source: Iterator[SourceItem],
        thresholds: Thresholds,
        options: RunOptions,
    ) -> DeviceRun:
        from saccade.pipeline.device import start_run

        run = start_run(detector, source, thresholds, options, self._exit)
        self.plan, self.engine_fallbacks = run.plan, run.engine_fallbacks
        return run

    def _on_devices(
        self,
        detector: Detector,
        source: Iterator[SourceItem],
        thresholds: Thresholds,
        options: RunOptions,
    ) -> Fleet:
        from saccade.pipeline.fleet import start_fleet

        fleet = start_fleet(detector, source, thresholds, options)
        self.plan = fleet.plan
        return fleet

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """What ran otherwise than asked for, so far; complete once the run has ended."""
        more = tuple(f for report in self.reports for f in report.fallbacks)
        ours = self.engine_fallbacks or getattr(self._results, "fallbacks", ())
        return (*ours, *more)

    @property
    def reports(self) -> tuple[DeviceReport, ...]:
        """What was done on each GPU, so far; complete once the run has ended."""
        return tuple(getattr(self._results, "reports", ()))

    @property
    def times(self) -> StageTimes:
        """Seconds per stage, summed over the pictures; complete once the run has ended."""
        return self._results.times

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._is_closed:
            raise StopIteration
        try:
            result = next(self._results)
            if self._is_strict and result.error is not None:
                raise result.error
        except BaseException:
            self.close()
            raise
        return result

    def close(self) -> None:
        """Stop the job. Results that were not fetched are dropped."""
        self._is_closed = True
        self._results.close()
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_results"):
            self.close()


class _Results(Protocol):
    """What a runner is, as far as `Run` is concerned."""

    times: StageTimes

    def __next__(self) -> Result: ...

    def close(self) -> None: ...


class _Serial:
    """One stage of one picture after the other, in the caller's thread: the reference."""

    def __init__(
        self, stages: Stages, slot: Slot, source: Iterator[SourceItem], batch: int
    ) -> None:
        self._lane = Lane(stages, time.process_time)
        self._stages = stages
        self._results = self._work(slot, source, batch)
        self.times: StageTimes = self._lane.times

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        return next(self._results)

    def close(self) -> None:
        self._results.close()  # type: ignore[attr-defined]  # a generator

    def _work(self, slot: Slot, source: Iterator[SourceItem], batch: int) -> Iterator[Result]:
        outcomes: list[Result | SourceItem] = []
        placements: list[Placement] = []
        for item in source:
            try:
                picture = self._stages.decode(self._lane, item)
            except PictureError as exc:
                failed = Result(item.index, item.name, error=exc)
                if placements:
                    outcomes.append(failed)
                else:
                    yield failed
                continue
            placements.append(self._stages.prepare(self._lane, picture, slot, len(placements)))
            outcomes.append(item)
            if len(placements) == batch:
                yield from self._finish(slot, outcomes, placements)
                outcomes, placements = [], []
        if outcomes:
            yield from self._finish(slot, outcomes, placements)

    def _finish(
        self, slot: Slot, outcomes: list[Result | SourceItem], placements: list[Placement]
    ) -> Iterator[Result]:
        outputs = self._stages.infer(self._lane, slot, len(placements))
        found = iter(self._stages.suppress(self._lane, outputs, placements))
        places = iter(placements)
        for outcome in outcomes:
            if isinstance(outcome, Result):
                yield outcome
            else:
                yield Result(outcome.index, outcome.name, next(places).source_wh, next(found))
