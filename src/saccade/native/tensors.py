"""Where a step's operands lie: strided views of buffers.

One noun covers pictures, channel slices, transposed matrices and broadcast operands: a view has
sizes and strides in elements. A picture is a view of shape (n, h, w, c) whose channels lie side by
side; the distance between neighbouring pixels is its pitch, which is larger than c where the view
is a slice of the channels of a shared buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["SIZES", "Buffer", "DType", "View", "dense", "pixels"]

DType = Literal[
    "float32", "float16", "bfloat16", "float8_e4m3", "int8", "uint8", "int32", "int64", "bool"
]
# Bytes of one element.
SIZES: dict[str, int] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3": 1,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory of its own, aligned to 256 bytes.

    Attributes:
        kind: "input" and "output" are seen from outside; "arena" lives from its first writer to
            its last reader at a place of the arena; "constant" is written once at load.
        name: Of the input or output, or of the constant; else of the tensor, for people.
        num_bytes: Size.
        offset: Bytes from the start of the arena; 0 for other kinds.
    """

    kind: Literal["input", "output", "arena", "constant"]
    name: str
    num_bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a buffer, C order of indices, any strides.

    Attributes:
        buffer: Index into the plan's buffers.
        dtype: Element type.
        shape: Sizes.
        strides: Elements from one index to the next, per axis; 0 repeats.
        offset: Elements from the start of the buffer.
    """

    buffer: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def n(self) -> int:
        """Pictures."""
        return self.shape[0]

    @property
    def h(self) -> int:
        """Height in pixels."""
        return self.shape[1]

    @property
    def w(self) -> int:
        """Width in pixels."""
        return self.shape[2]

    @property
    def c(self) -> int:
        """Channels."""
        return self.shape[3]

    @property
    def pitch(self) -> int:
        """Elements from one pixel to the next one in its row."""
        return self.strides[2]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements, gaps left out."""
        return self.num_elements * SIZES[self.dtype]

    @property
    def alignment(self) -> int:
        """Bytes that divide the address of every element whose last index is a multiple of 16/size.

        A power of two up to 16: whether eight FP16 channels can be loaded at once.
        """
        size = SIZES[self.dtype]
        steps = [
            stride
            for axis, (count, stride) in enumerate(zip(self.shape, self.strides, strict=True))
            if count > 1 and not (axis == len(self.shape) - 1 and stride == 1)
        ]
        return math.gcd(16, *(step * size for step in (self.offset, *steps)))

    @property
    def is_pixels(self) -> bool:
        """Whether these are pictures: channels side by side, one pitch for a picture's pixels.

        The distance between pictures, strides[0], may be more than h * w * pitch.
        """
        if len(self.shape) != 4:
            return False
        n, h, w, c = self.shape
        sn, sh, sw, sc = self.strides
        # A pitch below c would make pixels overlap.
        return sc == 1 and sw >= c and sh == w * sw and (n == 1 or sn >= h * sh)

    @property
    def is_packed(self) -> bool:
        """Whether all pixels of all pictures have one pitch: n * h * w rows of a matrix."""
        return self.is_pixels and (self.n == 1 or self.strides[0] == self.h * self.strides[1])

    @property
    def is_repeated(self) -> bool:
        """Whether some index walks over the same element again."""
        return any(
            count > 1 and stride == 0
            for count, stride in zip(self.shape, self.strides, strict=True)
        )

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one after another in C order."""
        expected = 1
        for count, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if count != 1 and stride != expected:
                return False
            expected *= count
        return True

    def channels(self, start: int, stop: int) -> View:
        """A slice of the last axis."""
        return replace(
            self,
            shape=(*self.shape[:-1], stop - start),
            offset=self.offset + start * self.strides[-1],
        )

    def permuted(self, *axes: int) -> View:
        """The same elements with axes in another order."""
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in axes),
            strides=tuple(self.strides[axis] for axis in axes),
        )


def dense(buffer: int, dtype: DType, shape: tuple[int, ...], offset: int = 0) -> View:
    """A view whose elements lie one after another."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return View(buffer, dtype, shape, tuple(strides), offset)


def pixels(
    buffer: int,
    dtype: DType,
    shape: tuple[int, int, int, int],
    *,
    pitch: int | None = None,
    offset: int = 0,
) -> View:
    """A picture (n, h, w, c) with a pitch in elements; by default c."""
    _, h, w, c = shape
    pitch = c if pitch is None else pitch
    return View(buffer, dtype, shape, (h * w * pitch, w * pitch, pitch, 1), offset)
