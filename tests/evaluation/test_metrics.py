"""The twelve numbers and those per class equal pycocotools' to the digit."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import astuple

import numpy as np
import pytest

from saccade.errors import BackendUnavailable, InputError
from saccade.evaluation.annotations import read_annotations
from saccade.evaluation.metrics import ImageDetections, Metrics, evaluate
from saccade.vision.ap import (
    IOU_THRESHOLDS,
    Found,
    Truth,
    accumulate,
    average_precision_reference,
    match_image,
    pool,
    precision_table,
)


def pycocotools_numbers(truth, rows, image_ids=None, max_detections=100):
    """The twelve numbers, and (AP, AP50, AR100) per category id; -1 as None."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = json.loads(json.dumps(truth))
        truth_set.createIndex()
        found_set = truth_set.loadRes(rows) if rows else COCO()
        run = COCOeval(truth_set, found_set, "bbox")
        if not rows:
            found_set.dataset = {"images": [], "annotations": [], "categories": []}
            found_set.createIndex()
        run.params.imgIds = sorted(image_ids or truth_set.getImgIds())
        run.params.maxDets = [min(1, max_detections), min(10, max_detections), max_detections]
        run.evaluate()
        run.accumulate()
        if max_detections == 100:
            run.summarize()
    precision, recall = run.eval["precision"], run.eval["recall"]
    per_class = {
        id: tuple(
            mean_or_none(part)
            for part in (
                precision[:, :, i, 0, 2],
                precision[0, :, i, 0, 2],
                recall[:, i, 0, 2],
            )
        )
        for i, id in enumerate(run.params.catIds)
    }
    numbers = [None if n < 0 else n for n in run.stats] if max_detections == 100 else None
    return numbers, per_class, mean_or_none(precision[:, :, :, 0, 2])


def mean_or_none(values):
    return float(values[values > -1].mean()) if (values > -1).any() else None


