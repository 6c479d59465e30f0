"""The committed builds say what the documents say: nothing outside its limits was chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.builder.records import GateLimits

FOLDER = Path(__file__).resolve().parents[2] / "bench" / "results" / "builds"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def kinds(report: dict, **recipe) -> list[dict]:
    return [
        row
        for row in report["rows"]
        if all(row["candidate"]["recipe"][key] == value for key, value in recipe.items())
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_chosen_keeps_its_limits(name):
    report = read(name)
    verdict = report["rows"][report["chosen"]]["verdict"]
    assert verdict["passed"]
    if verdict["judged_by"] == "agreement":
        assert verdict["metrics"]["agreement"] >= report["limits"]["agreement"]
        assert report["limits"]["agreement"] == GateLimits().agreement
    else:
        for figure, limit in report["limits"]["max_drop"].items():
            assert verdict["drops"][figure]["value"] <= limit, figure
    assert {row["status"] for row in report["rows"]} <= {"passed", "refused", "failed", "dropped"}
    assert all(row["error"] for row in report["rows"] if row["status"] != "passed")


def test_cells_are_twice_as_fast_and_as_right():
    report = read("cells_640")
    chosen, base = (report["rows"][report[name]] for name in ("chosen", "reference"))
    assert chosen["verdict"]["metrics"]["AP"] >= 0.574
    assert report["limits"]["max_drop"] == {"AP": 0.005}
    assert base["candidate"]["plan"]["backend"] == "onnxruntime"
    words = report["verdict"].split()
    assert float(words[words.index("times") - 1]) >= 2.0
    assert report["seconds"] <= 600
    assert report["environment"]["dirty"] is False


def test_every_operator_of_cells_was_refused_for_its_drop():
    rows = kinds(read("cells_640"), precision="int8", everything=True)
    judged = [row for row in rows if row["verdict"]]
    assert judged
    for row in judged:
        assert row["status"] == "refused"
        assert {reason["kind"] for reason in row["verdict"]["reasons"]} == {"drop"}


def test_bf16_of_fastestdet_was_refused_by_its_labels():
    rows = [
        row
        for row in kinds(read("fastestdet_labels"), precision="fp32")
        if row["candidate"]["plan"]["precision"] == "bf16"
    ]
    assert [row["status"] for row in rows] == ["refused"] * len(rows) != []
    assert all(row["verdict"]["drops"]["AP"]["value"] > 0.01 for row in rows)
