from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saccade.errors import InputError, PictureError, SinkError
from saccade.formats import Record
from saccade.pipeline.decimals import shortest_decimals
from saccade.pipeline.journal import FILE_NAME, Journal
from saccade.types import Detections, Result

IDENTITY: dict[str, Any] = {
    "model": "abc",
    "thresholds": {"score": 0.25, "iou": 0.45},
    "sizes": (1, 2),
}


def boxes(*scores: float) -> Detections:
    k = len(scores)
    rows = np.arange(4 * k, dtype=np.float32).reshape(k, 4) / 3
    return Detections(rows, np.array(scores, np.float32), np.zeros(k, np.int32))


def filled(folder: Path, *names: str) -> None:
    journal = Journal.open(folder, IDENTITY)
    for i, name in enumerate(names):
        journal.append(Result(i, name, (4, 3), boxes(0.9, 0.1)))
    journal.close()


def paths(folder: Path) -> list[str]:
    journal = Journal.open(folder, IDENTITY, resume=True)
    found = list(journal.records(Record))
    assert [record.index for record in found] == list(range(journal.num_done))
    journal.close()
    return [record.path for record in found]


def test_what_is_appended_comes_back_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    k, p = 50, 3
    found = Detections(
        (rng.random((k, 4)) * 10_000).astype(np.float32),
        (rng.random(k) ** 20).astype(np.float32),
        rng.integers(0, 80, k).astype(np.int32),
        (rng.random((k, p, 2)) * 100 - 50).astype(np.float32),
    )
    journal = Journal.open(tmp_path / "new" / "folder", IDENTITY)
    journal.append(Result(0, "a", (7, 8), found))
    journal.append(Result(1, "b", error=PictureError("is broken")))
    journal.append(Result(2, "c", (1, 1), boxes()))
    first, second, third = journal.records(Record)
    assert (first.path, first.size_wh, first.error) == ("a", (7, 8), None)
    for name in ("boxes_xyxy", "scores", "classes", "keypoints_xy"):
        wanted = getattr(found, name)
        np.testing.assert_array_equal(np.array(getattr(first, name), wanted.dtype), wanted)
    assert second.error is not None
    assert (second.error.kind, second.error.message) == ("PictureError", "is broken")
    assert (third.boxes_xyxy, third.scores, third.error) == ([], [], None)
    assert (journal.num_done, journal.num_detections, journal.num_errors) == (3, 50, 1)
    journal.remove()
    assert not any((tmp_path / "new" / "folder").iterdir())


def test_numbers_that_are_not_finite_are_that_pictures_error(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    journal.append(Result(0, "a", (4, 3), boxes(0.5, float("nan"))))
    journal.append(Result(1, "b", (4, 3), boxes(0.5)))
    first, second = journal.records(Record)
    assert first.error is not None
    assert first.error.kind == "EngineError"
    assert second.error is None
    journal.remove()


def test_a_result_without_an_outcome_is_refused(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    with pytest.raises(InputError, match="neither"):
        journal.append(Result(0, "a"))
    journal.close()


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False,
       allow_infinity=False)))  # fmt: skip
def test_decimals_lose_nothing(values: np.ndarray) -> None:
    decimals = shortest_decimals(values)
    np.testing.assert_array_equal(decimals.astype(np.float32), values)
    text = msgspec.json.encode(decimals.tolist())
    back = np.array(msgspec.json.decode(text), np.float64).astype(np.float32)
    np.testing.assert_array_equal(back, values)


def test_decimals_of_ordinary_values_are_the_shortest(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.random(2000) * 4000, rng.random(2000), [0, 1, 0.5]])
    values = values.astype(np.float32)
    wanted = [float(str(value)) for value in values]
    assert shortest_decimals(values).tolist() == wanted


