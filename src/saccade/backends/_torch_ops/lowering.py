"""Emits torch calls into a torch.fx graph; what does not depend on the picture is computed now."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from saccade.backends._torch_ops.values import Kind, Symbol, Value

__all__ = ["Lowering", "meta_of", "rank_of", "sizes_of"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Lowering:
    """A graph being written.

    Args:
        half: The element type of heavy operators, or None to keep the graph's own types.
        is_channels_last: Whether four-axis weights are stored with channels last.
    """

    def __init__(self, half: torch.dtype | None, is_channels_last: bool) -> None:
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.half = half
        self._is_channels_last = is_channels_last
        self._attributes: dict[int, tuple[torch.Tensor, fx.Node]] = {}
        self._casts: dict[tuple[int, torch.dtype], tuple[Value, Value]] = {}

    def placeholder(self, name: str, meta: torch.Tensor) -> Symbol:
        return Symbol(self.graph.placeholder(name), meta)

    def emit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function: now if no operand depends on the picture, else in the graph.

        Args:
            function: Importable by name, so that the graph can be printed as code.
            args: Values, lists of values, and plain Python numbers, strings and slices.

        Returns:
            A Symbol or a tensor; a list of them where the function returns several.
        """
        if not _has_symbol((args, kwargs)):
            return function(*args, **kwargs)
        node = self.graph.call_function(
            function, _mapped(args, self._argument), _mapped(kwargs, self._argument)
        )
        meta = function(*_mapped(args, meta_of), **_mapped(kwargs, meta_of))
        if isinstance(meta, torch.Tensor):
            return Symbol(node, meta)
        return [
            Symbol(self.graph.call_function(operator.getitem, (node, index)), part)
            for index, part in enumerate(meta)
        ]

    def cast(self, value: Symbol | torch.Tensor, dtype: torch.dtype) -> Symbol | torch.Tensor:
        """The value in another element type; the same cast is emitted once."""
        if meta_of(value).dtype == dtype:
            return value
        key = (id(value), dtype)
        if key not in self._casts:
            cast = self.emit(torch.Tensor.to, value, dtype)
            self._casts[key] = (value, cast)
        found = self._casts[key][1]
        assert found is not None
        return found

    def aligned(self, values: Sequence[Value], kind: Kind, fixed: frozenset[int]) -> list[Value]:
        """Bring the floating operands of a node to the one type that it computes in.

        FP32 sticks: a node with an operand in FP32 computes in FP32 until a heavy operator turns
        it back. A stored number that the narrow type cannot hold keeps its node in FP32 too.
        """
        if self.half is None or not any(isinstance(value, Symbol) for value in values):
            return list(values)
        floats = [
            (index, value)
            for index, value in enumerate(values)
            if value is not None and index not in fixed and meta_of(value).dtype in FLOATS
        ]
        dtype = self.half
        if kind == "exact" or any(
            _asks_for_float32(value, self.half, is_heavy=kind == "heavy") for _, value in floats
        ):
            dtype = torch.float32
        aligned = list(values)
        for index, value in floats:
            aligned[index] = self.cast(value, dtype)
        return aligned

    def finish(self, outputs: Sequence[Value]) -> fx.GraphModule:
        self.graph.output(tuple(self._argument(value) for value in outputs))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        module = fx.GraphModule(self.root, self.graph)
        module.eval()
        return module

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Symbol):
            return value.node
        if isinstance(value, torch.Tensor):
            return self._attribute(value)
        return value

    def _attribute(self, value: torch.Tensor) -> fx.Node:
        if id(value) not in self._attributes:
            name = f"weight_{len(self._attributes)}"
            stored = value.detach()
            if self._is_channels_last and stored.ndim == 4:
                stored = stored.contiguous(memory_format=torch.channels_last)
            self.root.register_buffer(name, stored)
            self._attributes[id(value)] = (value, self.graph.get_attr(name))
        return self._attributes[id(value)][1]


def meta_of(value: Any) -> Any:
    """Shape and element type of a value, without its memory; other things stay as they are."""
    if isinstance(value, Symbol):
        return value.meta
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return value


def sizes_of(value: Symbol | torch.Tensor) -> list[int]:
    tensor = value.meta if isinstance(value, Symbol) else value
    return [int(size) for size in tensor.shape]


def rank_of(value: Symbol | torch.Tensor) -> int:
    return len(sizes_of(value))


def _asks_for_float32(value: Symbol | torch.Tensor, half: torch.dtype, *, is_heavy: bool) -> bool:
    if isinstance(value, Symbol):
        return value.meta.dtype == torch.float32 and not is_heavy
    if value.numel() == 0:
        return False
    finite = value[torch.isfinite(value)].float().abs()
    limits = torch.finfo(half)
    if bool((finite > limits.max).any()):
        return True
    # The weights of a sum may vanish in it; a lone number such as 1e-9 under a root may not.
    return not is_heavy and bool(((finite > 0) & (finite < limits.smallest_normal)).any())


def _has_symbol(tree: Any) -> bool:
    if isinstance(tree, (list, tuple)):
        return any(_has_symbol(part) for part in tree)
    if isinstance(tree, dict):
        return any(_has_symbol(part) for part in tree.values())
    return isinstance(tree, Symbol)


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, (list, tuple)):
        return type(tree)(_mapped(part, change) for part in tree)
    if isinstance(tree, dict):
        return {name: _mapped(part, change) for name, part in tree.items()}
    return change(tree)
