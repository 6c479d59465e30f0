"""From a model to a plan: which passes, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from saccade.native.lowering.program import lower
from saccade.native.lowering.units import Units, mark_units
from saccade.native.ops import Step
from saccade.native.passes.boxes import fuse_boxes
from saccade.native.passes.fold_pads import fold_pads, sink_fills
from saccade.native.passes.fuse_attention import fuse_attention
from saccade.native.passes.fuse_convolutions import fuse_convolutions
from saccade.native.passes.fuse_norms import fuse_norms
from saccade.native.passes.fuse_pointwise import fuse_pointwise
from saccade.native.passes.merge_siblings import merge_siblings
from saccade.native.passes.order_axes import order_axes
from saccade.native.passes.pack_input import pack_inputs
from saccade.native.passes.pad_channels import pad_channels
from saccade.native.passes.place import forward_copies, join_copies, place_copies
from saccade.native.passes.pool_chain import chain_pools
from saccade.native.passes.precision import set_precision
from saccade.native.passes.route_channels import activate_before_copies, route_channels
from saccade.native.plan import Draft
from saccade.native.tensors import DType

if TYPE_CHECKING:
    import onnx

__all__ = ["TYPES", "drafted"]

# A plan's precision as an element type.
TYPES: Mapping[str, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def drafted(
    proto: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    precision: str = "fp16",
    can_run: Callable[[Step], bool] = lambda step: True,
    *,
    half_inputs: bool = False,
    units: Units | None = None,
) -> Draft:
    """A draft that computes what a graph does, ready to be placed.

    Args:
        proto: From `tidy`, weights loaded.
        shapes: Input name to shape.
        precision: "fp32", "fp16" or "bf16".
        can_run: Whether there is a kernel for a step; decides between ways to say the same.
        half_inputs: Whether pictures are fed in the plan's precision, not in the graph's type.
        units: What the pairs said that were taken out of the graph.

    Raises:
        BuildError: Names the nodes that are not covered.
    """
    draft = lower(proto, shapes)
    draft.drop_dead()
    if units is not None:
        mark_units(draft, units)
    fold_pads(draft)
    fuse_pointwise(draft)
    fuse_norms(draft, can_run)
    fuse_convolutions(draft)
    activate_before_copies(draft)
    route_channels(draft)
    join_copies(draft)
    place_copies(draft)
    forward_copies(draft)
    merge_siblings(draft)
    chain_pools(draft)
    fuse_attention(draft, can_run)
    fuse_boxes(draft, can_run)
    pad_channels(draft)
    half = TYPES[precision]
    if half != "float32":
        set_precision(draft, half, half_inputs=half_inputs)
    pack_inputs(draft, half, can_run)
    draft.drop_dead()
    sink_fills(draft)
    order_axes(draft)
    return draft
