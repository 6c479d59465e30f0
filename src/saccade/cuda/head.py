"""A head family in the terms of the kernels: which file, which macros, which outputs.

What each family computes is told in `saccade.heads`; kernels/heads/*.cuh does the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade.cuda.prepare import as_float
from saccade.errors import BuildError, ContractError
from saccade.types import DeviceBuffer, HeadRule, Thresholds

__all__ = ["FAMILIES", "DeviceHead", "read_head"]

_FLOATS = {"float32": "float", "float16": "f16", "bfloat16": "bf16"}
_LABELS = {**_FLOATS, "int64": "long long", "int32": "int"}
_MAX_POINTS = 64


@dataclass(frozen=True, slots=True)
class DeviceHead:
    """What the suppression kernels need to know of a head.

    Attributes:
        file: In kernels/heads.
        outputs: Names of the engine's outputs in the order in which the file counts them.
        num_rows: n.
        num_classes: Classes per row as the kernels count them; 1 if a row has one class only.
        dtype: Element type of the floating-point outputs.
        macros: Of that file.
        is_final: Nothing to suppress.
        in_source: Boxes are in source pixels already.
        key_is_rank: Candidates are ordered before the activation, all pairs of row and class.
        first_only: At most this many candidates are looked at; 0 for all.
        num_points: Key points per box.
        constants: A table the head needs in device memory behind its outputs, or None.
    """

    file: str
    outputs: tuple[str, ...]
    num_rows: int
    num_classes: int
    dtype: str
    macros: Mapping[str, object] = field(default_factory=dict)
    is_final: bool = False
    in_source: bool = False
    key_is_rank: bool = False
    first_only: int = 0
    num_points: int = 0
    constants: np.ndarray | None = None


def read_head(
    rule: HeadRule,
    size_hw: tuple[int, int],
    outputs: Mapping[str, DeviceBuffer],
    thresholds: Thresholds,
    *,
    priors: np.ndarray | None = None,
) -> DeviceHead:
    """Translate a contract's head for the kernels.

    Args:
        rule: How outputs are read.
        size_hw: Height and width of the input in pixels.
        outputs: Of the engine, by name.
        thresholds: Some heads leave rows out early.
        priors: (n, 4) float32 of `saccade.heads.ssd.prior_boxes`, for an ssd head whose priors
            are not in the graph.

    Raises:
        ContractError: The outputs do not fit the rule.
        BuildError: The kernels cannot do what the rule says.
    """
    if rule.family not in FAMILIES:
        raise BuildError(
            f"the head family must be one of {', '.join(FAMILIES)} on the GPU, it is "
            f"{rule.family!r}; run on the CPU"
        )
    call = _Call(rule, size_hw, outputs, thresholds, priors)
    return FAMILIES[rule.family](call)


@dataclass(frozen=True, slots=True)
class _Call:
    rule: HeadRule
    size_hw: tuple[int, int]
    outputs: Mapping[str, DeviceBuffer]
    thresholds: Thresholds
    priors: np.ndarray | None

    def buffer(self, role: str, ndim: int | None) -> DeviceBuffer:
        name = self.rule.outputs.get(role, "")
        found = self.outputs.get(name)
        if found is None or (ndim is not None and len(found.shape) != ndim):
            raise ContractError(
                f"head {self.rule.family!r} needs an output of {ndim} axes for {role!r}, the "
                f"contract names {name!r}, which is "
                f"{'not there' if found is None else f'of shape {found.shape}'}; correct "
                "head.outputs in the contract"
            )
        return found

    def floats(self, *roles: str) -> str:
        """The element type that these outputs share."""
        found = {self.outputs[self.rule.outputs[role]].dtype for role in roles}
        if len(found) != 1 or not found <= set(_FLOATS):
            raise BuildError(
                f"outputs of head {self.rule.family!r} must share one type of "
                f"{', '.join(_FLOATS)}, they are {', '.join(sorted(found))}; run on the CPU"
            )
        return found.pop()

    def check(self, name: str, got: int, want: int) -> None:
        if got != want:
            raise ContractError(
                f"head {self.rule.family!r} must have {want} {name}, the engine's outputs have "
                f"{got}; correct head.num_classes, head.options or input.size_hw in the contract"
            )

    def cells(self, stride: int) -> int:
        h, w = self.size_hw
        return -(-h // stride) * -(-w // stride)

    def names(self, *roles: str) -> tuple[str, ...]:
        return tuple(self.rule.outputs[role] for role in roles)


def _yolov8(call: _Call) -> DeviceHead:
    shape = call.buffer("rows", 3).shape
    rows_first = bool(call.rule.options.get("rows_first", False))
    num_rows, width = shape[1:] if rows_first else shape[:0:-1]
    call.check("values per box", width, 4 + call.rule.num_classes)
    return DeviceHead(
        "yolov8.cuh",
        call.names("rows"),
        num_rows,
        call.rule.num_classes,
        call.floats("rows"),
        {"ROWS_FIRST": int(rows_first)},
    )


def _rows(call: _Call) -> DeviceHead:
    num_rows, width = call.buffer("rows", 3).shape[1:]
    call.check("values per row", width, 5 + call.rule.num_classes)
    is_yolox = call.rule.family == "yolox"
    is_decoded = not is_yolox or bool(call.rule.options.get("decoded", False))
    macros: dict[str, object] = {
        "HAS_OBJECTNESS": int(is_yolox or bool(call.rule.options.get("objectness", True))),
        "IS_DECODED": int(is_decoded),
    }
    if not is_decoded:
        macros |= _strides((8, 16, 32))
        call.check("rows", num_rows, sum(map(call.cells, (8, 16, 32))))
    return DeviceHead(
        "rows.cuh", call.names("rows"), num_rows, call.rule.num_classes, call.floats("rows"), macros
    )


def _nanodet(call: _Call) -> DeviceHead:
    rule, options = call.rule, call.rule.options
    strides, bins = tuple(options["strides"]), int(options["reg_max"]) + 1
    num_rows = sum(map(call.cells, strides))
    is_plus = "rows" in rule.outputs
    if is_plus:
        roles = ["rows"]
        shape = call.buffer("rows", 3).shape
        call.check("rows", shape[1], num_rows)
        call.check("values per row", shape[2], rule.num_classes + 4 * bins)
    else:
        roles = [f"{role}_{s}" for s in strides for role in ("cls", "dis")]
        for s in strides:
            for role, width in (("cls", rule.num_classes), ("dis", 4 * bins)):
                shape = call.buffer(f"{role}_{s}", 3).shape
                call.check(f"cells of stride {s}", shape[1], call.cells(s))
                call.check(f"values per cell of {role}", shape[2], width)
    macros = {
        **_strides(strides),
        "BINS": bins,
        "CENTRE": as_float(options["centre"]),
        "IS_PLUS": int(is_plus),
    }
    return DeviceHead(
        "nanodet.cuh", call.names(*roles), num_rows, rule.num_classes, call.floats(*roles), macros
    )


def _fastestdet(call: _Call) -> DeviceHead:
    stride = int(call.rule.options["stride"])
    _, channels, rows, cols = call.buffer("map", 4).shape
    call.check("channels", channels, 5 + call.rule.num_classes)
    call.check("cells", rows * cols, call.cells(stride))
    score = call.thresholds.score
    least = score ** (1 / 0.6) * 0.999 if score > 0 else score
    return DeviceHead(
        "fastestdet.cuh",
        call.names("map"),
        rows * cols,
        call.rule.num_classes,
        call.floats("map"),
        {**_strides((stride,)), "LEAST": as_float(least)},
    )


def _yunet(call: _Call) -> DeviceHead:
    strides = tuple(call.rule.options["strides"])
    roles = [f"{role}_{s}" for s in strides for role in ("cls", "obj", "bbox", "kps")]
    for s in strides:
        for role in ("cls", "obj", "bbox", "kps"):
            shape = call.buffer(f"{role}_{s}", 3).shape
            call.check(f"cells of stride {s}", shape[1], call.cells(s))
    num_points = call.buffer(f"kps_{strides[0]}", 3).shape[2] // 2
    call.check("key points or fewer", max(num_points, _MAX_POINTS), _MAX_POINTS)
    return DeviceHead(
        "yunet.cuh",
        call.names(*roles),
        sum(map(call.cells, strides)),
        1,
        call.floats(*roles),
        _strides(strides),
        num_points=num_points,
    )


def _pairs(call: _Call, scores: str, macros: Mapping[str, object], **more: Any) -> DeviceHead:
    found, boxes = call.buffer(scores, 3).shape, call.buffer("boxes", 3).shape
    columns = call.rule.num_classes + int(str(macros["FIRST"])) + int(str(macros["LAST"]))
    call.check("score columns", found[2], columns)
    call.check("rows of 4 values", boxes[1] * 10 + boxes[2], found[1] * 10 + 4)
    return DeviceHead(
        "pairs.cuh",
        call.names(scores, "boxes"),
        found[1],
        call.rule.num_classes,
        call.floats(scores, "boxes"),
        {"PRIORS": 0, "VARIANCE_CENTRE": 0, "VARIANCE_SIZE": 0, **macros},
        **more,
    )


def _ssd(call: _Call) -> DeviceHead:
    options = call.rule.options
    has_priors = options["priors"] != "in_graph"
    macros: dict[str, object] = {
        "FIRST": int(options["background"] is not None),
        "LAST": 0,
        "ACTIVATION": int(options["activation"] == "softmax"),
        "IS_CENTRED": int(has_priors),
        "IS_NORMALISED": int(options["boxes"] == "normalised"),
    }
    if not has_priors:
        return _pairs(call, "scores", macros)
    num = call.buffer("scores", 3).shape[1]
    call.check("priors", num, 0 if call.priors is None else len(call.priors))
    of_centre, of_size = options["variances"]
    macros |= {
        "PRIORS": 1,
        "VARIANCE_CENTRE": as_float(of_centre),
        "VARIANCE_SIZE": as_float(of_size),
    }
    return _pairs(call, "scores", macros, constants=call.priors)


def _damo(call: _Call) -> DeviceHead:
    plain = {"FIRST": 0, "LAST": 0, "ACTIVATION": 0, "IS_CENTRED": 0, "IS_NORMALISED": 0}
    return _pairs(call, "scores", plain)


def _detr(call: _Call) -> DeviceHead:
    options = call.rule.options
    if options.get("layout") == "post":
        return _final_like(call, in_source=True, checks_label=False)
    is_softmax = options.get("activation", "sigmoid") == "softmax"
    macros = {
        "FIRST": 0,
        "LAST": int(bool(options.get("no_object", is_softmax))),
        "ACTIVATION": 1 if is_softmax else 2,
        "IS_CENTRED": 1,
        "IS_NORMALISED": 1,
    }
    num_queries = call.buffer("logits", 3).shape[1]
    return _pairs(
        call,
        "logits",
        macros,
        is_final=True,
        key_is_rank=not is_softmax,
        first_only=0 if is_softmax else num_queries,
    )


def _final(call: _Call) -> DeviceHead:
    layout = call.rule.options.get("layout")
    if layout == "num_dets":
        return _final_like(call, in_source=False, checks_label=True)
    if layout == "dets_labels":
        num = call.buffer("dets", 3).shape[1]
        label = call.buffer("labels", 2)
        parts = {"BOX": (0, 5, 0), "SCORE": (0, 5, 4), "LABEL": (1, 1, 0)}
        return _final_head(call, ("dets", "labels"), num, parts, label.dtype, ("dets",))
    if layout == "nms6":
        rows = call.buffer("rows", 3)
        parts = {"BOX": (0, 6, 0), "SCORE": (0, 6, 4), "LABEL": (0, 6, 5)}
        return _final_head(call, ("rows",), rows.shape[1], parts, rows.dtype, ("rows",))
    raise BuildError(
        f"layout {layout!r} of head final has no fixed number of rows per picture, which the GPU "
        "path needs; run on the CPU, or export without suppression"
    )


def _final_like(call: _Call, *, in_source: bool, checks_label: bool) -> DeviceHead:
    classes = "labels" if "labels" in call.rule.outputs else "classes"
    roles = ["boxes", "scores", classes]
    num = call.buffer("boxes", 3).shape[1]
    label = call.buffer(classes, 2)
    call.check("scores per picture", call.buffer("scores", 2).shape[1], num)
    parts = {"BOX": (0, 4, 0), "SCORE": (1, 1, 0), "LABEL": (2, 1, 0)}
    more: dict[str, object] = {"CHECK_LABEL": int(checks_label)}
    if "count" in call.rule.outputs:
        roles.append("count")
        more |= {"COUNT_T": _LABELS[call.buffer("count", None).dtype], "COUNT_OUT": 3}
    head = _final_head(call, roles, num, parts, label.dtype, ("boxes", "scores"), more)
    return DeviceHead(
        head.file,
        head.outputs,
        head.num_rows,
        1,
        head.dtype,
        head.macros,
        is_final=True,
        in_source=in_source,
    )


def _final_head(
    call: _Call,
    roles: list[str] | tuple[str, ...],
    num_rows: int,
    parts: Mapping[str, tuple[int, int, int]],
    label_dtype: str,
    floats: tuple[str, ...],
    more: Mapping[str, object] | None = None,
) -> DeviceHead:
    macros: dict[str, object] = {
        "LABEL_T": _LABELS[label_dtype],
        "CHECK_LABEL": 1,
        "HAS_COUNT": int("count" in roles),
        **(more or {}),
    }
    for part, (output, width, column) in parts.items():
        macros |= {f"{part}_OUT": output, f"{part}_WIDTH": width, f"{part}_COLUMN": column}
    return DeviceHead(
        "final.cuh", call.names(*roles), num_rows, 1, call.floats(*floats), macros, is_final=True
    )


def _strides(strides: tuple[int, ...]) -> dict[str, object]:
    if any(s < 1 or not math.isfinite(s) for s in strides):
        raise ContractError(
            f"strides must be positive, got {strides}; correct head.options.strides"
        )
    return {"STRIDES": ",".join(map(str, strides)), "NUM_STRIDES": len(strides)}


FAMILIES: Mapping[str, Callable[[_Call], DeviceHead]] = {
    "yolov8": _yolov8,
    "yolov5": _rows,
    "yolox": _rows,
    "nanodet": _nanodet,
    "fastestdet": _fastestdet,
    "ssd": _ssd,
    "yunet": _yunet,
    "damo_yolo": _damo,
    "detr": _detr,
    "final": _final,
}
