"""Broken annotation files are refused with the place, harmless faults are told."""

from __future__ import annotations

import copy
import gzip
import json

import numpy as np
import pytest

from saccade.errors import AnnotationError
from saccade.evaluation.annotations import AnnotatedImage, Category, read_annotations

GOOD = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480},
        {"id": 2, "file_name": "b.jpg"},
    ],
    "annotations": [
        {"id": 5, "image_id": 2, "category_id": 9, "bbox": [10, 10, 50.5, 60], "area": 3000},
        {"id": 6, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 1},
    ],
    "categories": [{"id": 9, "name": "x"}, {"id": 3, "name": "y", "supercategory": "z"}],
}


@pytest.fixture
def read(tmp_path):
    """Read a document (or raw bytes) by way of a file."""

    def read_document(document):
        path = tmp_path / "file.json"
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        path.write_bytes(content)
        return read_annotations(path)

    return read_document


def changed(*path, value):
    """GOOD with one value replaced, or removed if the value is `...`."""
    document = copy.deepcopy(GOOD)
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return document


def test_a_good_file(read):
    annotations = read(GOOD)
    assert annotations.images == (
        AnnotatedImage(1, "a.jpg", 640, 480),
        AnnotatedImage(2, "b.jpg", None, None),
    )
    assert annotations.categories == (Category(9, "x"), Category(3, "y"))
    boxes = annotations.boxes
    assert len(boxes) == 2
    assert repr(boxes) == "Boxes(2)"
    np.testing.assert_array_equal(boxes.image_id, [2, 1])
    np.testing.assert_array_equal(boxes.category_id, [9, 3])
    np.testing.assert_array_equal(boxes.bbox_xywh, [[10, 10, 50.5, 60], [1, 2, 3, 4]])
    np.testing.assert_array_equal(boxes.area, [3000, 12])
    np.testing.assert_array_equal(boxes.iscrowd, [False, True])
    assert annotations.warnings == ()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated", r"\(90 bytes, starts .*cut short"),
        ("list_top_level", r"must be an object .*a list of detections\?"),
        ("no_annotations_key", r"has no 'annotations'"),
        ("bbox_as_string", r'\$\.annotations\[0\] \(id 1\)\.bbox .*got "1,2,3,4"'),
        ("bbox_three_numbers", r"\$\.annotations\[0\] \(id 1\)\.bbox .*got \[1, 2, 3\]"),
        ("unknown_category", r"\.category_id must be .*got 77"),
        ("unknown_image", r"\.image_id must be .*got 9"),
        ("empty_images", r"images must list at least one"),
        ("negative_size", r"\.bbox .*got \[50, 50, -10, 20\]; if it lists two corners"),
    ],
)
def test_broken_files(shared, name, message):
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(shared / "odd" / f"ann_{name}.json")
    assert f"ann_{name}.json" in str(caught.value)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "num_boxes", "warning"),
    [
        ("bom", 1, "byte-order mark; it was skipped"),
        ("box_outside", 1, "kept as it is"),
        ("zero_area", 0, "dropped"),
        ("gap_category_ids", 1, None),
    ],
)
def test_harmless_faults(shared, name, num_boxes, warning):
    annotations = read_annotations(shared / "odd" / f"ann_{name}.json")
    assert len(annotations.boxes) == num_boxes
    assert annotations.boxes.bbox_xywh.shape == (num_boxes, 4)
    if warning is None:
        assert annotations.warnings == ()
    else:
        assert warning in annotations.warnings[0]


