"""Which files are for the GPU's decoder, by their headers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from saccade.cuda.nvjpeg import shape_for_gpu


def jpeg(mode: str = "RGB", **more: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (33, 21)).save(file, "JPEG", **more)
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [jpeg(), jpeg("L"), jpeg(subsampling=0), jpeg(subsampling=2), jpeg(comment=b"hello")]
)
def test_baseline_is_for_the_gpu(data: bytes) -> None:
    assert shape_for_gpu(data) == (33, 21)


def with_adobe(transform: int) -> bytes:
    whole = jpeg()
    segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    end_of_jfif = 4 + (whole[4] << 8 | whole[5])
    return whole[:2] + segment + whole[end_of_jfif:]


def with_sampling(factors: bytes) -> bytes:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 11 : at + 20 : 3] = factors
    return bytes(data)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif.tobytes())


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg("CMYK"),
        turned(),
        jpeg()[:-1],
        jpeg() + b"\0",
        jpeg()[:30],
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"\x89PNG\r\n",
        with_adobe(0),
        with_sampling(b"\x41\x11\x11"),
        with_sampling(b"\x22\x22\x22"),
        with_sampling(b"\x22\x12\x11"),
    ],
    ids=range(14),
)
def test_anything_else_is_for_the_cpu(data: bytes) -> None:
    assert shape_for_gpu(data) is None


def test_garbage_never_raises(rng: np.random.Generator) -> None:
    whole = jpeg()
    for _ in range(2000):
        data = bytearray(whole)
        for at in rng.integers(2, len(data) - 2, 4):
            data[at] = int(rng.integers(0, 256))
        found = shape_for_gpu(bytes(data))
        assert found is None or min(found) > 0


def test_components_named_rgb_are_no_chroma() -> None:
    assert shape_for_gpu(with_adobe(1)) is not None
    data = bytearray(with_adobe(1))
    at = data.index(b"\xff\xee")
    del data[at : at + 16]
    assert shape_for_gpu(bytes(data)) is not None
    at = data.index(b"\xff\xc0")
    data[at + 10 : at + 19 : 3] = b"RGB"
    assert shape_for_gpu(bytes(data)) is None
