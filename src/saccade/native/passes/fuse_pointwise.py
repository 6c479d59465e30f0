"""One pointwise step for a chain of them.

A result that only one step reads, and that step is pointwise too, is computed where it is read. The
reader may see it transposed, sliced or repeated: the operands are then seen the same way.
"""

from __future__ import annotations

from dataclasses import replace

from saccade.native.ops import Copy, Expr, Operand, Pointwise, Step
from saccade.native.passes.expressions import mapped, num_operations, simplified
from saccade.native.plan import Draft
from saccade.native.tensors import View
from saccade.native.views import inside

__all__ = ["fuse_pointwise"]

MAX_OPERANDS = 8
# What is computed once per element of a small operand may be computed for each of its repeats, if
# it is little.
MAX_REPEATED_OPERATIONS = 2


def fuse_pointwise(draft: Draft) -> None:
    """Fuse until nothing changes."""
    while _fuse_one_round(draft):
        pass
    draft.steps = [
        replace(step, exprs=tuple(simplified(expr) for expr in step.exprs))
        if isinstance(step, Pointwise) and step.compute == "float32"
        else step
        for step in draft.steps
    ]


def _fuse_one_round(draft: Draft) -> bool:
    readers, writers = draft.readers(), draft.writers()
    steps: list[Step | None] = list(draft.steps)
    outputs = draft.output_buffers()
    changed = False
    for index, step in enumerate(draft.steps):
        maker = steps[index]
        if not isinstance(maker, Pointwise) or len(maker.results) != 1 or maker is not step:
            continue
        number = maker.results[0].buffer
        if number in outputs or len(writers[number]) != 1 or len(readers.get(number, ())) != 1:
            continue
        at = readers[number][0]
        reader = steps[at]
        if reader is not draft.steps[at]:
            continue  # changed in this round already
        fused = _fused(maker, reader)
        if fused is not None:
            steps[index], steps[at] = None, fused
            changed = True
    draft.steps = [step for step in steps if step is not None]
    return changed


def _fused(maker: Pointwise, reader: Step | None) -> Pointwise | None:
    if isinstance(reader, Copy):
        if reader.x.dtype != reader.y.dtype and "float32" not in (reader.x.dtype,):
            return None
        if reader.y.dtype not in ("float32", "float16"):
            return None
        reader = Pointwise(reader.label, (reader.x,), (reader.y,), (Operand(0),))
    if not isinstance(reader, Pointwise) or reader.compute != maker.compute:
        return None
    result = maker.results[0]
    is_repeated = reader.results[0].num_elements > result.num_elements
    if is_repeated and num_operations(maker.exprs[0]) > MAX_REPEATED_OPERATIONS:
        return None
    operands: list[View] = []
    places: dict[int, Expr] = {}
    for index, view in enumerate(reader.operands):
        if view.buffer != result.buffer:
            places[index] = Operand(_index_of(view, operands))
            continue
        seen = [_seen(view, result, operand) for operand in maker.operands]
        found = [view for view in seen if view is not None]
        if len(found) != len(seen):
            return None
        numbers = [Operand(_index_of(view, operands)) for view in found]
        places[index] = mapped(maker.exprs[0], lambda i, numbers=numbers: numbers[i])  # type: ignore[misc]
    if len(operands) > MAX_OPERANDS:
        return None
    exprs = tuple(mapped(expr, lambda i: places[i]) for expr in reader.exprs)
    if reader.compute == "float32":
        exprs = tuple(simplified(expr) for expr in exprs)
    return replace(
        reader,
        label=f"{maker.label} + {reader.label}",
        operands=tuple(operands),
        exprs=exprs,
    )


def _seen(view: View, result: View, operand: View) -> View | None:
    found = inside(view, result, operand)
    return None if found is None else replace(found, dtype=operand.dtype)


def _index_of(view: View, operands: list[View]) -> int:
    if view not in operands:
        operands.append(view)
    return operands.index(view)
