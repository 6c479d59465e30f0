"""Head and suppression kernels against the CPU's heads and `finish`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from saccade import heads
from saccade.cuda.head import read_head
from saccade.cuda.prepare import PICTURE, describe
from saccade.cuda.runtime import Device
from saccade.cuda.suppress import Suppressor
from saccade.errors import EngineError
from saccade.heads.ssd import SSD300_VOC, prior_boxes
from saccade.types import Detections, HeadRule, InputRule, Thresholds
from saccade.vision.place import placement_of
from saccade.vision.suppress import finish

BATCH = 3
SOURCES = [(640, 480), (33, 90), (1000, 1000)]
LOOK = Thresholds(score=0.3, iou=0.45)
MEASURE = Thresholds(score=0.05, iou=0.65, multi_label=True)


def on_gpu(
    device: Device,
    upload: Any,
    outputs: dict[str, np.ndarray],
    rule: HeadRule,
    input_rule: InputRule,
    thresholds: Thresholds,
    **more: Any,
) -> list[Detections]:
    dtype = more.pop("dtype", None)
    buffers = {
        name: upload(array, dtype=dtype if array.dtype == np.uint16 else None)
        for name, array in outputs.items()
    }
    size_hw = input_rule.size_hw
    priors = None
    if rule.family == "ssd" and rule.options["priors"] != "in_graph":
        priors = prior_boxes(rule.options["priors"], size_hw)
    head = read_head(rule, size_hw, buffers, thresholds, priors=priors)
    kernels = Suppressor(
        device, head, buffers, thresholds, size_hw, class_agnostic=rule.class_agnostic, **more
    )
    if head.constants is not None:
        kernels.set_constants(upload(head.constants).pointer)
    batch = len(next(iter(outputs.values())))
    table = np.zeros(batch, PICTURE)
    for i in range(batch):
        describe(table[i : i + 1], input_rule, SOURCES[i % 3], 0, 0)
    work = kernels.workspace
    arena = device.arena({"keys": work.keys_bytes, "counts": work.counts_bytes})
    results = device.pinned(work.results_bytes)
    results.array[:] = 0xAB
    stream = device.stream()
    where = upload(table.view(np.uint8)).pointer
    kernels.enqueue(stream, where, arena.address("keys"), arena.address("counts"), results.address)
    stream.synchronize()
    boxes = kernels.final_boxes(results.array)
    return [boxes.read(i) for i in range(batch)]


def on_cpu(
    outputs: dict[str, np.ndarray], rule: HeadRule, input_rule: InputRule, thresholds: Thresholds
) -> list[Detections]:
    found = heads.get(rule.family).decode(outputs, rule, input_rule.size_hw, thresholds)
    return [
        finish(
            candidates,
            placement_of(SOURCES[i % 3], input_rule),
            thresholds,
            class_agnostic=rule.class_agnostic,
        )
        for i, candidates in enumerate(found)
    ]


def assert_same(got: list[Detections], want: list[Detections], *, exact: bool) -> None:
    assert len(got) == len(want)
    for one, two in zip(got, want, strict=True):
        if exact:
            assert len(one) == len(two)
            np.testing.assert_array_equal(one.scores, two.scores)
            np.testing.assert_array_equal(one.classes, two.classes)
            np.testing.assert_array_equal(one.boxes_xyxy, two.boxes_xyxy)
            continue
        # Where exponentials round differently, a pair on the edge may go either way.
        assert abs(len(one) - len(two)) <= 1 + len(two) // 100
        hits = 0
        for box, score, label in zip(one.boxes_xyxy, one.scores, one.classes, strict=True):
            same = (two.classes == label) & (np.abs(two.scores - score) < 1e-5)
            near = np.abs(two.boxes_xyxy[same] - box).max(axis=1, initial=0) if same.any() else []
            hits += bool(len(near)) and bool(min(near) < 0.02)
        assert hits >= len(one) - 1 - len(two) // 100
        if two.keypoints_xy is not None:
            assert one.keypoints_xy is not None
            if len(one) == len(two):
                np.testing.assert_allclose(one.keypoints_xy, two.keypoints_xy, atol=0.02)


def boxes_cxcywh(rng: np.random.Generator, shape: tuple[int, ...], size_hw: tuple[int, int],
                 *, objects: int = 12) -> np.ndarray:  # fmt: skip
    """Boxes around a few objects, so that suppression has work, and some anywhere."""
    h, w = size_hw
    centre = rng.uniform(0, 1, (objects, 2)) * (w, h)
    of_object = rng.integers(0, objects, shape)
    xy = centre[of_object] + rng.normal(0, 4, (*shape, 2))
    wh = rng.uniform(8, 0.4 * min(h, w), (objects, 2))[of_object] * rng.uniform(
        0.8, 1.2, (*shape, 2)
    )
    return np.concatenate([xy, wh], axis=-1).astype(np.float32)


def few_high(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores of which about one in thirty is high."""
    return (rng.uniform(0, 1, shape) ** 12).astype(np.float32)


