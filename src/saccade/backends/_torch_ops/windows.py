"""Convolutions and pooling: operators that move a window over the picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from saccade.backends._torch_ops.lowering import Lowering, sizes_of
from saccade.backends._torch_ops.values import Lacking, Op, Symbol, Value, rule

WINDOW = "auto_pad dilations kernel_shape pads strides"
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _numbers(op: Op, name: str, default: int, num: int) -> list[int]:
    return [int(size) for size in op.attributes.get(name, [default] * num)]


def _pads(op: Op, sizes: list[int], kernel: list[int]) -> tuple[list[int], list[int]]:
    """Padding before and after each axis, from the attribute or from auto_pad.

    Args:
        op: The node.
        sizes: Spatial sizes of the input.
        kernel: Window sizes.
    """
    num = len(sizes)
    auto = op.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        pads = _numbers(op, "pads", 0, 2 * num) if auto == "NOTSET" else [0] * 2 * num
        return pads[:num], pads[num:]
    strides, dilations = _numbers(op, "strides", 1, num), _numbers(op, "dilations", 1, num)
    before, after = [], []
    for size, span, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (-(-size // stride) - 1) * stride + (span - 1) * dilation + 1
        total = max(reach - size, 0)
        less, more = total // 2, total - total // 2
        before.append(less if auto == "SAME_UPPER" else more)
        after.append(more if auto == "SAME_UPPER" else less)
    return before, after


def _explicit(before: list[int], after: list[int]) -> list[int]:
    """Padding in the order of torch's pad: last axis first."""
    pairs = zip(reversed(before), reversed(after), strict=True)
    return [amount for pair in pairs for amount in pair]


def _spatial(value: Symbol | torch.Tensor) -> list[int]:
    sizes = sizes_of(value)[2:]
    if not 1 <= len(sizes) <= 3:
        raise Lacking(f"the input must have 1 to 3 spatial axes, it has {len(sizes)}")
    return sizes


@rule("Conv", f"{WINDOW} group", inputs=3, kind="heavy")
def _conv(low: Lowering, op: Op) -> Value:
    x, weight = op.symbol_or_tensor(0), op.symbol_or_tensor(1)
    sizes, kernel = _spatial(x), sizes_of(weight)[2:]
    num = len(sizes)
    before, after = _pads(op, sizes, kernel)
    if before != after:
        x, before = low.emit(F.pad, x, _explicit(before, after)), [0] * num
    return low.emit(
        CONVOLUTIONS[num],
        x,
        weight,
        op.get(2),
        _numbers(op, "strides", 1, num),
        before,
        _numbers(op, "dilations", 1, num),
        op.integer("group", 1),
    )


@rule("ConvTranspose", f"{WINDOW} group output_padding", inputs=3, kind="heavy",
      check=lambda op: "" if op.text("auto_pad", "NOTSET") in ("NOTSET", "VALID")
      else f"auto_pad={op.text('auto_pad', '')}")  # fmt: skip
def _conv_transpose(low: Lowering, op: Op) -> Value:
    x, weight = op.symbol_or_tensor(0), op.symbol_or_tensor(1)
    sizes = _spatial(x)
    num = len(sizes)
    before, after = _pads(op, sizes, sizes_of(weight)[2:])
    extra = _numbers(op, "output_padding", 0, num)
    if before != after:
        # Padding of a transposed convolution is cropping: less at the end is a larger output.
        extra = [e + b - a for e, b, a in zip(extra, before, after, strict=True)]
        strides = _numbers(op, "strides", 1, num)
        if any(not 0 <= e < s for e, s in zip(extra, strides, strict=True)):
            raise Lacking(f"pads must be symmetric, they are {before} and {after}")
    return low.emit(
        TRANSPOSED[num],
        x,
        weight,
        op.get(2),
        _numbers(op, "strides", 1, num),
        before,
        extra,
        op.integer("group", 1),
        _numbers(op, "dilations", 1, num),
    )


def _padded(
    low: Lowering, op: Op, x: Any, kernel: list[int], fill: float
) -> tuple[Any, list[int], bool]:
    """The input and the padding that torch's pooling can do itself, and whether it does all."""
    before, after = _pads(op, _spatial(x), kernel)
    if before == after and all(2 * pad <= span for pad, span in zip(before, kernel, strict=True)):
        return x, before, True
    if op.integer("ceil_mode", 0):
        raise Lacking(f"pads with ceil_mode must be symmetric, they are {before} and {after}")
    return low.emit(F.pad, x, _explicit(before, after), value=fill), [0] * len(kernel), False


@rule("MaxPool", f"{WINDOW} ceil_mode storage_order")
def _max_pool(low: Lowering, op: Op) -> Value:
    kernel = _numbers(op, "kernel_shape", 1, 0)
    num = len(kernel)
    x, pads, _ = _padded(low, op, op.get(0), kernel, float("-inf"))
    return low.emit(
        MAX_POOLS[num],
        x,
        kernel,
        _numbers(op, "strides", 1, num),
        pads,
        _numbers(op, "dilations", 1, num),
        bool(op.integer("ceil_mode", 0)),
    )


def _check_dilations(op: Op) -> str:
    return "dilations" if set(op.attributes.get("dilations", [1])) != {1} else ""


@rule("AveragePool", f"{WINDOW} ceil_mode count_include_pad", check=_check_dilations)
def _average_pool(low: Lowering, op: Op) -> Value:
    kernel = _numbers(op, "kernel_shape", 1, 0)
    pool = AVERAGE_POOLS[len(kernel)]
    strides = _numbers(op, "strides", 1, len(kernel))
    x = op.symbol_or_tensor(0)
    padded, pads, is_done = _padded(low, op, x, kernel, 0.0)
    counts_pads = bool(op.integer("count_include_pad", 0))
    is_ceil = bool(op.integer("ceil_mode", 0))
    mean = low.emit(pool, padded, kernel, strides, pads, is_ceil, counts_pads)
    if is_done or counts_pads:
        return mean
    # Padded by hand: divide by the share of the window that lies on the picture.
    before, after = _pads(op, _spatial(x), kernel)
    ones = F.pad(torch.ones([1, 1, *_spatial(x)]), _explicit(before, after))
    return low.emit(torch.div, mean, low.cast(pool(ones, kernel, strides), _dtype(mean)))


def _dtype(value: Symbol | torch.Tensor) -> torch.dtype:
    return value.meta.dtype if isinstance(value, Symbol) else value.dtype


@rule("GlobalAveragePool")
def _global_average_pool(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    return low.emit(torch.mean, x, list(range(2, len(sizes_of(x)))), True)


@rule("GlobalMaxPool")
def _global_max_pool(low: Lowering, op: Op) -> Value:
    x = op.symbol_or_tensor(0)
    return low.emit(torch.amax, x, list(range(2, len(sizes_of(x)))), True)
