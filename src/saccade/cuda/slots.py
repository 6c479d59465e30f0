"""One batch in flight: its memory on both sides, its graph, and how pictures get into it."""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from saccade.cuda.nv12 import Nv12Frame
from saccade.cuda.nvjpeg import JpegBatchError, JpegDecoder, MappedJpeg, shape_for_gpu
from saccade.cuda.prepare import BT601, GRAY, NV12, PACKED, PICTURE, READ_PAST, Preparer, describe
from saccade.cuda.runtime import ALIGNMENT, Arena, Device, Event, Graph, Pinned, Stream
from saccade.cuda.suppress import Suppressor
from saccade.errors import PictureError
from saccade.types import Color, DeviceEngine, InputRule
from saccade.vision.decode import Decoder

__all__ = [
    "FRAME_TABLES",
    "Feeder",
    "Load",
    "Picture",
    "Slot",
    "SlotSizes",
    "path_regions",
    "slot_regions",
]

# Sizes of frames that have graphs of their own at a time, see saccade.cuda.frames.
FRAME_TABLES = 4

# A file's content, (h, w, 3) uint8 RGB, a frame of a video, or what is wrong with it.
Picture: TypeAlias = "bytes | np.ndarray | Nv12Frame | PictureError"


@dataclass(frozen=True, slots=True)
class SlotSizes:
    """What a slot reserves, in bytes.

    Attributes:
        source: Device memory for the decoded pictures of a batch.
        staging: Pinned memory for pictures that the CPU decoded.
        table: For the descriptions of the pictures.
        keys: For candidates.
        counts: For their counters.
        results: Pinned memory for final boxes.
    """

    source: int
    staging: int
    table: int
    keys: int
    counts: int
    results: int

    @property
    def pinned(self) -> int:
        return self.staging + self.table + self.results


def path_regions(sizes: SlotSizes, num_slots: int) -> dict[str, int]:
    """Device buffers of a path, by name in its arena: of each slot, and of frames' tables."""
    regions: dict[str, int] = {}
    for number in range(num_slots):
        regions |= slot_regions(sizes, number)
    return regions | {f"frame table {number}": sizes.table for number in range(FRAME_TABLES)}


def slot_regions(sizes: SlotSizes, number: int) -> dict[str, int]:
    """Device buffers of one slot, by name in the path's arena."""
    parts = {name: getattr(sizes, name) for name in ("source", "table", "keys", "counts")}
    return {f"{name} {number}": num_bytes for name, num_bytes in parts.items()}


class Slot:
    """Static memory of one batch. Owned by one thread at a time.

    Attributes:
        graph: Table upload, prepare, engine and suppression; set by `capture`.
        table: (batch,) PICTURE in pinned memory.
        results: Pinned memory of the final boxes.
        fed: Passed when the pictures are in device memory.
        done: Passed when the final boxes are in pinned memory.
    """

    graph: Graph

    def __init__(self, device: Device, arena: Arena, sizes: SlotSizes, number: int) -> None:
        self.source = arena.address(f"source {number}")
        self.source_bytes = sizes.source
        self._on_device = {
            name: arena.address(f"{name} {number}") for name in ("table", "keys", "counts")
        }
        self.staging = device.pinned(sizes.staging)
        self._pinned_table = device.pinned(sizes.table)
        self.table = self._pinned_table.array.view(PICTURE)
        # The same as bytes and as columns: NumPy takes microseconds to find a field by its name.
        self.rows = self._pinned_table.array.reshape(-1, PICTURE.itemsize)
        self.pixels, self.width = self.table["pixels"], self.table["width"]
        self.chroma = self.table["chroma"]
        self.results: Pinned = device.pinned(sizes.results)
        self.fed: Event = device.event()
        self.begun: Event = device.event(is_timed=True)
        self.done: Event = device.event(is_timed=True)

    def enqueue(
        self, stream: Stream, preparer: Preparer, engine: DeviceEngine, suppressor: Suppressor
    ) -> None:
        """All the work of one batch, to be captured."""
        table = self._on_device["table"]
        self.upload_table(stream, table)
        self.enqueue_described(stream, table, preparer, engine, suppressor)

    def upload_table(self, stream: Stream, target: int) -> None:
        """Copy the descriptions of the pictures to a device address."""
        stream.upload(target, self._pinned_table, self._pinned_table.array.nbytes)

    def enqueue_described(
        self,
        stream: Stream,
        table: int,
        preparer: Preparer,
        engine: DeviceEngine,
        suppressor: Suppressor,
    ) -> None:
        """The work behind the upload of the table, which lies at a device address."""
        preparer.enqueue(stream, table)
        engine.enqueue(stream.handle)
        keys, counts = self._on_device["keys"], self._on_device["counts"]
        suppressor.enqueue(stream, table, keys, counts, self.results.address)

    def capture(
        self, stream: Stream, preparer: Preparer, engine: DeviceEngine, suppressor: Suppressor
    ) -> None:
        """Record the work of this slot as one graph."""
        with stream.capture() as captured:
            self.enqueue(stream, preparer, engine, suppressor)
        self.graph = captured.graph


