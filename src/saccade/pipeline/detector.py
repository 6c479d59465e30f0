"""A loaded detector: a model, its contract and the engines that run it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from saccade import backends, bundles, contracts
from saccade.contracts.resolve import check_thresholds
from saccade.errors import BackendUnavailable, BuildError, EngineError, InputError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.pipeline.devices import check_device, device_name, parse_bytes
from saccade.pipeline.run import RunOptions
from saccade.pipeline.sources import SourceItem, expand
from saccade.pipeline.stages import Lane, Stages, StageTimes
from saccade.profiler.machine import num_cores
from saccade.types import (
    Contract,
    Detections,
    Engine,
    Fallback,
    Model,
    Plan,
    Precision,
    Slot,
    Thresholds,
)
from saccade.vision.decode import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np

    from saccade.pipeline.device import DeviceSession

__all__ = ["Detector", "Timed", "load"]


def load(  # noqa: PLR0913  (a front door)
    model: str | Path,
    *,
    preset: str | None = None,
    contract: str | Path | None = None,
    backend: str | None = None,
    precision: Precision | None = None,
    size_hw: tuple[int, int] | None = None,
    labels: Sequence[str] = (),
    device: str | None = None,
    engine_options: Mapping[str, str] | None = None,
    gpu_memory: int | str | None = None,
) -> Detector:
    """Load a detector.

    Args:
        model: An ONNX file, a program that torch.export wrote (.pt2), or a bundle: a folder that
            `saccade build` wrote. A bundle says all the rest by itself.
        preset: Name of a preset that says how pictures go in and outputs are read.
        contract: Path of a TOML file that says so.
        backend: The runtime, see `saccade doctor`; default "onnxruntime", on a GPU "torch".
        precision: Arithmetic of the runtime, default "fp32"; what it cannot do is an error.
        size_hw: Height and width of the input, if the graph leaves them free.
        labels: Class names, index 0 first, in place of those in the model.
        device: "cpu" (the default) or "cuda:N". On a GPU everything from the JPEG on happens there.
        engine_options: Further options of the runtime, e.g. {"compile": "inductor"}.
        gpu_memory: Device memory that may be taken, in bytes or as "4GiB"; what needs more is
            refused.

    Returns:
        The detector. Call it on a picture, or give it to `saccade.run`.

    Raises:
        ModelError: The file cannot be read.
        ContractError: How the model is fed or read is not clear.
        BackendUnavailable: The runtime is not installed.
        BuildError: The bundle was checked with another machine or version.
        InputError: The call is wrong.
    """
    if bundles.is_bundle(model):
        given = {
            "preset": preset,
            "contract": contract,
            "backend": backend,
            "precision": precision,
            "size_hw": size_hw,
            "labels": tuple(labels) or None,
            "device": device,
            "engine_options": engine_options,
        }
        names = [name for name, v in given.items() if v is not None]
        return _load_bundle(Path(model), names, _bytes(gpu_memory))
    where = device_name(device or "cpu")
    check_device(where)
    is_program = Path(model).suffix == ".pt2"
    if is_program and backend not in (None, "torch"):
        raise InputError(
            f"back end {backend!r} must be torch for an exported program (.pt2); leave --backend "
            "out, or export the model to ONNX"
        )
    resolved, made = _resolve(model, preset, contract, size_hw, tuple(labels))
    plan = Plan(
        backend or ("onnxruntime" if where == "cpu" and not is_program else "torch"),
        precision or "fp32",
        device=where,
        options=tuple(sorted((engine_options or {}).items())),
    )
    return Detector(resolved, made, plan=plan, gpu_memory=_bytes(gpu_memory))


def _bytes(gpu_memory: int | str | None) -> int | None:
    return parse_bytes(gpu_memory) if isinstance(gpu_memory, str) else gpu_memory


def _resolve(
    path: str | Path,
    preset: str | None,
    contract: str | Path | None,
    size_hw: tuple[int, int] | None,
    labels: tuple[str, ...],
) -> tuple[Model, Contract]:
    if Path(path).suffix == ".pt2":
        runtime: Any = backends.get("torch")
        program, signature = runtime.read_program(Path(path), size_hw)
        made = contracts.resolve(signature, preset=preset, contract=contract, labels=labels)
        return program, made
    read = read_model(path)
    signature = signature_of(read, size_hw)
    made = contracts.resolve(signature, preset=preset, contract=contract, labels=labels)
    if made.input.size_hw != signature.size_hw:
        signature = signature_of(read, made.input.size_hw)
    return dataclasses.replace(read, outputs=signature.outputs), made


def _load_bundle(folder: Path, given: Sequence[str], gpu_memory: int | None) -> Detector:
    """Load what a bundle says, on a machine that its evidence holds for."""
    if given:
        raise InputError(
            f"{', '.join(given)} must be left out for a bundle: they were chosen and checked when "
            f"{folder.name} was built; build again with 'saccade build --from {folder}', or load "
            f"its network alone, unchecked: {folder / 'model.onnx'} with contract "
            f"{folder / 'contract.toml'}"
        )
    bundle = bundles.read_bundle(folder)
    mismatches = tuple(bundles.fits(bundle))
    _check_fit(bundle, mismatches)
    model, contract = _resolve(bundle.model_path, None, bundle.contract_path, None, ())
    manifest = bundle.manifest
    suggested = RunOptions(
        batch=manifest.plan.batch,
        streams=manifest.plan.streams,
        threads=manifest.plan.threads,
        workers=manifest.workers,
        scaled_decode=manifest.scaled_decode,
    )
    check_device(bundle.plan.device)
    return Detector(
        model,
        contract,
        plan=bundle.plan,
        suggested=suggested,
        mismatches=mismatches,
        gpu_memory=gpu_memory,
    )


def _check_fit(bundle: bundles.Bundle, mismatches: Sequence[bundles.Mismatch]) -> None:
    wrong = [mismatch for mismatch in mismatches if mismatch.matters]
    if not wrong:
        return
    name = bundle.plan.backend
    is_there = name in backends.names() and backends.get(name).probe().ok
    failure = BuildError if is_there else BackendUnavailable
    raise failure(
        f"bundle {bundle.path} does not fit here: {'; '.join(map(str, wrong))}. Its answers were "
        f"checked there, not here; run: saccade build --from {bundle.path} -o NEW_FOLDER, or load "
        f"its network alone, unchecked: {bundle.model_path} with contract {bundle.contract_path}"
    )


class Timed(NamedTuple):
    """Detections of one picture and what each stage took.

    Attributes:
        detections: What was found.
        wall_s: Seconds by stage: decode, prepare, infer, suppress.
    """

    detections: Detections
    wall_s: dict[str, float]


class Detector:
    """A model with its contract. Thread-safe; a context manager.

    Engines are loaded when they are first used: one that gives a single picture all cores, for
    calls, and one that gives each core its own picture, for `saccade.run`.

    Attributes:
        model: The network, with output shapes at the contract's input size.
        contract: How pictures go in and outputs are read.
        backend: Name of the runtime.
        precision: Arithmetic of the runtime.
        suggested: How a bundle was built to run, or None; `saccade.run` follows it where its own
            options leave something open.
        mismatches: Where a bundle's machine differs from this one without harm to the answers.
        device: "cpu" or "cuda:N".
        gpu_memory: Device memory that one job may take in bytes, or None.
    """

    def __init__(
        self,
        model: Model,
        contract: Contract,
        *,
        plan: Plan,
        suggested: RunOptions | None = None,
        mismatches: tuple[bundles.Mismatch, ...] = (),
        gpu_memory: int | None = None,
    ) -> None:
        self.model = model
        self.contract = contract
        self.backend = plan.backend
        self.precision: Precision = plan.precision
        self.suggested = suggested
        self.mismatches = mismatches
        self.device = plan.device
        self.gpu_memory = gpu_memory
        self._exit = contextlib.ExitStack()
        self._sessions: list[DeviceSession] = []
        self._calling = threading.Lock()
        self._plan = plan
        self._runtime = backends.get(plan.backend)
        self._engines: dict[Plan, Engine] = {}
        self._idle: list[tuple[Lane, Slot]] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def __call__(
        self,
        picture: str | Path | bytes | np.ndarray,
        *,
        score: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
    ) -> Detections:
        """Find objects in one picture.

        Args:
            picture: A path, the bytes of an encoded picture, or (h, w, 3) uint8 RGB.
            score: Score threshold in place of the contract's.
            iou: IoU threshold in place of the contract's.
            max_detections: Most boxes in place of the contract's.

        Raises:
            PictureError: The picture cannot be used.
            EngineError: The engine failed.
        """
        thresholds = self.thresholds(score, iou, max_detections)
        if self.is_on_gpu:
            return self._call_on_gpu(picture, thresholds)
        return self.timed(picture, thresholds=thresholds).detections

    @property
    def engine_options(self) -> tuple[tuple[str, str], ...]:
        """Further options of the runtime, by name."""
        return self._plan.options

    @property
    def is_on_gpu(self) -> bool:
        """Whether jobs and calls run on a GPU."""
        return self.device != "cpu"

    def _call_on_gpu(
        self, picture: str | Path | bytes | np.ndarray, thresholds: Thresholds
    ) -> Detections:
        from saccade.pipeline.device import detect_one

        item = self._single(picture)
        # Calls take turns on one small session; a job has a session of its own.
        with self._calling, self.session(self.plan()) as session:
            return detect_one(session, item, thresholds)

    @contextlib.contextmanager
    def session(self, plan: Plan) -> Iterator[DeviceSession]:
        """A loaded network on the plan's GPU, for one job; kept for the next one afterwards.

        Raises:
            BackendUnavailable, BuildError: As in DeviceSession.
            EngineError: The detector is closed.
        """
        from saccade.pipeline.device import DeviceSession

        session = self._idle_session(plan)
        if session is None:
            session = DeviceSession(self.model, self.contract, plan, limit_bytes=self.gpu_memory)
        try:
            yield session
        finally:
            with self._lock:
                is_kept = not (self._is_closed or session.is_lost)
                if is_kept:
                    self._sessions.append(session)
            if not is_kept:
                session.close()

    def _idle_session(self, plan: Plan) -> DeviceSession | None:
        with self._lock:
            if self._is_closed:
                raise EngineError("this detector is closed; load the model again")
            for session in self._sessions:
                if session.plan == plan:
                    self._sessions.remove(session)
                    return session
        return None

    def default_batch(self) -> int:
        """Pictures per inference of a job where the caller says nothing: what the graph fixes,
        else 1, or on a GPU what fills it."""
        if not self.is_on_gpu or self._fixed_batch() is not None:
            return self._fixed_batch() or 1
        from saccade.pipeline.device import DEFAULT_BATCH

        return DEFAULT_BATCH

    def _fixed_batch(self) -> int | None:
        fixed = [s.shape[0] for s in self.model.inputs if s.shape and isinstance(s.shape[0], int)]
        return int(fixed[0]) if fixed else None

    def timed(
        self, picture: str | Path | bytes | np.ndarray, *, thresholds: Thresholds | None = None
    ) -> Timed:
        """Find objects in one picture, and say what each stage took.

        On a GPU the network alone runs there for this, so that the stages can be told apart.

        Args:
            picture: A path, the bytes of an encoded picture, or (h, w, 3) uint8 RGB.
            thresholds: In place of the contract's.

        Raises:
            PictureError: The picture cannot be used.
            EngineError: The engine failed.
        """
        plan = self.plan(threads=num_cores())
        stages = self.stages(thresholds or self.contract.detect, batch=plan.batch)
        item = self._single(picture)
        lane, slot = self._take(stages, plan)
        lane.times = StageTimes()
        try:
            source = stages.decode(lane, item)
            placement = stages.prepare(lane, source, slot, 0)
            outputs = stages.infer(lane, slot, 1)
            found = stages.suppress(lane, outputs, [placement])[0]
            return Timed(found, lane.times.wall_s)
        finally:
            with self._lock:
                self._idle.append((lane, slot))

    def _single(self, picture: str | Path | bytes | np.ndarray) -> SourceItem:
        if isinstance(picture, str | Path):
            return SourceItem(0, str(picture), "path", Path(picture))
        return next(iter(expand([picture])))

    def _take(self, stages: Stages, plan: Plan) -> tuple[Lane, Slot]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        engine = self.engine(plan)
        return Lane(stages, time.thread_time), engine.open_slot(self.contract.input.size_hw)

    def thresholds(
        self,
        score: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
    ) -> Thresholds:
        """The contract's thresholds for looking at pictures, with changes."""
        given: dict[str, Any] = {"score": score, "iou": iou, "max_detections": max_detections}
        changed = dataclasses.replace(
            self.contract.detect, **{k: v for k, v in given.items() if v is not None}
        )
        check_thresholds(changed)
        return changed

    def stages(
        self,
        thresholds: Thresholds,
        *,
        batch: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        scaled_decode: bool = False,
    ) -> Stages:
        """The stages of this detector's pipeline, for inferences of `batch` pictures."""
        head = self.contract.head
        # A head that lists the boxes of all pictures in one table cannot count the pictures.
        head = dataclasses.replace(head, options={**head.options, "batch": batch})
        contract = dataclasses.replace(self.contract, head=head)
        return Stages(contract, thresholds, max_pixels, scaled_decode)

    def plan(self, *, batch: int | None = None, streams: int = 1, threads: int = 1) -> Plan:
        """A plan with this detector's back end and precision. A graph that fixes the batch
        decides it."""
        return dataclasses.replace(
            self._plan,
            batch=batch or self._fixed_batch() or 1,
            streams=streams,
            threads=threads,
        )

    def engine(self, plan: Plan) -> Engine:
        """The engine for a plan, loaded at the first call.

        Raises:
            BackendUnavailable: The runtime is not installed.
            BuildError: The runtime refuses the model or the plan.
            EngineError: The detector is closed.
        """
        with self._lock:
            if self._is_closed:
                raise EngineError("this detector is closed; load the model again")
            if plan not in self._engines:
                model, made = self._file_for(plan)
                self._engines[plan] = self._runtime.load(model, made)
            return self._engines[plan]

    def _file_for(self, plan: Plan) -> tuple[Model, Plan]:
        """The network in the plan's precision, for back ends whose precision is the graph's."""
        if not self.is_on_gpu:
            return self.model, plan
        from saccade.pipeline.device import device_model

        made = self._exit.enter_context(device_model(self.model, plan))
        return made.model, made.plan

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """What runs otherwise than asked for, in the engines loaded so far."""
        with self._lock:
            return tuple(f for engine in self._engines.values() for f in engine.fallbacks)

    def close(self) -> None:
        """Release the engines. Further calls are errors; closing twice is not."""
        with self._lock:
            self._is_closed = True
            self._idle.clear()
            sessions, self._sessions = self._sessions, []
            engines = list(self._engines.values())
            self._engines.clear()
        for session in sessions:
            session.close()
        for engine in engines:
            engine.close()
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

    def __repr__(self) -> str:
        height, width = self.contract.input.size_hw
        return (
            f"Detector({self.model.path.name}, {self.contract.head.family} head, "
            f"{width}x{height}, {self.backend} {self.precision}"
            f"{f' on {self.device}' if self.is_on_gpu else ''})"
        )