def yolov8_rows(rng: np.random.Generator, n: int = 2100, c: int = 3) -> np.ndarray:
    boxes = boxes_cxcywh(rng, (BATCH, n), (320, 320))
    rows = np.concatenate([boxes, few_high(rng, (BATCH, n, c))], axis=2)
    return np.ascontiguousarray(rows.transpose(0, 2, 1))


SQUARE = InputRule("x", (320, 320))
YOLOV8 = HeadRule("yolov8", {"rows": "y"}, 3)


@pytest.mark.parametrize("thresholds", [LOOK, MEASURE, Thresholds(score=0.0, max_detections=7)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_yolov8_is_exact(device, upload, rng, thresholds, agnostic) -> None:  # type: ignore[no-untyped-def]
    outputs = {"y": yolov8_rows(rng)}
    rule = HeadRule("yolov8", {"rows": "y"}, 3, class_agnostic=agnostic)
    got = on_gpu(device, upload, outputs, rule, SQUARE, thresholds)
    assert_same(got, on_cpu(outputs, rule, SQUARE, thresholds), exact=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_yolov8_in_half(device, upload, rng, dtype) -> None:  # type: ignore[no-untyped-def]
    rows = yolov8_rows(rng)
    if dtype == "float16":
        half = rows.astype(np.float16)
        whole, sent = half.astype(np.float32), half
    else:
        sent = (rows.view(np.uint32) >> 16).astype(np.uint16)
        whole = (sent.astype(np.uint32) << 16).view(np.float32)
    got = on_gpu(device, upload, {"y": sent}, YOLOV8, SQUARE, LOOK, dtype=dtype)
    assert_same(got, on_cpu({"y": whole}, YOLOV8, SQUARE, LOOK), exact=True)


def test_yolov8_rows_first_with_many_classes(device, upload, rng) -> None:  # type: ignore[no-untyped-def]
    boxes = boxes_cxcywh(rng, (BATCH, 2100), (320, 320))
    outputs = {"y": np.concatenate([boxes, few_high(rng, (BATCH, 2100, 80))], axis=2)}
    rule = HeadRule("yolov8", {"rows": "y"}, 80, {"rows_first": True})
    for thresholds in (LOOK, Thresholds(score=0.6, multi_label=True)):
        got = on_gpu(device, upload, outputs, rule, SQUARE, thresholds)
        assert_same(got, on_cpu(outputs, rule, SQUARE, thresholds), exact=True)


def nasty(kind: str, rng: np.random.Generator) -> np.ndarray:
    rows = yolov8_rows(rng)
    if kind == "empty":
        rows[:, 4:] = 0
    elif kind == "one box":
        rows[:, 4:] = 0
        rows[:, 4, 17] = 0.9
    elif kind == "all alike":
        rows[:] = rows[:, :, :1]
        rows[:, 4:] = 0.5
    elif kind == "ties":
        rows[:, 4:] = np.round(rows[:, 4:] * 4) / 4
    elif kind == "no area":
        rows[:, 2, ::2] = 0
        rows[:, 3, 1::3] = -5
    elif kind == "garbage":
        for value, at in ((np.nan, 3), (np.inf, 5), (-np.inf, 7), (3e38, 11)):
            rows[:, at % 7, ::at] = value
    elif kind == "outside":
        rows[:, :2] += 5000
    elif kind == "huge":
        rows[:, :4] *= 1e18
    elif kind == "on the edge":  # IoU exactly at the threshold
        rows[:, :4] = 0
        rows[:, 0] = np.arange(rows.shape[2]) % 8 * 10 + 50
        rows[:, 1], rows[:, 2], rows[:, 3] = 50, 40, 20
    return rows


@pytest.mark.parametrize("iou", [0.6, 0.0, 1.0, 1 / 3, 0.45])
@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "one box",
        "all alike",
        "ties",
        "no area",
        "garbage",
        "outside",
        "huge",
        "on the edge",
    ],
)
def test_nasty_outputs(device, upload, rng, kind, iou) -> None:  # type: ignore[no-untyped-def]
    outputs = {"y": nasty(kind, rng)}
    thresholds = Thresholds(score=0.2, iou=iou)
    got = on_gpu(device, upload, outputs, YOLOV8, SQUARE, thresholds)
    assert_same(got, on_cpu(outputs, YOLOV8, SQUARE, thresholds), exact=True)


def test_more_candidates_than_shared_memory_sorts(device, upload, rng) -> None:  # type: ignore[no-untyped-def]
    outputs = {"y": yolov8_rows(rng, n=8400)}
    outputs["y"][:, 4:] = rng.uniform(0.3, 1, (BATCH, 3, 8400)).astype(np.float32)
    thresholds = Thresholds(score=0.05, iou=0.9, max_detections=1000, multi_label=True)
    got = on_gpu(device, upload, outputs, YOLOV8, SQUARE, thresholds)
    assert_same(got, on_cpu(outputs, YOLOV8, SQUARE, thresholds), exact=True)


def test_too_many_candidates_are_told(device, upload, rng) -> None:  # type: ignore[no-untyped-def]
    outputs = {"y": yolov8_rows(rng)}
    outputs["y"][:, 4:] = 0.9
    thresholds = Thresholds(score=0.05, multi_label=True)
    with pytest.raises(EngineError, match="6300 passed"):
        on_gpu(device, upload, outputs, YOLOV8, SQUARE, thresholds, max_candidates=1024)


CELLS = 84 * 25  # 40x40, 20x20 and 10x10 at 320 pixels


Case = tuple[dict[str, np.ndarray], HeadRule, InputRule]


def case(name: str, rng: np.random.Generator) -> Case:  # noqa: C901  # a table in disguise
    size, c = (320, 320), 20
    b, n = BATCH, CELLS
    if name in ("yolov5", "yolov6", "yolox decoded"):
        boxes = boxes_cxcywh(rng, (b, n), size)
        rows = np.concatenate([boxes, few_high(rng, (b, n, 1)) ** 0.1, few_high(rng, (b, n, c))], 2)
        options = {
            "yolov5": {},
            "yolov6": {"objectness": False},
            "yolox decoded": {"decoded": True},
        }
        family = name.split()[0].replace("yolov6", "yolov5")
        return {"y": rows}, HeadRule(family, {"rows": "y"}, c, options[name]), SQUARE
    if name == "yolox":
        raw = rng.normal(0, 1, (b, n, 4)).astype(np.float32)
        rows = np.concatenate([raw, few_high(rng, (b, n, 1)) ** 0.1, few_high(rng, (b, n, c))], 2)
        return {"y": rows}, HeadRule("yolox", {"rows": "y"}, c), SQUARE
    if name == "nanodet":
        outputs, names = {}, {}
        for s in (8, 16, 32):
            cells = (320 // s) ** 2
            outputs[f"cls_{s}"] = few_high(rng, (b, cells, c))
            outputs[f"dis_{s}"] = rng.normal(0, 3, (b, cells, 32)).astype(np.float32)
        names = {k: k for k in outputs}
        options = {"strides": [8, 16, 32], "reg_max": 7, "centre": 0.5}
        return outputs, HeadRule("nanodet", names, c, options), SQUARE
    if name == "nanodet plus":
        rows = np.concatenate(
            [few_high(rng, (b, n, c)), rng.normal(0, 3, (b, n, 32)).astype(np.float32)], 2
        )
        options = {"strides": [8, 16, 32], "reg_max": 7, "centre": 0.0}
        return {"y": rows}, HeadRule("nanodet", {"rows": "y"}, c, options), SQUARE
    if name == "fastestdet":
        maps = rng.normal(0, 1, (b, 5 + c, 20, 20)).astype(np.float32)
        maps[:, 0] = rng.uniform(-0.1, 1.1, (b, 20, 20))
        maps[:, 5:] = few_high(rng, (b, c, 20, 20)) * 1.05 - 0.01
        return {"y": maps}, HeadRule("fastestdet", {"map": "y"}, c, {"stride": 16}), SQUARE
    if name.startswith("ssd"):
        shape = (240, 300) if name == "ssd" else (300, 300)
        num = 900 if name == "ssd" else 8732
        corners = boxes_cxcywh(rng, (b, num), shape) / np.float32((300, shape[0]) * 2)
        corners = np.concatenate(
            [corners[..., :2] - corners[..., 2:] / 2, corners[..., :2] + corners[..., 2:] / 2], 2
        )
        common = {"boxes": "normalised", "background": 0, "variances": [0.1, 0.2]}
        if name == "ssd":
            outputs = {"s": few_high(rng, (b, num, 1 + c)), "o": corners}
            options: dict[str, Any] = {"priors": "in_graph", "activation": "none", **common}
        else:
            logits = rng.normal(0, 2, (b, num, 1 + c)).astype(np.float32)
            offsets = rng.normal(0, 1, (b, num, 4)).astype(np.float32)
            outputs = {"s": logits, "o": offsets}
            options = {"priors": dict(SSD300_VOC), "activation": "softmax", **common}
        rule = HeadRule("ssd", {"scores": "s", "boxes": "o"}, c, options)
        return outputs, rule, InputRule("x", shape, resize="stretch")
    if name == "yunet":
        outputs = {}
        for s in (8, 16, 32):
            cells = (320 // s) ** 2
            outputs[f"cls_{s}"] = few_high(rng, (b, cells, 1)) ** 0.3
            outputs[f"obj_{s}"] = rng.uniform(0.5, 1, (b, cells, 1)).astype(np.float32)
            outputs[f"bbox_{s}"] = rng.normal(0, 1, (b, cells, 4)).astype(np.float32)
            outputs[f"kps_{s}"] = rng.normal(0, 1, (b, cells, 10)).astype(np.float32)
        names = {k: k for k in outputs}
        return outputs, HeadRule("yunet", names, 1, {"strides": [8, 16, 32]}), SQUARE
    if name == "damo_yolo":
        boxes = boxes_cxcywh(rng, (b, n), size)
        boxes = np.concatenate(
            [boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], 2
        )
        outputs = {"s": few_high(rng, (b, n, c)), "o": boxes}
        return outputs, HeadRule("damo_yolo", {"scores": "s", "boxes": "o"}, c), SQUARE
    if name.startswith("detr "):
        layout = name.split()[1]
        boxes = rng.uniform(0.1, 0.9, (b, 100, 4)).astype(np.float32)
        if layout == "post":
            outputs = {
                "labels": rng.integers(0, c, (b, 100)),
                "boxes": np.sort(boxes.reshape(b, 100, 2, 2), axis=2).reshape(b, 100, 4) * 400,
                "scores": few_high(rng, (b, 100)) ** 0.2,
            }
            rule = HeadRule("detr", {k: k for k in outputs}, 0, {"layout": "post"})
            return outputs, rule, SQUARE
        logits = rng.normal(-1, 2, (b, 100, c + (layout == "softmax"))).astype(np.float32)
        options = {"layout": "raw", "activation": layout, "no_object": layout == "softmax"}
        rule = HeadRule("detr", {"logits": "l", "boxes": "o"}, c, options)
        return {"l": logits, "o": boxes}, rule, SQUARE
    assert name.startswith("final")
    corners = np.sort(rng.uniform(0, 320, (b, 50, 2, 2)), axis=2).reshape(b, 50, 4)
    boxes, scores = corners.astype(np.float32), few_high(rng, (b, 50)) ** 0.2
    classes = rng.integers(-1, c, (b, 50))
    if name == "final num_dets":
        count = np.array([[50], [0], [17]], np.int64)
        outputs = {"count": count, "boxes": boxes, "scores": scores, "classes": classes}
    elif name == "final dets_labels":
        outputs = {"dets": np.concatenate([boxes, scores[..., None]], 2), "labels": classes}
    else:
        parts = [boxes, scores[..., None], classes[..., None].astype(np.float32)]
        outputs = {"rows": np.concatenate(parts, 2)}
    rule = HeadRule("final", {k: k for k in outputs}, 0, {"layout": name.split()[1]})
    return outputs, rule, SQUARE


NAMES = (
    "yolov5", "yolov6", "yolox", "yolox decoded", "nanodet", "nanodet plus", "fastestdet", "ssd",
    "ssd300", "yunet", "damo_yolo", "detr post", "detr sigmoid", "detr softmax", "final num_dets",
    "final dets_labels", "final nms6",
)  # fmt: skip
EXACT = ("yolov5", "yolov6", "yolox decoded", "damo_yolo", "detr post", "final")


@pytest.mark.parametrize("thresholds", [LOOK, MEASURE], ids=["look", "measure"])
@pytest.mark.parametrize("name", NAMES)
def test_families(device, upload, rng, name, thresholds) -> None:  # type: ignore[no-untyped-def]
    outputs, rule, input_rule = case(name, rng)
    want = on_cpu(outputs, rule, input_rule, thresholds)
    got = on_gpu(device, upload, outputs, rule, input_rule, thresholds, max_candidates=65536)
    assert sum(map(len, want)) > 0
    assert_same(got, want, exact=name.startswith(EXACT))


@pytest.mark.parametrize("name", NAMES)
def test_families_survive_garbage(device, upload, rng, name) -> None:  # type: ignore[no-untyped-def]
    outputs, rule, input_rule = case(name, rng)
    for array in outputs.values():
        if array.dtype == np.float32:
            flat = array.reshape(-1)
            flat[::101], flat[::103], flat[::107] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        want = on_cpu(outputs, rule, input_rule, LOOK)
    got = on_gpu(device, upload, outputs, rule, input_rule, LOOK)
    assert_same(got, want, exact=name.startswith(EXACT))