def _check_array(picture: np.ndarray, max_pixels: int) -> None:
    is_rgb = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    if not is_rgb or not 0 < picture.shape[0] * picture.shape[1] <= max_pixels:
        raise PictureError(
            f"a picture must be (h, w, 3) uint8 RGB of 1 to {max_pixels} pixels, it is "
            f"{picture.dtype} of shape {picture.shape}; convert it"
        )


@dataclass(slots=True)
class Load:
    """What has been put into a slot.

    Attributes:
        slot: Which.
        num: Pictures.
        at: Bytes of the source memory that are taken.
        staged: Bytes of the staging memory that are taken.
        for_gpu: Files to be decoded by the GPU, by place.
    """

    slot: Slot
    num: int = 0
    at: int = 0
    staged: int = 0
    for_gpu: dict[int, bytes | MappedJpeg] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Template:
    row: np.ndarray
    num_bytes: int


Place: TypeAlias = "tuple[int, tuple[int, int]]"


class Feeder:
    """Fills slots with pictures: decodes on the GPU what it can, the rest on the CPU.

    One thread may add to a slot while another flushes the one before.

    Args:
        rule: How pictures are placed.
        stream: For decoding and copies.
        jpeg: The GPU's decoder, or None to decode all on the CPU.
        max_pixels: Larger pictures are refused.

    Attributes:
        num_on_gpu: Pictures decoded by the GPU so far.
        num_on_cpu: Pictures decoded by the CPU so far.
        num_again: Of refused batches, pictures decoded by the CPU so far.
        decoding_s: Seconds in which the library kept the flushing thread.
    """

    def __init__(
        self,
        rule: InputRule,
        stream: Stream,
        jpeg: JpegDecoder | None,
        max_pixels: int,
    ) -> None:
        self._rule = rule
        self._stream = stream
        self._jpeg = jpeg
        self._max_pixels = max_pixels
        # The kernel orders channels itself; gray is decoded as gray, as the CPU path does.
        color: Color = "gray" if rule.color == "gray" else "rgb"
        self._decoder = Decoder(color, max_pixels=max_pixels)
        self._second_decoder = Decoder(color, max_pixels=max_pixels)
        self._templates: dict[tuple[int, int, int, int], _Template] = {}
        self.num_on_gpu = 0
        self.num_on_cpu = 0
        self.num_again = 0
        self.decoding_s = 0.0

    def synchronize(self) -> None:
        """Wait until nothing of this feeder is under way."""
        self._stream.synchronize()

    def add(self, load: Load, picture: Picture) -> Place | None:
        """Put one picture into the next place of a slot.

        Returns:
            Its place and its width and height, or None if the slot has no room left for it.

        Raises:
            PictureError: The picture cannot be used; the slot is as it was.
        """
        if isinstance(picture, PictureError):
            raise picture
        if isinstance(picture, np.ndarray):
            _check_array(picture, self._max_pixels)
            return self._stage(load, picture, (picture.shape[1], picture.shape[0]), PACKED)
        if isinstance(picture, Nv12Frame):
            self._check_size(picture.wh)
            return self._stage(load, picture.rows, picture.wh, NV12, picture.matrix_code)
        wh = shape_for_gpu(picture) if self._jpeg is not None else None
        if wh is None or wh[0] * wh[1] > self._max_pixels or self._rule.color == "gray":
            return self._decode_on_cpu(load, picture)
        return self.add_jpeg(load, picture, wh)

    def add_jpeg(self, load: Load, data: bytes | MappedJpeg, wh: tuple[int, int]) -> Place | None:
        """As `add`, for a JPEG whose header was looked at by `shape_for_gpu`, which said `wh`."""
        place = self._place(load, wh, wh[0] * 3, PACKED)
        if place is not None:
            load.for_gpu[place[0]] = data
        return place

    def _decode_on_cpu(self, load: Load, data: bytes) -> Place | None:
        pixels = self._decoder.decode(data)
        form = GRAY if pixels.ndim == 2 or pixels.shape[2] == 1 else PACKED
        place = self._stage(load, pixels, (pixels.shape[1], pixels.shape[0]), form)
        self.num_on_cpu += place is not None
        return place

    def _check_size(self, wh: tuple[int, int]) -> None:
        if wh[0] * wh[1] > self._max_pixels:
            raise PictureError(
                f"a frame must have at most {self._max_pixels} pixels, it has {wh[0]} x {wh[1]}; "
                "make it smaller, or raise max_pixels"
            )

    def _stage(
        self,
        load: Load,
        pixels: np.ndarray,
        wh: tuple[int, int],
        form: int,
        matrix: int = BT601,
    ) -> Place | None:
        """Copy pixels to pinned memory and enqueue their upload."""
        slot, num_bytes, at = load.slot, pixels.nbytes, load.staged
        if num_bytes > len(slot.staging.array):
            raise PictureError(
                f"a picture decoded on the CPU must have at most {len(slot.staging.array)} bytes, "
                f"this one has {num_bytes}; raise staging_bytes"
            )
        own, given = slot.staging.address, pixels.ctypes.data
        is_there = own <= given <= own + len(slot.staging.array) - num_bytes
        if not is_there and at + num_bytes > len(slot.staging.array):
            return None
        place = self._place(load, wh, num_bytes // pixels.shape[0], form, matrix)
        if place is None:
            return None
        if is_there and pixels.flags.c_contiguous:  # the caller wrote it to where it is wanted
            at = given - own
        else:
            pixels = np.ascontiguousarray(pixels)
            ctypes.memmove(own + at, pixels.ctypes.data, num_bytes)
            load.staged += -(-num_bytes // ALIGNMENT) * ALIGNMENT
        self._stream.upload(int(slot.pixels[place[0]]), slot.staging, num_bytes, at=at)
        return place

    def _place(
        self, load: Load, wh: tuple[int, int], pitch: int, form: int, matrix: int = BT601
    ) -> Place | None:
        """Reserve room in the source memory and describe the picture."""
        template = self._template(wh, pitch, form, matrix)
        slot, position = load.slot, load.num
        if template.num_bytes > slot.source_bytes:
            raise PictureError(
                f"a picture must fit in the {slot.source_bytes} bytes reserved for a batch, this "
                f"one of {wh[0]} x {wh[1]} pixels has {template.num_bytes}; raise source_bytes"
            )
        if position == len(slot.rows) or load.at + template.num_bytes > slot.source_bytes:
            return None
        address = slot.source + load.at
        slot.rows[position] = template.row
        slot.pixels[position] = address
        if form == NV12:
            slot.chroma[position] = address + pitch * wh[1]
        load.at += template.num_bytes
        load.num += 1
        return position, wh

    def _template(self, wh: tuple[int, int], pitch: int, form: int, matrix: int) -> _Template:
        key = (*wh, form, matrix)
        if key not in self._templates:
            if len(self._templates) > 4096:
                self._templates.clear()
            entry = np.zeros(1, PICTURE)
            describe(entry, self._rule, wh, 0, pitch, form=form, matrix=matrix)
            rows = wh[1] * 3 // 2 if form == NV12 else wh[1]
            num_bytes = -(-(pitch * rows + READ_PAST) // ALIGNMENT) * ALIGNMENT
            self._templates[key] = _Template(entry.view(np.uint8), num_bytes)
        return self._templates[key]

    def flush(self, load: Load) -> dict[int, PictureError]:
        """Have decoded what was added, and set `slot.fed` behind it and the copies.

        Returns:
            Pictures that turned out to be unusable, by their place; these places are emptied.
        """
        slot = load.slot
        errors: dict[int, PictureError] = {}
        slot.width[load.num :] = 0
        if load.for_gpu and self._jpeg is not None:
            files, entries = list(load.for_gpu.values()), slot.table[list(load.for_gpu)]
            start_s = time.perf_counter()
            try:
                self._jpeg.decode(self._stream, files, entries["pixels"], entries["pitch"])
                self.num_on_gpu += len(files)
                self.decoding_s += time.perf_counter() - start_s
            except JpegBatchError:
                errors = self._decode_one_by_one(load)
        slot.fed.record(self._stream)
        return errors

    def _decode_one_by_one(self, load: Load) -> dict[int, PictureError]:
        """The CPU, which is strict, decides what is wrong with which picture of a batch."""
        errors, table = {}, load.slot.table
        for place, data in load.for_gpu.items():
            try:
                self._decode_again(load.slot, place, data)
            except PictureError as exc:
                errors[place] = exc
                table["width"][place] = 0
                continue
            self.num_again += 1
        return errors

    def _decode_again(self, slot: Slot, place: int, data: bytes | MappedJpeg) -> None:
        pixels = self._second_decoder.decode(data if isinstance(data, bytes) else data.view)
        address, *wh = (int(slot.table[name][place]) for name in ("pixels", "width", "height"))
        if list(pixels.shape[1::-1]) != wh:
            raise PictureError(
                f"a JPEG must be as large as its header says, {wh[0]} x {wh[1]}, it is "
                f"{pixels.shape[1]} x {pixels.shape[0]}; export it again"
            )
        if pixels.nbytes > len(slot.staging.array):
            raise PictureError(
                f"a picture decoded on the CPU must have at most {len(slot.staging.array)} "
                f"bytes, this one has {pixels.nbytes}; raise staging_bytes"
            )
        self._stream.synchronize()  # the staging memory is used again for each
        ctypes.memmove(slot.staging.address, pixels.ctypes.data, pixels.nbytes)
        self._stream.upload(address, slot.staging, pixels.nbytes)
