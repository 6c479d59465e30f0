from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_sink_job import LABELS, results
from saccade import formats
from saccade.errors import EngineError, InputError
from saccade.pipeline.sinks import ResultSink
from saccade.types import Detections, Result


@dataclass
class Picture:
    """What a reader finds of one picture in a file."""

    path: str
    size_wh: tuple[int, int] | None
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    keypoints_xy: np.ndarray | None
    error: tuple[str, str] | None


def picture(
    path: str,
    size_wh: tuple[int, int] | None,
    found: tuple[Any, Any, Any, Any] = ([], [], [], None),
    error: tuple[str, str] | None = None,
) -> Picture:
    boxes, scores, classes, points = found
    return Picture(
        path,
        size_wh,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int32),
        None if points is None or not len(scores) else np.array(points, np.float32),
        error,
    )


def read_jsonl(file: Path) -> tuple[dict[int, Picture], list[str] | None]:
    pictures = {}
    for line in map(json.loads, file.read_text("utf-8").splitlines()):
        size_wh = (line["width"], line["height"]) if "width" in line else None
        if "error" in line:
            error = (line["error"]["kind"], line["error"]["message"])
            pictures[line["index"]] = picture(line["path"], size_wh, error=error)
            continue
        rows = line["detections"]
        assert all(row["label"] in labels_of(row["class"]) for row in rows)
        points = (
            [row["keypoints_xy"] for row in rows] if rows and "keypoints_xy" in rows[0] else None
        )
        columns = ([row[key] for row in rows] for key in ("box_xyxy", "score", "class"))
        pictures[line["index"]] = picture(line["path"], size_wh, (*columns, points))
    assert list(pictures) == list(range(len(pictures)))
    return pictures, None


def labels_of(index: int) -> tuple[str, ...]:
    return (f"class_{index}", *LABELS[index : index + 1])


def read_coco(file: Path) -> tuple[dict[int, Picture], list[str] | None]:
    tree = json.loads(file.read_text("utf-8"))
    rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in tree["images"]}
    for row in tree["annotations"]:
        rows[row["image_id"]].append(row)
    assert [row["id"] for row in tree["annotations"]] == list(
        range(1, 1 + len(tree["annotations"]))
    )
    pictures = {}
    for image in tree["images"]:
        found = rows[image["id"]]
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in found)]
        has_points = found and "keypoints" in found[0]
        points = (
            [np.reshape(row["keypoints"], (-1, 3))[:, :2] for row in found] if has_points else None
        )
        pictures[image["id"] - 1] = picture(
            image["file_name"],
            (image["width"], image["height"]),
            (boxes, [r["score"] for r in found], [r["category_id"] - 1 for r in found], points),
        )
    for error in tree["errors"]:
        pictures[error["index"]] = picture(
            error["file_name"], None, error=(error["kind"], error["message"])
        )
    assert [row["id"] for row in tree["categories"]] == list(range(1, 1 + len(tree["categories"])))
    return pictures, [row["name"] for row in tree["categories"]]


def read_npz(file: Path) -> tuple[dict[int, Picture], list[str] | None]:
    arrays = np.load(file, allow_pickle=False)
    errors = {
        int(i): (str(kind), str(message))
        for i, kind, message in zip(
            arrays["error_indices"], arrays["error_kinds"], arrays["errors"], strict=True
        )
    }
    pictures = {}
    for i, path in enumerate(arrays["paths"]):
        rows = slice(*arrays["offsets"][i : i + 2])
        names = ("boxes_xyxy", "scores", "classes")
        points = arrays["keypoints_xy"][rows] if "keypoints_xy" in arrays else None
        width, height = map(int, arrays["sizes_wh"][i])
        size_wh = (width, height) if width else None
        found = (*(arrays[name][rows] for name in names), points)
        pictures[i] = picture(str(path), size_wh, found, errors.get(i))
    assert {arrays[n].dtype for n in ("boxes_xyxy", "scores")} == {np.dtype("float32")}
    return pictures, arrays["labels"].tolist()


def read_parquet(file: Path) -> tuple[dict[int, Picture], list[str] | None]:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(file)
    pictures = {}
    for row in table.to_pylist():
        error = (row["error_kind"], row["error"]) if row["error"] is not None else None
        size_wh = (row["width"], row["height"]) if row["width"] else None
        columns = (row[key] or [] for key in ("boxes_xyxy", "scores", "classes"))
        pictures[row["index"]] = picture(
            row["path"], size_wh, (*columns, row["keypoints_xy"]), error
        )
    return pictures, json.loads(table.schema.metadata[b"saccade.labels"])


READERS: dict[str, Callable[[Path], tuple[dict[int, Picture], list[str] | None]]] = {
    "coco": read_coco,
    "jsonl": read_jsonl,
    "npz": read_npz,
    "parquet": read_parquet,
}