def test_names_are_counted(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b", "a", "caf\udce9")
    journal = Journal.open(tmp_path, IDENTITY, resume=True)
    assert journal.num_resumed == journal.num_left == journal.num_done == 4
    assert [journal.take(name) for name in ("a", "c", "a", "a", "caf\udce9", "b", "b")] == [
        True, False, True, False, True, True, False,
    ]  # fmt: skip
    assert journal.num_left == 0
    journal.append(Result(9, "new", (1, 1), boxes()))
    assert not journal.take("new")
    journal.close()
    assert paths(tmp_path) == ["a", "b", "a", "caf\\udce9", "new"]


def test_a_torn_tail_is_cut_at_every_byte(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b")
    whole = (tmp_path / FILE_NAME).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        (tmp_path / FILE_NAME).write_bytes(whole[:size])
        num_whole = sum(end <= size for end in ends)
        assert paths(tmp_path) == ["a", "b"][: max(num_whole - 1, 0)]


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"\xff\xfe\n", b'{"index":2}\n', b"\n", b"[]\n"])
def test_rubbish_after_a_power_cut_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    filled(tmp_path, "a", "b")
    with open(tmp_path / FILE_NAME, "ab") as stream:
        stream.write(tail)
    assert paths(tmp_path) == ["a", "b"]
    assert not (tmp_path / FILE_NAME).read_bytes().endswith(tail * 2)


def test_a_line_out_of_its_place_ends_the_journal(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b", "c")
    lines = (tmp_path / FILE_NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE_NAME).write_bytes(b"".join([lines[0], lines[1], lines[3], lines[2]]))
    assert paths(tmp_path) == ["a"]


def test_another_job_is_refused_and_named(tmp_path: Path) -> None:
    filled(tmp_path, "a")
    other = IDENTITY | {"thresholds": {"score": 0.3, "iou": 0.45}, "extra": 1}
    with pytest.raises(InputError) as caught:
        Journal.open(tmp_path, other, resume=True)
    assert "thresholds.score was 0.25, is 0.3" in str(caught.value)
    assert "extra was 'absent', is 1" in str(caught.value)
    assert "iou" not in str(caught.value)
    assert paths(tmp_path) == ["a"]


def test_an_unfinished_job_is_never_lost_silently(tmp_path: Path) -> None:
    filled(tmp_path, "a")
    with pytest.raises(InputError, match="--resume goes on with it, --overwrite"):
        Journal.open(tmp_path, IDENTITY)
    assert paths(tmp_path) == ["a"]
    journal = Journal.open(tmp_path, {"other": 1}, overwrite=True)
    assert (journal.num_done, journal.take("a")) == (0, False)
    journal.close()
    assert not any(tmp_path.iterdir())


def test_finished_results_are_never_lost_silently(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("precious")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"has out\.json: --overwrite"):
            Journal.open(tmp_path, IDENTITY, resume=resume, outputs=["out.json"])
        assert os.listdir(tmp_path) == ["out.json"]
    Journal.open(tmp_path, IDENTITY, overwrite=True, outputs=["out.json"]).close()
    assert (tmp_path / "out.json").read_text() == "precious"


def test_two_journals_in_one_folder_are_refused(tmp_path: Path) -> None:
    first = Journal.open(tmp_path, IDENTITY)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match="another process"):
            Journal.open(tmp_path, IDENTITY, **options)
    first.append(Result(0, "a", (1, 1), boxes()))
    first.close()
    first.close()
    assert paths(tmp_path) == ["a"]


def test_contradicting_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of the two"):
        Journal.open(tmp_path, IDENTITY, resume=True, overwrite=True)


@pytest.mark.parametrize("head", [b"hello\n", b"{}\n", b'{"schema":99,"identity":{}}\n', b"\xff\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, head: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(head)
    for options in ({}, {"resume": True}):
        with pytest.raises(InputError, match="must be a"):
            Journal.open(tmp_path, IDENTITY, **options)
    assert (tmp_path / FILE_NAME).read_bytes() == head


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in ("file", "file/inner"):
        with pytest.raises(SinkError, match="folder"):
            Journal.open(tmp_path / folder, IDENTITY)


def test_a_folder_that_vanishes_is_noticed_at_the_next_picture(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "out", IDENTITY)
    journal.append(Result(0, "a", (1, 1), boxes()))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(SinkError, match="vanished"):
        journal.append(Result(1, "b", (1, 1), boxes()))
    journal.close()


def test_a_line_that_is_damaged_while_the_job_runs(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, IDENTITY)
    for i in range(3):
        journal.append(Result(i, "a", (1, 1), boxes()))
    lines = (tmp_path / FILE_NAME).read_bytes().splitlines(keepends=True)
    with open(tmp_path / FILE_NAME, "r+b") as stream:
        stream.seek(len(lines[0] + lines[1]))
        stream.write(b"\xff\xff")
    with pytest.raises(SinkError, match="picture 1 is damaged"):
        list(journal.records(Record))
    journal.close()
    assert paths(tmp_path) == ["a"]
