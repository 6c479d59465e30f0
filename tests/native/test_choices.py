"""What runs each step follows from kept times alone; engines from equal times are equal bytes."""

from __future__ import annotations

import pytest

from native.made_engines import TARGET, engine_of, planned, timed
from nets import mean_color_detector
from saccade.errors import BuildError
from saccade.graph.reading import read_model
from saccade.native.artefact import packed
from saccade.native.kernels.registry import KERNELS
from saccade.native.tuning import Timings, chosen, step_key


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return read_model(mean_color_detector(tmp_path_factory.mktemp("net") / "net.onnx"))


def test_equal_times_give_equal_engines(net, tmp_path):
    first = timed(planned(net), tmp_path / "first.json", seed=0)
    second = tmp_path / "copied.json"
    second.write_bytes(first.read_bytes())
    assert packed(engine_of(net, first)) == packed(engine_of(net, second))
    other = timed(planned(net), tmp_path / "other.json", seed=1)
    assert engine_of(net, other).us != engine_of(net, first).us


def test_the_fastest_way_is_taken_and_what_failed_is_not(net, tmp_path):
    plan = planned(net)
    path = timed(plan, tmp_path / "times.json", seed=0)
    timings = Timings(path)
    for step, choice in zip(plan.steps, chosen(plan, KERNELS, TARGET, timings), strict=True):
        assert choice.us == min(timings.get(step_key(step)).values())
    key = step_key(plan.steps[0])
    timings.set(key, dict.fromkeys(timings.get(key), float("inf")))
    with pytest.raises(BuildError, match=r"all \d+ for .* fail: .*; choose another back end"):
        chosen(plan, KERNELS, TARGET, timings)
