from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import skip_or_fail
from pipeline_sink_job import FORMATS, LABELS, results
from saccade.errors import BackendUnavailable, InputError, PictureError, SinkError
from saccade.pipeline.journal import FILE_NAME
from saccade.pipeline.sinks import ResultSink, Summary, draw_one, drawn_name
from saccade.types import Detections, Result

JOB = [sys.executable, str(Path(__file__).parent.parent / "pipeline_sink_job.py")]
FINAL = ("detections.coco.json", "detections.jsonl", "detections.npz")


def run(folder: Path, seed: int, num: int, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*JOB, str(folder), str(seed), str(num), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def final_bytes(folder: Path) -> dict[str, bytes]:
    assert sorted(os.listdir(folder)) == sorted(FINAL)
    return {name: (folder / name).read_bytes() for name in FINAL}


def write(folder: Path, seed: int, num: int, **options: bool) -> Summary:
    with ResultSink(
        folder, {"seed": seed}, labels=LABELS, output_formats=FORMATS, **options
    ) as sink:
        for result in results(seed, num):
            if not sink.take(result.path):
                sink.send(result)
        return sink.finish()


def test_a_job_leaves_its_files_and_nothing_else(tmp_path: Path) -> None:
    summary = write(tmp_path / "a", 1, 40)
    assert summary.num_pictures == 40
    assert summary.num_errors == sum(r.error is not None for r in results(1, 40))
    assert summary.num_detections == sum(len(r.detections or ()) for r in results(1, 40))
    assert (summary.num_resumed, summary.num_not_in_inputs) == (0, 0)
    assert [file.name for file in summary.files] == list(FINAL)
    assert (
        final_bytes(tmp_path / "a")
        == (write(tmp_path / "b", 1, 40), final_bytes(tmp_path / "b"))[1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_any_moment_and_resumed_gives_the_same_files(tmp_path: Path, seed: int) -> None:
    num = 400
    chance = random.Random(seed)
    num_done = 0
    for _ in range(3):
        command = [*JOB, str(tmp_path / "out"), str(seed), str(num), "stdout", "resume"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(chance.randint(1, 100)):
                num_done = int(process.stdout.readline()) + 1
            process.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path / "out") == [FILE_NAME]
    lines = (tmp_path / "out" / FILE_NAME).read_bytes().count(b"\n")
    assert lines - 1 >= num_done
    summary = write(tmp_path / "out", seed, num, resume=True)
    assert summary.num_pictures == num
    assert num_done <= summary.num_resumed <= num
    assert summary.num_not_in_inputs == 0
    write(tmp_path / "whole", seed, num)
    assert final_bytes(tmp_path / "out") == final_bytes(tmp_path / "whole")


def test_leaving_by_an_exception_keeps_the_journal_and_says_so(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ResultSink(tmp_path, {}, output_formats=["jsonl"]) as sink:
            for result in results(5, 3):
                sink.send(result)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    [note] = caught.value.__notes__
    assert "3 pictures are safe" in note
    assert "--resume" in note
    assert os.listdir(tmp_path) == [FILE_NAME]
    with ResultSink(tmp_path, {}, output_formats=["jsonl"], resume=True) as sink:
        assert sink.num_done == sink.num_resumed == 3
        assert sink.finish().num_not_in_inputs == 3


def test_leaving_before_the_first_picture_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ResultSink(tmp_path, {}):
        1 / 0
    assert os.listdir(tmp_path) == []


def test_finished_results_are_replaced_only_on_demand(tmp_path: Path) -> None:
    write(tmp_path, 1, 5)
    before = final_bytes(tmp_path)
    for resume in (False, True):
        with pytest.raises(InputError, match="--overwrite"):
            write(tmp_path, 2, 5, resume=resume)
        assert final_bytes(tmp_path) == before
    write(tmp_path, 2, 5, overwrite=True)
    assert final_bytes(tmp_path) != before


def test_killed_between_the_files_and_the_journals_end(tmp_path: Path) -> None:
    write(tmp_path / "whole", 1, 9)
    assert run(tmp_path / "out", 1, 9).returncode == 0
    (tmp_path / "out" / FINAL[0]).write_bytes(b"final")
    (tmp_path / "out" / (FINAL[1] + ".partial")).write_bytes(b"torn")
    write(tmp_path / "out", 1, 9, resume=True)
    assert final_bytes(tmp_path / "out") == final_bytes(tmp_path / "whole")


def test_formats_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    for wrong in ([], "coco", ["coc"]):
        with pytest.raises(InputError, match="coco"):
            ResultSink(tmp_path / "out", {}, output_formats=wrong)
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'saccade\[interop\]'"):
        ResultSink(tmp_path / "out", {}, output_formats=["parquet"])
    assert not (tmp_path / "out").exists()


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    command = [*JOB, str(tmp_path), "1", "9", "hold", "finish"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        for flags in ([], ["resume"]):
            second = run(tmp_path, 1, 9, *flags)
            assert second.returncode == 3
            assert second.stdout.startswith("InputError")
            assert "another process" in second.stdout
        first.communicate("go\n")
    assert first.returncode == 0
    final_bytes(tmp_path)


def test_a_file_size_limit_while_the_job_runs(tmp_path: Path) -> None:
    failed = run(tmp_path / "out", 4, 60, "limit=20000", "finish")
    assert failed.returncode == 3, failed.stderr
    assert failed.stdout.startswith("SinkError")
    for part in (FILE_NAME, "limit on file sizes", "pictures are safe", "--resume"):
        assert part in failed.stdout
    assert os.listdir(tmp_path / "out") == [FILE_NAME]
    assert (tmp_path / "out" / FILE_NAME).read_bytes().endswith(b"\n")
    summary = write(tmp_path / "out", 4, 60, resume=True)
    assert 0 < summary.num_resumed < 60
    write(tmp_path / "whole", 4, 60)
    assert final_bytes(tmp_path / "out") == final_bytes(tmp_path / "whole")


def test_a_file_size_limit_while_the_files_are_made(tmp_path: Path) -> None:
    write(tmp_path / "whole", 4, 60)
    assert run(tmp_path / "out", 4, 60).returncode == 0
    size = (tmp_path / "out" / FILE_NAME).stat().st_size
    assert (tmp_path / "whole" / FINAL[0]).stat().st_size > size
    failed = run(tmp_path / "out", 4, 60, "resume", "finish", f"limit={size}")
    assert failed.stdout.startswith("SinkError"), failed
    assert "60 pictures are safe" in failed.stdout
    assert os.listdir(tmp_path / "out") == [FILE_NAME]
    assert write(tmp_path / "out", 4, 60, resume=True).num_resumed == 60
    assert final_bytes(tmp_path / "out") == final_bytes(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        skip_or_fail("root", "mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("fill_kib", [0, 100, 150, 200])
def test_a_full_disk(tmp_path: Path, small_disk: Path, fill_kib: int) -> None:
    # With less fill the files do not fit, with more the journal does not.
    num = 120
    (small_disk / "fill").write_bytes(b"x" * (fill_kib << 10))
    out = small_disk / "out"
    with pytest.raises(SinkError, match=r"the disk is full.* pictures are safe.*--resume"):
        write(out, 4, num)
    assert os.listdir(out) == [FILE_NAME]
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert write(out, 4, num, resume=True).num_resumed > 0
    write(tmp_path / "whole", 4, num)
    assert final_bytes(out) == final_bytes(tmp_path / "whole")


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SinkError, match="read-only"):
        ResultSink(small_disk / "out", {})


def test_a_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("root", "another user's identity needs root")
    os.seteuid(65534)
    try:
        with pytest.raises(SinkError, match="permission denied"):
            ResultSink(tmp_path / "out", {})
    finally:
        os.seteuid(0)


def test_a_folder_that_is_moved_away(tmp_path: Path) -> None:
    with ResultSink(tmp_path / "out", {}) as sink:
        for result in results(1, 3):
            sink.send(result)
        os.rename(tmp_path / "out", tmp_path / "elsewhere")
        with pytest.raises(SinkError, match="vanished"):
            sink.finish()
    with ResultSink(tmp_path / "elsewhere", {}, resume=True) as sink:
        assert sink.finish().num_resumed == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_job(tmp_path: Path) -> None:
    done = run(tmp_path, 1, 10_000, "finish", "rss")
    assert done.returncode == 0, done
    written = sum((tmp_path / name).stat().st_size for name in FINAL)
    assert written > 10 << 20
    assert int(done.stdout) < 6 << 10, "KiB"


def result_of(index: int, path: str, *, k: int = 1) -> Result:
    rows = np.tile(np.array([[2, 2, 20, 20]], np.float32), (k, 1))
    found = Detections(rows, np.full(k, 0.5, np.float32), np.zeros(k, np.int32))
    return Result(index, path, (40, 30), found)


def test_drawn_pictures(tmp_path: Path) -> None:
    import cv2

    picture = np.full((30, 40, 3), 128, np.uint8)
    encoded = cv2.imencode(".png", picture)[1].tobytes()
    (tmp_path / "a.png").write_bytes(encoded)
    sources = (tmp_path / "a.png", encoded, picture)
    files = [
        draw_one(result_of(i, "../x/a.png"), source, tmp_path / "out", ["cat"])
        for i, source in enumerate(sources)
    ]
    assert sorted(os.listdir(tmp_path / "out" / "drawn")) == sorted(f.name for f in files if f)
    contents = {file.read_bytes() for file in files if file}
    assert len(contents) == 1
    drawn = cv2.imdecode(np.frombuffer(contents.pop(), np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == picture.shape
    assert np.ptp(drawn.astype(int)) > 50
    error = Result(0, "a", error=PictureError("broken"))
    assert draw_one(error, picture, tmp_path / "out") is None


def test_a_drawn_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "drawn").write_text("in the way")
    with pytest.raises(SinkError, match="drawn"):
        draw_one(result_of(0, "a"), np.zeros((30, 40, 3), np.uint8), tmp_path)


NASTY = [
    "a.jpg", "b/a.jpg", "../../etc/passwd", "..", "", "/", "a\0b", "a\nb.jpg", "x" * 5000,
    "caf\udce9.jpg", "日本.png", "CON", "-rf.jpg", "<array 3>", "a" * 79 + "..", ".jpg", "\\..\\a",
]  # fmt: skip


def test_drawn_names_are_safe_unique_and_stable() -> None:
    names = [drawn_name(result_of(i, path)) for i, path in enumerate(NASTY * 2)]
    assert len(set(names)) == len(names)
    assert names == [drawn_name(result_of(i, path)) for i, path in enumerate(NASTY * 2)]
    for name in names:
        assert len(name) < 120
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set("/\\ :<>|?*\"'")
        assert ".." not in name
    assert drawn_name(result_of(3, "a.jpg")) != drawn_name(result_of(3, "b/a.jpg"))


def test_the_json_is_json(tmp_path: Path) -> None:
    write(tmp_path, 1, 30)
    with open(tmp_path / FINAL[0], encoding="utf-8") as stream:
        assert json.load(stream)["info"]["job"] == {"seed": 1}
    for line in (tmp_path / FINAL[1]).read_text("utf-8").splitlines():
        json.loads(line)
