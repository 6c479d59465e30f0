"""A bundle's network as a model of NVIDIA Triton's repository.

    REPO/NAME/config.pbtxt      shapes, dynamic batching, instances and threads of the bundle's plan
    REPO/NAME/contract.toml     how pictures go in and outputs are read, for the client's author
    REPO/NAME/labels.txt        class names, if they are known
    REPO/NAME/1/model.onnx      the network, its external files beside it

Only the network goes: decoding, preparing and suppressing are the client's there.

Source: Triton's documents "Model Repository" and "Model Configuration", and the parameters that
its onnxruntime and openvino back ends list in their READMEs.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade import contracts
from saccade.bundles import Bundle, read_bundle
from saccade.errors import BuildError, InputError, SinkError
from saccade.export.textproto import Enum, Fields, text_of
from saccade.graph.reading import load_proto, read_model
from saccade.graph.shapes import infer_shapes
from saccade.graph.signature import feed_shapes, signature_of
from saccade.types import Contract, Model, Plan, Signature, TensorSpec

__all__ = ["BACKENDS", "Exported", "TritonOptions", "export_triton"]

# Back ends of Triton that read ONNX files, and the name of ours that they stand for.
BACKENDS = ("onnxruntime", "openvino")
CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.onnx"

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "object": "TYPE_STRING",
}
# Batch sizes that tell an axis that grows with the batch from one that does not.
_TRIALS = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonOptions:
    """What of the configuration the bundle does not decide.

    Attributes:
        name: Name of the model there; default that of the source model.
        version: Number of the version's folder.
        backend: One of BACKENDS; default the bundle's own.
        max_batch: Largest batch; default the plan's. Only where the graph leaves it free.
        queue_delay_us: How long a request may wait for others to share its batch, microseconds.
            0 batches only what has come meanwhile.
    """

    name: str = ""
    version: int = 1
    backend: str = ""
    max_batch: int | None = None
    queue_delay_us: int = 0


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: The model's folder in the repository.
        max_batch: As configured; 0 if the graph fixes the batch and Triton must not batch.
        notes: What does not hold there or was not done, in sentences.
    """

    folder: Path
    max_batch: int
    notes: tuple[str, ...]


