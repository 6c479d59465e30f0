from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from heads import tails_b as tails
from saccade.errors import ContractError
from saccade.heads.ssd import HEAD, SSD300_COCO, SSD300_VOC, prior_boxes
from saccade.types import HeadRule, Thresholds

SIZE = (48, 64)
CELLS = {8: 3, 16: 2, 32: 2, 64: 3}
MIN_BOXES = [[10, 16, 24], [32, 48], [64, 96], [128, 192, 256]]


def face_priors(size_hw):
    """UltraFace's priors one by one (define_img_size in the public code)."""
    h, w = size_hw
    priors = []
    for stride, sizes in zip((8, 16, 32, 64), MIN_BOXES, strict=True):
        for y in range(-(-h // stride)):
            for x in range(-(-w // stride)):
                at = [(x + 0.5) * stride / w, (y + 0.5) * stride / h]
                priors.extend([*at, size / w, size / h] for size in sizes)
    return np.clip(priors, 0, 1)


def ssd300_priors(layout):
    """SSD300's priors one by one (PriorBox.forward in the public code)."""
    priors = []
    for k, f in enumerate(layout["feature_maps"]):
        small, large = layout["min_sizes"][k] / 300, layout["max_sizes"][k] / 300
        for i in range(f):
            for j in range(f):
                fk = 300 / layout["steps"][k]
                at = [(j + 0.5) / fk, (i + 0.5) / fk]
                priors.append([*at, small, small])
                priors.append([*at, np.sqrt(small * large), np.sqrt(small * large)])
                for ratio in layout["aspect_ratios"][k]:
                    priors.append([*at, small * np.sqrt(ratio), small / np.sqrt(ratio)])
                    priors.append([*at, small / np.sqrt(ratio), small * np.sqrt(ratio)])
    return np.clip(priors, 0, 1)


def plain_decode(scores, boxes, size_hw, threshold, *, priors=None, softmax=False):
    """Row by row in float64, straight from the definition."""
    found = []
    scores, boxes = np.float64(scores), np.float64(boxes)
    for row in range(len(scores)):
        values = scores[row]
        if softmax:
            values = np.exp(values) / np.exp(values).sum()
        best = int(np.argmax(values[1:]))
        if values[1 + best] > threshold:
            box = boxes[row]
            if priors is not None:
                at, size = priors[row, :2], priors[row, 2:]
                centre = at + box[:2] * 0.1 * size
                half = size * np.exp(box[2:] * 0.2) / 2
                box = np.concatenate([centre - half, centre + half])
            found.append((box * np.tile(size_hw[::-1], 2), best, values[1 + best]))
    return found


def in_graph(path, size_hw=SIZE, columns=2):
    return tails.ssd_in_graph(path, face_priors(size_hw), size_hw, columns=columns, cells=CELLS)


def rule_of(path):
    return HEAD.recognise(tails.signature(path)).head


@pytest.mark.parametrize("columns", [2, 6])
def test_priors_in_the_graph_equal_the_plain_decode(tmp_path, columns):
    path = in_graph(tmp_path / "s.onnx", columns=columns)
    outputs = tails.run(path, tails.images(SIZE, 2))
    got = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.7))
    for index, candidates in enumerate(got):
        plain = plain_decode(outputs["scores"][index], outputs["boxes"][index], SIZE, 0.7)
        tails.assert_close(candidates, plain)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("columns", [21, 81])
def test_priors_outside_equal_the_plain_decode(tmp_path, columns, softmax):
    path = tails.ssd300(tmp_path / "s.onnx", columns=columns, softmax=softmax)
    recognition = HEAD.recognise(tails.signature(path))
    assert recognition.input is None
    assert recognition.head.options["activation"] == ("none" if softmax else "softmax")
    outputs = tails.run(path, tails.images((300, 300), 1))
    layout = SSD300_COCO if columns == 81 else SSD300_VOC
    (got,) = HEAD.decode(outputs, recognition.head, (300, 300), Thresholds(score=0.7))
    plain = plain_decode(
        outputs["conf"][0],
        outputs["loc"][0],
        (300, 300),
        0.7,
        priors=ssd300_priors(layout),
        softmax=not softmax,
    )
    tails.assert_close(got, plain, box_px=0.02)


@pytest.mark.parametrize("layout", [SSD300_VOC, SSD300_COCO])
def test_priors_of_ssd300(layout):
    got = prior_boxes(layout, (300, 300))
    assert got.shape == (8732, 4)
    np.testing.assert_allclose(got, ssd300_priors(layout), atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        got[0] = 0


def test_priors_of_several_sizes_per_cell_and_a_wide_input():
    h, w = SIZE
    layout = {
        "feature_maps": [[-(-h // s), -(-w // s)] for s in CELLS],
        "steps": list(CELLS),
        "min_sizes": MIN_BOXES,
        "aspect_ratios": [[], [], [], []],
        "clip": True,
    }
    np.testing.assert_allclose(prior_boxes(layout, SIZE), face_priors(SIZE), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("multi_label", [False, True])
def test_skipping_hopeless_rows_changes_nothing(rng, threshold, multi_label):
    """With logits, rows are skipped before the softmax; compare with the softmax of all."""
    logits = rng.normal(0, 4, (1, 500, 4)).astype(np.float32)
    boxes = rng.uniform(0, 1, (1, 500, 4)).astype(np.float32)
    options = {
        "priors": "in_graph",
        "boxes": "pixels",
        "background": 0,
        "activation": "softmax",
        "variances": [0.1, 0.2],
    }
    rule = HeadRule("ssd", {"scores": "s", "boxes": "b"}, 3, options)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    thresholds = Thresholds(score=threshold, multi_label=multi_label)
    (got,) = HEAD.decode({"s": logits, "b": boxes}, rule, SIZE, thresholds)
    finished = dataclasses.replace(rule, options={**options, "activation": "none"})
    (want,) = HEAD.decode({"s": weights, "b": boxes}, finished, SIZE, thresholds)
    tails.assert_same(got, want)


def test_a_batch_equals_its_pictures(tmp_path):
    path = in_graph(tmp_path / "s.onnx", columns=4)
    outputs = tails.run(path, tails.images(SIZE, 3))
    batch = HEAD.decode(outputs, rule_of(path), SIZE, Thresholds(score=0.6))
    assert len(batch) == 3
    for index, candidates in enumerate(batch):
        one = tails.one(outputs, index)
        (single,) = HEAD.decode(one, rule_of(path), SIZE, Thresholds(score=0.6))
        tails.assert_same(candidates, single)


@pytest.mark.parametrize("outside", [False, True])
def test_nothing_above_the_threshold(tmp_path, outside):
    size_hw = (300, 300) if outside else SIZE
    path = (tails.ssd300 if outside else in_graph)(tmp_path / "s.onnx")
    outputs = tails.run(path, tails.images(size_hw, 2))
    for candidates in HEAD.decode(outputs, rule_of(path), size_hw, Thresholds(score=1.0)):
        tails.assert_empty(candidates)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("role", ["scores", "boxes"])
def test_nan_never_passes(tmp_path, outside, role):
    size_hw = (300, 300) if outside else SIZE
    path = (tails.ssd300 if outside else in_graph)(tmp_path / "s.onnx")
    rule = rule_of(path)
    outputs = tails.run(path, tails.images(size_hw, 1))
    outputs[rule.outputs[role]][:] = np.nan
    for score in (0.0, 0.5):
        (got,) = HEAD.decode(outputs, rule, size_hw, Thresholds(score=score))
        tails.assert_empty(got)


def test_float16_outputs(tmp_path):
    path = tails.ssd300(tmp_path / "s.onnx")
    outputs = tails.run(path, tails.images((300, 300), 1))
    half = {n: a.astype(np.float16) for n, a in outputs.items()}
    (got,) = HEAD.decode(half, rule_of(path), (300, 300), Thresholds(score=0.7))
    plain = plain_decode(
        half["conf"][0],
        half["loc"][0],
        (300, 300),
        0.7,
        priors=ssd300_priors(SSD300_VOC),
        softmax=True,
    )
    tails.assert_close(got, plain, box_px=0.02)


def test_garbage_sizes_do_not_overflow(tmp_path):
    path = tails.ssd300(tmp_path / "s.onnx")
    outputs = tails.run(path, tails.images((300, 300), 1))
    outputs["loc"][..., 2:] = 1e6
    (got,) = HEAD.decode(outputs, rule_of(path), (300, 300), Thresholds(score=0.5))
    assert len(got.scores) > 0


@pytest.mark.parametrize("size_hw", [(240, 320), (480, 640)])
def test_recognises_ultraface_by_its_priors(tmp_path, size_hw):
    path = in_graph(tmp_path / "s.onnx", size_hw)
    signature = tails.signature(path)
    assert signature.outputs[0].shape[1] == {240: 4420, 480: 17640}[size_hw[0]]
    recognition = HEAD.recognise(signature)
    assert recognition.labels == ("face",)
    assert recognition.input["mean"] == (127.0,) * 3
    assert recognition.detect == Thresholds(score=0.7, iou=0.3)
    # Other counts, or other classes: an SSD, but nobody knows how to feed it.
    other = HEAD.recognise(tails.signature(in_graph(tmp_path / "t.onnx", size_hw, columns=3)))
    assert other.input is None
    assert other.labels == ()


def test_three_classes_are_not_taken_for_boxes(tmp_path):
    signature = tails.signature(in_graph(tmp_path / "s.onnx", columns=4))
    for outputs in (signature.outputs, signature.outputs[::-1]):
        recognition = HEAD.recognise(dataclasses.replace(signature, outputs=outputs))
        assert recognition.head.outputs == {"scores": "scores", "boxes": "boxes"}


def test_raw_outputs_that_look_alike_are_not_guessed(tmp_path):
    assert HEAD.recognise(tails.signature(tails.ssd300(tmp_path / "s.onnx", columns=4))) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"background": 1}, "background"),
        ({"activation": "sigmoid"}, "activation"),
        ({"boxes": "pixels"}, "boxes"),
        ({"background": None}, "num_classes"),
        ({"priors": {**SSD300_VOC, "feature_maps": [38, 19, 10, 5, 3, 2]}}, "rows"),
        ({"priors": {**SSD300_VOC, "steps": [8]}}, "steps has 1"),
        ({"priors": {"steps": [8]}}, "missing"),
        ({"priors": {**SSD300_VOC, "colour": 1}}, "unknown"),
    ],
)
def test_wrong_contract_is_named(tmp_path, change, words):
    path = tails.ssd300(tmp_path / "s.onnx")
    rule = rule_of(path)
    outputs = tails.run(path, tails.images((300, 300), 1))
    wrong = dataclasses.replace(rule, options={**rule.options, **change})
    with pytest.raises(ContractError, match=words):
        HEAD.decode(outputs, wrong, (300, 300), Thresholds())


@pytest.mark.shared
@pytest.mark.parametrize("picture", ["people_group_1200x800.jpeg", "astronaut.png"])
def test_real_model(shared, picture):
    path, size_hw = shared / "models" / "ultraface_rfb_320.onnx", (240, 320)
    recognition = HEAD.recognise(tails.signature(path))
    assert recognition.labels == ("face",)
    pixels = tails.real_input(shared, picture, size_hw)
    batch = tails.as_batch(pixels, recognition.input["mean"], recognition.input["std"])
    outputs = tails.run(path, batch)
    (got,) = HEAD.decode(outputs, recognition.head, size_hw, recognition.detect)
    plain = plain_decode(outputs["scores"][0], outputs["boxes"][0], size_hw, 0.7)
    tails.assert_close(got, plain, box_px=0.5)
    assert got.classes.max() == 0
