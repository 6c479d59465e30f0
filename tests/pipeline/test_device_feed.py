"""What is read ahead of a GPU, without one: order, kinds, failures, and sources that dawdle."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image

from saccade.cuda.path import PathOptions
from saccade.errors import PictureError
from saccade.pipeline.device_feed import DeviceFeed
from saccade.pipeline.device_run import fits, room_for
from saccade.pipeline.sources import SourceItem, expand
from saccade.vision.decode import Decoder


def encoded(pixels, kind, **more):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def feed_of(source, **more):
    return DeviceFeed(source, more.pop("color", "rgb"), max_pixels=10**6, workers=3, **more)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)


def test_jpegs_stay_and_the_rest_becomes_pixels_in_order(pixels, tmp_path):
    path = tmp_path / "one.jpg"
    path.write_bytes(encoded(pixels, "JPEG"))
    some = [
        encoded(pixels, "JPEG"),
        encoded(pixels, "PNG"),
        encoded(pixels, "JPEG", progressive=True),
        pixels,
        encoded(pixels, "WEBP", lossless=True),
        b"nothing",
        path,
        tmp_path / "missing.jpg",
    ]
    inputs = some * 20
    with feed_of(expand(inputs)) as feed:
        fed = list(feed)
        counts = dict(feed.on_cpu)
    assert [one.item.index for one in fed] == list(range(len(inputs)))
    for one, given in zip(fed, inputs, strict=True):
        assert one.item.value is None
        if given is some[0] or given is path:
            assert isinstance(one.picture, bytes)
            assert one.num_bytes == pixels.nbytes
        elif given is some[5] or given is some[7]:
            assert isinstance(one.picture, PictureError)
            assert one.num_bytes == 0
        else:
            want = given if isinstance(given, np.ndarray) else Decoder("rgb").decode(given)
            np.testing.assert_array_equal(one.picture, want)
    assert counts["PNG"] == counts["WebP"] == 20
    assert sum(n for kind, n in counts.items() if kind.startswith("JPEG")) == 20


def test_errors_are_those_of_the_cpu(pixels, tmp_path):
    cut = encoded(pixels, "JPEG")[:100]
    path = tmp_path / "cut.jpg"
    path.write_bytes(cut)
    with feed_of(expand([path])) as feed:
        (fed,) = feed
    with pytest.raises(PictureError) as told:
        Decoder("rgb").read(path)
    assert str(fed.picture) == str(told.value)


def test_all_on_the_cpu_and_gray_networks(pixels):
    data = encoded(pixels, "JPEG")
    with feed_of(expand([data]), decodes_on_gpu=False) as feed:
        assert next(feed).picture.shape == (30, 40, 3)
    with feed_of(expand([data]), color="gray") as feed:
        assert next(feed).picture.shape == (30, 40)
    with feed_of(expand([data]), color="bgr") as feed:
        assert isinstance(next(feed).picture, bytes)


def test_what_is_there_does_not_wait_for_what_is_not(pixels):
    """A source that gives one handful and then waits must not hold back the handful."""
    go_on = threading.Event()

    def source():
        for index in range(8):
            yield SourceItem(index, str(index), "array", pixels)
        go_on.wait()

    with feed_of(source()) as feed:
        assert [next(feed).item.index for _ in range(8)] == list(range(8))
        go_on.set()
        assert list(feed) == []


def test_closing_does_not_wait_for_the_source(pixels):
    never = threading.Event()

    def source():
        yield SourceItem(0, "0", "array", pixels)
        never.wait()

    feed = feed_of(source())
    waiting = threading.Thread(target=lambda: list(feed))
    waiting.start()
    feed.close()
    waiting.join()
    never.set()


def test_a_failing_source_fails_after_what_came_before(pixels):
    def source():
        for index in range(21):
            yield SourceItem(index, str(index), "array", pixels)
        raise OSError("gone")

    got = []
    with feed_of(source()) as feed, pytest.raises(OSError, match="gone"):
        got.extend(feed)
    assert len(got) == 21


def test_room(pixels):
    options = PathOptions(source_bytes=10_000, staging_bytes=5_000)
    with feed_of(expand([encoded(pixels, "JPEG"), pixels])) as feed:
        jpeg, array = feed
    assert fits(options, jpeg)
    assert fits(options, array)
    small = PathOptions(source_bytes=10_000, staging_bytes=4_000)
    assert fits(small, jpeg)
    assert not fits(small, array)
    grown = room_for(small, array.num_bytes)
    assert fits(grown, array)
    assert grown.source_bytes >= small.source_bytes
