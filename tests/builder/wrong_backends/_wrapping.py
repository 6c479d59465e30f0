"""ONNX Runtime with something done to it. Tests put this folder on the path of back ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from saccade.backends.onnxruntime import BACKEND as HONEST
from saccade.types import Engine, Fallback, Model, Plan

Spoil = Callable[[dict[str, np.ndarray], Mapping[str, np.ndarray], int], None]


class Wrapped:
    """A real back end whose outputs are changed after each inference.

    Args:
        name: File name of the back end.
        spoil: Changes outputs in place, given the inputs and the number of pictures.
        fallbacks: What it admits to.
        on_load: Called before a model is loaded.
    """

    precisions = ("fp32",)

    def __init__(
        self,
        name: str,
        spoil: Spoil = lambda outputs, inputs, num: None,
        fallbacks: tuple[Fallback, ...] = (),
        on_load: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._spoil = spoil
        self._fallbacks = fallbacks
        self._on_load = on_load

    def probe(self):
        return HONEST.probe()

    def supports(self, model: Model):
        return HONEST.supports(model)

    def load(self, model: Model, plan: Plan) -> Engine:
        self._on_load()
        return _Engine(HONEST.load(model, plan), self._spoil, self._fallbacks)


class _Engine:
    def __init__(self, engine: Engine, spoil: Spoil, fallbacks: tuple[Fallback, ...]) -> None:
        self.plan = engine.plan
        self.fallbacks = fallbacks
        self._engine = engine
        self._spoil = spoil

    def open_slot(self, size_hw):
        return _Slot(self._engine.open_slot(size_hw), self._spoil)

    def close(self) -> None:
        self._engine.close()


class _Slot:
    def __init__(self, slot, spoil: Spoil) -> None:
        self.inputs = slot.inputs
        self._slot = slot
        self._spoil = spoil

    def run(self, num: int):
        outputs = {name: array.copy() for name, array in self._slot.run(num).items()}
        self._spoil(outputs, self.inputs, num)
        return outputs