def as_results(rows):
    by_image = {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    results = []
    for image_id, group in by_image.items():
        boxes = np.array([row["bbox"] for row in group], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        results.append(
            ImageDetections(
                image_id,
                boxes,
                np.array([row["score"] for row in group]),
                np.array([row["category_id"] for row in group]),
            )
        )
    return results


def assert_equal(metrics: Metrics, truth, rows, image_ids=None):
    numbers, per_class, _ = pycocotools_numbers(truth, rows, image_ids)
    assert astuple(metrics)[:12] == pytest.approx(numbers, abs=1e-6)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for id, wanted in per_class.items():
        assert metrics.per_class[names[id]][:3] == pytest.approx(wanted, abs=1e-6)


@pytest.fixture
def random_case(rng, tmp_path):
    return lambda **options: make_case(rng, tmp_path, **options)


def make_case(rng, folder, *, num_images=12, num_classes=4, distinct=False):
    """A file with crowds, ties, quarter-pixel boxes, empty pictures and a class nobody shows."""
    image_ids = rng.permutation(np.arange(0, 50))[:num_images].tolist()
    category_ids = sorted(rng.permutation(np.arange(0, 20))[:num_classes].tolist())
    boxes, rows = [], []
    for image_id in image_ids[:-1]:  # the last shows nothing
        for _ in range(int(rng.integers(0, 9))):
            size = rng.choice([12, 50, 150]) * rng.uniform(0.7, 1.4, 2)
            bbox = np.round(np.r_[rng.uniform(0, 400, 2), size] * 4) / 4
            category_id = int(rng.choice(category_ids[:-1]))
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox.tolist(),
                    "area": float(bbox[2] * bbox[3] * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = bbox + rng.normal(0, 0.08, 4) * bbox[[2, 3, 2, 3]]
                moved[2:] = np.maximum(moved[2:], 1)
                kind = category_id if rng.random() < 0.8 else int(rng.choice(category_ids))
                score = rng.random() if distinct else np.round(rng.random(), 1)
                rows.append(
                    {
                        "image_id": image_id,
                        "category_id": kind,
                        "bbox": (np.round(moved * 4) / 4).tolist(),
                        "score": float(score),
                    }
                )
    truth = {
        "images": [{"id": id, "file_name": f"{id}.png"} for id in image_ids],
        "categories": [{"id": id, "name": f"class {id}"} for id in category_ids],
        "annotations": boxes,
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(truth))
    return truth, rows, read_annotations(path), image_ids


@pytest.mark.shared
@pytest.mark.parametrize("pair", ["val2014_100", "small"])
def test_published_numbers(shared, pair):
    folder = shared / "datasets" / "cocoeval_reference"
    expected = json.loads((folder / "expected_pycocotools.json").read_text())[pair]
    truth = json.loads((folder / expected["gt"]).read_text())
    rows = json.loads((folder / expected["dt"]).read_text())
    annotations = read_annotations(folder / expected["gt"])
    ids = [image.id for image in annotations.images]
    metrics = evaluate(annotations, ids, as_results(rows))
    wanted = [None if number < 0 else number for number in expected["bbox"]]
    assert astuple(metrics)[:12] == pytest.approx(wanted, abs=1e-6)
    assert metrics.num_images == expected["images"]
    assert metrics.num_detections == expected["dets"]
    assert metrics.num_boxes == sum(not box["iscrowd"] for box in truth["annotations"])
    clean = [{k: row[k] for k in ("image_id", "category_id", "bbox", "score")} for row in rows]
    assert_equal(metrics, truth, clean)
    assert reference(annotations, ids, rows) == pytest.approx(wanted[0], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_random_cases_equal_pycocotools(tmp_path, seed):
    truth, rows, annotations, ids = make_case(np.random.default_rng(seed), tmp_path)
    metrics = evaluate(annotations, ids, reversed(as_results(rows)))
    assert_equal(metrics, truth, sorted(rows, key=lambda row: row["image_id"]))
    table = {f"class {id}": ap for id, ap in reference_table(annotations, ids, rows).items()}
    for name, per_class in metrics.per_class.items():
        mean = float(table[name].mean()) if name in table else None
        assert (None if mean is None else pytest.approx(mean, abs=1e-9)) == per_class.AP


def test_a_part_of_the_pictures(random_case):
    truth, rows, annotations, ids = random_case()
    part = ids[2:7]
    here = [row for row in rows if row["image_id"] in part]
    assert_equal(evaluate(annotations, part, as_results(here)), truth, here, part)


@pytest.mark.parametrize("max_detections", [1, 3, 10, 300])
def test_other_limits(random_case, max_detections):
    truth, rows, annotations, ids = random_case()
    metrics = evaluate(annotations, ids, as_results(rows), max_detections=max_detections)
    _, _, wanted = pycocotools_numbers(
        truth, sorted(rows, key=lambda r: r["image_id"]), ids, max_detections
    )
    assert pytest.approx(wanted, abs=1e-6) == metrics.AP


def test_best_of_a_picture_over_all_classes(random_case):
    truth, rows, annotations, ids = random_case(distinct=True)
    best = []
    for id in sorted(ids):
        here = sorted((r for r in rows if r["image_id"] == id), key=lambda r: -r["score"])
        best += here[:4]
    metrics = evaluate(annotations, ids, as_results(rows), per_picture=4)
    assert metrics.num_detections == len(best) < len(rows)
    assert_equal(metrics, truth, best)


def test_nothing_found(random_case):
    truth, _, annotations, ids = random_case()
    empty = np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int32)
    for results in ([], [(ids[0], *empty)], [(ids[0], [], [], [])]):
        metrics = evaluate(annotations, ids, results)
        assert metrics.AP == metrics.AR100 == 0.0
        assert metrics.num_detections == 0
        assert_equal(metrics, truth, [])


def test_nothing_to_find(random_case):
    _, rows, annotations, ids = random_case()
    metrics = evaluate(annotations, ids[-1:], [])
    assert astuple(metrics)[:12] == (None,) * 12
    extra = as_results([{**rows[0], "image_id": ids[-1]}])
    assert evaluate(annotations, ids[-1:], extra).AP is None
    assert metrics.num_boxes == 0


def test_stdout_stays_clean(random_case, capfd):
    _, rows, annotations, ids = random_case()
    evaluate(annotations, ids, as_results(rows))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes_xyxy": np.zeros((2, 3))}, r"boxes \(k, 4\)"),
        ({"boxes_xyxy": np.array([[1.0, 1, np.nan, 5]])}, "must be finite"),
        ({"scores": np.array([np.inf])}, "must be finite"),
        ({"boxes_xyxy": np.array([[9.0, 9, 2, 5]])}, "x1 <= x2"),
        ({"category_ids": np.array([999])}, "match_categories"),
        ({"category_ids": np.array([0.5])}, "integer category"),
        ({"image_id": 12345}, "one for image id 12345"),
    ],
)
def test_results_that_do_not_fit(random_case, change, message):
    truth, _, annotations, ids = random_case()
    good = ImageDetections(
        ids[0],
        np.array([[0.0, 0, 5, 5]]),
        np.array([0.5]),
        np.array([truth["categories"][0]["id"]]),
    )
    assert evaluate(annotations, ids, [good]).num_detections == 1
    with pytest.raises(InputError, match=message):
        evaluate(annotations, ids, [good._replace(**change)])
    with pytest.raises(InputError, match="a second for image id"):
        evaluate(annotations, ids, [good, good])


def test_image_ids_that_do_not_fit(random_case):
    _, _, annotations, ids = random_case()
    for wrong in ([], [*ids, ids[0]], [777]):
        with pytest.raises(InputError, match=r"image_ids must be"):
            evaluate(annotations, wrong, [])
    with pytest.raises(InputError, match="1 or more"):
        evaluate(annotations, ids, [], per_picture=0)


def test_two_categories_of_one_name(tmp_path):
    path = tmp_path / "twice.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png"}],
                "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}],
                "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}],
            }
        )
    )
    metrics = evaluate(read_annotations(path), [1], [(1, [[0, 0, 9, 9]], [0.9], [2])])
    assert metrics.per_class["cell (id 1)"].AP is None
    assert metrics.per_class["cell (id 2)"] == pytest.approx((1.0, 1.0, 1.0, 1))


