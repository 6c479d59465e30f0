"""Engines of a small network as a build makes them, but for machine code and real times."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nets import mean_color_detector
from saccade.graph.passes.loading import load_tidy
from saccade.native.artefact import Artefact
from saccade.native.drafting import drafted
from saccade.native.engine import Options
from saccade.native.kernels.registry import KERNELS
from saccade.native.memory import placed
from saccade.native.seam import Target
from saccade.native.tuning import Timings, chosen, step_key

TARGET = Target("sm_90")


def planned(net):
    return placed(drafted(load_tidy(net), {"images": (2, 3, 32, 32)}, "fp16"))


def timed(plan, path, seed):
    """A file of times, made up, that knows every way of every step."""
    rng = np.random.default_rng(seed)
    timings = Timings(path)
    for step in plan.steps:
        ways = KERNELS.ways(step, TARGET)
        timings.set(step_key(step), {way.name: float(rng.uniform(1, 9)) for way in ways})
    timings.save()
    return path


def engine_of(net, path):
    """The engine of a model by a file of times."""
    plan = planned(net)
    choices = chosen(plan, KERNELS, TARGET, Timings(path))
    sources = dict.fromkeys(source for choice in choices for source in choice.built.sources)
    return Artefact(
        key={"device": "NVIDIA H200", "arch": "sm_90", "kernels": KERNELS.version},
        plan=plan,
        built=tuple(choice.built for choice in choices),
        ways=tuple(choice.way for choice in choices),
        us=tuple(choice.us for choice in choices),
        cubins={source: source.text.encode() for source in sources},
        options=Options(),
    )


def with_determinant(path):
    """A detector with a determinant in it, which ONNX Runtime computes and our engine does not."""
    proto = onnx.load(mean_color_detector(path))
    name = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["plain" if output == name else output for output in node.output]
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "det_factor"))
    proto.graph.node.extend(
        [
            helper.make_node("Det", ["images"], ["det_each"], "volume"),
            helper.make_node("ReduceMean", ["det_each"], ["det_mean"], "det_mean", keepdims=0),
            helper.make_node("Mul", ["det_mean", "det_factor"], ["det_zero"], "times"),
            helper.make_node("Add", ["plain", "det_zero"], [name], "sum"),
        ]
    )
    onnx.save(proto, path)
    return path
