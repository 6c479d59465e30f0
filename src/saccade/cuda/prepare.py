"""Pictures in device memory to the network's input, a batch of any sizes in one launch."""

from __future__ import annotations

import ctypes
import dataclasses
import math

import numpy as np

from saccade.cuda.compile import compile_kernels, kernel_source
from saccade.cuda.runtime import Device, Stream
from saccade.errors import BuildError
from saccade.types import DeviceBuffer, InputRule, Layout, Placement
from saccade.vision.place import placement_of

__all__ = [
    "BT601",
    "BT601_FULL",
    "BT709",
    "GRAY",
    "NV12",
    "PACKED",
    "PICTURE",
    "READ_PAST",
    "Preparer",
    "describe",
    "prepare_defines",
    "prepare_source",
]

PACKED, GRAY, NV12 = 0, 1, 2
BT601, BT709, BT601_FULL = 0, 1, 2
# Bytes that the kernel may read past the end of a picture.
READ_PAST = 16

# The layout of struct Picture in kernels/common.cuh.
PICTURE = np.dtype(
    [
        ("pixels", "u8"),
        ("chroma", "u8"),
        ("scale_xy", "f8", 2),
        ("offset_xy", "f8", 2),
        ("step_xy", "f4", 2),
        ("pitch", "i4"),
        ("chroma_pitch", "i4"),
        ("width", "i4"),
        ("height", "i4"),
        ("left", "i4"),
        ("top", "i4"),
        ("new_width", "i4"),
        ("new_height", "i4"),
        ("format", "i4"),
        ("matrix", "i4"),
    ]
)

_TYPES = {"float32": "float", "float16": "f16", "bfloat16": "bf16", "uint8": "u8"}
_SIZE_TYPES = {"int64": "long long", "int32": "int", "float32": "float"}
# By measurement, see docs/performance/cuda-path.md.
ROWS, MIN_BLOCKS = 2, 4
_RUN = 8
_THREADS = 256


def describe(
    entry: np.ndarray,
    rule: InputRule,
    source_wh: tuple[int, int],
    pixels: int,
    pitch: int,
    *,
    form: int = PACKED,
    matrix: int = BT601,
) -> Placement:
    """Fill one entry of a table of pictures.

    Args:
        entry: (1,) PICTURE, written in place.
        rule: How the picture is placed.
        source_wh: Width and height of the picture in pixels.
        pixels: Device address of its first byte.
        pitch: Bytes from row to row.
        form: PACKED (RGB), GRAY, or NV12; the chroma plane of NV12 then follows the luma plane
            and has its pitch, unless the entry's `chroma` and `chroma_pitch` are set afterwards.
        matrix: Of NV12: BT601 or BT709 (both of limited range), or BT601_FULL.

    Returns:
        Where the picture lies in the input.
    """
    placement = placement_of(source_wh, rule)
    (w, h), (scale_x, scale_y) = source_wh, placement.scale_xy
    entry["pixels"] = pixels
    entry["chroma"] = pixels + pitch * h if form == NV12 else 0
    entry["scale_xy"] = placement.scale_xy
    entry["offset_xy"] = placement.offset_xy
    entry["step_xy"] = (1 / scale_x, 1 / scale_y)
    entry["pitch"] = entry["chroma_pitch"] = pitch
    entry["width"], entry["height"] = w, h
    entry["left"], entry["top"] = (int(v) for v in placement.offset_xy)
    entry["new_width"], entry["new_height"] = round(scale_x * w), round(scale_y * h)
    entry["format"] = form
    entry["matrix"] = matrix
    return placement


def prepare_source() -> str:
    """CUDA C++ of the kernel; it needs the macros of `prepare_defines`."""
    return kernel_source("common.cuh", "prepare.cu")


