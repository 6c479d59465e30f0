"""How much a path may hold and how it decodes, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.cuda.suppress import MAX_CANDIDATES
from saccade.errors import InputError
from saccade.vision.decode import DEFAULT_MAX_PIXELS

__all__ = ["PathOptions", "PathStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """How much a path may hold and how it decodes.

    Attributes:
        num_slots: Batches in flight.
        source_bytes: Device memory per slot for decoded pictures; default room for a batch of
            Full HD.
        staging_bytes: Pinned memory per slot for pictures decoded on the CPU; default 32 MiB, or
            as source_bytes if all are.
        decodes_on_gpu: False decodes everything on the CPU.
        max_pixels: Larger pictures are refused.
        max_candidates: Per picture, where rows of the head may give several classes.
    """

    num_slots: int = 4
    source_bytes: int | None = None
    staging_bytes: int | None = None
    decodes_on_gpu: bool = True
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_candidates: int = MAX_CANDIDATES

    def __post_init__(self) -> None:
        if self.num_slots < 1:
            raise InputError(f"num_slots must be at least 1, got {self.num_slots}")


@dataclass(slots=True)
class PathStats:
    """What a path has done so far.

    Attributes:
        num_pictures: Pictures that went through the network.
        num_batches: Batches.
        decoded_on_gpu: Pictures.
        decoded_on_cpu: Pictures that nvJPEG does not do.
        feeding_s: Seconds in which both threads that feed worked, waiting left out.
        launching_s: Of these, seconds in which batches were decoded and launched.
        decoding_s: Of these, seconds in nvJPEG's calls.
        reading_s: Seconds in which the caller's thread read results.
        gpu_busy_s: Seconds in which graphs ran; calls with frames are not timed.
    """

    num_pictures: int = 0
    num_batches: int = 0
    decoded_on_gpu: int = 0
    decoded_on_cpu: int = 0
    feeding_s: float = 0.0
    launching_s: float = 0.0
    decoding_s: float = 0.0
    reading_s: float = 0.0
    gpu_busy_s: float = 0.0
