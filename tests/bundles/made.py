"""Builds as the builder records them, with figures made up for the tests."""

from __future__ import annotations

from saccade.builder.records import (
    BuildRecord,
    Candidate,
    GateLimits,
    Interval,
    Reason,
    Recipe,
    Row,
    Speed,
    Verdict,
)
from saccade.types import Plan


def verdict(ap: float, reference: float = 0.579, **more) -> Verdict:
    names = {"AP": 0.0, "AP50": 0.3, "AP75": 0.07, "AP_small": -0.2, "AP_medium": 0.01}
    names |= {"AP_large": 0.1, "AR100": 0.09}
    names |= {f"class:{name}": d for name, d in more.pop("classes", {"RBC": 0.02}).items()}
    metrics = {name: ap + d for name, d in names.items()}
    wanted = {name: reference + d for name, d in names.items()}
    drops = {
        n: Interval(
            wanted[n] - metrics[n], wanted[n] - metrics[n] - 0.004, wanted[n] - metrics[n] + 0.006
        )
        for n in names
    }
    keys = {"passed": True, "reasons": (), "warnings": ()} | more
    return Verdict(
        judged_by="AP",
        metrics=metrics,
        reference=wanted,
        drops=drops,
        num_pictures=72,
        checked=("batch 1 at 640x640",),
        **keys,
    )


def speed(rate: float) -> Speed:
    return Speed(
        (rate * 0.97, rate, rate * 1.02), 1e3 / rate, 1.2e3 / rate, 1e3 / rate, 0.4, 3 << 28
    )


def record(
    plan: Plan,
    *,
    rows: tuple[Row, ...] = (),
    name: str = "cells_640.onnx",
    digest: str = "ab" * 32,
) -> BuildRecord:
    """A build whose reference is row 0 and whose choice is row 1."""
    fp32 = Plan("onnxruntime")
    made = (
        Row(Candidate(Recipe(), fp32, 2), "passed", verdict(0.579), speed(25.0)),
        Row(
            Candidate(Recipe("int8", "minmax", ("/head",)), plan, 3),
            "passed",
            verdict(0.58),
            speed(52.8),
        ),
        *rows,
    )
    return BuildRecord(
        model=name,
        model_digest=digest,
        objective="throughput",
        latency_ms=None,
        limits=GateLimits(),
        rows=made,
        reference=0,
        chosen=1,
        verdict="INT8 in OpenVINO is 2.1 times as fast as FP32 and its AP is within 0.005.",
        notes=("FP16 in ONNX Runtime ran at half the speed of FP32.",),
        machine={"cpu": "test processor", "num_cores": 2},
        seconds=312.5,
    )


def refused(candidate: Candidate, text: str, kind: str = "drop", ap: float = 0.5) -> Row:
    told = verdict(ap, passed=False, reasons=(Reason(kind, text, "batch 1 at 640x640"),))
    return Row(candidate, "refused", told, speed(61.0))
