"""The back end that does nothing: outputs are zeros of the right shape.

It measures the pipeline around the network, and it is the fake that tests use.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.backends._shapes import check_batch, has_fixed_batch, static_shape
from saccade.errors import EngineError, InputError
from saccade.types import Availability, Engine, Fallback, Model, Plan, Precision, Slot, TensorSpec

# A free output axis that the graph does not tie to the batch gets this many entries.
_FREE_AXIS_SIZE = 1


class NullBackend:
    """No network at all."""

    name = "null"
    precisions: tuple[Precision, ...] = ("fp32",)

    def probe(self) -> Availability:
        return Availability(True, "does nothing; measures the pipeline without a network")

    def supports(self, model: Model) -> Availability:
        return self.probe()

    def load(self, model: Model, plan: Plan) -> Engine:
        if plan.precision not in self.precisions or plan.options:
            raise InputError(
                "back end 'null' takes precision fp32 and no options, "
                f"got {plan.precision!r} and {dict(plan.options)}"
            )
        check_batch(model, plan.batch)
        return NullEngine(model, plan)


class NullEngine:
    """Hands out slots whose outputs are zeros."""

    def __init__(self, model: Model, plan: Plan) -> None:
        self.plan = plan
        self.fallbacks: tuple[Fallback, ...] = ()
        self._model: Model | None = model

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        if self._model is None:
            raise EngineError("this engine is closed; load the model again")
        return NullSlot(self._model, self.plan.batch, size_hw)

    def close(self) -> None:
        self._model = None


class NullSlot:
    """Static inputs, zeros out."""

    def __init__(self, model: Model, batch: int, size_hw: tuple[int, int]) -> None:
        self.inputs: Mapping[str, np.ndarray] = {
            spec.name: np.zeros(static_shape(spec.shape, batch, size_hw), spec.dtype)
            for spec in model.inputs
        }
        self._is_fixed = has_fixed_batch(model)
        self._batch = batch
        self._outputs = {spec.name: _zeros(spec, batch) for spec in model.outputs}

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        if num == self._batch or self._is_fixed:
            return self._outputs
        return {name: array[:num] for name, array in self._outputs.items()}


def _zeros(spec: TensorSpec, batch: int) -> np.ndarray:
    sizes = [size if isinstance(size, int) else _FREE_AXIS_SIZE for size in spec.shape]
    if spec.shape and not isinstance(spec.shape[0], int):
        sizes[0] = batch
    return np.zeros(sizes, spec.dtype)


BACKEND = NullBackend()
