"""Kernel sources of this folder, and how steps are described to them."""

from __future__ import annotations

import importlib.resources
import math

import numpy as np

from saccade.errors import BuildError
from saccade.native.ops import Activation
from saccade.native.tensors import SIZES, View

__all__ = [
    "C_TYPES",
    "activation_defines",
    "is_wide",
    "literal",
    "places_of",
    "source",
    "vector_bytes",
]

C_TYPES = {
    "float32": "float",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3": "e4m3",
    "int8": "i8",
    "uint8": "u8",
    "int32": "int",
    "int64": "i64",
    "bool": "bool",
}


def source(*names: str) -> str:
    """Text of the named files of this folder, one after another.

    Each begins with a #line directive, so that the compiler's messages name the file.
    """
    folder = importlib.resources.files("saccade.native.kernels")
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text()}\n' for name in names)


def literal(value: float) -> str:
    """A C literal of that value in single precision."""
    number = float(np.float32(value))
    if math.isnan(number):
        return "__int_as_float(0x7fc00000)"
    if math.isinf(number):
        return "__int_as_float(0x7f800000)" if number > 0 else "__int_as_float(0xff800000)"
    return f"({number!r}f)" if number < 0 else f"{number!r}f"


def activation_defines(name: str, activation: Activation) -> tuple[str, ...]:
    """Macros NAME, NAME_A and NAME_B of an activation (activation.cuh)."""
    return (
        f"{name}={activation.kind.upper()}",
        f"{name}_A={literal(activation.a)}",
        f"{name}_B={literal(activation.b)}",
    )


def places_of(name: str, view: View | None) -> tuple[str, str]:
    """Macros NAME_PITCH and NAME_IMAGE: elements from pixel to pixel and picture to picture.

    Raises:
        BuildError: The view is no picture.
    """
    if view is None:
        return f"{name}_PITCH=0", f"{name}_IMAGE=0LL"
    if not view.is_pixels:
        raise BuildError(f"a picture must have its channels side by side, it has {view.strides}")
    return f"{name}_PITCH={view.strides[2]}", f"{name}_IMAGE={view.strides[0]}LL"


def vector_bytes(view: View) -> int:
    """Bytes that can be moved at once: of every eighth channel's address."""
    return view.alignment if view.strides[-1] == 1 or view.c == 1 else 2


def is_wide(view: View, held: int) -> bool:
    """Whether a thread's neighbouring channels can be stored at once."""
    num_bytes = min(16, held * SIZES[view.dtype])
    return vector_bytes(view) >= num_bytes
