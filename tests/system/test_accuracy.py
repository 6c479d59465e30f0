"""AP of the real models through `saccade eval`, and their boxes against plain decoders.

The figures are those recorded with the models: pycocotools on a plain NumPy decoder.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.shared
TOLERANCE = 0.003

COCO = "datasets/coco_ccby/annotations/instances_80.json", "datasets/coco_ccby/images"
PERSON = "datasets/coco_ccby/annotations/person.json", "datasets/coco_ccby/images"
BCCD = "datasets/bccd/annotations/test.json", "datasets/bccd/images"
NMS = ("--preset", "fastestdet_nms")
DETR = ("--preset", "rtdetr_coco")
CELLS = ("--score", "0.01", "--iou", "0.6")
CASES = [
    ("yolox_nano_416", COCO, (), 0.264, 0.366),
    ("yolox_nano_416", PERSON, (), 0.449, 0.731),
    ("nanodet_m_320", COCO, (), 0.201, 0.314),
    ("nanodet_m_320", PERSON, (), 0.367, 0.686),
    ("fastestdet_352", COCO, (), 0.135, 0.295),
    ("fastestdet_352", PERSON, (), 0.271, 0.557),
    ("fastestdet_352_nms", COCO, NMS, 0.135, 0.295),
    ("fastestdet_352_nms", PERSON, NMS, 0.270, 0.555),
    ("fastestdet_352_qdq_int8", COCO, (), 0.104, 0.251),
    ("deimv2_atto_320", COCO, DETR, 0.212, 0.308),
    ("deimv2_atto_320", PERSON, DETR, 0.405, 0.624),
    ("light_person_192", PERSON, (), 0.308, 0.540),
    ("cells_640", BCCD, CELLS, 0.579, 0.884),
    ("cells_640", BCCD, (), 0.579, 0.884),
]


def evaluate(shared, model, where, options):
    data, images = where
    command = [sys.executable, "-m", "saccade", "eval", str(shared / f"models/{model}.onnx"),
               "--data", str(shared / data), "--images", str(shared / images),
               "--json", *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("model", "where", "options", "ap", "ap50"), CASES)
def test_ap_is_the_recorded_one(shared, model, where, options, ap, ap50):
    metrics = evaluate(shared, model, where, options)["metrics"]
    assert metrics["AP"] == pytest.approx(ap, abs=TOLERANCE)
    assert metrics["AP50"] == pytest.approx(ap50, abs=2 * TOLERANCE)


@pytest.mark.parametrize("options", [("--batch", "4"), ("--serial",), ("--backend", "openvino")])
def test_ap_does_not_depend_on_how_it_runs(shared, options):
    found = evaluate(shared, "cells_640", BCCD, (*CELLS, *options))
    assert found["metrics"]["AP"] == pytest.approx(0.579, abs=TOLERANCE)
    assert found["fallbacks"] == []
    assert found["num_errors"] == 0
