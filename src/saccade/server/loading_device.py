"""A model on a GPU as an engine process serves it: one copy of the network, for all requests.

Pictures go through the session's path in batches; tensors use the same engine between two of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from saccade.cuda.batches import Batches
from saccade.cuda.path import PathOptions
from saccade.pipeline.detector import Detector
from saccade.pipeline.device import DeviceSession
from saccade.pipeline.device_memory import path_options
from saccade.pipeline.device_slot import SharedEngine
from saccade.types import Plan

__all__ = ["OnDevice", "open_on_device"]


@dataclasses.dataclass(slots=True, eq=False)
class OnDevice:
    """What a detector has on a GPU.

    Attributes:
        session: The network and its memory.
        batches: Of its path, with the contract's thresholds; not started.
        room: Of the path.
        engine: The network for tensors.
    """

    session: DeviceSession
    batches: Batches
    room: PathOptions
    engine: SharedEngine

    @property
    def own_bytes(self) -> int:
        """Device memory of this model: what was measured, else predicted, without the context and
        the libraries' code, which models share."""
        parts = self.session.memory.parts()[:-1]
        return sum(
            part.predicted_bytes if part.measured_bytes is None else part.measured_bytes
            for part in parts
            if part.name != "context and code"
        )

    def details(self) -> dict[str, Any]:
        """What clients are told: the card, and memory in bytes by part."""
        return {
            "gpu": self.session.device.name,
            "batches_in_flight": self.room.num_slots,
            "memory": [
                {"part": p.name, "predicted": p.predicted_bytes, "measured": p.measured_bytes}
                for p in self.session.memory.parts()
            ],
        }

    def close(self) -> None:
        """Release the device's memory; closing twice is no error."""
        self.engine.close()
        self.batches.close()
        self.session.close()


def open_on_device(
    detector: Detector, plan: Plan, *, limit_bytes: int | None, max_pixels: int
) -> OnDevice:
    """Load a detector's network on its GPU and make a path for it.

    Args:
        detector: On a GPU.
        plan: Of its network; `streams` batches are in flight, or fewer if the limit says so.
        limit_bytes: Device memory that it may take, or None.
        max_pixels: Larger pictures are refused.

    Raises:
        BackendUnavailable: The driver, the device or a package is missing.
        BuildError: There is too little memory, or the kernels lack what the contract asks for.
        EngineError: The device failed.
    """
    session = DeviceSession(detector.model, detector.contract, plan, limit_bytes=limit_bytes)
    try:
        thresholds = detector.contract.detect
        room = path_options(plan.batch, num_slots=plan.streams, max_pixels=max_pixels)
        room = session.fitting(thresholds, room)
        batches = Batches(session.path(thresholds, room))
    except BaseException:
        session.close()
        raise
    size_hw = detector.contract.input.size_hw
    engine = SharedEngine(detector.model, plan, size_hw, session.device, session.engine, batches)
    return OnDevice(session, batches, room, engine)
