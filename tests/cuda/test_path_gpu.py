"""The whole path with a small network of our own: mixtures, order, broken pictures, reuse."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from PIL import Image

from device_arrays import back, levels_off, poisoned
from saccade.cuda.compile import compile_kernels
from saccade.cuda.nvjpeg import JpegDecoder, shape_for_gpu
from saccade.cuda.path import DevicePath, Nv12Frame, PathOptions
from saccade.cuda.prepare import PICTURE, Preparer
from saccade.cuda.runtime import Device, Stream
from saccade.cuda.slots import Feeder, Load, Slot, SlotSizes, slot_regions
from saccade.errors import InputError, PictureError
from saccade.heads.yolov8 import HEAD
from saccade.types import (
    Contract,
    Detections,
    DeviceBuffer,
    Fallback,
    HeadRule,
    InputRule,
    Plan,
    Thresholds,
)
from saccade.vision.decode import Decoder
from saccade.vision.place import place_reference
from saccade.vision.suppress import finish

SIDE, CELL, BATCH = 64, 8, 4
NUM = (SIDE // CELL) ** 2
# One box per cell: its centre, a width from the green, class scores from red and blue.
NETWORK = f"""
extern "C" __global__ void network(const float* x, float* y) {{
    int cell = threadIdx.x, b = blockIdx.x;
    int row = cell / {SIDE // CELL}, col = cell % {SIDE // CELL};
    float mean[3] = {{0, 0, 0}};
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < {CELL * CELL}; i++)
            mean[c] += x[((b * 3 + c) * {SIDE} + row * {CELL} + i / {CELL}) * {SIDE}
                         + col * {CELL} + i % {CELL}] / {CELL * CELL}.0f;
    float values[6] = {{col * {CELL} + 4.0f, row * {CELL} + 4.0f, 4 + 8 * mean[1], 6.0f,
                       mean[0], mean[2]}};
    for (int k = 0; k < 6; k++) y[(b * 6 + k) * {NUM} + cell] = values[k];
}}
"""
CONTRACT = Contract(
    InputRule("x", (SIDE, SIDE)),
    HeadRule("yolov8", {"rows": "y"}, 2),
    detect=Thresholds(score=0.4, iou=0.5),
)


class Network:
    """The smallest DeviceEngine."""

    fallbacks: tuple[Fallback, ...] = ()
    workspace_bytes = 0

    def __init__(self, device: Device, batch: int) -> None:
        self.plan = Plan("test", batch=batch, device="cuda:0")
        shapes = {"x": (batch, 3, SIDE, SIDE), "y": (batch, 6, NUM)}
        sizes = {name: int(np.prod(shape)) * 4 for name, shape in shapes.items()}
        arena = device.arena(sizes)
        buffers = {
            name: DeviceBuffer(arena.address(name), shapes[name], "float32", sizes[name])
            for name in shapes
        }
        self.inputs: Mapping[str, DeviceBuffer] = {"x": buffers["x"]}
        self.outputs: Mapping[str, DeviceBuffer] = {"y": buffers["y"]}
        self._kernel = device.load(compile_kernels(NETWORK, device.arch)).kernel("network")
        self._args = [ctypes.c_uint64(buffers[name].pointer) for name in ("x", "y")]

    def enqueue(self, stream: int) -> None:
        self._kernel.launch(Stream(stream), (self.plan.batch, 1, 1), NUM, self._args)

    def close(self) -> None:
        pass


def reference(picture: bytes | np.ndarray) -> Detections:
    pixels = picture if isinstance(picture, np.ndarray) else Decoder().decode(picture)
    item, placement = place_reference(pixels, CONTRACT.input)
    cells = (
        item.reshape(3, SIDE // CELL, CELL, SIDE // CELL, CELL).mean(axis=(2, 4)).reshape(3, NUM)
    )
    row, col = np.divmod(np.arange(NUM), SIDE // CELL)
    sixes = np.full(NUM, 6.0)
    y = np.stack([col * 8 + 4.0, row * 8 + 4.0, 4 + 8 * cells[1], sixes, cells[0], cells[2]])
    outputs = {"y": y[None].astype(np.float32)}
    (found,) = HEAD.decode(outputs, CONTRACT.head, (SIDE, SIDE), CONTRACT.detect)
    return finish(found, placement, CONTRACT.detect)


def blocks(rng: np.random.Generator, w: int = SIDE, h: int = SIDE) -> np.ndarray:
    """A picture of even squares, which JPEG keeps and no score of which is near the threshold."""
    levels = rng.choice(np.array([30, 60, 150, 200, 240], np.uint8), (-(-h // 16), -(-w // 16), 3))
    return np.ascontiguousarray(levels.repeat(16, axis=0).repeat(16, axis=1)[:h, :w])


def encode(pixels: np.ndarray, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def jpeg(pixels: np.ndarray, **more: object) -> bytes:
    return encode(pixels, "JPEG", quality=100, subsampling=0, **more)


def assert_alike(got: Detections | None, want: Detections) -> None:
    assert got is not None
    assert len(got) == len(want)
    # Equal scores may change places when a level of one goes up.
    order = [np.lexsort((*d.boxes_xyxy.round().T, d.classes)) for d in (got, want)]
    np.testing.assert_array_equal(got.classes[order[0]], want.classes[order[1]])
    np.testing.assert_allclose(got.scores[order[0]], want.scores[order[1]], atol=3 / 255)
    np.testing.assert_allclose(got.boxes_xyxy[order[0]], want.boxes_xyxy[order[1]], atol=0.2)


@pytest.fixture(scope="module")
def path(device: Device) -> Iterator[DevicePath]:
    with DevicePath(device, Network(device, BATCH), CONTRACT) as made:
        yield made


def test_a_mixture_in_order(path: DevicePath, rng: np.random.Generator) -> None:
    pictures: list[bytes | np.ndarray] = []
    for i in range(37):
        pixels = blocks(rng)
        kinds = (
            jpeg(pixels),
            encode(pixels, "PNG"),
            pixels,
            jpeg(pixels, progressive=True),
            jpeg(pixels[:, :, 0]),
        )
        pictures.append(kinds[i % len(kinds)])
    before = path.stats.decoded_on_gpu
    results = list(path.run(pictures))
    assert [r.index for r in results] == list(range(37))
    assert path.stats.decoded_on_gpu - before == sum(
        not isinstance(p, np.ndarray) and shape_for_gpu(p) is not None for p in pictures
    )
    assert sum(len(r.detections) for r in results if r.detections) > 100
    for result, picture in zip(results, pictures, strict=True):
        assert_alike(result.detections, reference(picture))
        assert result.size_wh == (SIDE, SIDE)


def test_sizes_in_one_batch(path: DevicePath, rng: np.random.Generator) -> None:
    pictures = [blocks(rng, w, h) for w, h in [(64, 64), (128, 64), (1, 1), (33, 200), (800, 600)]]
    for result, picture in zip(path.run(pictures), pictures, strict=True):
        assert result.detections is not None
        assert result.size_wh == (picture.shape[1], picture.shape[0])
        assert abs(len(result.detections) - len(reference(picture))) <= 2


def test_decoded_on_the_gpu_as_on_the_cpu(
    device: Device, upload: Callable[..., DeviceBuffer], rng: np.random.Generator
) -> None:
    """Every sampling and odd sizes through nvJPEG and the prepare kernel, level by level."""
    rule = InputRule("x", (96, 128))
    kinds = [(w, h, s) for w, h in ((128, 96), (127, 95), (33, 47), (200, 150)) for s in range(3)]
    files = [encode(smooth(rng, w, h), "JPEG", quality=92, subsampling=s) for w, h, s in kinds]
    files += [encode(smooth(rng, 65, 43)[:, :, 0], "JPEG", quality=92)]
    target = poisoned(upload, rule, len(files))
    preparer = Preparer(device, rule, target)
    sizes = SlotSizes(8 << 20, 1 << 20, len(files) * PICTURE.itemsize, 8, 8, 8)
    slot = Slot(device, device.arena(slot_regions(sizes, 0)), sizes, 0)
    jpeg_decoder = JpegDecoder(device, len(files))
    stream = device.stream()
    feeder = Feeder(rule, stream, jpeg_decoder, 1 << 24)
    load = Load(slot)
    assert [feeder.add(load, file) for file in files] == [
        (i, shape_for_gpu(file)) for i, file in enumerate(files)
    ]
    assert feeder.flush(load) == {}
    assert feeder.num_on_gpu == len(files)
    preparer.enqueue(stream, upload(slot.table.view(np.uint8)).pointer)
    stream.synchronize()
    for item, file in zip(back(device, target), files, strict=True):
        want, _ = place_reference(Decoder().decode(file), rule)
        # A level from the inverse transform, which JPEG leaves open, and one from interpolation.
        assert levels_off(item, want, rule) <= 2.0001
        assert np.abs(item - want).mean() * 255 < 0.1
    jpeg_decoder.close()


def smooth(rng: np.random.Generator, w: int, h: int) -> np.ndarray:
    """A picture of slow changes, as photographs have."""
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))


def test_broken_pictures_keep_their_place(path: DevicePath, rng: np.random.Generator) -> None:
    good = jpeg(blocks(rng))
    cut = good[: len(good) // 2]
    lies = bytearray(good)
    at = good.index(b"\xff\xda") + 20
    lies[at : at + 200] = b"\xff" * 200  # the scan is garbage, the end marker is there
    pictures = [good, cut, b"", b"text", good, bytes(lies), good, cut + b"\xff\xd9", good]
    results = list(path.run(pictures))
    assert len(results) == len(pictures)
    for i in (1, 2, 3):
        assert isinstance(results[i].error, PictureError), i
    for i in (0, 4, 6, 8):
        assert_alike(results[i].detections, reference(good))
    # What follows is not harmed.
    assert_alike(next(path.run([good])).detections, reference(good))


def test_only_broken_and_none_at_all(path: DevicePath) -> None:
    assert list(path.run([])) == []
    results = list(path.run([b"x"] * 50))
    assert [r.index for r in results] == list(range(50))
    assert all(isinstance(r.error, PictureError) for r in results)


def test_single_calls(path: DevicePath, rng: np.random.Generator) -> None:
    for picture in (jpeg(blocks(rng)), blocks(rng), encode(blocks(rng), "PNG")):
        assert_alike(path.detect(picture).detections, reference(picture))
    assert isinstance(path.detect(b"nothing").error, PictureError)


def test_frame_in_pinned_memory(path: DevicePath, rng: np.random.Generator) -> None:
    frame = path.pinned_frame((48, 70))
    for _ in range(3):
        frame[:] = blocks(rng, 70, 48)
        assert_alike_in_number(path.detect(frame).detections, reference(frame))
    with pytest.raises(InputError, match="staging_bytes"):
        path.pinned_frame((100_000, 100_000))


def test_frames_of_one_size_have_a_graph_of_their_own(
    path: DevicePath, rng: np.random.Generator
) -> None:
    """Arrays as they come, more sizes than there are graphs, turned arrays, and a job between."""
    sizes = [(64, 64), (70, 48), (64, 64), (33, 200), (128, 64), (90, 90), (16, 16), (64, 64)]
    for w, h in sizes:
        for i in range(3):
            frame = blocks(rng, w, h)
            if i == 1:
                frame = np.ascontiguousarray(frame[:, ::-1])[:, ::-1]
            result = path.detect(frame)
            assert result.size_wh == (w, h)
            assert_alike_in_number(result.detections, reference(np.ascontiguousarray(frame)))
        if w == h == 64:
            assert_alike(path.detect(frame).detections, reference(np.ascontiguousarray(frame)))
        (one,) = path.run([blocks(rng)])  # writes to the same slot
        assert one.detections is not None
    assert path.pinned_frame((48, 70)).shape == (48, 70, 3)


def test_frames_that_are_none(path: DevicePath) -> None:
    for _ in range(3):
        for bad in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)):
            assert isinstance(path.detect(bad).error, PictureError)
        assert isinstance(path.detect(np.zeros((8, 8, 3), np.float32)).error, PictureError)


def test_video_frames(path: DevicePath, rng: np.random.Generator) -> None:
    cv2 = pytest.importorskip("cv2")
    frames = []
    for _ in range(9):
        yuv = cv2.cvtColor(blocks(rng), cv2.COLOR_RGB2YUV_I420)
        u, v = yuv[SIDE:].reshape(2, -1)
        rows = np.concatenate([yuv[:SIDE], np.stack([u, v], 1).reshape(SIDE // 2, SIDE)])
        frames.append((rows, cv2.cvtColor(rows, cv2.COLOR_YUV2RGB_NV12)))
    results = list(path.run([Nv12Frame(rows) for rows, _ in frames]))
    results += [path.detect(Nv12Frame(rows)) for rows, _ in frames]
    for result, (_, rgb) in zip(results, frames * 2, strict=True):
        got, want = result.detections, reference(rgb)
        assert got is not None
        # Where red is as bright as blue, a level decides on the class: scores alone are compared.
        np.testing.assert_allclose(np.sort(got.scores), np.sort(want.scores), atol=3 / 255)


def assert_alike_in_number(got: Detections | None, want: Detections) -> None:
    assert got is not None
    assert abs(len(got) - len(want)) <= 2


def test_one_job_at_a_time(path: DevicePath, rng: np.random.Generator) -> None:
    job = path.run([jpeg(blocks(rng))] * 3)
    next(job)
    with pytest.raises(InputError, match="busy"):
        path.detect(b"")
    job.close()  # type: ignore[attr-defined]
    assert path.detect(jpeg(blocks(rng))).detections is not None


def test_source_that_fails_is_told(path: DevicePath, rng: np.random.Generator) -> None:
    def source() -> Iterator[bytes]:
        yield jpeg(blocks(rng))
        raise OSError("the disk is gone")

    job = path.run(source())
    assert next(job).detections is not None  # what came before is not lost
    with pytest.raises(OSError, match="disk"):
        next(job)
    assert path.detect(jpeg(blocks(rng))).detections is not None


def test_room_for_a_batch_is_respected(device: Device, rng: np.random.Generator) -> None:
    options = PathOptions(source_bytes=40_000, staging_bytes=14_000, num_slots=2)
    with DevicePath(device, Network(device, BATCH), CONTRACT, options=options) as small:
        pictures = [jpeg(blocks(rng)) if i % 3 else blocks(rng) for i in range(20)]
        pictures[7] = blocks(rng, 400, 400)
        results = list(small.run(pictures))
        assert [i for i, r in enumerate(results) if r.error] == [7]
        assert "source_bytes" in str(results[7].error) or "staging_bytes" in str(results[7].error)
        for i in set(range(20)) - {7}:
            assert_alike(results[i].detections, reference(pictures[i]))


def test_nothing_is_allocated_once_warm(
    device: Device, path: DevicePath, rng: np.random.Generator
) -> None:
    pictures = [jpeg(blocks(rng)) for _ in range(40)]
    list(path.run(pictures))
    before = (path.num_allocations, device.memory())
    list(path.run(pictures))
    assert (path.num_allocations, device.memory()) == before


def test_closing_gives_the_memory_back(device: Device, rng: np.random.Generator) -> None:
    network = Network(device, BATCH)
    free = []
    for _ in range(3):
        with DevicePath(device, network, CONTRACT) as one:
            list(one.run([jpeg(blocks(rng))] * 9))
        free.append(device.memory()[0])
    assert free[1] == free[2]


def test_arrays_that_are_no_pictures(path: DevicePath) -> None:
    shapes = [(0, 5, 3), (5, 5), (5, 5, 4)]
    arrays = [np.zeros(shape, np.uint8) for shape in shapes] + [np.zeros((5, 5, 3), np.float32)]
    assert all(isinstance(r.error, PictureError) for r in path.run(arrays))


def test_decoding_on_the_cpu(device: Device, rng: np.random.Generator) -> None:
    options = PathOptions(decodes_on_gpu=False, num_slots=1)
    with DevicePath(device, Network(device, BATCH), CONTRACT, options=options) as plain:
        pictures = [jpeg(blocks(rng)) for _ in range(9)]
        for result, picture in zip(plain.run(pictures), pictures, strict=True):
            assert_alike(result.detections, reference(picture))
        assert plain.stats.decoded_on_cpu == 9
