"""`nets.mean_color_detector` with work for nothing in front: the same answers, later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nets import mean_color_detector

_CHANNELS = 64
_LAYERS = 10


def slow_detector(path: Path) -> Path:
    """Write the network: several milliseconds on one core, answers unchanged."""
    model = onnx.load(mean_color_detector(path))
    graph = model.graph
    rng = np.random.default_rng(0)
    nodes, last = [], "images"
    for layer in range(_LAYERS):
        channels = 3 if layer == 0 else _CHANNELS
        kernel = rng.normal(0, 0.05, (_CHANNELS, channels, 3, 3)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(kernel, f"kernel_{layer}"))
        made = f"layer_{layer}"
        nodes.append(helper.make_node("Conv", [last, f"kernel_{layer}"], [made], pads=[1, 1, 1, 1]))
        last = made
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1, 1), "f4"), "none"))
    nodes += [
        helper.make_node("ReduceMean", [last], ["level"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["level", "none"], ["nothing_at_all"]),
        helper.make_node("Add", ["images", "nothing_at_all"], ["same_images"]),
    ]
    first = graph.node[0]
    first.input[0] = "same_images"
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
