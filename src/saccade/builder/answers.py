"""What one deployment answers: collected where it runs, judged elsewhere.

Collecting needs the engine, so it happens in the candidate's own process. Judging needs only what
was collected, so a candidate that crashes cannot take the judge with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np

from saccade import heads
from saccade.builder.records import Candidate, Reason
from saccade.builder.sameness import Tolerance, difference
from saccade.errors import InputError, PictureError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.pipeline.detector import Detector
from saccade.pipeline.run import Run, RunOptions
from saccade.pipeline.sources import SourceItem
from saccade.pipeline.stages import Lane, Stages
from saccade.types import Contract, Detections, Engine, Fallback, Plan, Slot
from saccade.vision.place import single_threaded_cv2

__all__ = ["Answers", "Pass", "WatchedDetector", "observe", "open_detector", "read", "write"]

_NUM_PROBES = 6
_SHUFFLES = 3
# The same engine, slot, batch and pictures: nothing may move but the last bits of a sum that
# several threads share.
REPEATED = Tolerance(px=0.01, score=1e-4)
# The same shape with other neighbours or another position: the same kernels on the same numbers.
NEIGHBOURS = Tolerance(px=0.01, score=1e-4)
# Another batch size may take other kernels, which round otherwise; 8 and 16 bit far more so.
# Whether such a difference matters is what the metrics at that batch size say.
OTHER_SIZE_FP32 = Tolerance(px=0.1, score=0.005)
OTHER_SIZE_LOW = Tolerance(px=4.0, score=0.1)


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """All pictures once, through the pipeline that will serve.

    Attributes:
        where: For messages, e.g. "batch 4 at 640x640".
        batch: Pictures per inference; the last batch was part-filled if batch > 1.
        detections: One per picture, or None where it could not be used.
        errors: One per picture, "" where there is none.
        num_inferences: How often the engine ran.
        not_finite: By output, how many of these gave NaN or infinity.
    """

    where: str
    batch: int
    detections: tuple[Detections | None, ...]
    errors: tuple[str, ...]
    num_inferences: int
    not_finite: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Everything the gate needs to know of one deployment.

    Attributes:
        passes: One per batch size.
        findings: Answers that contradict each other: "batch_dependent" and "not_repeatable".
        fallbacks: What ran otherwise than the plan says.
        inputs: Names, dtypes and shapes, in words.
        outputs: Likewise.
        families: Head families that recognise the graph.
    """

    passes: tuple[Pass, ...]
    findings: tuple[Reason, ...]
    fallbacks: tuple[Fallback, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    families: tuple[str, ...]


class _Watch:
    """Counts inferences and outputs that are not finite, over all slots of a detector."""

    def __init__(self) -> None:
        self.num_inferences = 0
        self.not_finite: dict[str, int] = {}

    def look(self, outputs: Mapping[str, np.ndarray], num: int) -> None:
        self.num_inferences += 1
        for name, array in outputs.items():
            is_float = array.dtype.kind == "f"
            # A graph of fixed batch also computes what is left in the unused positions.
            used = array[:num] if array.ndim and len(array) > num else array
            if is_float and not np.isfinite(used).all():
                self.not_finite[name] = self.not_finite.get(name, 0) + 1


class _WatchedSlot:
    def __init__(self, slot: Slot, watch: _Watch) -> None:
        self.inputs = slot.inputs
        self._slot = slot
        self._watch = watch

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        outputs = self._slot.run(num)
        self._watch.look(outputs, num)
        return outputs


class _WatchedEngine:
    def __init__(self, engine: Engine, watch: _Watch) -> None:
        self.plan = engine.plan
        self.fallbacks = engine.fallbacks
        self._engine = engine
        self._watch = watch

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        return _WatchedSlot(self._engine.open_slot(size_hw), self._watch)

    def close(self) -> None:
        self._engine.close()


class WatchedDetector(Detector):
    """A detector whose raw outputs are looked at as they come out of the engine."""

    watch: _Watch | None = None

    def engine(self, plan: Plan) -> Engine:
        engine = super().engine(plan)
        return engine if self.watch is None else _WatchedEngine(engine, self.watch)


def open_detector(path: Path, contract: Contract, candidate: Candidate) -> WatchedDetector:
    """Load a candidate's file under the contract of the model that it was made from.

    Raises:
        ModelError: The file cannot be read.
        InputError: There is no such back end.
    """
    read = read_model(path)
    signature = signature_of(read, contract.input.size_hw)
    resolved = dataclasses.replace(read, outputs=signature.outputs)
    return WatchedDetector(resolved, contract, plan=candidate.plan)


def options_of(candidate: Candidate, batch: int | None = None) -> RunOptions:
    """How the pipeline runs a candidate."""
    plan = candidate.plan
    return RunOptions(
        batch=batch or plan.batch,
        streams=plan.streams,
        threads=plan.threads,
        workers=candidate.workers,
        scaled_decode=candidate.scaled_decode,
    )


def observe(
    detector: WatchedDetector,
    candidate: Candidate,
    items: Sequence[SourceItem],
    batches: Sequence[int],
) -> Answers:
    """Ask a deployment about every picture, at every batch size, and some pictures twice.

    Args:
        detector: From `open_detector`.
        candidate: How to run it.
        items: The pictures.
        batches: Batch sizes to run all pictures at.

    Raises:
        SaccadeError: The deployment fails as such.
    """
    watch = detector.watch = _Watch()
    findings: list[Reason] = []
    passes = []
    for batch in batches:
        probe = _Probe(detector, candidate, batch, items)
        first = probe.full()
        passes.append(_pass(detector, candidate, batch, items, watch))
        findings += probe.findings(first)
    fallbacks = detector.fallbacks
    detector.watch = None
    signature = signature_of(detector.model, detector.contract.input.size_hw)
    return Answers(
        tuple(passes),
        tuple(findings),
        fallbacks,
        inputs=tuple(map(str, signature.inputs)),
        outputs=tuple(map(str, signature.outputs)),
        families=tuple(
            name for name in heads.names() if heads.get(name).recognise(signature) is not None
        ),
    )


def _where(detector: Detector, batch: int) -> str:
    height, width = detector.contract.input.size_hw
    return f"batch {batch} at {width}x{height}"


def _pass(
    detector: WatchedDetector,
    candidate: Candidate,
    batch: int,
    items: Sequence[SourceItem],
    watch: _Watch,
) -> Pass:
    began, seen = watch.num_inferences, dict(watch.not_finite)
    # Repeats at the end, which are not judged, so that the last batch is part-filled.
    num_extra = next(k for k in range(batch) if batch == 1 or (len(items) + k) % batch)
    padded = [*items, *(items[i % len(items)] for i in range(num_extra))]
    source = (SourceItem(i, o.name, o.kind, o.value, o.error) for i, o in enumerate(padded))
    with Run(detector, source, detector.contract.evaluate, options_of(candidate, batch)) as run:
        results = list(run)[: len(items)]
    if detector.is_on_gpu:
        _look_again(detector, candidate, batch, padded)
    return Pass(
        _where(detector, batch),
        batch,
        tuple(result.detections for result in results),
        tuple("" if result.error is None else str(result.error) for result in results),
        watch.num_inferences - began,
        {
            name: n - seen.get(name, 0)
            for name, n in watch.not_finite.items()
            if n > seen.get(name, 0)
        },
    )


def _look_again(
    detector: WatchedDetector, candidate: Candidate, batch: int, items: Sequence[SourceItem]
) -> None:
    """Let the watch see raw outputs: on a GPU those of the pass itself never leave the card."""
    options = dataclasses.replace(
        options_of(candidate, batch), is_overlapped=False, streams=1, workers=None
    )
    with Run(detector, iter(items), detector.contract.evaluate, options) as run:
        for _ in run:
            pass


class _Probe:
    """A few pictures through one slot, in chosen company."""

    def __init__(
        self,
        detector: WatchedDetector,
        candidate: Candidate,
        batch: int,
        items: Sequence[SourceItem],
    ) -> None:
        plan = candidate.plan
        self.batch = batch
        self.where = _where(detector, batch)
        self.is_low = candidate.recipe.precision != "fp32" or plan.precision != "fp32"
        self._stages: Stages = detector.stages(
            detector.contract.evaluate, batch=batch, scaled_decode=candidate.scaled_decode
        )
        self._score = detector.contract.detect.score
        engine = detector.engine(
            detector.plan(batch=batch, streams=plan.streams, threads=plan.threads)
        )
        self._slot = engine.open_slot(detector.contract.input.size_hw)
        self._lane = Lane(self._stages)
        step = max(1, len(items) // _NUM_PROBES)
        self._items = [item for item in items[::step][:_NUM_PROBES] if self._is_usable(item)]

    def _is_usable(self, item: SourceItem) -> bool:
        try:
            self._stages.decode(self._lane, item)
        except PictureError:
            return False
        return True

    def _ask(self, order: Sequence[int]) -> list[Detections]:
        with single_threaded_cv2():
            placements = []
            for position, index in enumerate(order):
                picture = self._stages.decode(self._lane, self._items[index])
                placements.append(self._stages.prepare(self._lane, picture, self._slot, position))
            outputs = self._stages.infer(self._lane, self._slot, len(order))
            return self._stages.suppress(self._lane, outputs, placements)

    def _orders(self) -> list[list[int]]:
        num = len(self._items)
        rng = np.random.default_rng(0)
        orders = [[i % num for i in range(start, start + self.batch)] for start in range(num)]
        shuffled = [rng.integers(0, num, self.batch).tolist() for _ in range(_SHUFFLES)]
        return orders if self.batch == 1 else [orders[0], *shuffled]

    def full(self) -> list[list[Detections]]:
        """Answers to full batches, in the order of `_orders`."""
        return [self._ask(order) for order in self._orders()] if self._items else []

    def findings(self, first: list[list[Detections]]) -> Iterator[Reason]:
        """What contradicts the answers that `full` gave before."""
        if not first:
            return
        orders = self._orders()
        # Again, after every picture has been through the engine: a drift would show.
        again = self.full()
        told = _first(
            self._tell(order, one, two, REPEATED)
            for order, one, two in zip(orders, first, again, strict=True)
        )
        if told:
            yield Reason(
                "not_repeatable",
                f"the same batch asked twice is answered differently: {told}",
                self.where,
            )
            return
        if self.batch > 1:
            yield from self._company(orders, again)

    def _tell(
        self,
        order: Sequence[int],
        one: Sequence[Detections],
        two: Sequence[Detections],
        tolerance: Tolerance,
    ) -> str:
        return _first(
            f"{self._items[index].name}: {told}"
            for index, a, b in zip(order, one, two, strict=True)
            if (told := difference(a, b, tolerance, self._score))
        )

    def _company(
        self, orders: list[list[int]], answers: list[list[Detections]]
    ) -> Iterator[Reason]:
        by_picture: dict[int, tuple[Detections, int]] = {}
        told = ""
        for order, found in zip(orders, answers, strict=True):
            for position, (index, one) in enumerate(zip(order, found, strict=True)):
                wanted, place = by_picture.setdefault(index, (one, position))
                gap = difference(wanted, one, NEIGHBOURS, self._score)
                if gap and not told:
                    told = (
                        f"{self._items[index].name} at position {place} and at position "
                        f"{position}, with other neighbours: {gap}"
                    )
        if told:
            yield Reason("batch_dependent", told, self.where)
            return
        tolerance = OTHER_SIZE_LOW if self.is_low else OTHER_SIZE_FP32
        for num in range(1, self.batch):
            some = orders[0][:num]
            told = self._tell(some, self._ask(some), answers[0][:num], tolerance)
            if told:
                yield Reason(
                    "batch_dependent",
                    f"{num} in a batch of {self.batch} are answered otherwise than when it is "
                    f"full: {told}",
                    self.where,
                )
                return


def _first(texts: Iterator[str]) -> str:
    return next((text for text in texts if text), "")


class _Header(msgspec.Struct):
    passes: list[dict[str, Any]]
    findings: list[Reason]
    fallbacks: list[Fallback]
    inputs: list[str]
    outputs: list[str]
    families: list[str]
    version: int = 1


_PASS_FIELDS = ("where", "batch", "errors", "num_inferences", "not_finite")


def write(answers: Answers, path: Path) -> None:
    """Write answers as one .npz file: arrays, and a header in JSON."""
    arrays: dict[str, np.ndarray] = {}
    for index, one in enumerate(answers.passes):
        present = [d for d in one.detections if d is not None]
        arrays[f"counts_{index}"] = np.array(
            [-1 if d is None else len(d) for d in one.detections], np.int64
        )
        for name, empty in _COLUMNS.items():
            arrays[f"{name}_{index}"] = np.concatenate(
                [empty, *(getattr(d, name) for d in present)]
            )
    header = _Header(
        [{key: getattr(one, key) for key in _PASS_FIELDS} for one in answers.passes],
        list(answers.findings),
        list(answers.fallbacks),
        list(answers.inputs),
        list(answers.outputs),
        list(answers.families),
    )
    arrays["header"] = np.frombuffer(msgspec.json.encode(header), np.uint8)
    aside = path.with_name(path.name + ".partial.npz")
    np.savez(aside, **arrays)  # type: ignore[arg-type]
    aside.replace(path)


_COLUMNS = {
    "boxes_xyxy": np.zeros((0, 4), np.float32),
    "scores": np.zeros(0, np.float32),
    "classes": np.zeros(0, np.int32),
}


def read(path: Path) -> Answers:
    """Read what `write` wrote.

    Raises:
        InputError: The file is not what it should be.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            header = msgspec.json.decode(arrays["header"].tobytes(), type=_Header)
            passes = tuple(
                Pass(detections=_detections(arrays, i), **_pass_fields(told))
                for i, told in enumerate(header.passes)
            )
    except (OSError, ValueError, KeyError, BadZipFile, msgspec.MsgspecError) as exc:
        raise InputError(
            f"{path} must hold a candidate's answers, it does not ({exc}); remove it and build "
            "again"
        ) from exc
    return Answers(
        passes,
        tuple(header.findings),
        tuple(header.fallbacks),
        tuple(header.inputs),
        tuple(header.outputs),
        tuple(header.families),
    )


def _pass_fields(told: dict[str, Any]) -> dict[str, Any]:
    return {**told, "errors": tuple(told["errors"])}


def _detections(arrays: Any, index: int) -> tuple[Detections | None, ...]:
    boxes, scores, classes = (arrays[f"{name}_{index}"] for name in _COLUMNS)
    found: list[Detections | None] = []
    start = 0
    for count in arrays[f"counts_{index}"].tolist():
        if count < 0:
            found.append(None)
            continue
        part = slice(start, start + count)
        found.append(Detections(boxes[part], scores[part], classes[part]))
        start += count
    return tuple(found)