def export_triton(
    bundle: str | Path,
    repository: str | Path,
    *,
    options: TritonOptions | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a bundle's network into a Triton model repository.

    Args:
        bundle: Folder that `saccade build` wrote; all of its files are checked.
        repository: Folder of the repository; made if it is not there, other models stay.
        options: What the bundle does not decide.
        overwrite: Replace a model of that name. Without it, that is an error.

    Raises:
        ModelError: The bundle is not whole.
        BuildError: Triton has no back end for the bundle's plan, or cannot be told its shapes.
        InputError: An option is wrong, or the model is there.
        SinkError: The files could not be written.
    """
    options = options or TritonOptions()
    read = read_bundle(bundle)
    model = read_model(read.model_path)
    signature = signature_of(model)
    contract = contracts.resolve(signature, contract=read.contract_path)
    if contract.input.size_hw != signature.size_hw:
        signature = signature_of(model, contract.input.size_hw)
    name = options.name or Path(str(read.manifest.model["name"])).stem
    _check(name, options)
    backend = _backend(read, options)
    max_batch, notes = _max_batch(model, signature, read.plan, options)
    config = text_of(
        _config(name, backend, read.plan, signature, max_batch, options),
        comment=_comment(read, contract),
    )
    folder = Path(repository) / name
    _write(folder, read, model, config, options.version, overwrite)
    return Exported(folder, max_batch, (*notes, *_notes(read, backend, max_batch)))


def _check(name: str, options: TritonOptions) -> None:
    # Names travel in paths and addresses: /v2/models/NAME/versions/1.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}", name):
        raise InputError(
            f"a model's name must be of letters, digits, '_', '-' and '.', it is {name!r}; give "
            "another one with --name"
        )
    if options.version < 1:
        raise InputError(f"the version must be 1 or more, got {options.version}")
    if options.queue_delay_us < 0:
        raise InputError(
            f"the queue delay must be 0 microseconds or more, got {options.queue_delay_us}"
        )
    if options.max_batch is not None and options.max_batch < 1:
        raise InputError(f"the largest batch must be 1 or more, got {options.max_batch}")


def _backend(bundle: Bundle, options: TritonOptions) -> str:
    wanted = options.backend or bundle.plan.backend
    if wanted in BACKENDS:
        return wanted
    if options.backend:
        raise InputError(
            f"the back end must be one of {', '.join(BACKENDS)}, which read ONNX files in Triton; "
            f"got {wanted!r}"
        )
    raise BuildError(
        f"the plan's back end must be one that Triton has for ONNX files ({', '.join(BACKENDS)}), "
        f"this bundle was built for {wanted!r}; give --backend onnxruntime to run its network "
        "there in another runtime than the one that was checked"
    )


def _max_batch(
    model: Model, signature: Signature, plan: Plan, options: TritonOptions
) -> tuple[int, tuple[str, ...]]:
    """Triton's max_batch_size, and why it is 0."""
    fixed = _not_batched(model, signature)
    if not fixed:
        return options.max_batch or plan.batch, ()
    if options.max_batch is not None:
        raise InputError(
            f"a largest batch can be given only where the graph leaves the batch free, here it "
            f"does not: {fixed}; leave --max-batch out, or export the network again with a free "
            "batch axis"
        )
    return 0, (f"no dynamic batching: {fixed}",)


def _not_batched(model: Model, signature: Signature) -> str:
    """Why requests cannot be put together along the first axis, or ""."""
    for spec in signature.inputs:
        if not spec.shape or not isinstance(spec.shape[0], str):
            return f"input {spec} fixes its first axis"
    proto = load_proto(model)
    trials = {
        batch: infer_shapes(
            proto, feed_shapes(model, signature.size_hw, batch), model_path=model.path
        ).tensors
        for batch in _TRIALS
    }
    for spec in signature.outputs:
        for batch, tensors in trials.items():
            sizes = tensors[spec.name].sizes if spec.name in tensors else ()
            if not sizes or sizes[0] != batch:
                return f"the first axis of output {spec} is not the batch"
    return ""


def _config(
    name: str,
    backend: str,
    plan: Plan,
    signature: Signature,
    max_batch: int,
    options: TritonOptions,
) -> Fields:
    inputs = [_fed(spec, signature.size_hw) for spec in signature.inputs]
    fields: list[tuple[str, Any]] = [
        ("name", name),
        ("backend", backend),
        ("default_model_filename", MODEL_FILE),
        ("max_batch_size", max_batch),
    ]
    fields += [("input", _tensor(spec, max_batch)) for spec in inputs]
    fields += [("output", _tensor(spec, max_batch)) for spec in signature.outputs]
    fields.append(("instance_group", _instances(plan)))
    if max_batch > 0:
        fields.append(("dynamic_batching", _batching(max_batch, options)))
    fields.append(("model_warmup", _warmup(inputs, max_batch)))
    for key, value in _parameters(backend, plan, max_batch).items():
        fields.append(("parameters", [("key", key), ("value", [("string_value", value)])]))
    return fields


def _fed(spec: TensorSpec, size_hw: tuple[int, int]) -> TensorSpec:
    """An input with the height and width that the contract says, where the graph leaves them."""
    shape = list(spec.shape)
    free = [i for i, size in enumerate(shape) if i > 0 and isinstance(size, str)]
    if len(shape) == 4 and len(free) == 2:
        for i, size in zip(free, size_hw, strict=True):
            shape[i] = size
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def _tensor(spec: TensorSpec, max_batch: int) -> Fields:
    return [
        ("name", spec.name),
        ("data_type", Enum(_type(spec))),
        ("dims", _dims(spec, max_batch)),
    ]


def _type(spec: TensorSpec) -> str:
    if spec.dtype not in _TYPES:
        raise BuildError(
            f"tensors must be of a type that Triton has ({', '.join(_TYPES)}), {spec} is not; "
            "export the network again with another type"
        )
    return _TYPES[spec.dtype]


def _dims(spec: TensorSpec, max_batch: int) -> list[int]:
    if spec.shape == ("...",):
        raise BuildError(
            f"Triton must be told how many axes each tensor has, of {spec.name!r} it is not known; "
            "export the network again with shapes"
        )
    shape = spec.shape[1:] if max_batch > 0 else spec.shape
    # Triton knows no tensors without axes: one of a single value has one axis of size 1.
    return [size if isinstance(size, int) else -1 for size in shape] or [1]


def _instances(plan: Plan) -> Fields:
    fields: list[tuple[str, Any]] = [("count", plan.streams)]
    if plan.device == "cpu":
        return [*fields, ("kind", Enum("KIND_CPU"))]
    number = int(plan.device.partition(":")[2] or 0)
    return [*fields, ("kind", Enum("KIND_GPU")), ("gpus", [number])]


def _batching(max_batch: int, options: TritonOptions) -> Fields:
    fields: list[tuple[str, Any]] = []
    if options.queue_delay_us:
        # Without a preferred size a request would wait even when the batch can run at once.
        fields.append(("preferred_batch_size", [max_batch]))
    fields.append(("max_queue_delay_microseconds", options.queue_delay_us))
    return fields


def _warmup(inputs: Sequence[TensorSpec], max_batch: int) -> Fields:
    """One run before the first request, so that nobody pays for what a runtime does late."""
    fed: list[tuple[str, Any]] = [
        (
            "inputs",
            [
                ("key", spec.name),
                (
                    "value",
                    [
                        ("data_type", Enum(_type(spec))),
                        ("dims", [abs(size) for size in _dims(spec, max_batch)]),
                        ("zero_data", True),
                    ],
                ),
            ],
        )
        for spec in inputs
    ]
    return [("name", "zeros"), ("batch_size", max(max_batch, 1)), *fed]


def _parameters(backend: str, plan: Plan, max_batch: int) -> Mapping[str, str]:
    if backend == "onnxruntime":
        return {
            "intra_op_thread_count": str(plan.threads),
            "inter_op_thread_count": "1",
            "execution_mode": "0",
        }
    made = {
        "NUM_STREAMS": str(plan.streams),
        "INFERENCE_NUM_THREADS": str(plan.streams * plan.threads),
    }
    if plan.precision == "bf16":
        made["HINT_BF16"] = "YES"
    if max_batch > 1:
        # Otherwise that back end refuses every batch below the largest.
        made["ENABLE_BATCH_PADDING"] = "YES"
    return made


def _comment(bundle: Bundle, contract: Contract) -> list[str]:
    manifest, rule = bundle.manifest, contract.input
    height, width = rule.size_hw
    place = rule.resize if rule.resize == "stretch" else f"letterbox {rule.anchor}"
    return [
        f"Written by saccade {manifest.needs.saccade} from a bundle of {manifest.model['name']}",
        f"(manifest sha256 {manifest.digest}).",
        f"Pictures: {rule.color.upper()} {width}x{height}, {place}, {rule.layout.upper()}, "
        f"(x - {list(rule.mean)}) / {list(rule.std)};",
        "contract.toml says all of it, and how the outputs are read.",
    ]


def _notes(bundle: Bundle, backend: str, max_batch: int) -> list[str]:
    plan, needs = bundle.plan, bundle.manifest.needs
    notes = [
        "the gate's evidence is from "
        f"{needs.backend_version}; Triton brings another build of {backend}, so compare answers "
        "before relying on them",
    ]
    if backend != plan.backend:
        notes.append(f"the bundle was checked in {plan.backend}, it runs in {backend} there")
    if backend == "openvino" and plan.precision == "fp32":
        notes.append(
            "Triton's openvino back end cannot be told to compute in FP32: on processors with BF16 "
            "OpenVINO takes BF16 by itself, which the gate did not check in this bundle"
        )
    if backend == "openvino" and max_batch > 1:
        notes.append("short batches are padded there: each costs as much as a full one")
    if plan.options:
        told = ", ".join(f"{name}={value}" for name, value in plan.options)
        notes.append(f"options of the plan that Triton has no word for are left out: {told}")
    return notes


def _write(
    folder: Path, bundle: Bundle, model: Model, config: str, version: int, overwrite: bool
) -> None:
    """Complete beside its place first: a server may be polling the repository."""
    if folder.exists() and not overwrite:
        raise InputError(
            f"the model must be new in the repository, {folder} is there; choose another --name or "
            "repository, or replace it with --overwrite"
        )
    if folder.exists() and not (folder / CONFIG_FILE).is_file():
        raise InputError(
            f"only a model of a Triton repository is replaced, {folder} holds no {CONFIG_FILE}; "
            "choose another --name or repository"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            made = aside / "new"
            _fill(made, bundle, model, config, version)
            if folder.exists():
                folder.rename(aside / "old")
            made.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as exc:
        raise SinkError(
            f"repository {folder.parent} must be writable, {exc.filename or folder} is not: "
            f"{exc.strerror}; free space or choose another folder"
        ) from exc


def _fill(made: Path, bundle: Bundle, model: Model, config: str, version: int) -> None:
    inside = made / str(version)
    inside.mkdir(parents=True)
    shutil.copyfile(bundle.model_path, inside / MODEL_FILE)
    for name in model.external_files:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, inside / name)
    for name in ("contract.toml", "labels.txt"):
        if name in bundle.manifest.files:
            shutil.copyfile(bundle.path / name, made / name)
    (made / CONFIG_FILE).write_text(config, "utf-8")
