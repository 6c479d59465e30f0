"""Every tail is recognised by its own family and by no other; so is every real model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from heads import tails_b as tails
from saccade import heads
from saccade.types import Thresholds

SIZE = (96, 128)
FAMILIES = ("damo_yolo", "fastestdet", "nanodet", "ssd", "yunet")
REAL = {
    "cells_640": None,
    "deimv2_atto_320": None,
    "fastestdet_352": "fastestdet",
    "fastestdet_352_nms": None,
    "fastestdet_352_qdq_int8": "fastestdet",
    "light_person_192": None,
    "nanodet_m_320": "nanodet",
    "ultraface_rfb_320": "ssd",
    "yolox_nano_416": None,
    "yunet_n_320": "yunet",
}


def ssd_in_graph(path, columns):
    num = 3 * (12 * 16) + 2 * (6 * 8) + 2 * (3 * 4) + 3 * (2 * 2)
    priors = np.full((num, 4), 0.5)
    cells = {8: 3, 16: 2, 32: 2, 64: 3}
    return tails.ssd_in_graph(path, priors, SIZE, columns=columns, cells=cells)


BUILDERS = {
    "nanodet": (tails.nanodet, "nanodet"),
    "nanodet, numeric names": (lambda p: tails.nanodet(p, numeric_names=True), "nanodet"),
    "nanodet, reg_max 10": (lambda p: tails.nanodet(p, reg_max=10), "nanodet"),
    "nanodet, 1 class": (lambda p: tails.nanodet(p, num_classes=1), "nanodet"),
    "nanodet-plus": (tails.nanodet_plus, "nanodet"),
    "nanodet-plus, 1 class": (lambda p: tails.nanodet_plus(p, num_classes=1), "nanodet"),
    "fastestdet": (tails.fastestdet, "fastestdet"),
    "fastestdet, 1 class": (lambda p: tails.fastestdet(p, num_classes=1), "fastestdet"),
    "ultraface": (lambda p: ssd_in_graph(p, 2), "ssd"),
    "ssd, 3 classes": (lambda p: ssd_in_graph(p, 4), "ssd"),
    "ssd300": (tails.ssd300, "ssd"),
    "ssd300, softmax": (lambda p: tails.ssd300(p, softmax=True), "ssd"),
    "yunet": (tails.yunet, "yunet"),
    "damo_yolo": (tails.damo_yolo, "damo_yolo"),
    "damo_yolo, 1 class": (lambda p: tails.damo_yolo(p, num_classes=1), "damo_yolo"),
    "damo_yolo, 4 classes": (lambda p: tails.damo_yolo(p, num_classes=4), "damo_yolo"),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_tail_belongs_to_one_family(tmp_path, name):
    build, family = BUILDERS[name]
    signature = tails.signature(build(tmp_path / "tail.onnx"))
    found = [n for n in heads.names() if heads.get(n).recognise(signature) is not None]
    assert found == [family]


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_a_real_model_belongs_to_at_most_one_of_these(shared, name):
    signature = tails.signature(shared / "models" / f"{name}.onnx")
    found = [n for n in FAMILIES if heads.get(n).recognise(signature) is not None]
    assert found == ([REAL[name]] if REAL[name] else [])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", ["nanodet", "nanodet-plus", "fastestdet", "ssd300", "yunet"])
def test_garbage_gives_no_warning_and_no_garbage(tmp_path, rng, name, dtype, garbage):
    path = BUILDERS[name][0](tmp_path / "tail.onnx")
    signature = tails.signature(path)
    head = heads.get(BUILDERS[name][1])
    outputs = tails.run(path, tails.images(signature.size_hw, 2))
    for output, array in outputs.items():
        outputs[output] = np.where(rng.random(array.shape) < 0.05, garbage, array).astype(dtype)
    for multi_label in (False, True):
        thresholds = Thresholds(score=0.3, multi_label=multi_label)
        for got in head.decode(
            outputs, head.recognise(signature).head, signature.size_hw, thresholds
        ):
            assert len(got.scores) > 0
            assert np.isfinite(got.boxes_xyxy).all()
            assert not np.isnan(got.scores).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_outputs_and_odd_outputs_are_nobodys(tmp_path, family):
    signature = tails.signature(tails.nanodet(tmp_path / "tail.onnx"))
    odd = [replace(o, shape=()) for o in signature.outputs]
    free = [replace(o, shape=("?", "?", "?")) for o in signature.outputs]
    for outputs in (odd, free):
        for num in (0, 1, 2, 6, 12):
            wanted = tuple((outputs * 2)[:num])
            assert heads.get(family).recognise(replace(signature, outputs=wanted)) is None
