"""How fast a detector is here, stage by stage, against its bare engine and the bound.

The bound is what no arrangement of the same stages can pass: cores / (CPU seconds that decode,
prepare, infer with one thread and suppress cost per picture), each measured serially.
"""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saccade.errors import EngineError, InputError
from saccade.pipeline.run import Run, RunOptions
from saccade.pipeline.sources import SourceItem
from saccade.pipeline.stages import STAGES
from saccade.profiler.machine import Machine, machine, num_cores
from saccade.types import Fallback, Plan, Result
from saccade.vision.boxes import iou_matrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from saccade.pipeline.detector import Detector
    from saccade.pipeline.device_run import DeviceReport

__all__ = ["BenchOptions", "BenchReport", "benchmark"]

_ROUND_SHARE = 3  # serial, overlapped, bare engine
_PER_WAIT = 8
# Pictures of an overlapped round on a GPU, over those that a serial one does in its time.
_GPU_GAIN = 40
# On a GPU pictures are decoded and placed by other sums, so boxes are paired instead of compared.
_MIN_PAIRED = 0.95
_PAIR_IOU, _PAIR_SCORE = 0.9, 0.05
_BOX_TOLERANCE_PX = 0.5
_SCORE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How long and how often.

    Attributes:
        seconds: About how long all rounds take.
        rounds: Interleaved rounds of serial, overlapped and bare engine.
    """

    seconds: float = 30.0
    rounds: int = 5

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.seconds > 0:
            raise InputError(
                f"rounds must be at least 1 and seconds above 0, got {self.rounds} and "
                f"{self.seconds}"
            )


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage's seconds per picture, measured serially; medians over rounds."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, where.

    Attributes:
        model: File name of the model.
        plan: How the overlapped rounds ran.
        num_pictures: Pictures per overlapped round.
        num_checked: Pictures whose boxes were found equal, serial against overlapped.
        stages: Per stage, seconds per picture.
        serial_per_s: Pictures per second, one stage after the other.
        overlapped_per_s: Pictures per second, overlapped; one figure per round.
        engine_per_s: Pictures per second of the engine alone, as many at once as the plan says.
        bound_per_s: cores / sum of the stages' CPU seconds; on a GPU the bare engine's median.
        overlapped_cpu_s: CPU seconds per picture of the whole process while overlapped.
        peak_memory_bytes: Largest resident size of the process.
        machine: Where.
        fallbacks: What ran otherwise than the plan says.
        devices: What the last overlapped round did on the GPU; empty on the CPU.
    """

    model: str
    plan: Plan
    num_pictures: int
    num_checked: int
    stages: dict[str, StageCost]
    serial_per_s: tuple[float, ...]
    overlapped_per_s: tuple[float, ...]
    engine_per_s: tuple[float, ...]
    bound_per_s: float
    overlapped_cpu_s: float
    peak_memory_bytes: int
    machine: Machine
    fallbacks: tuple[Fallback, ...]
    devices: tuple[DeviceReport, ...] = ()

    @property
    def of_bound(self) -> float:
        """Share of the bound that the overlapped pipeline reaches (medians)."""
        return statistics.median(self.overlapped_per_s) / self.bound_per_s

    @property
    def of_engine(self) -> float:
        """Share of the bare engine's rate that the overlapped pipeline reaches (medians)."""
        return statistics.median(self.overlapped_per_s) / statistics.median(self.engine_per_s)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON, with the medians and ratios."""
        return {
            **asdict(self),
            "serial_median_per_s": statistics.median(self.serial_per_s),
            "overlapped_median_per_s": statistics.median(self.overlapped_per_s),
            "engine_median_per_s": statistics.median(self.engine_per_s),
            "of_bound": self.of_bound,
            "of_engine": self.of_engine,
        }


def benchmark(
    detector: Detector,
    items: Sequence[SourceItem],
    *,
    options: RunOptions | None = None,
    how: BenchOptions | None = None,
) -> BenchReport:
    """Measure a detector on pictures, which must all be readable.

    The answers are checked before anything is timed: serial and overlapped must agree.

    Raises:
        InputError: There is no picture.
        PictureError: A picture cannot be used.
        EngineError: Serial and overlapped answers differ.
    """
    options, how = options or RunOptions(), how or BenchOptions()
    if not items:
        raise InputError("bench needs at least one picture, got none")
    bench = _Bench(detector, options)
    num_checked = bench.check(items)
    serial_s = bench.serial(items[: max(1, min(len(items), 8))])[0]
    budget_s = how.seconds / how.rounds / _ROUND_SHARE
    per_serial = _repeated(items, round(budget_s / serial_s))
    faster = _GPU_GAIN if detector.is_on_gpu else num_cores()
    per_overlap = _repeated(items, round(budget_s / serial_s * faster))
    rounds = [_Round.measure(bench, per_serial, per_overlap, budget_s) for _ in range(how.rounds)]
    return _report(detector, bench, rounds, len(per_overlap), num_checked)


def _repeated(items: Sequence[SourceItem], num: int) -> list[SourceItem]:
    num = max(num, 2 * num_cores())
    return [
        SourceItem(index, item.name, item.kind, item.value)
        for index in range(num)
        for item in (items[index % len(items)],)
    ]


class _Bench:
    """One detector and the three things that are timed."""

    def __init__(self, detector: Detector, options: RunOptions) -> None:
        self.detector = detector
        self.options = options.settled(detector.suggested)

    def _run(self, items: Sequence[SourceItem], *, is_overlapped: bool) -> Run:
        import dataclasses

        options = dataclasses.replace(self.options, is_overlapped=is_overlapped, is_strict=True)
        if options.devices:
            raise InputError(
                "bench measures one device, got several; give --device instead of --devices"
            )
        if not is_overlapped:
            options = dataclasses.replace(options, threads=1)
        return Run(self.detector, iter(items), self.detector.contract.detect, options)

    def check(self, items: Sequence[SourceItem]) -> int:
        """Compare serial and overlapped answers on up to 16 pictures; also warms up."""
        some = items[:16]
        with self._run(some, is_overlapped=False) as serial:
            wanted = list(serial)
        with self._run(some, is_overlapped=True) as overlapped:
            got = list(overlapped)
        if self.detector.is_on_gpu:
            _check_agreement(wanted, got, self.detector.contract.detect.score)
        else:
            for one, two in zip(wanted, got, strict=True):
                _check_same(one, two)
        return len(some)

    def serial(self, items: Sequence[SourceItem]) -> tuple[float, Run]:
        began_s = time.perf_counter()
        run = self._run(items, is_overlapped=False)
        _exhaust(run)
        return (time.perf_counter() - began_s) / len(items), run

    def overlapped(self, items: Sequence[SourceItem]) -> tuple[float, float, Run]:
        run = self._run(items, is_overlapped=True)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        _exhaust(run)
        cpu_s = time.process_time() - began_cpu_s
        return len(items) / (time.perf_counter() - began_s), cpu_s / len(items), run

    def engine_per_s(self, seconds: float) -> float:
        """Rate of the engine alone on random input, `streams` inferences at a time."""
        if self.detector.is_on_gpu:
            return self._gpu_engine_per_s(seconds)
        streams = self.options.streams or num_cores()
        plan = self.detector.plan(
            batch=self.options.batch, streams=streams, threads=self.options.threads or 1
        )
        engine = self.detector.engine(plan)
        rng = np.random.default_rng(0)
        counts = [0] * streams
        stop_s = time.perf_counter() + seconds

        def work(stream: int) -> None:
            slot = engine.open_slot(self.detector.contract.input.size_hw)
            for array in slot.inputs.values():
                array[:] = rng.integers(0, 2, array.shape)
            while time.perf_counter() < stop_s:
                slot.run(plan.batch)
                counts[stream] += plan.batch

        threads = [threading.Thread(target=work, args=(i,)) for i in range(streams)]
        began_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - began_s)

    def _gpu_engine_per_s(self, seconds: float) -> float:
        """One inference after the other in a graph of its own, on what the last job left in the
        engine's input."""
        plan = self.detector.plan(batch=self.options.batch or self.detector.default_batch())
        with self.detector.session(plan) as session:
            device, num = session.device, 0
            device.make_current()
            stream = device.stream()
            with stream.capture() as captured:
                session.engine.enqueue(stream.handle)
            began_s = time.perf_counter()
            while time.perf_counter() < began_s + seconds:
                for _ in range(_PER_WAIT):
                    captured.graph.launch(stream)
                stream.synchronize()
                num += _PER_WAIT * plan.batch
            taken_s = time.perf_counter() - began_s
            captured.graph.close()
        return num / taken_s


