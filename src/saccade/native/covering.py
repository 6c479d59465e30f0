"""Whether an engine could be built for a model: nothing is compiled and nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from saccade.native.drafting import drafted
from saccade.native.memory import placed
from saccade.native.ops import Step
from saccade.native.seam import Kernels, Target
from saccade.native.tuning import check_ways

if TYPE_CHECKING:
    import onnx

__all__ = ["check_covered"]


def check_covered(
    proto: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    precision: str,
    kernels: Kernels,
    target: Target | None,
) -> None:
    """Refuse a model with nodes that have no rule, or steps that have no kernel. Needs no GPU.

    Args:
        proto: From `tidy`, weights loaded.
        shapes: Input name to shape.
        precision: "fp32", "fp16" or "bf16".
        kernels: All there are.
        target: The card; None looks at rules alone, which takes a tenth of the time.

    Raises:
        BuildError: Names the nodes or the first step.
    """
    if target is None:
        drafted(proto, shapes, precision)
        return
    card = target

    def can_run(step: Step) -> bool:
        return bool(kernels.ways(step, card))

    plan = placed(drafted(proto, shapes, precision, can_run))
    check_ways(plan, [kernels.ways(step, card) for step in plan.steps])
