"""A model as an engine process serves it: loaded, warmed up, and described for clients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade import backends, bundles
from saccade.bundles.plain import plain
from saccade.errors import AccuracyError, InputError, ModelError
from saccade.graph.reading import read_model
from saccade.pipeline.detector import Detector, load
from saccade.pipeline.devices import check_device
from saccade.pipeline.run import RunOptions
from saccade.profiler.machine import num_cores
from saccade.server.dtypes import datatype_of
from saccade.server.loading_options import LoadOptions
from saccade.types import Contract, Engine, Model, Plan, TensorSpec

if TYPE_CHECKING:
    from saccade.server.loading_device import OnDevice

__all__ = ["ServedModel", "open_model"]

_FREE_SIZE_HW = (640, 640)


@dataclasses.dataclass(slots=True, eq=False)
class ServedModel:
    """A loaded network, with what is needed to feed and read it.

    Attributes:
        name: What clients call it.
        model: The network.
        plan: How it runs.
        engine: What runs it.
        detector: If it is a detector, else None.
        manifest: If it is a bundle, what the bundle says of itself.
        size_hw: Height and width where the network leaves them free.
        scaled_decode: As in RunOptions.
        max_pixels: As in LoadOptions.
        why_no_detector: Why pictures cannot be sent, or "".
        on_device: If it is a detector on a GPU, what it has there.
    """

    name: str
    model: Model
    plan: Plan
    engine: Engine
    detector: Detector | None
    manifest: bundles.Manifest | None
    size_hw: tuple[int, int]
    scaled_decode: bool
    max_pixels: int
    why_no_detector: str = ""
    on_device: OnDevice | None = None

    @property
    def has_free_batch(self) -> bool:
        """Whether a run may have any number of items."""
        return all(spec.shape and isinstance(spec.shape[0], str) for spec in self.model.inputs)

    def close(self) -> None:
        """Release the network."""
        if self.on_device is not None:
            self.on_device.close()
        if self.detector is not None:
            self.detector.close()
        else:
            self.engine.close()

    def details(self) -> dict[str, Any]:
        """What the front tells clients about the model."""
        return {
            "inputs": [_described(spec) for spec in self.model.inputs],
            "outputs": [_described(spec) for spec in self.model.outputs],
            "digest": self.model.digest,
            "path": str(self.model.path),
            "plan": plain(self.plan),
            "max_batch": self.plan.batch if self.has_free_batch else 0,
            "contract": _contract(self.detector.contract) if self.detector else None,
            "why_no_detector": self.why_no_detector,
            "on_device": self.on_device.details() if self.on_device else None,
            "fallbacks": [plain(fallback) for fallback in self.engine.fallbacks],
            "mismatches": [str(m) for m in self.detector.mismatches] if self.detector else [],
            "gate": plain(self.manifest.gate) if self.manifest else None,
            "recipe": plain(self.manifest.recipe) if self.manifest else None,
            "created": plain(self.manifest.created) if self.manifest else None,
        }


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": shape}


def _contract(contract: Contract) -> dict[str, Any]:
    return {
        "size_hw": list(contract.input.size_hw),
        "family": contract.head.family,
        "num_classes": contract.head.num_classes,
        "labels": list(contract.labels),
        "detect": plain(contract.detect),
        "source": contract.source,
        "has_keypoints": contract.head.family in ("yunet",),
    }


def open_model(name: str, path: str, options: LoadOptions, *, taken_bytes: int = 0) -> ServedModel:
    """Load a bundle or an ONNX file. A network without a known head is served for tensors only.

    Args:
        name: What clients call it.
        path: Bundle or ONNX file.
        options: How.
        taken_bytes: Device memory that models have which are there already.

    Raises:
        AccuracyError: A bundle that did not pass its gate, and is not forced.
        SaccadeError: As for `saccade.load`.
    """
    manifest = None
    if bundles.is_bundle(path):
        manifest = bundles.read_bundle(path).manifest
        _check_gate(path, manifest, options)
        _check_device(path, manifest, options)
    if options.tensors_only:
        return _open_network(name, path, options, manifest, "it was loaded for tensors only")
    try:
        detector = load(
            path,
            preset=options.preset,
            contract=options.contract,
            labels=options.labels,
            size_hw=options.size_hw,
            backend=options.backend,
            precision=options.precision,  # type: ignore[arg-type]
            device=options.device if manifest is None else None,
            engine_options=options.engine_options or None,
        )
    except ModelError as exc:  # among them ContractError; a broken file fails again below
        if options.preset or options.contract or manifest is not None:
            raise
        return _open_network(name, path, options, manifest, str(exc))
    run = RunOptions(batch=options.batch, threads=options.threads).settled(detector.suggested)
    workers = options.workers or num_cores()
    # A graph that fixes its batch decides it: options are for all models of a server.
    is_fixed = any(s.shape and isinstance(s.shape[0], int) for s in detector.model.inputs)
    batch = None if is_fixed else run.batch or detector.default_batch()
    plan = detector.plan(batch=batch, streams=run.streams or workers, threads=run.threads or 1)
    on_device = None
    if detector.is_on_gpu:
        from saccade.server.loading_device import open_on_device

        limit = options.gpu_memory and max(options.gpu_memory - taken_bytes, 1)
        on_device = open_on_device(detector, plan, limit_bytes=limit, max_pixels=options.max_pixels)
    return ServedModel(
        name=name,
        model=detector.model,
        plan=plan,
        engine=on_device.engine if on_device else detector.engine(plan),
        on_device=on_device,
        detector=detector,
        manifest=manifest,
        size_hw=detector.contract.input.size_hw,
        scaled_decode=bool(run.scaled_decode),
        max_pixels=options.max_pixels,
    )


def _check_gate(path: str, manifest: bundles.Manifest, options: LoadOptions) -> None:
    verdict = manifest.gate.get("verdict") or {}
    if verdict.get("passed") is True or options.is_forced:
        return
    reasons = "; ".join(str(r.get("text", r)) for r in verdict.get("reasons") or ())
    raise AccuracyError(
        f"a bundle must have passed its gate to be served, {Path(path).name} did not "
        f"({reasons or 'its manifest holds no verdict'}); build it again, or force it"
    )


def _check_device(path: str, manifest: bundles.Manifest, options: LoadOptions) -> None:
    """A bundle runs where it was built to run."""
    if options.device not in (None, "cpu", manifest.plan.device):
        raise InputError(
            f"{Path(path).name} must be served where it was built to run, on "
            f"{manifest.plan.device}; this engine process serves {options.device}: build it for "
            f"that device, or start the server with --device {manifest.plan.device}"
        )


def _open_network(
    name: str, path: str, options: LoadOptions, manifest: bundles.Manifest | None, why: str
) -> ServedModel:
    file = bundles.read_bundle(path).model_path if manifest is not None else Path(path)
    model = read_model(file)
    if not model.inputs:
        raise InputError(f"a network must have inputs, {path} has none; export it again")
    fixed = [s.shape[0] for s in model.inputs if s.shape and isinstance(s.shape[0], int)]
    workers = options.workers or num_cores()
    if manifest is not None:
        plan = dataclasses.replace(manifest.plan)
    else:
        device = options.device or "cpu"
        check_device(device)
        if device != "cpu" and options.gpu_memory is not None:
            raise InputError(
                "a limit of device memory can be kept for detectors only, what "
                f"{Path(path).name} takes is not known before ({why}); leave out --gpu-memory"
            )
        plan = Plan(
            options.backend or ("onnxruntime" if device == "cpu" else "torch"),
            options.precision or "fp32",  # type: ignore[arg-type]
            device=device,
            batch=int(fixed[0]) if fixed else options.batch or 1,
            streams=workers,
            threads=options.threads or 1,
        )
    return ServedModel(
        name=name,
        model=model,
        plan=plan,
        engine=backends.get(plan.backend).load(model, plan),
        detector=None,
        manifest=manifest,
        size_hw=options.size_hw or _FREE_SIZE_HW,
        scaled_decode=False,
        max_pixels=options.max_pixels,
        why_no_detector=why,
    )