def _exhaust(run: Iterator[Result]) -> None:
    for _ in run:
        pass


def _check_same(want: Result, got: Result) -> None:
    if want.detections is None or got.detections is None:
        raise want.error or got.error or EngineError("a picture has neither boxes nor an error")
    a, b = want.detections, got.detections
    same = len(a) == len(b) and (
        np.allclose(a.boxes_xyxy, b.boxes_xyxy, atol=_BOX_TOLERANCE_PX)
        and np.allclose(a.scores, b.scores, atol=_SCORE_TOLERANCE)
    )
    if not same:
        raise EngineError(
            f"serial and overlapped answers must be the same, they differ on {want.path}: "
            f"{a!r} and {b!r}; a wrong answer has no speed"
        )


def _check_agreement(wanted: list[Result], got: list[Result], score: float) -> None:
    """Boxes clear of the threshold must have a partner of the same class, in both directions."""
    num = paired = 0
    for want, result in zip(wanted, got, strict=True):
        if want.detections is None or result.detections is None:
            raise want.error or result.error or EngineError("a picture has neither boxes nor error")
        for a, b in (
            (want.detections, result.detections),
            (result.detections, want.detections),
        ):
            clear = np.asarray(a.scores > score + _PAIR_SCORE)
            near = iou_matrix(a.boxes_xyxy, b.boxes_xyxy) >= _PAIR_IOU
            near &= a.classes[:, None] == b.classes[None]
            near &= np.abs(a.scores[:, None] - b.scores[None]) <= _PAIR_SCORE
            num += int(clear.sum())
            paired += int((near.any(axis=1) & clear).sum())
    if num and paired < _MIN_PAIRED * num:
        raise EngineError(
            f"serial and overlapped answers must agree, {paired} of {num} boxes have a partner; "
            "a wrong answer has no speed"
        )


