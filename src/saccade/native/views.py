"""Moving elements without touching them: what reshapes, transposes and slices do to a view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from saccade.native.tensors import View

__all__ = [
    "broadcast",
    "footprint",
    "image",
    "inside",
    "order_of",
    "reshaped",
    "same_places",
    "sliced",
    "sliding_order",
]


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """The same elements, in the same C order of indices, under another shape; None if no strides
    can say it."""
    shape = tuple(shape)
    if view.shape == shape:
        return view
    if math.prod(shape) != view.num_elements:
        raise ValueError(f"{view.shape} cannot become {shape}")
    groups = _merged(view)
    strides = [0] * len(shape)
    at = len(groups) - 1
    left, stride = groups[at] if groups else (1, 1)
    for axis in range(len(shape) - 1, -1, -1):
        size = shape[axis]
        if size == 1:
            continue
        while left == 1 and at > 0:
            at -= 1
            left, stride = groups[at]
        if left % size:
            return None
        strides[axis] = stride
        left //= size
        stride *= size
    return _tidy(replace(view, shape=shape, strides=tuple(strides)))


def _merged(view: View) -> list[tuple[int, int]]:
    """Sizes and strides with neighbours joined where one walks on from the other."""
    groups: list[tuple[int, int]] = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    return groups


def _tidy(view: View) -> View:
    """Strides of axes of size 1 as if the axis were packed."""
    strides = list(view.strides)
    for axis in range(len(strides) - 1, -1, -1):
        if view.shape[axis] == 1:
            is_last = axis == len(strides) - 1
            strides[axis] = 1 if is_last else strides[axis + 1] * view.shape[axis + 1]
    return replace(view, strides=tuple(strides))


def sliced(view: View, axis: int, start: int, stop: int, step: int = 1) -> View:
    """Elements start, start + step, ... of one axis; start and stop lie inside, step is not 0."""
    count = max(0, -(-(stop - start) // step))
    shape, strides = list(view.shape), list(view.strides)
    offset = view.offset + start * strides[axis]
    shape[axis] = count
    strides[axis] *= step
    return replace(view, shape=tuple(shape), strides=tuple(strides), offset=offset)


def broadcast(view: View, shape: Sequence[int]) -> View:
    """Repeated to a larger shape, axes aligned at the end."""
    missing = len(shape) - len(view.shape)
    sizes = (1,) * missing + view.shape
    old = (0,) * missing + view.strides
    strides = []
    for size, wanted, stride in zip(sizes, shape, old, strict=True):
        if size not in (1, wanted):
            raise ValueError(f"{view.shape} cannot be repeated to {tuple(shape)}")
        strides.append(stride if size == wanted else 0)
    return _tidy(replace(view, shape=tuple(shape), strides=tuple(strides)))


def order_of(view: View) -> tuple[int, ...]:
    """Axes from the widest stride to the narrowest: how the elements lie."""
    keys = list(_tidy_outwards(view))
    return tuple(sorted(range(len(view.shape)), key=lambda axis: -keys[axis]))


def sliding_order(view: View) -> tuple[int, ...]:
    """As `order_of`; pictures of one pixel count as channels last."""
    if len(view.shape) == 4 and view.shape[2:] == (1, 1):
        return (0, 2, 3, 1)
    return order_of(view)


def _tidy_outwards(view: View) -> list[float]:
    """Strides; an axis of size 1 just above the next axis that moves."""
    keys: list[float] = [0.0] * len(view.shape)
    last = 0.5
    for axis in range(len(view.shape) - 1, -1, -1):
        if view.shape[axis] == 1:
            # A first axis of size 1 stays first: it is the pictures.
            keys[axis] = math.inf if axis == 0 else last
        else:
            keys[axis] = float(abs(view.strides[axis]))
            last = keys[axis] + 0.25
    return keys


def image(view: View) -> View:
    """A view (n, h, w, c) with the strides of its axes of size 1 as pixels have them."""
    n, h, w, c = view.shape
    sn, sh, sw, sc = view.strides
    pitch = sw if w > 1 else sh if h > 1 else sn if n > 1 else c
    row = sh if h > 1 else w * pitch
    return replace(
        view,
        strides=(sn if n > 1 else h * row, row, pitch, 1 if c == 1 else sc),
    )


def footprint(view: View) -> tuple[int, int]:
    """First element and one past the last that a view touches."""
    reach = [(n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)]
    low = view.offset + sum(r for r in reach if r < 0)
    return low, view.offset + sum(r for r in reach if r > 0) + 1


def same_places(one: View, other: View) -> bool:
    """Whether two views of one shape name the same elements at the same indices."""
    return (
        one.buffer == other.buffer
        and one.offset == other.offset
        and one.shape == other.shape
        and all(
            size == 1 or a == b
            for size, a, b in zip(one.shape, one.strides, other.strides, strict=True)
        )
    )


def inside(view: View, whole: View, place: View) -> View | None:
    """Where a view's elements are after what `whole` held was put at `place` instead.

    Args:
        view: Of the buffer of `whole`.
        whole: A view without repeats; what it names moves.
        place: Of the same shape, in another buffer.

    Returns:
        A view of place's buffer, or None if no strides can say it.
    """
    if same_places(view, whole) and view.shape == whole.shape:
        return replace(place, dtype=view.dtype)
    axes = [a for a in range(len(whole.shape)) if whole.shape[a] > 1]
    axes.sort(key=lambda axis: -abs(whole.strides[axis]))
    at = view.offset - whole.offset
    start = _decomposed(at, whole, axes)
    if start is None:
        return None
    offset = place.offset + sum(i * place.strides[a] for a, i in start.items())
    strides = []
    limits = dict(start)
    for size, stride in zip(view.shape, view.strides, strict=True):
        if size == 1 or stride == 0:
            strides.append(0)
            continue
        moved = _moved_stride(size, stride, whole, place, axes, limits)
        if moved is None:
            return None
        strides.append(moved)
    made = replace(
        view, buffer=place.buffer, offset=offset, strides=tuple(strides), dtype=view.dtype
    )
    return _tidy(made)


def _decomposed(at: int, whole: View, axes: Sequence[int]) -> dict[int, int] | None:
    """An offset as indices along the axes of a view."""
    found = {}
    for axis in axes:
        stride = whole.strides[axis]
        if stride <= 0:
            return None
        found[axis] = min(at // stride, whole.shape[axis] - 1)
        at -= found[axis] * stride
    return found if at == 0 else None


def _moved_stride(
    size: int,
    stride: int,
    whole: View,
    place: View,
    axes: Sequence[int],
    limits: dict[int, int],
) -> int | None:
    """The stride in place of a walk of size steps, which may go through several axes of whole."""
    # Axes that walk on from one another, in both views, count as one long axis.
    chains: list[tuple[int, int, int, int]] = []  # stride in whole, stride in place, length, start
    for axis in reversed(axes):
        s, t, count, i = whole.strides[axis], place.strides[axis], whole.shape[axis], limits[axis]
        if chains and s == chains[-1][0] * chains[-1][2] and t == chains[-1][1] * chains[-1][2]:
            s0, t0, count0, i0 = chains.pop()
            chains.append((s0, t0, count0 * count, i * count0 + i0))
        else:
            chains.append((s, t, count, i))
    for s, t, count, i in reversed(chains):
        if stride % s == 0:
            step = stride // s
            last = i + step * (size - 1)
            if 0 <= last < count:
                return step * t
    return None
