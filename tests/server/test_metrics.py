"""The text that Prometheus reads; tests/deploy has a real one read it."""

from __future__ import annotations

import re
from pathlib import Path

from saccade.server.metrics import METRICS, exposition
from saccade.server.stats import Stats
from saccade.server.usage import own_usage

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "observing.md"


def samples(stats, **more):
    text = exposition(stats, version="1", own=own_usage(), **more).decode()
    assert text.endswith("\n")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            assert series not in found
            found[series] = float(value)
    return found


def test_histograms_are_cumulated_and_end_in_all():
    stats = Stats()
    stage = stats.model("m", "1").stages["infer"]
    for value in (0.00004, 0.0001, 0.3, 99.0):
        stage.observe(value)
    found = samples(stats)

    def bucket(le):
        return found[
            f'saccade_stage_seconds_bucket{{model="m",version="1",stage="infer",le="{le}"}}'
        ]

    # A bound belongs to its bucket: "le" is less or equal.
    assert [bucket(le) for le in ("5e-05", "0.0001", "0.25", "0.5", "10.0", "+Inf")] == [
        *(1, 2, 2, 3, 3, 4)
    ]
    assert found['saccade_stage_seconds_count{model="m",version="1",stage="infer"}'] == 4
    total = found['saccade_stage_seconds_sum{model="m",version="1",stage="infer"}']
    assert total == 0.00004 + 0.0001 + 0.3 + 99.0


def test_batches_count_runs_by_size():
    stats = Stats()
    model = stats.model("m", "1")
    model.batches = {1: [3, 0, 0, 0], 4: [2, 0, 0, 0], 300: [1, 0, 0, 0]}
    found = samples(stats)
    labels = 'model="m",version="1"'
    assert found[f'saccade_batch_size_bucket{{{labels},le="1.0"}}'] == 3
    assert found[f'saccade_batch_size_bucket{{{labels},le="4.0"}}'] == 5
    assert found[f'saccade_batch_size_bucket{{{labels},le="256.0"}}'] == 5
    assert found[f'saccade_batch_size_bucket{{{labels},le="+Inf"}}'] == 6
    assert found[f"saccade_batch_size_sum{{{labels}}}"] == 3 + 8 + 300


def test_outcomes_start_at_zero_and_new_ones_are_not_lost():
    stats = Stats()
    model = stats.model("m", "1")
    model.num_ok = 5
    model.fail("timeout")
    model.fail("something new")
    found = samples(stats)

    def outcome(name):
        return found[f'saccade_requests_total{{model="m",version="1",outcome="{name}"}}']

    assert [outcome(n) for n in ("ok", "timeout", "something new", "picture")] == [5, 1, 1, 0]


def test_labels_are_escaped():
    stats = Stats()
    stats.engines[0] = {"device": 'a"b\\c\nd', "rss_bytes": 7, "cpu_s": 0.5}
    found = samples(stats)
    name = r'saccade_engine_resident_memory_bytes{engine="0",device="a\"b\\c\nd"}'
    assert found[name] == 7


def test_cards_are_exported_where_they_are():
    card = {"index": 0, "name": "H200", "memory_used_bytes": 3, "memory_total_bytes": 9}
    found = samples(Stats(), gpus=[{**card, "busy": 0.5}, {**card, "index": 1}])
    assert found['saccade_gpu_memory_used_bytes{gpu="0",name="H200"}'] == 3
    assert found['saccade_gpu_busy_ratio{gpu="0",name="H200"}'] == 0.5
    # A card that does not tell has no value rather than a wrong one.
    assert 'saccade_gpu_busy_ratio{gpu="1",name="H200"}' not in found


def test_the_document_lists_every_metric():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", DOCUMENT.read_text(), re.M)
    listed = {name: (kind, labels) for name, kind, labels in rows}
    assert listed == {
        name: (kind, ", ".join(labels) or "-") for name, (kind, labels, _) in METRICS.items()
    }