def write(folder: Path, name: str, some: list[Result], labels: tuple[str, ...] = LABELS) -> Path:
    with ResultSink(folder, {"a": 1}, labels=labels, output_formats=[name]) as sink:
        for result in some:
            sink.send(result)
        [file] = sink.finish().files
    return file


def check(wanted: Result, got: Picture) -> None:
    assert got.path == wanted.path.encode("utf-8", "backslashreplace").decode()
    assert got.size_wh == wanted.size_wh
    if wanted.error is not None:
        message = str(wanted.error).encode("utf-8", "backslashreplace").decode()
        assert got.error == (type(wanted.error).__name__, message)
        assert len(got.scores) == 0
        return
    assert got.error is None
    found = wanted.detections
    assert found is not None
    for name in ("boxes_xyxy", "scores", "classes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(found, name))
        assert getattr(got, name).dtype == getattr(found, name).dtype
    if found.keypoints_xy is None or not len(found):
        assert got.keypoints_xy is None
    else:
        np.testing.assert_array_equal(got.keypoints_xy, found.keypoints_xy)


def test_every_format_has_a_reader_here() -> None:
    assert formats.names() == tuple(sorted(READERS))
    files = {formats.get(name).file_name for name in formats.names()}
    assert len(files) == len(READERS)
    with pytest.raises(InputError, match="did you mean 'coco'"):
        formats.get("cocoo")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("num_points", [0, 5])
def test_what_is_written_comes_back_exactly(tmp_path: Path, name: str, num_points: int) -> None:
    wanted = list(results(11, 150, max_boxes=20, num_points=num_points))
    pictures, labels = READERS[name](write(tmp_path, name, wanted))
    assert sorted(pictures) == list(range(150))
    for i, result in enumerate(wanted):
        check(result, pictures[i])
    if labels is not None:
        assert labels[:2] == list(LABELS)


def detections(boxes: list[list[float]], scores: list[float], classes: list[int]) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int32),
    )


NOTHING = detections([], [], [])
TINY = np.float32(1e-45)
CASES: dict[str, list[Result]] = {
    "no box": [Result(0, "a", (1, 1), NOTHING)],
    "only errors": [Result(0, "a", error=EngineError("e")), Result(1, "b", error=EngineError(""))],
    "error of a picture with a size": [Result(0, "a", (3, 4), error=EngineError("e"))],
    "odd numbers": [
        Result(
            0,
            "a",
            (65535, 65535),
            detections(
                [[0, 0, 0, 0], [0, 0, TINY, 65535], [0.1, 0.3, 0.7, 65534.996], [1e-7, 1, 2e-7, 1]],
                [1, TINY, 0.1, 0],
                [0, 79, 5, 0],
            ),
        )
    ],
    "names": [
        Result(i, path, (2, 2), NOTHING)
        for i, path in enumerate(["", "日本 \U0001f600", 'a\nb\t"\\', "\x01", "x" * 3000, "\udcff"])
    ],
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("case", CASES)
def test_odd_results_come_back_exactly(tmp_path: Path, name: str, case: str) -> None:
    pictures, _ = READERS[name](write(tmp_path, name, CASES[case], ()))
    assert len(pictures) == len(CASES[case])
    for i, result in enumerate(CASES[case]):
        if name == "coco" and result.error:
            pictures[i].size_wh = result.size_wh  # COCO has no place for it
        check(result, pictures[i])


@pytest.mark.parametrize("name", READERS)
def test_no_picture_at_all(tmp_path: Path, name: str) -> None:
    assert READERS[name](write(tmp_path, name, []))[0] == {}


@pytest.mark.parametrize("name", READERS)
def test_the_same_results_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    files = [write(tmp_path / folder, name, list(results(3, 20))) for folder in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_classes_beyond_the_labels_get_names(tmp_path: Path) -> None:
    some = [Result(0, "a", (4, 4), detections([[0, 0, 1, 1]], [0.5], [3]))]
    _, categories = read_coco(write(tmp_path, "coco", some, ("cat",)))
    assert categories == ["cat", "class_1", "class_2", "class_3"]


def test_other_readers_take_the_coco_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO

    wanted = list(results(2, 50))
    tree = COCO(str(write(tmp_path, "coco", wanted)))
    good = [r for r in wanted if r.detections is not None]
    assert len(tree.getImgIds()) == len(good)
    assert len(tree.getAnnIds()) == sum(len(r.detections or ()) for r in good)
    capsys.readouterr()


def test_formats_import_neither_pyarrow_nor_the_pipeline() -> None:
    code = (
        "import sys; from saccade import formats; [formats.get(n) for n in formats.names()];"
        "assert not {'pyarrow', 'cv2', 'PIL', 'saccade.pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
