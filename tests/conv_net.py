"""A small convolutional network with all that makes quantisation hard, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from saccade.processor import cuts_off_int8_sums
from saccade.types import Contract, HeadRule, InputRule

SIZE_HW = (32, 32)
# Convolutions of `conv_net` that read no pixels and have a convolution or nothing behind them.
BODY = ("deep", "wide", "mixed", "last")


def conv_net(path: Path, *, batch: int | str = "batch", seed: int = 7) -> Path:
    """stem, SiLU, slice, a residual, concatenation, pooling, enlarging, a softmax head.

    The head gives coordinates in pixels (an expectation over eight bins, times 80) and scores.
    """
    rng = np.random.default_rng(seed)

    def kernel(out: int, num_in: int, side: int) -> np.ndarray:
        values = rng.normal(size=(out, num_in, side, side)) / np.sqrt(num_in * side * side)
        return values.astype(np.float32)

    weights = {
        "stem_w": kernel(16, 3, 3),
        "stem_b": rng.normal(size=16).astype(np.float32),
        "deep_w": kernel(8, 8, 3),
        "wide_w": kernel(32, 1, 3),
        "mixed_w": kernel(16, 64, 1),
        "last_w": kernel(12, 16, 1),
        "bins_w": np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1),
        "from": np.array([8], np.int64),
        "to": np.array([16], np.int64),
        "axis": np.array([1], np.int64),
        "parts": np.array([8, 4], np.int64),
        "twice": np.array([1, 1, 2, 2], np.float32),
        "pixels": np.array(80, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "stem_w", "stem_b"], ["c0"], "stem", strides=[2, 2], pads=[1] * 4),
        node("Sigmoid", ["c0"], ["s0"], "stem_gate"),
        node("Mul", ["c0", "s0"], ["y0"], "stem_silu"),
        node("Slice", ["y0", "from", "to", "axis"], ["half"], "half"),
        node("Conv", ["half", "deep_w"], ["c1"], "deep", pads=[1] * 4),
        node("Relu", ["c1"], ["r1"], "deep_relu"),
        node("Add", ["half", "r1"], ["sum"], "residual"),
        node("Concat", ["y0", "half", "sum"], ["cat"], "join", axis=1),
        node("Conv", ["cat", "wide_w"], ["c2"], "wide", group=32, pads=[1] * 4),
        node("MaxPool", ["c2"], ["p2"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["p2", "", "twice"], ["u2"], "enlarge", mode="nearest"),
        node("Concat", ["c2", "u2"], ["cat2"], "join2", axis=1),
        node("Conv", ["cat2", "mixed_w"], ["c3"], "mixed"),
        node("LeakyRelu", ["c3"], ["r3"], "leaky", alpha=0.1),
        node("Conv", ["r3", "last_w"], ["c4"], "last"),
        node("Split", ["c4", "parts"], ["box", "score"], "parts_of", axis=1),
        node("Softmax", ["box"], ["prob"], "prob", axis=1),
        node("Conv", ["prob", "bins_w"], ["expect"], "expect"),
        node("Mul", ["expect", "pixels"], ["px"], "to_px"),
        node("Sigmoid", ["score"], ["scores"], "to_scores"),
        node("Concat", ["px", "scores"], ["output0"], "head_join", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "conv_net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, *SIZE_HW])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [batch, 5, 16, 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def contract() -> Contract:
    """How `conv_net` would be fed; no head family reads it."""
    return Contract(
        InputRule("images", SIZE_HW), HeadRule("yolov8", {"rows": "output0"}, num_classes=1)
    )


def run_ort(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], *, exact: bool = False
) -> list[np.ndarray]:
    """Outputs in ONNX Runtime; exact: node by node, without its fusions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # As the back end has it: right sums on processors without VNNI, too.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def run_openvino(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in OpenVINO in FP32 arithmetic where the graph is in floating point."""
    import openvino

    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    if cuts_off_int8_sums():
        config["LP_TRANSFORMS_MODE"] = "NO"  # as the back end has it
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)
    result = compiled(dict(feeds))
    return [np.array(result[index]) for index in range(len(model.graph.output))]
