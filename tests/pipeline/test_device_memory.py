"""Predicting device memory needs no device; that it is right within 10 % is checked on one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import saccade
from nets import mean_color_detector
from saccade.errors import BuildError
from saccade.pipeline.device_memory import (
    MemoryBook,
    check_limit,
    largest_batch,
    path_options,
    predict,
)
from saccade.types import Plan

CELLS = Path(__file__).resolve().parents[2] / "models" / "cells_640.onnx"
GIB = 1 << 30


@pytest.fixture(scope="module")
def detector():
    with saccade.load(CELLS) as made:
        yield made


@pytest.fixture
def book():
    made = MemoryBook(0)
    made.shared_bytes, made.free_bytes = 200_000, 8 * GIB
    return made


def parts(detector, book, plan, *, num_slots=4):
    options = path_options(plan.batch, num_slots=num_slots, max_pixels=10**6)
    return predict(detector.model, detector.contract, plan, detector.contract.detect, options, book)


def test_parts_follow_precision_batch_and_slots(detector, book):
    plan = Plan("torch", "fp16", 8, device="cuda:0")
    half = parts(detector, book, plan)
    full = parts(detector, book, dataclasses.replace(plan, precision="fp32"))
    more = parts(detector, book, dataclasses.replace(plan, batch=16))
    assert full["weights"] == 2 * half["weights"]
    assert half["weights"] == 2 * 3031433
    assert full["workspace"] > half["workspace"]
    assert more["buffers"] == 2 * half["buffers"]
    # Inputs 3x640x640 and outputs 7x8400, in FP32.
    assert half["buffers"] == 8 * 4 * (3 * 640 * 640 + 7 * 8400)
    # Each slot adds as much; tables of frames are there once.
    two, three = (parts(detector, book, plan, num_slots=n)["slots"] for n in (2, 3))
    assert half["slots"] == two + 2 * (three - two)
    assert 0 < two - 2 * (three - two) < 1 << 16
    assert half["slots"] > 4 * 8 * 1920 * 1080 * 3


def test_what_was_measured_on_a_card(detector, book):
    """Sums of the committed run on an H200, with what opening that card took."""
    import json

    path = CELLS.parents[1] / "bench/results/h200/gpu_tests.json"
    rows = [r for r in json.loads(path.read_text())["memory"] if r["model"] == CELLS.name]
    assert rows
    for row in rows:
        told = row["mib_predicted_measured"]
        book.context_bytes = int(row["context_mib"] * (1 << 20))
        options = tuple(tuple(one.split("=")) for one in row["options"].split(",") if one)
        plan = Plan(
            row["backend"], row["precision"], row["batch"], device="cuda:0", options=options
        )
        sum_mib = sum(parts(detector, book, plan).values()) / (1 << 20)
        assert sum_mib == pytest.approx(told["sum"][1], rel=0.1), row


def test_too_much_is_refused_with_the_largest_batch(detector, book):
    plan = Plan("torch", "fp16", 64, device="cuda:0")
    wanted = parts(detector, book, plan, num_slots=1)
    limit = sum(parts(detector, book, dataclasses.replace(plan, batch=16), num_slots=1).values())
    assert largest_batch(detector.model, detector.contract, plan, book, limit) == 16
    with pytest.raises(BuildError, match=r"--gpu-memory.*largest batch that fits is 16"):
        check_limit(detector.model, detector.contract, plan, wanted, book, limit)
    with pytest.raises(BuildError, match="not even a batch of 1 fits"):
        check_limit(detector.model, detector.contract, plan, wanted, book, 1 << 20)
    book.free_bytes = 1 << 20
    with pytest.raises(BuildError, match="free on the card"):
        check_limit(detector.model, detector.contract, plan, wanted, book, None)
    book.free_bytes = 64 * GIB
    check_limit(detector.model, detector.contract, plan, wanted, book, 64 * GIB)


def test_a_fixed_batch_has_no_smaller_one(tmp_path, book):
    with saccade.load(mean_color_detector(tmp_path / "net.onnx", batch=4)) as made:
        plan = Plan("torch", "fp32", 4, device="cuda:0")
        assert largest_batch(made.model, made.contract, plan, book, 1) == 0
