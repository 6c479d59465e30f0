"""Convolutions, pooling, resizing, padding."""

from __future__ import annotations

import math

import numpy as np

from saccade.native.lowering.rules import Lowering, Node, Refused, Value, as_graph, rule
from saccade.native.ops import Conv, Copy, Pool, Reduce, Resize, RoiAlign
from saccade.native.tensors import View
from saccade.native.views import sliced, sliding_order

__all__: list[str] = []


def _pads(node: Node, sizes: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    auto = node.get("auto_pad", "NOTSET")
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    if auto in ("NOTSET", ""):
        top, left, bottom, right = node.get("pads", [0, 0, 0, 0])
        return int(top), int(left), int(bottom), int(right)
    if auto == "VALID":
        return (0, 0, 0, 0)
    before, after = [], []
    for size, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(large if auto == "SAME_LOWER" else small)
        after.append(small if auto == "SAME_LOWER" else large)
    return (before[0], before[1], after[0], after[1])


def _pair(node: Node, name: str) -> tuple[int, int]:
    found = node.get(name, [1, 1])
    return int(found[0]), int(found[1])


def _out_size(size: int, window: tuple[int, int, int, int, int], ceil: bool = False) -> int:
    before, after, kernel, stride, dilation = window
    room = size + before + after - (kernel - 1) * dilation - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (count - 1) * stride >= size + before:
        count -= 1  # a window must begin on the picture or its leading padding
    return count


@rule("Conv")
def _conv(low: Lowering, node: Node) -> Value:
    weight = node.array(1, "weights")
    if weight.ndim != 4:
        raise Refused(f"it convolves in {weight.ndim - 2} dimensions; 2 are covered")
    view = low.operand(node, 0)
    groups = int(node.get("group", 1))
    k, _, kh, kw = weight.shape
    pixels = view.permuted(0, 2, 3, 1) if _is_fed(low, view) else low.pictures(view, node.name)
    n, h, w, _ = pixels.shape
    pads = _pads(node, (h, w), (kh, kw))
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    oh = _out_size(h, (pads[0], pads[2], kh, stride[0], dilation[0]))
    ow = _out_size(w, (pads[1], pads[3], kw, stride[1], dilation[1]))
    made = low.new_pictures(node, (n, oh, ow, k))
    bias = None
    if node.has(2):
        bias = low.draft.weight(f"{node.name}:bias", _float(node.array(2, "the bias")))
    low.draft.steps.append(
        Conv(
            label=node.name,
            x=pixels,
            y=made,
            weight=low.draft.weight(
                f"{node.name}:weight", np.ascontiguousarray(_float(weight).transpose(0, 2, 3, 1))
            ),
            kernel=(kh, kw),
            bias=bias,
            stride=stride,
            pads=pads,
            dilation=dilation,
            groups=groups,
        )
    )
    return as_graph(made)


@rule("ConvTranspose")
def _conv_transpose(low: Lowering, node: Node) -> Value:
    """Pixels spread out over zeros, then a convolution with the kernel turned round."""
    weight = node.array(1, "weights")
    if weight.ndim != 4 or node.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise Refused("it has other than 2 dimensions, or auto_pad")
    x, groups = low.pictures(node.value(0), node.name), int(node.get("group", 1))
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    _, per_group, kh, kw = weight.shape
    top, left, bottom, right = (int(p) for p in node.get("pads", [0, 0, 0, 0]))
    more = node.get("output_padding", [0, 0])
    if "output_shape" in node.attributes:
        raise Refused("its output_shape is given; pads are covered")
    span_h, span_w = (kh - 1) * dilation[0], (kw - 1) * dilation[1]
    pads = (span_h - top, span_w - left, span_h - bottom + more[0], span_w - right + more[1])
    if min(pads) < 0:
        raise Refused("its pads are larger than its kernel")
    if stride != (1, 1):
        size = ((x.h - 1) * stride[0] + 1, (x.w - 1) * stride[1] + 1)
        wide = low.new_pictures(node, (x.n, *size, x.c))
        spread = sliced(sliced(wide, 1, 0, size[0], stride[0]), 2, 0, size[1], stride[1])
        low.fill(node.name, wide, 0.0)
        low.draft.steps.append(Copy(node.name, x, spread))
        x = wide
    # (c, k / groups, kh, kw) becomes (k, kh, kw, c / groups), both axes of the kernel turned.
    parts = weight.reshape(groups, x.c // groups, per_group, kh, kw)[..., ::-1, ::-1]
    turned = parts.transpose(0, 2, 3, 4, 1).reshape(groups * per_group, kh, kw, x.c // groups)
    oh = x.h + pads[0] + pads[2] - span_h
    ow = x.w + pads[1] + pads[3] - span_w
    made = low.new_pictures(node, (x.n, oh, ow, groups * per_group))
    bias = None
    if node.has(2):
        bias = low.draft.weight(f"{node.name}:bias", _float(node.array(2, "the bias")))
    stored = low.draft.weight(f"{node.name}:weight", np.ascontiguousarray(_float(turned)))
    low.draft.steps.append(
        Conv(
            label=node.name,
            x=x,
            y=made,
            weight=stored,
            kernel=(kh, kw),
            bias=bias,
            pads=pads,
            dilation=dilation,
            groups=groups,
        )
    )
    return as_graph(made)


def _is_fed(low: Lowering, view: View) -> bool:
    """Whether a convolution reads a graph input as it comes."""
    return low.draft.buffers[view.buffer].kind == "input" and len(view.shape) == 4


def _float(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


@rule("MaxPool", "AveragePool")
def _pool(low: Lowering, node: Node) -> Value:
    if any(node.wanted[1:]):
        raise Refused("it gives the places of the maxima")
    kernel_list = node.get("kernel_shape", [])
    if len(kernel_list) != 2:
        raise Refused(f"it pools in {len(kernel_list)} dimensions; 2 are covered")
    kernel = int(kernel_list[0]), int(kernel_list[1])
    x = low.pictures(node.value(0), node.name)
    pads = _pads(node, (x.h, x.w), kernel)
    stride, dilation = _pair(node, "strides"), _pair(node, "dilations")
    ceil = bool(node.get("ceil_mode", 0))
    sizes = [
        _out_size(size, (pads[i], pads[i + 2], kernel[i], stride[i], dilation[i]), ceil)
        for i, size in enumerate((x.h, x.w))
    ]
    counts = bool(node.get("count_include_pad", 0))
    if ceil and counts and any(pads):
        raise Refused("it counts padding in windows that reach beyond it (ceil_mode)")
    y = low.new_pictures(node, (x.n, *sizes, x.c))
    kind = "max" if node.op == "MaxPool" else "mean"
    low.draft.steps.append(
        Pool(node.name, kind, x, y, kernel, stride, pads, dilation, counts_padding=counts)  # type: ignore[arg-type]
    )
    return as_graph(y)


@rule("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(low: Lowering, node: Node) -> Value:
    x = low.pictures(node.value(0), node.name)
    y = low.new_pictures(node, (x.n, 1, 1, x.c))
    kind = "mean" if node.op == "GlobalAveragePool" else "max"
    low.draft.steps.append(Reduce(node.name, kind, x, y, (1, 2)))  # type: ignore[arg-type]
    return as_graph(y)


@rule("Resize", "Upsample")
def _resize(low: Lowering, node: Node) -> Value:
    kind = node.get("mode", "nearest")
    if kind not in ("nearest", "linear"):
        raise Refused(f"mode {kind!r}; nearest and linear are covered")
    if node.get("antialias", 0) or node.get("exclude_outside", 0):
        raise Refused("antialias or exclude_outside is set")
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    if node.op == "Upsample":
        coordinates = "asymmetric"
    if coordinates not in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
        raise Refused(f"coordinates {coordinates!r}")
    x = low.pictures(node.value(0), node.name)
    scales = sizes = None
    place = 1 if node.op == "Upsample" else 2
    if node.has(place) and node.array(place, "scales").size:
        scales = [float(s) for s in node.array(place, "scales")]
    if node.has(3) and node.array(3, "sizes").size:
        sizes = [int(s) for s in node.array(3, "sizes")]
    if node.get("axes", None) is not None:
        raise Refused("axes are given")
    old = (x.n, x.c, x.h, x.w)
    if sizes is None:
        if scales is None:
            raise Refused("neither scales nor sizes are given")
        sizes = [math.floor(a * s) for a, s in zip(old, scales, strict=True)]
    else:
        if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Refused("the aspect ratio is kept")
        scales = [s / a for s, a in zip(sizes, old, strict=True)]
    if tuple(sizes[:2]) != old[:2]:
        raise Refused("it resizes pictures or channels")
    y = low.new_pictures(node, (x.n, sizes[2], sizes[3], x.c))
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if node.op == "Upsample":
        rounding = "floor"
    low.draft.steps.append(
        Resize(node.name, kind, x, y, (scales[2], scales[3]), coordinates, rounding)
    )
    return as_graph(y)


@rule("Pad")
def _pad(low: Lowering, node: Node) -> Value:
    if node.get("mode", "constant") != "constant":
        raise Refused(f"mode {node.get('mode', '')!r}; constant is covered")
    view = low.operand(node, 0)
    pads = node.ints(1, "pads") or []
    value = float(node.array(2, "the value")) if node.has(2) else float(node.get("value", 0.0))
    rank = len(view.shape)
    axes = node.ints(3, "axes") if node.has(3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes or []):
        before[axis], after[axis] = pads[i], pads[i + len(pads) // 2]
    for axis in range(rank):
        if before[axis] < 0 or after[axis] < 0:
            view = sliced(
                view, axis, max(-before[axis], 0), view.shape[axis] - max(-after[axis], 0)
            )
    before, after = [max(b, 0) for b in before], [max(a, 0) for a in after]
    if not any(before) and not any(after):
        return view
    shape = [b + size + a for b, size, a in zip(before, view.shape, after, strict=True)]
    y = low.draft.new(node.name, shape, view.dtype, sliding_order(view))
    inner = y
    for axis, size in enumerate(view.shape):
        inner = sliced(inner, axis, before[axis], before[axis] + size)
    low.fill(node.name, y, value)
    low.draft.steps.append(Copy(node.name, view, inner))
    return y


@rule("RoiAlign")
def _roi_align(low: Lowering, node: Node) -> Value:
    x = low.pictures(node.value(0), node.name)
    rois, pictures = low.operand(node, 1), low.operand(node, 2)
    size = (int(node.get("output_height", 1)), int(node.get("output_width", 1)))
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    mode = node.get("coordinate_transformation_mode", default)
    samples = int(node.get("sampling_ratio", 0))
    if samples <= 0:
        raise Refused("sampling_ratio 0 makes the number of samples depend on the box")
    kind = {"avg": "mean", "max": "max"}[node.get("mode", "avg")]
    if kind == "max":
        raise Refused("mode 'max'; avg is covered")
    y = low.new_pictures(node, (rois.shape[0], *size, x.c))
    scale = float(node.get("spatial_scale", 1.0))
    low.draft.steps.append(
        RoiAlign(node.name, x, rois, pictures, y, scale, samples, mode == "half_pixel")
    )
    return as_graph(y)
