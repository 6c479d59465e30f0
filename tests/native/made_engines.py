"""Engines of a small network as a build makes them, but for machine code and real times."""

from __future__ import annotations

import numpy as np

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
