"""Pictures on their way to a GPU: files are read, and what the GPU cannot decode is decoded here.

Threads work ahead, a handful of pictures each, and pictures come out in their order. A JPEG that
nvJPEG can do stays a JPEG; everything else becomes pixels, on the CPU, and is counted by kind: that
is the one thing on a GPU job that the GPU does not do, and the job's report says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saccade.cuda.nvjpeg import shape_for_gpu
from saccade.cuda.path import Picture
from saccade.errors import PictureError
from saccade.pipeline.sources import SourceItem
from saccade.types import Color
from saccade.vision.decode import Decoder

__all__ = ["DeviceFeed", "Fed", "Fetcher"]

# One task of a thread: enough to hide what handing it over costs.
_CHUNK = 8
_LOOK_EVERY_S = 0.1


class Fed(NamedTuple):
    """A picture as the GPU takes it.

    Attributes:
        item: Where it comes from, without its content.
        picture: A JPEG, pixels, or what is wrong with it.
        num_bytes: Device memory that its pixels need, less than a row in excess; 0 for an error.
    """

    item: SourceItem
    picture: Picture
    num_bytes: int


class Fetcher:
    """Gets pictures ready for a GPU, from any number of threads.

    Args:
        color: The contract's channel order.
        max_pixels: Larger pictures are refused.
        decodes_on_gpu: False decodes everything here.

    Attributes:
        on_cpu: What was decoded on the CPU: kind to number of pictures.
    """

    def __init__(self, color: Color, *, max_pixels: int, decodes_on_gpu: bool = True) -> None:
        self.on_cpu: Counter[str] = Counter()
        self._decodes_on_gpu = decodes_on_gpu and color != "gray"
        # The kernel orders channels itself; gray is decoded as gray, as on the CPU.
        self._color: Color = "gray" if color == "gray" else "rgb"
        self._max_pixels = max_pixels
        self._own = threading.local()
        self._lock = threading.Lock()

    def fed(self, item: SourceItem) -> Fed:
        """The picture of an item, or what is wrong with it."""
        named = dataclasses.replace(item, value=None)
        try:
            picture = self._picture(item)
        except PictureError as exc:
            return Fed(named, exc, 0)
        if isinstance(picture, bytes):
            wh = shape_for_gpu(picture)
            assert wh is not None  # else it had been decoded
            return Fed(named, picture, 3 * wh[0] * wh[1])
        return Fed(named, picture, picture.nbytes)

    def _picture(self, item: SourceItem) -> bytes | np.ndarray:
        if item.error is not None:
            raise item.error
        value = item.value
        assert value is not None  # an item without a value has an error
        if isinstance(value, np.ndarray):
            return value
        if self._decodes_on_gpu and (data := self._jpeg(value)) is not None:
            return data
        decoder = self._decoder()
        pixels = decoder.read(value) if isinstance(value, Path) else decoder.decode(value)
        self._count(value)
        return pixels.copy()  # the decoder's buffers are used again

    def _jpeg(self, value: Path | bytes) -> bytes | None:
        """The file, if nvJPEG can do it."""
        if isinstance(value, bytes):
            data = value
        else:
            try:
                data = value.read_bytes()
            except (OSError, ValueError):
                return None  # the decoder says what is wrong with it
        wh = shape_for_gpu(data)
        return data if wh is not None and wh[0] * wh[1] <= self._max_pixels else None

    def _decoder(self) -> Decoder:
        if not hasattr(self._own, "decoder"):
            self._own.decoder = Decoder(self._color, max_pixels=self._max_pixels)
        decoder: Decoder = self._own.decoder
        return decoder

    def _count(self, value: Path | bytes) -> None:
        if isinstance(value, bytes):
            head = value[:16]
        else:
            with value.open("rb") as file:
                head = file.read(16)
        kind = _kind(head)
        with self._lock:
            self.on_cpu[kind] += 1


class DeviceFeed(Iterator[Fed]):
    """Reads ahead of the GPU. Use it as a context manager.

    Args:
        source: Pictures in order.
        color: The contract's channel order.
        max_pixels: Larger pictures are refused.
        workers: Threads.
        decodes_on_gpu: False decodes everything here.

    Attributes:
        on_cpu: What was decoded on the CPU: kind to number of pictures.
    """

    def __init__(
        self,
        source: Iterable[SourceItem],
        color: Color,
        *,
        max_pixels: int,
        workers: int,
        decodes_on_gpu: bool = True,
    ) -> None:
        self._fetcher = Fetcher(color, max_pixels=max_pixels, decodes_on_gpu=decodes_on_gpu)
        self.on_cpu = self._fetcher.on_cpu
        self._source = iter(source)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="saccade-read")
        # Tasks under way or ready, oldest first; at the end None, or why the source failed.
        self._tasks: queue.Queue[Future[list[Fed]] | BaseException | None]
        self._tasks = queue.Queue(2 * workers + 2)
        self._ready: deque[Fed] = deque()
        self._end: BaseException | None = None
        self._is_over = self._is_closed = False
        # Not joined: it may be inside a source that gives nothing for a long time.
        self._puller = threading.Thread(target=self._pull, name="saccade-pull", daemon=True)
        self._puller.start()

    def __next__(self) -> Fed:
        while not self._ready:
            task = None if self._is_over else self._tasks.get()
            if isinstance(task, Future):
                self._ready.extend(task.result())
                continue
            self._is_over, self._end = True, task or self._end
            if self._end is not None:
                raise self._end
            raise StopIteration
        return self._ready.popleft()

    def _pull(self) -> None:
        """Hand the source's pictures to the readers, a few at a time."""
        end: BaseException | None = None
        num = 1
        while num and end is None and not self._is_closed:
            some: list[SourceItem] = []
            try:
                some.extend(islice(self._source, _CHUNK))
            except BaseException as exc:  # raised after the pictures before it
                end = exc
            num = len(some)
            with contextlib.suppress(RuntimeError):  # closed in between
                if some:
                    self._put(self._pool.submit(self._load, some))
        self._put(end)

    def _put(self, task: Future[list[Fed]] | BaseException | None) -> None:
        while not self._is_closed:
            try:
                self._tasks.put(task, timeout=_LOOK_EVERY_S)
            except queue.Full:
                continue
            return

    def _load(self, chunk: list[SourceItem]) -> list[Fed]:
        return [self._fetcher.fed(item) for item in chunk]

    def close(self) -> None:
        """Stop the threads; pictures that were not fetched are dropped."""
        self._is_closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._tasks.get_nowait()
        with contextlib.suppress(queue.Full):  # then there is something to wake up whoever waits
            self._tasks.put_nowait(None)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> DeviceFeed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _kind(head: bytes) -> str:
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG (progressive, CMYK, turned by EXIF, or gray for a gray network)"
    names = ((b"\x89PNG", "PNG"), (b"RIFF", "WebP"), (b"BM", "BMP"), (b"GIF8", "GIF"))
    for start, name in (*names, (b"II*\0", "TIFF"), (b"MM\0*", "TIFF")):
        if head.startswith(start):
            return name
    return "other formats"
