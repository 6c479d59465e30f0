"""Small networks built in code: exact in every precision, with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUM_CLASSES = 2
SIZE_HW = (32, 32)
NUM_ROWS = 21  # 4x4 + 2x2 + 1x1 cells at strides 8, 16, 32
SLOPE = 8.0


def score_of(mean: np.ndarray | float) -> np.ndarray:
    """The score that `mean_color_detector` gives a channel with this mean."""
    return np.asarray(1 / (1 + np.exp(-SLOPE * (np.asarray(mean, np.float64) - 0.5))))


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict) -> Path:
    """Write a graph of opset 17 after checking it."""
    graph = helper.make_graph(
        nodes,
        path.stem,
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def mean_color_detector(
    path: Path,
    *,
    batch: int | str = "batch",
    dtype: str = "float32",
    size_hw: tuple[int | str, int | str] = SIZE_HW,
    num_rows: int = NUM_ROWS,
) -> Path:
    """A YOLOv8-like detector whose answers follow from the mean colour of the picture.

    Row 0 of the head is a box centred in the input with half its size. Its score for class 0 is
    `score_of` the mean of the first channel, and for class 1 that of the third (inputs lie in 0
    to 1). All other rows have score 0. With free sizes the box stays where it is in (32, 32),
    and num_rows has to be that of the size that is meant.
    """
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16
    height, width = SIZE_HW
    box = np.array([width / 2, height / 2, width / 2, height / 2], dtype).reshape(1, 4, 1)
    first = np.zeros((1, 1, num_rows), dtype)
    first[..., 0] = 1
    pick = np.array([[[1, 0, 0], [0, 0, 1]]], dtype)
    weights = {"box": box, "first": first, "pick": pick, "flat": np.array([0, 3, 1], np.int64)}
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Reshape", ["mean", "flat"], ["channels"]),
        helper.make_node("MatMul", ["pick", "channels"], ["picked"]),
        helper.make_node("Mul", ["picked", "slope"], ["steep"]),
        helper.make_node("Add", ["steep", "shift"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("Mul", ["scores", "first"], ["class_rows"]),
        helper.make_node("Mul", ["box", "first"], ["box_rows"]),
        helper.make_node("Slice", ["scores", "zero", "one", "one"], ["one_score"]),
        helper.make_node("Mul", ["one_score", "zero_f"], ["nothing"]),
        helper.make_node("Add", ["box_rows", "nothing"], ["batched_boxes"]),
        helper.make_node("Concat", ["batched_boxes", "class_rows"], ["output0"], axis=1),
    ]
    weights |= {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "zero_f": np.zeros(1, dtype),
        "slope": np.array([SLOPE], dtype),
        "shift": np.array([-SLOPE / 2], dtype),
    }
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("images", kind, [batch, 3, *size_hw])],
        [helper.make_tensor_value_info("output0", kind, [batch, 4 + NUM_CLASSES, num_rows])],
        weights,
    )
