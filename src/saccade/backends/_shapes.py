"""Sizes of the static buffers, from the free axes that a graph leaves open."""

from __future__ import annotations

from saccade.errors import BuildError, InputError
from saccade.types import Model, TensorSpec

__all__ = ["check_batch", "default_batch", "has_fixed_batch", "known_shape", "static_shape"]


def static_shape(
    shape: tuple[int | str, ...], batch: int, size_hw: tuple[int, int]
) -> tuple[int, ...]:
    """Fill in the free axes of an input: the first is the batch, then height and width.

    A four-axis input takes size_hw where its axes are free, channels first or last as its sizes
    tell; in any other input only the first axis may be free.
    """
    filled = list(shape)
    if filled and not isinstance(filled[0], int):
        filled[0] = batch
    free = [i for i, size in enumerate(filled) if not isinstance(size, int)]
    if len(shape) == 4:
        is_nhwc = shape[3] in (1, 3) and shape[1] not in (1, 3)
        for axis, size in zip((1, 2) if is_nhwc else (2, 3), size_hw, strict=True):
            if axis in free:
                filled[axis] = size
                free.remove(axis)
    if free:
        raise InputError(
            "only batch, height and width of an input may be free; shape "
            f"({', '.join(map(str, shape))}) leaves axis {free[0]} open; fix it in the model"
        )
    return tuple(int(size) for size in filled)


def has_fixed_batch(model: Model) -> bool:
    """Whether the graph fixes the number of pictures per inference."""
    return any(isinstance(spec.shape[0], int) for spec in model.inputs if spec.shape)


def default_batch(model: Model) -> int:
    """The batch that the graph fixes, or 1."""
    fixed = [s.shape[0] for s in model.inputs if s.shape and isinstance(s.shape[0], int)]
    return int(fixed[0]) if fixed else 1


def known_shape(spec: TensorSpec, model: Model, batch: int) -> tuple[int, ...] | None:
    """Shape of an output if it follows from the batch alone, else None.

    A free axis counts as the batch only if an input's first axis has the same name: the first
    axis of a list of boxes is free as well and is not the batch.
    """
    names = {i.shape[0] for i in model.inputs if i.shape and isinstance(i.shape[0], str)} - {"?"}
    filled = [batch if size in names else size for size in spec.shape]
    return tuple(s for s in filled if isinstance(s, int)) if _all_ints(filled) else None


def _all_ints(sizes: list[int | str]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def check_batch(model: Model, plan_batch: int) -> None:
    """Refuse a plan whose batch the graph does not allow.

    Raises:
        BuildError: The graph fixes another number of pictures per inference.
    """
    fixed = {s.shape[0] for s in model.inputs if s.shape and isinstance(s.shape[0], int)}
    if fixed and fixed != {plan_batch}:
        raise BuildError(
            f"batch must be {min(fixed)}, which is what the inputs of {model.path.name} are fixed "
            f"to, got {plan_batch}; choose that batch or export the model with a free batch axis"
        )
