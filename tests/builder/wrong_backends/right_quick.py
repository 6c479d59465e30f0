"""Answers of `nets.mean_color_detector` without running it: what a fast deployment looks like."""

from __future__ import annotations

import numpy as np

from nets import NUM_ROWS, SIZE_HW, score_of
from saccade.types import Availability


class Quick:
    name = "right_quick"
    precisions = ("fp32",)

    def probe(self):
        return Availability(True, "right_quick 1.0")

    def supports(self, model):
        return self.probe()

    def load(self, model, plan):
        return _Engine(plan)


class _Engine:
    def __init__(self, plan) -> None:
        self.plan = plan
        self.fallbacks = ()

    def open_slot(self, size_hw):
        return _Slot(self.plan.batch)

    def close(self) -> None:
        pass


class _Slot:
    def __init__(self, batch: int) -> None:
        height, width = SIZE_HW
        self.inputs = {"images": np.zeros((batch, 3, height, width), np.float32)}

    def run(self, num: int):
        height, width = SIZE_HW
        out = np.zeros((num, 6, NUM_ROWS), np.float32)
        out[:, :4, 0] = (width / 2, height / 2, width / 2, height / 2)
        out[:, 4:, 0] = score_of(self.inputs["images"][:num, ::2].mean(axis=(2, 3)))
        return {"output0": out}


BACKEND = Quick()
