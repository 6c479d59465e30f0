"""Exported programs (.pt2): what goes in, what comes out, and the module to run.

The file is what `torch.export.save` wrote. It is a program, and reading it may run code that is in
it: like any program, use files that you trust.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import torch

from saccade.errors import ModelError
from saccade.types import Model, Signature, TensorSpec

__all__ = ["Exported", "is_exported", "module_of", "read_exported", "signature_of_exported"]

ENDING = ".pt2"
_EXPORT = "export it with torch.export.save(torch.export.export(model, (picture,)), 'model.pt2')"
_MAX_TAIL = 200
# What heads look for behind the last weights, by the names that ONNX gives these operators.
_ONNX_NAMES = {
    "sigmoid": "Sigmoid", "_softmax": "Softmax", "softmax": "Softmax", "exp": "Exp",
    "cat": "Concat", "mul": "Mul", "add": "Add", "sub": "Sub", "div": "Div", "slice": "Slice",
    "select": "Gather", "index": "Gather", "reshape": "Reshape", "view": "Reshape",
    "_unsafe_view": "Reshape", "flatten": "Reshape", "permute": "Transpose", "pow": "Pow",
    "transpose": "Transpose", "split": "Split", "split_with_sizes": "Split", "chunk": "Split",
    "unsqueeze": "Unsqueeze", "squeeze": "Squeeze", "topk": "TopK", "relu": "Relu", "tanh": "Tanh",
    "sqrt": "Sqrt", "clamp": "Clip", "max": "ReduceMax", "amax": "ReduceMax", "gather": "Gather",
    "conv2d": "Conv", "convolution": "Conv", "linear": "Gemm", "addmm": "Gemm", "mm": "MatMul",
    "bmm": "MatMul", "matmul": "MatMul", "silu": "Mul", "contiguous": "Identity",
}  # fmt: skip
_WEIGHTED = frozenset(("Conv", "Gemm", "MatMul"))


class Exported:
    """An exported program and what of it the rest needs to know.

    Attributes:
        model: Inputs and outputs; free axes keep the program's names for them.
        program: As torch reads it.
    """

    def __init__(self, model: Model, program: Any) -> None:
        self.model = model
        self.program = program


def is_exported(path: Path) -> bool:
    """Whether a file is named as an exported program."""
    return path.suffix == ENDING


def read_exported(path: Path) -> Exported:
    """Read an exported program.

    Raises:
        ModelError: The file is none, or does not take and give plain tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise ModelError(f"{path}: a model must be a readable file, it is not ({exc})") from exc
    try:
        with warnings.catch_warnings():
            # It warns of its own buffers, which nobody can write to here.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            program = torch.export.load(path)
    except Exception as exc:
        # torch raises whatever its readers come upon: of archives, of JSON, of pickles.
        text = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise ModelError(
            f"{path}: an exported program must be what torch {torch.__version__} can read, it is "
            f"not ({text}); {_EXPORT}, with this version of torch or an older one"
        ) from exc
    nodes = {node.name: node for node in program.graph.nodes}
    signature = program.graph_signature
    inputs = tuple(_spec(path, name, name, nodes) for name in signature.user_inputs)
    given = list(signature.user_outputs)
    outputs = tuple(_spec(path, f"output{i}", name, nodes) for i, name in enumerate(given))
    model = Model(
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        inputs=inputs,
        outputs=outputs,
        metadata={},
        opset=0,
    )
    return Exported(model, program)


def _spec(path: Path, name: str, node_name: Any, nodes: dict[str, Any]) -> TensorSpec:
    node = nodes.get(node_name) if isinstance(node_name, str) else None
    value = node.meta.get("val") if node is not None else None
    if not isinstance(value, torch.Tensor):
        raise ModelError(
            f"{path}: inputs and outputs of an exported program must be tensors, {name!r} is "
            f"{type(value if node is not None else node_name).__name__}; {_EXPORT} with a model "
            "that takes a picture and gives tensors"
        )
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), shape)


def signature_of_exported(exported: Exported, size_hw: tuple[int, int] | None) -> Signature:
    """What heads need to see of a program, in ONNX's names for its operators."""
    model, program = exported.model, exported.program
    pictures = [spec for spec in model.inputs if len(spec.shape) == 4]
    if len(pictures) != 1:
        raise ModelError(
            f"{model.path}: a vision model must have one input with four axes for the picture, "
            f"this one has {', '.join(map(str, model.inputs)) or 'none'}; {_EXPORT}"
        )
    shape = pictures[0].shape
    is_nhwc = shape[3] in (1, 3) and shape[1] not in (1, 3)
    own = [shape[axis] for axis in ((1, 2) if is_nhwc else (2, 3))]
    trial = size_hw or (640, 640)
    height, width = (side if isinstance(side, int) else trial[i] for i, side in enumerate(own))
    nodes = {node.name: node for node in program.graph.nodes}
    tails = {
        spec.name: _tail(nodes[name])
        for spec, name in zip(model.outputs, program.graph_signature.user_outputs, strict=True)
    }
    return Signature(
        inputs=model.inputs,
        outputs=model.outputs,
        size_hw=(height, width),
        size_is_free=any(isinstance(side, str) for side in own),
        tails=tails,
    )


def _tail(last: Any) -> tuple[str, ...]:
    """Operators from an output back to the last weighted ones, nearest first."""
    types: list[str] = []
    waiting, seen = deque([last]), set()
    while waiting and len(types) < _MAX_TAIL:
        node = waiting.popleft()
        if node in seen or node.op not in ("call_function",):
            continue
        seen.add(node)
        name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        kind = _ONNX_NAMES.get(name, name)
        types.append(kind)
        if kind not in _WEIGHTED:
            waiting.extend(node.all_input_nodes)
    return tuple(types)


def module_of(exported: Exported, device: torch.device, half: torch.dtype | None) -> Any:
    """A module from inputs to a flat list of outputs.

    Args:
        exported: The program.
        device: Where it runs.
        half: Run convolutions and products in this type (automatic mixed precision), or None.
    """
    program = exported.program
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return _Flat(program.module(), device.type, half)


class _Flat(torch.nn.Module):  # type: ignore[misc]  # torch is not looked into
    def __init__(self, module: Any, kind: str, half: torch.dtype | None) -> None:
        super().__init__()
        self._module = module
        self._kind = kind
        self._half = half

    def forward(self, *feeds: torch.Tensor) -> list[torch.Tensor]:
        with torch.autocast(self._kind, dtype=self._half, enabled=self._half is not None):
            given = self._module(*feeds)
        flat = torch.utils._pytree.tree_leaves(given)
        return [leaf.float() if self._half and leaf.dtype == self._half else leaf for leaf in flat]