@dataclass(frozen=True, slots=True)
class _Round:
    serial_per_s: float
    overlapped_per_s: float
    overlapped_cpu_s: float
    engine_per_s: float
    stages: dict[str, StageCost]
    fallbacks: tuple[Fallback, ...]
    plan: Plan
    devices: tuple[DeviceReport, ...]

    @classmethod
    def measure(
        cls,
        bench: _Bench,
        per_serial: list[SourceItem],
        per_overlap: list[SourceItem],
        engine_s: float,
    ) -> _Round:
        serial_s, serial = bench.serial(per_serial)
        overlapped_per_s, cpu_s, overlapped = bench.overlapped(per_overlap)
        num = len(per_serial)
        stages = {
            stage: StageCost(serial.times.wall_s[stage] / num, serial.times.cpu_s[stage] / num)
            for stage in STAGES
        }
        return cls(
            serial_per_s=1 / serial_s,
            overlapped_per_s=overlapped_per_s,
            overlapped_cpu_s=cpu_s,
            engine_per_s=bench.engine_per_s(engine_s),
            stages=stages,
            fallbacks=overlapped.fallbacks,
            plan=overlapped.plan,
            devices=overlapped.reports,
        )


def _report(
    detector: Detector, bench: _Bench, rounds: list[_Round], num_pictures: int, num_checked: int
) -> BenchReport:
    stages = {
        stage: StageCost(
            statistics.median(r.stages[stage].wall_s for r in rounds),
            statistics.median(r.stages[stage].cpu_s for r in rounds),
        )
        for stage in STAGES
    }
    bound_per_s = num_cores() / sum(cost.cpu_s for cost in stages.values())
    if detector.is_on_gpu:
        bound_per_s = statistics.median(r.engine_per_s for r in rounds)
    return BenchReport(
        model=detector.model.path.name,
        plan=rounds[0].plan,
        num_pictures=num_pictures,
        num_checked=num_checked,
        stages=stages,
        serial_per_s=tuple(r.serial_per_s for r in rounds),
        overlapped_per_s=tuple(r.overlapped_per_s for r in rounds),
        engine_per_s=tuple(r.engine_per_s for r in rounds),
        bound_per_s=bound_per_s,
        overlapped_cpu_s=statistics.median(r.overlapped_cpu_s for r in rounds),
        peak_memory_bytes=_peak_memory_bytes(),
        machine=machine(),
        fallbacks=rounds[0].fallbacks,
        devices=rounds[-1].devices,
    )


def _peak_memory_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
