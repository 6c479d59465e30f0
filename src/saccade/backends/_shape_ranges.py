"""Ranges of input shapes that an engine is built for: TensorRT's optimisation profiles."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.errors import BuildError, InputError
from saccade.types import Model, TensorSpec

__all__ = ["ShapeRange", "derive_shapes", "input_ranges", "parse_shapes"]

Shape = tuple[int, ...]
_SHAPE = re.compile(r"[1-9]\d{0,5}(?:x[1-9]\d{0,5}){3}")


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of the picture input: any between least and most runs, best runs fastest."""

    least: Shape
    best: Shape
    most: Shape

    def __str__(self) -> str:
        return ":".join("x".join(map(str, s)) for s in (self.least, self.best, self.most))


def parse_shapes(text: str) -> tuple[ShapeRange, ...]:
    """Read "1x3x320x320:8x3x640x640:32x3x640x640"; several ranges with commas between them.

    One shape alone stands for all three.

    Raises:
        InputError: The text is none of these, or least, best and most are not in order.
    """
    ranges = []
    for part in text.lower().split(","):
        words = part.strip().split(":")
        if len(words) not in (1, 3) or not all(_SHAPE.fullmatch(word) for word in words):
            raise InputError(
                "shapes must be LEAST:BEST:MOST such as 1x3x320x320:8x3x640x640:32x3x640x640, "
                f"with a comma between several, got {part.strip()!r}"
            )
        shapes = [tuple(map(int, word.split("x"))) for word in words]
        ranges.append(_ordered(*(shapes if len(shapes) == 3 else shapes * 3)))
    return tuple(ranges)


def _ordered(least: Shape, best: Shape, most: Shape) -> ShapeRange:
    made = ShapeRange(least, best, most)
    if not all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
        raise InputError(
            f"shapes must grow on every axis from least over best to most, got {made}; reorder them"
        )
    return made


def derive_shapes(
    model: Model, batches: Sequence[int], sizes_hw: Sequence[tuple[int, int]]
) -> tuple[ShapeRange, ...]:
    """One range over what was seen; the most frequent batch and size are the best.

    Args:
        model: Axes that it fixes stay as they are.
        batches: Pictures per inference, as often as they come.
        sizes_hw: Height and width of the input, as often as they come.

    Returns:
        One range, or none if the graph fixes every axis.

    Raises:
        InputError: There is no batch or no size, or the model takes no picture.
    """
    spec = _picture(model)
    if all(isinstance(size, int) for size in spec.shape):
        return ()
    if not batches or not sizes_hw:
        raise InputError("shapes are derived from batches and sizes, none were given")
    heights, widths = zip(*sizes_hw, strict=True)
    best_hw = Counter(sizes_hw).most_common(1)[0][0]
    best_batch = Counter(batches).most_common(1)[0][0]
    return (
        _ordered(
            _filled(spec, min(batches), (min(heights), min(widths))),
            _filled(spec, best_batch, best_hw),
            _filled(spec, max(batches), (max(heights), max(widths))),
        ),
    )


def _picture(model: Model) -> TensorSpec:
    pictures = [spec for spec in model.inputs if len(spec.shape) == 4]
    if len(pictures) != 1:
        raise InputError(
            f"shapes are of the one input with four axes, this model has {len(pictures)} such; "
            "export it with one"
        )
    return pictures[0]


def _filled(spec: TensorSpec, batch: int, size_hw: tuple[int, int]) -> Shape:
    is_nhwc = spec.shape[3] in (1, 3) and spec.shape[1] not in (1, 3)
    wanted = (batch, *size_hw, 3) if is_nhwc else (batch, 3, *size_hw)
    return tuple(a if isinstance(a, int) else b for a, b in zip(spec.shape, wanted, strict=True))


def input_ranges(model: Model, shapes: ShapeRange) -> dict[str, ShapeRange]:
    """The range of every input that has a free axis, from that of the picture.

    Raises:
        BuildError: The range contradicts the graph, or an axis other than batch, height and width
            of an input is free.
    """
    picture, ranges = _picture(model), {}
    for spec in model.inputs:
        if all(isinstance(size, int) for size in spec.shape) and spec is not picture:
            continue
        if spec is picture:
            _check(spec, shapes)
            made = shapes
        else:
            made = ShapeRange(*(_followed(spec, s[0]) for s in _three(shapes)))
        if not all(isinstance(size, int) for size in spec.shape):
            ranges[spec.name] = made
    return ranges


def _three(shapes: ShapeRange) -> tuple[Shape, Shape, Shape]:
    return shapes.least, shapes.best, shapes.most


def _check(spec: TensorSpec, shapes: ShapeRange) -> None:
    for shape in _three(shapes):
        if any(isinstance(a, int) and a != b for a, b in zip(spec.shape, shape, strict=True)):
            raise BuildError(
                f"shapes must keep what the graph fixes, {spec}; got {shapes}; change the shapes "
                "or export the model with free axes"
            )


def _followed(spec: TensorSpec, batch: int) -> Shape:
    free = [i for i, size in enumerate(spec.shape) if not isinstance(size, int)]
    if free != [0]:
        raise BuildError(
            f"only the first axis of input {spec} may be free, as it is no picture; fix the others "
            "in the model"
        )
    return (batch, *(int(size) for size in spec.shape[1:]))
