"""Ranges of activations on real pictures, through the same prepare stage that will serve."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from saccade import backends
from saccade.builder.histograms import NUM_BINS, Histogram, range_of
from saccade.errors import BuildError, InputError, PictureError
from saccade.graph.passes.elements import elem_types
from saccade.graph.passes.loading import load_tidy, write_proto
from saccade.graph.reading import read_model
from saccade.pipeline.stages import Lane, Stages
from saccade.profiler.machine import num_cores
from saccade.types import Contract, Model, Plan
from saccade.vision.decode import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from saccade.pipeline.sources import SourceItem

__all__ = ["Calibration", "CalibrationSettings", "cached", "collect", "digest_of"]

SCHEMA = 1
_REFERENCE = "onnxruntime"
# What reading a file that was cut short or overwritten may raise.
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How ranges are measured.

    Attributes:
        min_pictures: With fewer usable pictures the build is refused.
        max_pictures: Pictures beyond these are not looked at, usable or not.
    """

    min_pictures: int = 100
    max_pictures: int = 500

    def __post_init__(self) -> None:
        if not 1 <= self.min_pictures <= self.max_pictures:
            raise InputError(
                "calibration pictures must be at least 1 and the least number not above the "
                f"largest, got {self.min_pictures} to {self.max_pictures}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What activations looked like.

    Attributes:
        digest: Of model, contract, pictures, settings and schema.
        num_pictures: Pictures that were used.
        skipped: Why others could not be.
        histograms: Per tensor.
    """

    digest: str
    num_pictures: int
    histograms: Mapping[str, Histogram]
    skipped: tuple[str, ...] = field(default=())

    def ranges(self, calibrator: str) -> dict[str, float]:
        """Largest absolute value per tensor, as a calibrator sees it.

        Raises:
            InputError: No calibrator has that name.
        """
        return {name: range_of(found, calibrator) for name, found in self.histograms.items()}

    def largest(self) -> dict[str, float]:
        """Largest absolute value per tensor that occurred."""
        return {name: found.largest for name, found in self.histograms.items()}

    def save(self, path: Path) -> None:
        """Write to a file, aside and then renamed: there is never half a file.

        Raises:
            BuildError: It cannot be written.
        """
        head = {
            "schema": SCHEMA,
            "digest": self.digest,
            "num_pictures": self.num_pictures,
            "skipped": self.skipped,
            "tensors": list(self.histograms),
        }
        found = list(self.histograms.values())
        arrays: dict[str, Any] = {
            "counts": np.array([h.counts for h in found], np.int64).reshape(-1, NUM_BINS),
            "limits": np.array([h.limit for h in found], np.float64),
            "largest": np.array([h.largest for h in found], np.float64),
        }
        head["sha256"] = _sha256_of(arrays)
        text = np.frombuffer(msgspec.json.encode(head), np.uint8)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                np.savez_compressed(file, head=text, **arrays)
            aside.replace(path)
        except OSError as exc:
            aside.unlink(missing_ok=True)
            raise BuildError(
                f"the calibration must be saved as {path}, writing failed ({exc}); free some "
                "space or choose another folder"
            ) from exc

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a file that `save` wrote.

        Raises:
            InputError: It is missing, damaged or of another schema.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                head: dict[str, Any] = msgspec.json.decode(stored["head"].tobytes(), type=dict)
                arrays = {name: stored[name] for name in ("counts", "limits", "largest")}
            if head["schema"] != SCHEMA:
                raise ValueError(f"schema {head['schema']}, not {SCHEMA}")
            if head["sha256"] != _sha256_of(arrays):
                raise ValueError("its numbers do not match its digest")
            rows = zip(
                arrays["counts"], arrays["limits"].tolist(), arrays["largest"].tolist(), strict=True
            )
            histograms = {
                name: Histogram(*row) for name, row in zip(head["tensors"], rows, strict=True)
            }
            return cls(head["digest"], head["num_pictures"], histograms, tuple(head["skipped"]))
        except _DAMAGE as exc:
            raise InputError(
                f"{path} must be a calibration that saccade saved, it cannot be read "
                f"({' '.join(str(exc).split())[:200]}); delete it and calibrate again"
            ) from exc


def _sha256_of(arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def collect(
    model: Model,
    contract: Contract,
    items: Iterable[SourceItem],
    *,
    tensors: Sequence[str],
    settings: CalibrationSettings | None = None,
) -> Calibration:
    """Run pictures through the FP32 network and count what its tensors hold.

    All calibrators come from the one pass. Memory does not grow with the number of pictures.

    Args:
        model: The network.
        contract: How pictures go in.
        items: Pictures; those that cannot be used are skipped and listed.
        tensors: Names in the tidy graph, from `recipes.calibration_tensors`.
        settings: How many pictures.

    Raises:
        InputError: There are too few usable pictures.
        BackendUnavailable: ONNX Runtime is not installed.
        BuildError: An activation is NaN or infinite, or ONNX Runtime refuses the graph.
    """
    settings = settings or CalibrationSettings()
    if isinstance(items, Sized):
        _check_enough(len(items), settings)
    tensors = sorted(set(tensors))
    stages = Stages(contract, contract.detect, DEFAULT_MAX_PIXELS)
    lane = Lane(stages)
    histograms = {name: Histogram.empty() for name in tensors}
    sha = _start_digest(model, contract, tensors, settings)
    used, skipped = 0, []
    with contextlib.closing(_Network(model, contract, tensors)) as network:
        for item in itertools.islice(items, settings.max_pictures):
            _feed(sha, item)
            try:
                picture = stages.decode(lane, item)
            except PictureError as exc:
                skipped.append(f"{item.name}: {exc}")
                continue
            for position in range(network.batch):
                stages.prepare(lane, picture, network.slot, position)
            used += 1
            _count(network, histograms, item)
    _check_enough(used, settings)
    return Calibration(sha.hexdigest(), used, histograms, tuple(skipped))


def _count(network: _Network, histograms: Mapping[str, Histogram], item: SourceItem) -> None:
    for name, values in network.activations():
        if not histograms[name].add(values):
            raise BuildError(
                f"activations must be finite to be quantised, tensor {name!r} holds NaN or "
                f"infinity for {item.name}; look at this picture and at the model"
            )


def cached(
    folder: Path,
    model: Model,
    contract: Contract,
    items: Sequence[SourceItem],
    *,
    tensors: Sequence[str],
    settings: CalibrationSettings | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Calibration:
    """`collect`, unless the very same has been collected before.

    Args:
        folder: Where calibrations are kept.
        model: As in `collect`; so are the following.
        contract: How pictures go in.
        items: Pictures.
        tensors: Names in the tidy graph.
        settings: How many pictures.
        on_note: Told when a stored file is damaged and is made again.

    Raises:
        InputError: There are too few usable pictures.
        BuildError: As in `collect`, or the folder cannot be written.
    """
    settings = settings or CalibrationSettings()
    digest = digest_of(model, contract, items, tensors=tensors, settings=settings)
    path = folder / f"calibration-{digest[:24]}.npz"
    if path.exists():
        try:
            found = Calibration.load(path)
            if found.digest == digest:
                return found
            on_note(f"{path} holds the calibration of something else; calibrating again")
        except InputError as exc:
            on_note(f"{exc}; calibrating again")
    made = collect(model, contract, items, tensors=tensors, settings=settings)
    made.save(path)
    return made


def digest_of(
    model: Model,
    contract: Contract,
    items: Sequence[SourceItem],
    *,
    tensors: Sequence[str],
    settings: CalibrationSettings,
) -> str:
    """What `collect` gives its result for a digest, whatever pictures it skips."""
    sha = _start_digest(model, contract, sorted(set(tensors)), settings)
    for item in items[: settings.max_pictures]:
        _feed(sha, item)
    return sha.hexdigest()


def _start_digest(
    model: Model, contract: Contract, tensors: Iterable[str], settings: CalibrationSettings
) -> hashlib._Hash:
    facts = [SCHEMA, model.digest, asdict(contract.input), asdict(settings), list(tensors)]
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted"))


def _feed(sha: hashlib._Hash, item: SourceItem) -> None:
    """Add a picture's bytes, behind their digest so that borders between pictures count."""
    value = item.value
    one = hashlib.sha256()
    if isinstance(value, np.ndarray):
        one.update(repr(value.shape).encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes):
        one.update(value)
    elif value is not None:
        try:
            one.update(value.read_bytes())
        except OSError:
            one.update(b"unreadable")
    sha.update(one.digest())


def _check_enough(count: int, settings: CalibrationSettings) -> None:
    if count < settings.min_pictures:
        raise InputError(
            f"calibration must have at least {settings.min_pictures} pictures, there are {count}; "
            f"give more, or accept ranges from so few with --min-calibration {max(count, 1)}"
        )


class _Network:
    """The FP32 network with chosen tensors as outputs, in the reference back end."""

    def __init__(self, model: Model, contract: Contract, tensors: Sequence[str]) -> None:
        fixed = [s.shape[0] for s in model.inputs if s.shape and isinstance(s.shape[0], int)]
        self.batch = int(fixed[0]) if fixed else 1
        plan = Plan(_REFERENCE, batch=self.batch, threads=num_cores())
        with tempfile.TemporaryDirectory(prefix="saccade-calibration-") as folder:
            inside = _with_outputs(model, tensors, Path(folder))
            self._engine = backends.get(_REFERENCE).load(inside, plan)
        self.slot = self._engine.open_slot(contract.input.size_hw)
        self._fed = [name for name in tensors if name in self.slot.inputs]
        self._made = [name for name in tensors if name not in self.slot.inputs]

    def activations(self) -> Iterator[tuple[str, np.ndarray]]:
        """All chosen tensors for what is in the slot's inputs now; valid until the next call."""
        outputs = self.slot.run(self.batch)
        yield from ((name, self.slot.inputs[name]) for name in self._fed)
        yield from ((name, outputs[name]) for name in self._made)

    def close(self) -> None:
        """Release the runtime's memory."""
        self._engine.close()


def _with_outputs(model: Model, tensors: Sequence[str], folder: Path) -> Model:
    """The model with more outputs, as a file of its own."""
    from onnx import helper

    proto = load_tidy(model)
    graph = proto.graph
    made = {name for node in graph.node for name in node.output}
    known = {value.name for value in (*graph.output, *graph.input)}
    unknown = sorted(set(tensors) - made - known)
    if unknown:
        raise InputError(
            f"tensors to calibrate must be in the graph, {', '.join(unknown[:5])} are not; "
            "take the names from this very model"
        )
    types = elem_types(proto)
    for name in tensors:
        if name not in known:
            graph.output.append(helper.make_tensor_value_info(name, types[name], None))
    path = folder / "inside.onnx"
    write_proto(proto, path)
    return read_model(path)