def prepare_defines(
    rule: InputRule,
    dtype: str,
    size_dtype: str = "int64",
    *,
    rows: int = ROWS,
    min_blocks: int = MIN_BLOCKS,
) -> tuple[str, ...]:
    """Macros that make the kernel follow a rule.

    Args:
        rule: How pictures go in.
        dtype: Element type of the engine's input; may differ from the rule's.
        size_dtype: Element type of the input that takes the source size, if there is one.
        rows: Rows of pixels that one thread makes.
        min_blocks: Blocks that must fit on a multiprocessor; bounds the registers.

    Raises:
        BuildError: The kernel cannot do what the rule says.
    """
    wants = f"input {rule.name!r}"
    if rule.interpolation != "linear":
        raise BuildError(
            f"{wants} must be resized with 'linear' on the GPU, the contract says "
            f"{rule.interpolation!r}; run on the CPU, or set input.interpolation if AP allows it"
        )
    if rule.bits != 8 or dtype not in _TYPES or size_dtype not in _SIZE_TYPES:
        raise BuildError(
            f"{wants} must be 8-bit samples in {', '.join(_TYPES)} on the GPU (sizes in "
            f"{', '.join(_SIZE_TYPES)}), it is {rule.bits}-bit in {dtype} (sizes in {size_dtype}); "
            "run on the CPU"
        )
    num = rule.num_channels
    order = 0 if rule.size_input is None else 1 if rule.size_order == "wh" else 2
    return (
        f"OUT={_TYPES[dtype]}",
        f"SIZE_T={_SIZE_TYPES[size_dtype]}",
        f"SIZE_ORDER={order}",
        f"IN_H={rule.size_hw[0]}",
        f"IN_W={rule.size_hw[1]}",
        f"CHANNELS={num}",
        f"IS_NCHW={int(rule.layout == 'nchw')}",
        f"IS_BGR={int(rule.color == 'bgr')}",
        f"ROWS={rows}",
        f"MIN_BLOCKS={min_blocks}",
        f"PAD={as_float(rule.pad_value)}",
        f"MEANS={','.join(as_float(v) for v in rule.mean[:num])}",
        f"STDS_INV={','.join(as_float(1 / v) for v in rule.std[:num])}",
    )


def as_float(value: float) -> str:
    """A C literal of that single-precision value."""
    text = repr(float(np.float32(value)))
    if not math.isfinite(float(text)):
        raise BuildError(f"a number of the contract must be finite, it is {value}; correct it")
    return f"{text}f"


class Preparer:
    """The compiled kernel for one rule and one input buffer.

    Args:
        device: Where.
        rule: How pictures go in.
        target: The engine's input, with the batch as first axis.
        sizes: The engine's input for source sizes, if the rule names one.
        rows: As in `prepare_defines`, like min_blocks.

    Raises:
        BuildError: The rule cannot be followed, or does not fit the buffer.
    """

    def __init__(
        self,
        device: Device,
        rule: InputRule,
        target: DeviceBuffer,
        sizes: DeviceBuffer | None = None,
        *,
        rows: int = ROWS,
        min_blocks: int = MIN_BLOCKS,
    ) -> None:
        num, (h, w) = rule.num_channels, rule.size_hw
        items: dict[tuple[int, ...], Layout] = {(h, w, num): "nhwc", (num, h, w): "nchw"}
        # An engine may keep its input with channels last, whatever the graph says.
        layout = items.get(tuple(target.shape[1:]))
        if layout is None or (rule.layout == "nhwc" and layout != "nhwc"):
            item = (num, h, w) if rule.layout == "nchw" else (h, w, num)
            raise BuildError(
                f"the engine's input must have items of shape {item} as the contract says, it has "
                f"{tuple(target.shape[1:])}; correct input.size_hw or input.layout in the contract"
            )
        if (sizes is None) != (rule.size_input is None):
            raise BuildError(
                f"the contract names the size input {rule.size_input!r}, the engine "
                f"{'lacks it' if sizes is None else 'has another'}; correct input.size_input"
            )
        defines = prepare_defines(
            dataclasses.replace(rule, layout=layout),
            target.dtype,
            sizes.dtype if sizes else "int64",
            rows=rows,
            min_blocks=min_blocks,
        )
        cubin = compile_kernels(prepare_source(), device.arch, defines)
        self._kernel = device.load(cubin).kernel("prepare")
        runs = -(-w // _RUN) * -(-h // rows)
        self._grid = (-(-runs // _THREADS), 1, target.shape[0])
        self._target = ctypes.c_uint64(target.pointer)
        self._sizes = ctypes.c_uint64(sizes.pointer if sizes else 0)

    def enqueue(self, stream: Stream, table: int) -> None:
        """Prepare the batch that a table of pictures in device memory describes.

        Entries of width 0 are left out: their part of the input keeps what it held.
        """
        args = (ctypes.c_uint64(table), self._target, self._sizes)
        self._kernel.launch(stream, self._grid, _THREADS, args)
