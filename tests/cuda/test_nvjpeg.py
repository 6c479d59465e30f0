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
    ],
    ids=range(10),
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
        assert found is None or min(found) >= 0
