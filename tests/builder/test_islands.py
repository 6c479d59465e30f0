"""The island search on losses with known culprits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conv_net import BODY, conv_net
from saccade.builder.islands import blocks_of, find_islands, search_islands
from saccade.errors import InputError
from saccade.graph.reading import read_model

Score = Callable[[frozenset[str]], float]


def blocks(number: int) -> list[frozenset[str]]:
    return [frozenset({f"n{i}", f"m{i}"}) for i in range(number)]


def additive(losses: dict[int, float]) -> Score:
    """A score that loses a fixed amount for each block that is not kept."""

    def score(kept: frozenset[str]) -> float:
        return 0.5 - sum(loss for i, loss in losses.items() if f"n{i}" not in kept)

    return score


def test_nothing_to_keep() -> None:
    found = search_islands(additive({3: 0.001}), blocks(16), target_drop=0.005, max_trials=9)
    assert found.kept == frozenset()
    assert found.trials == 2
    assert found.is_minimal


@pytest.mark.parametrize("culprit", [0, 7, 15])
def test_one_culprit_is_found_in_few_trials(culprit: int) -> None:
    found = search_islands(additive({culprit: 0.1}), blocks(16), target_drop=0.005, max_trials=40)
    assert found.kept == {f"n{culprit}", f"m{culprit}"}
    assert found.trials <= 2 + 2 * 4
    (one,) = found.contributions
    assert one.nodes == (f"m{culprit}", f"n{culprit}")
    assert one.drop == pytest.approx(0.1)
    assert found.reference == 0.5
    assert found.drop == 0


def test_culprits_far_apart_and_their_contributions() -> None:
    losses = {1: 0.05, 12: 0.02, 13: 0.001, 5: 0.001}
    found = search_islands(additive(losses), blocks(16), target_drop=0.005, max_trials=80)
    assert found.kept == {"n1", "m1", "n12", "m12"}
    assert [c.drop for c in found.contributions] == pytest.approx([0.052, 0.022])
    assert found.drop == pytest.approx(0.002)
    assert found.is_minimal


def test_blocks_that_only_hurt_together() -> None:
    def score(kept: frozenset[str]) -> float:
        return 0.5 if "n2" in kept or "n9" in kept else 0.1

    kept = find_islands(score, blocks(12), target_drop=0.01, max_trials=40)
    assert kept in ({"n2", "m2"}, {"n9", "m9"})


def test_nan_is_never_enough() -> None:
    def score(kept: frozenset[str]) -> float:
        return 0.5 if "n4" in kept else float("nan")

    assert find_islands(score, blocks(8), target_drop=1, max_trials=40) == {"n4", "m4"}


def test_out_of_trials_still_holds_the_limit() -> None:
    losses = dict.fromkeys(range(0, 16, 2), 0.03)
    for max_trials in range(2, 30):
        score = additive(losses)
        found = search_islands(score, blocks(16), target_drop=0.01, max_trials=max_trials)
        assert found.trials <= max_trials
        assert found.reference - score(found.kept) <= 0.01
        assert found.drop == found.reference - score(found.kept)
    found = search_islands(score, blocks(16), target_drop=0.01, max_trials=2)
    assert not found.is_minimal
    assert len(found.kept) == 32


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.002, 0.02, 0.2]), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_minimal_within_the_limit_and_repeatable(losses: list[float]) -> None:
    score = additive(dict(enumerate(losses)))
    seen: list[frozenset[str]] = []

    def watched(kept: frozenset[str]) -> float:
        seen.append(kept)
        return score(kept)

    parts = blocks(len(losses))
    one = search_islands(watched, parts, target_drop=0.01, max_trials=10_000)
    assert len(seen) == len(set(seen)) == one.trials, "each set is measured once"
    assert one == search_islands(score, parts, target_drop=0.01, max_trials=10_000)
    assert one.is_minimal
    assert one.reference - score(one.kept) <= 0.01
    for part in parts:
        if part <= one.kept:
            assert one.reference - score(one.kept - part) > 0.01
    assert all(c.drop is not None for c in one.contributions)


def test_a_reference_that_is_known_is_not_measured() -> None:
    score = additive({5: 0.1})

    def lower_only(kept: frozenset[str]) -> float:
        assert len(kept) < 32, "there is no INT8 graph with everything kept"
        return score(kept)

    found = search_islands(lower_only, blocks(16), target_drop=0.01, max_trials=20, reference=0.5)
    assert found.kept == {"n5", "m5"}
    assert find_islands(lower_only, blocks(16), target_drop=0.01, max_trials=20, reference=0.5) == {
        "n5",
        "m5",
    }
    assert find_islands(lower_only, blocks(16), target_drop=0.01, max_trials=2, reference=0.5) > {
        "n5",
        "m5",
    }


def test_wrong_calls() -> None:
    score = additive({})
    twice = [frozenset({"a"}), frozenset({"a", "b"})]
    for wrong in ([], [frozenset()], twice):
        with pytest.raises(InputError, match="disjoint"):
            search_islands(score, wrong, target_drop=0.1, max_trials=9)
    with pytest.raises(InputError, match="target_drop"):
        search_islands(score, blocks(3), target_drop=np.nan, max_trials=9)
    with pytest.raises(InputError, match="max_trials"):
        search_islands(score, blocks(3), target_drop=0.1, max_trials=1)


def test_blocks_of_a_small_net(tmp_path: Path) -> None:
    model = read_model(conv_net(tmp_path / "net.onnx"))
    assert blocks_of(model) == tuple(frozenset({name}) for name in BODY)
    half = blocks_of(model, "fp16")
    names = [name for block in half for name in block]
    assert len(names) == len(set(names))
    assert "stem" in names
    assert "to_px" not in names


@pytest.mark.shared
def test_blocks_of_real_models(shared: Path) -> None:
    for name in ("cells_640", "yolox_nano_416", "ultraface_rfb_320"):
        found = blocks_of(read_model(shared / "models" / f"{name}.onnx"))
        assert 6 <= len(found) <= 32
        assert found == blocks_of(read_model(shared / "models" / f"{name}.onnx"))
    stages = blocks_of(read_model(shared / "models" / "cells_640.onnx"))
    assert any(all(node.startswith("/s4/") for node in block) for block in stages)
