"""The four stages of one picture, and the private tools a thread needs to run them.

The same functions run serially or overlapped; overlap is a property of the runner alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from saccade import heads
from saccade.errors import InputError
from saccade.types import Candidates, Contract, Detections, Placement, Slot, Thresholds
from saccade.vision.arrays import from_rgb
from saccade.vision.suppress import finish

if TYPE_CHECKING:
    import numpy as np

    from saccade.pipeline.sources import SourceItem

__all__ = ["STAGES", "Lane", "StageTimes", "Stages"]

STAGES = ("decode", "prepare", "infer", "suppress")
T = TypeVar("T")


@dataclass(slots=True)
class StageTimes:
    """Wall and CPU seconds that each stage took, summed over pictures."""

    wall_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, other: StageTimes) -> None:
        """Add another thread's sums to these."""
        for stage in STAGES:
            self.wall_s[stage] += other.wall_s[stage]
            self.cpu_s[stage] += other.cpu_s[stage]


class Lane:
    """One thread's decoder, placer and clocks: buffers that no other thread touches.

    Args:
        stages: What to do.
        cpu_clock: Seconds of CPU used so far; per thread by default. A serial run passes the
            clock of the process, so that a runtime's own threads are counted.
    """

    def __init__(self, stages: Stages, cpu_clock: Callable[[], float] = time.thread_time) -> None:
        from saccade.vision.decode import Decoder
        from saccade.vision.place import Placer

        rule = stages.contract.input
        scaled = (rule.size_hw[1], rule.size_hw[0]) if stages.scaled_decode else None
        self.decoder = Decoder(
            rule.color, bits=rule.bits, max_pixels=stages.max_pixels, scaled_for_wh=scaled
        )
        self.placer = Placer(rule)
        self.times = StageTimes()
        self.is_encoded = True
        self._cpu_clock = cpu_clock

    def timed(self, stage: str, function: Callable[..., T], *args: object) -> T:
        """Call a function and book its time to a stage."""
        wall_s, cpu_s = time.perf_counter(), self._cpu_clock()
        try:
            return function(*args)
        finally:
            self.times.cpu_s[stage] += self._cpu_clock() - cpu_s
            self.times.wall_s[stage] += time.perf_counter() - wall_s


@dataclass(frozen=True, slots=True)
class Stages:
    """What happens to a picture, by contract.

    Attributes:
        contract: How pictures go in and outputs are read.
        thresholds: What is kept.
        max_pixels: Larger pictures are refused before they are decoded.
        scaled_decode: Decode JPEGs much larger than the input at a fraction of their size. This
            changes answers.
    """

    contract: Contract
    thresholds: Thresholds
    max_pixels: int
    scaled_decode: bool = False

    def decode(self, lane: Lane, item: SourceItem) -> np.ndarray:
        """Source pixels in the contract's channel order; valid until this lane's next decode.

        Raises:
            PictureError: This picture cannot be used.
        """
        if item.error is not None:
            raise item.error
        return lane.timed("decode", self._decode, lane, item)

    def _decode(self, lane: Lane, item: SourceItem) -> np.ndarray:
        lane.is_encoded = item.kind != "array"
        value = item.value
        if isinstance(value, os.PathLike):
            return lane.decoder.read(value)
        if isinstance(value, bytes):
            return lane.decoder.decode(value)
        assert value is not None  # an item without a value has an error
        rule = self.contract.input
        return from_rgb(value, rule.color, rule.bits, self.max_pixels)

    def prepare(self, lane: Lane, picture: np.ndarray, slot: Slot, position: int) -> Placement:
        """Write the picture that this lane decoded last into a slot, at a position of its batch."""
        return lane.timed("prepare", self._prepare, lane, picture, slot, position)

    def _prepare(self, lane: Lane, picture: np.ndarray, slot: Slot, position: int) -> Placement:
        rule = self.contract.input
        # A scaled decode is smaller than its source; anything else is its own source.
        source_wh = lane.decoder.source_wh if self.scaled_decode and lane.is_encoded else None
        target = slot.inputs[rule.name][position]
        placement = lane.placer.place(picture, target, source_wh=source_wh)
        if rule.size_input is not None:
            width, height = placement.source_wh
            sizes = slot.inputs[rule.size_input]
            sizes[position] = (width, height) if rule.size_order == "wh" else (height, width)
        return placement

    def infer(self, lane: Lane, slot: Slot, num: int) -> Mapping[str, np.ndarray]:
        """Run the first num pictures of a slot.

        Raises:
            EngineError: The engine failed.
        """
        return lane.timed("infer", slot.run, num)

    def suppress(
        self, lane: Lane, outputs: Mapping[str, np.ndarray], placements: Sequence[Placement]
    ) -> list[Detections]:
        """Final boxes of a batch, in source pixels, in the order of its placements."""
        return lane.timed("suppress", self._suppress, outputs, placements)

    def _suppress(
        self, outputs: Mapping[str, np.ndarray], placements: Sequence[Placement]
    ) -> list[Detections]:
        rule = self.contract.head
        found: list[Candidates] = heads.get(rule.family).decode(
            outputs, rule, self.contract.input.size_hw, self.thresholds
        )
        if len(found) < len(placements):
            raise InputError(
                f"head {rule.family!r} must read {len(placements)} pictures from the outputs, it "
                f"read {len(found)}; the contract does not fit this model"
            )
        return [
            finish(candidates, placement, self.thresholds, class_agnostic=rule.class_agnostic)
            for candidates, placement in zip(found, placements, strict=False)
        ]
