"""Indices of strided views in generated kernels: fewer axes, and what they read at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.native.tensors import SIZES, View

__all__ = ["Axes", "collapse", "coordinates", "cut_view", "offset", "vector_width"]


@dataclass(frozen=True, slots=True)
class Axes:
    """A common shape and, per view, strides: neighbouring axes merged where all views allow it.

    Attributes:
        shape: Sizes, none of them 1 unless it is the only one.
        strides: Per view, elements.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def collapse(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> Axes:
    """Merge axes.

    Args:
        shape: Common sizes.
        strides: Per view.
    """
    kept: list[tuple[int, tuple[int, ...]]] = []
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        steps = tuple(s[axis] for s in strides)
        if kept:
            outer_size, outer = kept[-1]
            if all(o == size * s for o, s in zip(outer, steps, strict=True)):
                kept[-1] = (outer_size * size, steps)
                continue
        kept.append((size, steps))
    if not kept:
        kept.append((1, tuple(0 for _ in strides)))
    sizes = tuple(size for size, _ in kept)
    return Axes(sizes, tuple(zip(*(steps for _, steps in kept), strict=True)) if strides else ())


def vector_width(axes: Axes, views: Sequence[View], most_bytes: int = 16) -> int:
    """Elements of the last axis that one thread can move at once.

    Each view's last stride is 1 or 0, its other strides and its start are multiples of the width,
    and no load is wider than most_bytes.
    """
    width = 8
    while width > 1:
        fits = axes.shape[-1] % width == 0
        for view, strides in zip(views, axes.strides, strict=True):
            size = SIZES[view.dtype]
            if strides[-1] == 0 and axes.shape[-1] > 1:
                continue
            outer = math.gcd(view.offset, *(s for s in strides[:-1]))
            fits &= strides[-1] == 1 and outer % width == 0 and size * width <= 2 * most_bytes
        if fits:
            return width
        width //= 2
    return 1


def coordinates(shape: Sequence[int], index: str, name: str = "i", *, wide: bool = False) -> str:
    """C statements that cut a linear index into coordinates name0, name1, ...

    Args:
        shape: Sizes.
        index: C expression of the linear index.
        name: Prefix of the coordinates.
        wide: Whether the index needs 64 bits.
    """
    kind = "i64" if wide else "int"
    lines = [f"{kind} rest_{name} = {index};"]
    for axis in range(len(shape) - 1, 0, -1):
        lines.append(f"int {name}{axis} = (int)(rest_{name} % {shape[axis]});")
        lines.append(f"rest_{name} /= {shape[axis]};")
    lines.append(f"int {name}0 = (int)rest_{name};")
    return "\n    ".join(lines)


def offset(strides: Sequence[int], name: str = "i") -> str:
    """C expression of the element at coordinates name0, name1, ..."""
    terms = []
    for axis, stride in enumerate(strides):
        if stride:
            place = f"{name}{axis}"
            terms.append(place if stride == 1 else f"(i64){place} * {stride}")
    return " + ".join(terms) or "0"


def cut_view(view: View, axes: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Sizes and strides of the axes that are kept, and of those that are gone through."""
    kept = [axis for axis in range(len(view.shape)) if axis not in axes]
    return (
        [view.shape[a] for a in kept], [view.strides[a] for a in kept],
        [view.shape[a] for a in axes], [view.strides[a] for a in axes],
    )  # fmt: skip
