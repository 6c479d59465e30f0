"""Graphs into TensorRT engines, with or without a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from saccade.backends._shape_ranges import ShapeRange, derive_shapes, input_ranges, parse_shapes
from saccade.backends._tensorrt_library import errors_of, logger_of, targets_of, version_of
from saccade.errors import BuildError, InputError
from saccade.types import Model, Plan, Precision

HERE = "current"
PRECISIONS: tuple[Precision, ...] = ("fp32",)
_OPTIONS = ("engines", "package", "shapes", "tf32", "workspace_mib")
_MAX_ERROR_LINES = 6
# Words of the library, in lower case, and what they mean to a user.
_ADVICE = {
    "fp8_e4m3": "FP8 needs sm89 or newer; for {target} quantise to INT8",
    "has type int32": "it reads no 32-bit biases; quantise without biases",
    "plugin not found": "it has no such plug-in; take that operator out of the graph",
    "nms": "it cannot suppress boxes in this graph; export without suppression",
    "outofmemory": "it needs more workspace; raise option workspace_mib or leave it out",
}


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine as bytes, and how it came about.

    Attributes:
        data: For `Runtime.deserialize_cuda_engine`.
        package: What built it, with its version.
        target: E.g. "sm89", or "sm86+sm89" for one engine that serves both.
        shapes: Ranges it was built for; empty if the graph fixes its inputs.
        parse_s: Seconds to read the graph.
        build_s: Seconds to build.
        messages: What the library said, from information upwards.
    """

    data: bytes
    package: str
    target: str
    shapes: tuple[ShapeRange, ...]
    parse_s: float
    build_s: float
    messages: tuple[str, ...]


def check_plan(plan: Plan) -> None:
    if plan.precision not in PRECISIONS:
        raise BuildError(
            f"precision of back end 'tensorrt' must be fp32, which means as the graph says, "
            f"got {plan.precision!r}; give it a graph that was converted to that precision"
        )
    unknown = sorted({name for name, _ in plan.options} - set(_OPTIONS))
    if unknown:
        raise InputError(
            f"options of back end 'tensorrt' are {', '.join(_OPTIONS)}; got {', '.join(unknown)}"
        )


def check_zero_points(model: Model) -> None:
    """Refuse unsigned zero points: the library reads them as signed and only warns."""
    import onnx

    proto = onnx.load_model(str(model.path), load_external_data=False)
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        if kinds.get(node.input[2]) == onnx.TensorProto.UINT8:
            raise BuildError(
                f"quantised values must be signed (INT8) for TensorRT, node {node.name!r} has an "
                "unsigned zero point, which it would read as signed; quantise with symmetric "
                "activations"
            )


def planned_shapes(model: Model, plan: Plan) -> tuple[ShapeRange, ...]:
    text = dict(plan.options).get("shapes")
    if text:
        return parse_shapes(text)
    if all(isinstance(size, int) for spec in model.inputs for size in spec.shape):
        return ()
    picture = next((spec for spec in model.inputs if len(spec.shape) == 4), None)
    if picture is None or any(not isinstance(size, int) for size in picture.shape[1:]):
        raise BuildError(
            "shapes must be given where a graph leaves height or width free, "
            f"{', '.join(map(str, model.inputs))}; such as 1x3x320x320:8x3x640x640:32x3x640x640"
        )
    # Height and width are fixed here, so that the size given is not looked at.
    return derive_shapes(model, (1, plan.batch, plan.batch), ((1, 1),))


def build_one(
    library: Any, model: Model, plan: Plan, target: str, ranges: tuple[ShapeRange, ...]
) -> BuiltEngine:
    logger, kept = logger_of(library)
    builder = library.Builder(logger)
    if builder is None:
        raise BuildError(f"{version_of(library)} cannot start a builder: {errors_of(kept)}")
    strong = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strong)
    began_s = time.perf_counter()
    _parse(library, network, logger, model, kept)
    parsed_s = time.perf_counter()
    config = _config(library, builder, plan, target)
    _add_profiles(builder, config, model, ranges)
    memory = builder.build_serialized_network(network, config)
    if memory is None:
        raise BuildError(
            f"tensorrt cannot build {model.path.name} for {target}"
            f"{_advice(errors_of(kept), target)}: {errors_of(kept)}"
        )
    return BuiltEngine(
        data=bytes(memoryview(memory)),
        package=version_of(library),
        target=target,
        shapes=ranges,
        parse_s=parsed_s - began_s,
        build_s=time.perf_counter() - parsed_s,
        messages=tuple(f"{severity}: {text}" for severity, text in kept),
    )


def _parse(
    library: Any, network: Any, logger: Any, model: Model, kept: Sequence[tuple[str, str]]
) -> None:
    parser = library.OnnxParser(network, logger)
    if parser.parse_from_file(str(model.path)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = "; ".join(
        f"node {e.node_name() or e.node()} ({e.node_operator()}): {' '.join(e.desc().split())}"
        for e in errors[:_MAX_ERROR_LINES]
    )
    told = told or errors_of(kept)
    raise BuildError(f"tensorrt cannot load this model{_advice(told, '')}: {told}")


def _advice(told: str, target: str) -> str:
    """What to do about the library's words, as far as they are known."""
    for needle, advice in _ADVICE.items():
        if needle in told.lower():
            return f" ({advice.format(target=target)})"
    return ""


def _config(library: Any, builder: Any, plan: Plan, target: str) -> Any:
    options = dict(plan.options)
    config = builder.create_builder_config()
    if options.get("tf32", "0") == "0":
        config.clear_flag(library.BuilderFlag.TF32)
    workspace = options.get("workspace_mib")
    if workspace is not None:
        if not workspace.isdecimal() or int(workspace) < 1:
            raise InputError(f"option workspace_mib must be a number from 1, got {workspace!r}")
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, int(workspace) << 20)
    if target != HERE:
        _aim(library, config, target)
    return config


def _aim(library: Any, config: Any, target: str) -> None:
    known = targets_of(library)
    names = target.lower().split("+")
    wrong = [name for name in names if name not in known]
    if wrong:
        raise InputError(
            f"targets of {version_of(library)} are {', '.join((*known, HERE))}, with + between "
            f"several for one engine; got {', '.join(wrong)}"
        )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        kind = getattr(library.ComputeCapability, name.upper())
        if not config.set_compute_capability(kind, index):
            raise BuildError(
                f"{version_of(library)} cannot aim at {target}; build for one card each"
            )


def _add_profiles(builder: Any, config: Any, model: Model, ranges: Sequence[ShapeRange]) -> None:
    for shapes in ranges:
        profile = builder.create_optimization_profile()
        for name, one in input_ranges(model, shapes).items():
            try:
                profile.set_shape(name, one.least, one.best, one.most)
            except ValueError as exc:
                raise BuildError(
                    f"tensorrt refuses the shapes {one} of input {name!r}: {exc}; change them"
                ) from exc
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"tensorrt refuses the shapes {shapes}; change them")
