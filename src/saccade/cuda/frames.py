"""One frame after the other, with as little of the host as possible.

The frames of a camera have one size. For that size everything is known: a graph of its own holds
the upload of the pixels, prepare, the engine and suppression, and what describes the frame lies on
the device already. A call is one launch, one wait and one look at pinned memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.cuda import driver
from saccade.cuda.prepare import PICTURE, READ_PAST, Preparer, describe
from saccade.cuda.runtime import Stream
from saccade.cuda.slots import Slot
from saccade.cuda.suppress import FinalBoxes, Suppressor
from saccade.errors import InputError
from saccade.types import Detections, DeviceEngine, InputRule

__all__ = ["FrameCall", "FrameCalls", "Steps"]


@dataclass(frozen=True, slots=True)
class Steps:
    """What is launched for a batch, in this order."""

    preparer: Preparer
    engine: DeviceEngine
    suppressor: Suppressor


class FrameCall:
    """The graph for frames of one size in the first place of a slot.

    It uses the slot's memory, so a caller has the slot to itself for a call.

    Args:
        slot: Whose pinned memory takes the frame, and whose device memory is worked in.
        stream: Where to launch; it must be empty.
        rule: How pictures are placed.
        size_hw: Height and width of the frames in pixels; they must fit the slot.
        table: Device address for a table of pictures that nothing else writes.
        steps: Of the path.

    Attributes:
        frame: (h, w, 3) uint8 in pinned memory, to be filled with RGB before each call.
        stream: As given.
        graph: What a call launches.

    Raises:
        EngineError: The device failed.
    """

    def __init__(
        self,
        slot: Slot,
        stream: Stream,
        rule: InputRule,
        size_hw: tuple[int, int],
        table: int,
        steps: Steps,
    ) -> None:
        height, width = size_hw
        num_bytes = height * width * 3
        self.frame = slot.staging.array[:num_bytes].reshape(height, width, 3)
        self.stream = stream
        entry = np.zeros(1, PICTURE)
        describe(entry, rule, (width, height), slot.source, width * 3)
        slot.rows[0] = entry.view(np.uint8)
        slot.width[1:] = 0
        slot.upload_table(stream, table)
        with stream.capture() as captured:
            stream.upload(slot.source, slot.staging, num_bytes)
            slot.enqueue_described(stream, table, steps.preparer, steps.engine, steps.suppressor)
        self.graph = captured.graph
        self._boxes: FinalBoxes = steps.suppressor.final_boxes(slot.results.array)
        cuda = driver.bindings()
        self._launch, self._wait = cuda.cuGraphLaunch, cuda.cuStreamSynchronize
        # The bindings' own type: they take longer to make it of a number.
        self._handle = cuda.CUstream(stream.handle)
        self.run()  # the first launch of a graph uploads it

    def run(self) -> None:
        """Find objects in what `frame` holds, for `read`.

        Raises:
            EngineError: The device failed.
        """
        (code,) = self._launch(self.graph.handle, self._handle)
        if code != 0:
            raise driver.error_of("launching a graph", code)
        (code,) = self._wait(self._handle)
        if code != 0:
            raise driver.error_of("waiting for the device", code)

    def read(self) -> Detections:
        """What the last run found.

        Raises:
            EngineError: There were more candidates than fit.
        """
        return self._boxes.read(0)

    def close(self) -> None:
        """Release the graph."""
        self.graph.close()


class FrameCalls:
    """The calls for a few sizes of frames.

    Args:
        slot: As for FrameCall, like stream, rule and steps.
        tables: Device addresses for tables of pictures, one for each size at a time.
        max_pixels: Larger frames get no graph.
    """

    def __init__(
        self,
        slot: Slot,
        stream: Stream,
        rule: InputRule,
        steps: Steps,
        *,
        tables: Sequence[int],
        max_pixels: int,
    ) -> None:
        self._slot = slot
        self._make = functools.partial(FrameCall, slot, stream, rule)
        self._steps = steps
        self._free = list(tables)
        self._max_pixels = max_pixels
        # By the shape of the array; oldest first.
        self._calls: dict[tuple[int, ...], tuple[FrameCall, int]] = {}
        self._last: tuple[int, ...] = ()

    def of_size(self, size_hw: tuple[int, int]) -> FrameCall:
        """The call for a size; made if it is not there, in place of the oldest.

        Raises:
            InputError: No frame of that size fits.
        """
        shape = (*size_hw, 3)
        if shape not in self._calls:
            most = self._most_bytes()
            if not 0 < size_hw[0] * size_hw[1] * 3 <= most:
                raise InputError(
                    f"a frame must have 1 to {most} bytes, {size_hw[1]} x {size_hw[0]} pixels "
                    f"have {size_hw[0] * size_hw[1] * 3}; raise staging_bytes and source_bytes"
                )
            if not self._free:
                self._drop(next(iter(self._calls)))
            table = self._free.pop()
            self._calls[shape] = self._make(size_hw, table, self._steps), table
        return self._calls[shape][0]

    def of_frame(self, picture: np.ndarray) -> FrameCall | None:
        """The call for an array, or None: the first of a size, and what is no frame, has none."""
        if picture.dtype != np.uint8:
            return None
        shape = picture.shape
        known = self._calls.get(shape)
        if known is not None:
            return known[0]
        is_second, self._last = shape == self._last, shape
        if not is_second or not self._free or len(shape) != 3 or shape[2] != 3:
            return None
        fits = 0 < picture.size <= min(self._most_bytes(), self._max_pixels * 3)
        return self.of_size(shape[:2]) if fits else None

    def _most_bytes(self) -> int:
        return min(len(self._slot.staging.array), self._slot.source_bytes - READ_PAST)

    def _drop(self, shape: tuple[int, ...]) -> None:
        call, table = self._calls.pop(shape)
        self._free.append(table)
        call.close()

    def close(self) -> None:
        """Release all graphs."""
        for shape in list(self._calls):
            self._drop(shape)