@pytest.mark.shared
def test_real_files_have_no_faults(shared):
    for path in sorted((shared / "datasets").glob("*/annotations/*.json")):
        assert read_annotations(path).warnings == (), path


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "file is empty"),
        (b"\xef\xbb\xbf \n", "file is empty"),
        (b"person 0.1 0.2", "not: Expecting value"),
        (json.dumps(GOOD).encode("utf-16"), "UTF-8; byte 0 is 0xff"),
        (gzip.compress(b"{}", mtime=0), "UTF-8; byte 1 is 0x8b"),
        (b'{"images": ' + b"[" * 100_000, "is not: "),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not: "),
        (b"{} {}", "is not: Extra data"),
        (b"null", "must be an object"),
        ({}, "has no 'images'"),
        (changed("images", value={"1": "a.jpg"}), r"Expected `array.*\$\.images"),
        (changed("annotations", 1, value=7), r"Expected `object`, got `int` .*annotations\[1\]"),
        (changed("annotations", value=None), "has no 'annotations'"),
        (changed("categories", value=...), "has no 'categories'"),
        (changed("categories", value=[]), "categories must list at least one"),
        (changed("categories", 0, "name", value=...), r"\[0\] \(id 9\)\.name .*got nothing"),
        (changed("categories", 0, "id", value=3), "ids of categories must be unique, got id 3 2"),
        (changed("images", 1, "id", value=1), r"unique, got id 1 2 times.*\[0\].*\[1\]"),
        (changed("images", 1, "id", value=True), r"id true\)\.id must be a whole.*got true"),
        (changed("images", 1, "id", value="2"), 'got "2"'),
        (changed("images", 1, "id", value=...), r"images\[1\]\.id must be .*got nothing"),
        (changed("images", 1, "id", value=2**60), "at most 9007199254740992"),
        (changed("images", 1, "id", value=1.5), "got 1.5"),
        (changed("images", 1, "file_name", value=...), "file_name must be .*got nothing"),
        (changed("images", 1, "file_name", value=" "), "file_name must be"),
        (changed("images", 1, "file_name", value="a\0b"), "file_name must be"),
        (changed("images", 0, "width", value="640"), r"width must be .*got \"640\""),
        (changed("images", 0, "height", value=480.5), r"height must be .*got 480\.5"),
        (changed("annotations", 0, "bbox", value=...), r"\(id 5\)\.bbox must .*got nothing"),
        (changed("annotations", 0, "bbox", value=[1, 2, True, 4]), "bbox must"),
        (changed("annotations", 0, "bbox", value=[1, 2, float("nan"), 4]), "bbox must .*NaN"),
        (changed("annotations", 0, "bbox", value=[1, 2, float("inf"), 4]), "bbox must .*Infinity"),
        (changed("annotations", 0, "bbox", value=[1, 2, 1e300, 4]), "bbox must"),
        (changed("annotations", 0, "area", value=float("nan")), "area must .*NaN"),
        (changed("annotations", 0, "area", value=-1), "area must .*-1"),
        (changed("annotations", 0, "iscrowd", value=2), "iscrowd must be 0 or 1, got 2"),
        (changed("annotations", 0, "iscrowd", value=[]), "iscrowd must be 0 or 1"),
        (changed("annotations", 0, "image_id", value=...), "image_id must .*got nothing"),
        (changed("annotations", 0, "category_id", value=False), "category_id must .*got false"),
    ],
)
def test_more_broken_files(read, document, message):
    with pytest.raises(AnnotationError, match=message):
        read(document)


@pytest.mark.parametrize(
    ("document", "warning"),
    [
        (changed("images", 1, "id", value=2.0), "decimal point"),
        (changed("images", 1, "file_name", value="/data/b.jpg"), "absolute or goes up"),
        (changed("images", 1, "file_name", value="..\\b.jpg"), "absolute or goes up"),
        (changed("images", 1, "file_name", value="a.jpg"), "one file_name"),
        (changed("images", 0, "width", value=0), "width is not above 0"),
        (changed("categories", 1, "name", value="x"), "one name"),
        (changed("annotations", 0, "area", value=...), "width times height was taken"),
        (changed("annotations", 0, "id", value=6), "annotation ids repeat"),
        (changed("annotations", 0, value=GOOD["annotations"][1]), "listed again"),
        (changed("annotations", 1, "bbox", value=[-9, 2, 3, 4]), "reaches out"),
        (changed("annotations", value=[]), "holds no box"),
        (changed("info", value={"year": float("nan")}), "NaN or Infinity"),
    ],
)
def test_more_harmless_faults(read, document, warning):
    annotations = read(document)
    assert any(warning in sentence for sentence in annotations.warnings), annotations.warnings
    assert len(annotations.images) == 2


def test_a_missing_area_is_that_of_the_box(read):
    annotations = read(changed("annotations", 0, "area", value=...))
    assert annotations.boxes.area[0] == 50.5 * 60


def test_outlines_and_unknown_fields_are_skipped(read):
    document = changed("annotations", 0, "segmentation", value=[["not", None, {"a": 1}]])
    assert len(read(document).boxes) == 2


def test_rounding_at_the_border_is_no_fault(read):
    assert read(changed("annotations", 1, "bbox", value=[600, 2, 40.4, 4])).warnings == ()


def test_a_warning_counts_and_shows_the_first_places(read):
    document = copy.deepcopy(GOOD)
    document["annotations"] = [
        {"id": i, "image_id": 1, "category_id": 9, "bbox": [i, 0, 5, 5]} for i in range(2000)
    ]
    missing = next(w for w in read(document).warnings if "area" in w)
    assert "(2000: $.annotations[0] (id 0), $.annotations[1] (id 1)" in missing
    assert len(missing) < 250


def test_paths_that_cannot_be_read(tmp_path):
    for path, message in [
        (tmp_path, "Is a directory"),
        (tmp_path / "absent.json", "No such file"),
        (tmp_path / "a\0b", "null"),
    ]:
        with pytest.raises(AnnotationError, match=message):
            read_annotations(path)
