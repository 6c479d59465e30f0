"""Classes find their categories by name, else by order, and say what is left over."""

from __future__ import annotations

import numpy as np
import pytest

from saccade.errors import AnnotationError, InputError
from saccade.evaluation.annotations import (
    AnnotatedImage,
    Annotations,
    Boxes,
    Category,
    read_annotations,
)
from saccade.evaluation.matching import match_categories


def file_with(*categories, used=()):
    m = len(used)
    boxes = Boxes(
        np.ones(m, np.int64),
        np.array(used, np.int64),
        np.ones((m, 4)),
        np.ones(m),
        np.zeros(m, np.bool_),
    )
    named = tuple(Category(id, name) for id, name in categories)
    return Annotations((AnnotatedImage(1, "a.jpg"),), named, boxes)


CELLS = file_with((3, "WBC"), (1, "Platelets"), (2, "RBC"))


def test_by_name_whatever_the_order_or_case():
    found = match_categories((" rbc", "WBC", "PLATELETS\n"), 3, CELLS)
    assert found.category_ids == (2, 3, 1)
    assert found.notes == ()


@pytest.mark.parametrize("labels", [(), ("one", "two", "three")])
def test_by_order_where_names_do_not_help(labels):
    found = match_categories(labels, 3, CELLS)
    assert found.category_ids == (1, 2, 3)
    (note,) = found.notes
    assert "order of category ids" in note
    assert "Platelets" in note


def test_some_names_match():
    found = match_categories(("rbc", "dog"), 2, CELLS)
    assert found.category_ids == (2, None)
    dropped, missed = found.notes
    assert "dog" in dropped
    assert "WBC, Platelets" in missed
    is_known, ids = found.apply(np.array([1, 0, 0], np.int32))
    np.testing.assert_array_equal(is_known, [False, True, True])
    np.testing.assert_array_equal(ids, [2, 2])
    assert ids.dtype == np.int64
    assert found.apply(np.zeros(0, np.int32))[1].shape == (0,)


@pytest.mark.parametrize(("labels", "num"), [((), 80), (("cat", "dog"), 2)])
def test_nothing_fits(labels, num):
    with pytest.raises(AnnotationError, match=r"the file has 3 \(Platelets.*--labels FILE") as e:
        match_categories(labels, num, CELLS)
    assert ("cat, dog" if labels else "names unknown") in str(e.value)


def test_labels_must_be_one_per_class():
    with pytest.raises(InputError, match=r"one per class of the model \(3\), got 1"):
        match_categories(("rbc",), 3, CELLS)


def test_one_name_twice():
    parent = file_with((0, "cell"), (1, "cell"), used=[1, 1])
    assert match_categories(("cell",), 1, parent).category_ids == (1,)
    both = file_with((0, "cell"), (1, "Cell"), used=[0, 1])
    with pytest.raises(AnnotationError, match=r"'cell' for the ids 0, 1"):
        match_categories(("cell",), 1, both)


@pytest.mark.shared
def test_the_numberings_of_coco(shared):
    folder = shared / "datasets" / "coco_ccby" / "annotations"
    dense = read_annotations(folder / "instances_80.json")
    labels = [c.name for c in sorted(dense.categories, key=lambda c: c.id)]
    sparse = match_categories(labels, 80, read_annotations(folder / "instances_91.json"))
    assert sparse.notes == ()
    assert sparse.category_ids[0] == 1
    assert sparse.category_ids[-1] == 90
    person = match_categories(labels, 80, read_annotations(folder / "person.json"))
    assert person.category_ids[0] is not None
    assert person.category_ids[1:] == (None,) * 79
    assert "79 of the model's 80 classes" in person.notes[0]