def test_a_missing_package_is_named(tmp_path):
    """In a process of its own, where hotcoco cannot be imported."""
    code = (
        "import sys; sys.modules['hotcoco'] = None\n"
        "from saccade.evaluation import annotations, metrics\n"
        "import numpy as np\n"
        "boxes = annotations.Boxes(*(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)),\n"
        "    np.zeros(0), np.zeros(0, bool)))\n"
        "file = annotations.Annotations((annotations.AnnotatedImage(1, 'a'),),\n"
        "    (annotations.Category(1, 'x'),), boxes)\n"
        "metrics.evaluate(file, [1], [])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert BackendUnavailable.__name__ in done.stderr
    assert "pip install 'saccade[eval]'" in done.stderr


def pairs(annotations, ids, rows):
    """Truth and Found per picture, in the order of ids."""
    boxes, by_image = annotations.boxes, {}
    for row in rows:
        by_image.setdefault(row["image_id"], []).append(row)
    for id in sorted(ids):
        here = boxes.image_id == id
        group = by_image.get(id, [])
        yield (
            Truth(
                boxes.bbox_xywh[here],
                boxes.category_id[here],
                boxes.area[here],
                boxes.iscrowd[here],
            ),
            Found(
                np.array([row["bbox"] for row in group], np.float64).reshape(-1, 4),
                np.array([row["score"] for row in group], np.float64),
                np.array([row["category_id"] for row in group], np.int64),
            ),
        )


def reference(annotations, ids, rows):
    truth, found = zip(*pairs(annotations, ids, rows), strict=True)
    return average_precision_reference(truth, found)


def reference_table(annotations, ids, rows):
    return precision_table(pool([match_image(t, f) for t, f in pairs(annotations, ids, rows)]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_reference_by_size(tmp_path, seed, size):
    _, rows, annotations, ids = make_case(np.random.default_rng(seed), tmp_path)
    area_range = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}[size]
    matches = [match_image(t, f, area_range=area_range) for t, f in pairs(annotations, ids, rows)]
    metrics = evaluate(annotations, ids, as_results(rows))
    assert accumulate(matches) == pytest.approx(getattr(metrics, f"AP_{size}"), abs=1e-9)


def test_weights_are_repeated_pictures(random_case, rng):
    """Drawing a picture w times is the same as w copies of it."""
    _, rows, annotations, ids = random_case(distinct=True)
    matches = [match_image(t, f) for t, f in pairs(annotations, ids, rows)]
    pooled = pool(matches)
    for _ in range(5):
        weights = np.bincount(rng.integers(0, len(ids), len(ids)), minlength=len(ids))
        copies = [m for m, w in zip(matches, weights, strict=True) for _ in range(w)]
        assert accumulate(pooled, weights) == pytest.approx(accumulate(copies), abs=1e-12)
    assert accumulate(pooled, np.zeros(len(ids))) is None
    assert accumulate([]) is None
    assert len(IOU_THRESHOLDS) == 10
