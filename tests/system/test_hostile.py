"""All real and all broken pictures in one job: each has its own outcome, in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import saccade

pytestmark = pytest.mark.shared

# What is wrong with each broken file, in words that its error must have.
ODD = {
    "img_bad_crc.png": "CRC",
    "img_bomb_40000x40000_1bit.png": "1600000000",
    "img_bomb_8000x8000_rgb.png": "64000000",
    "img_html_named.png": "HTML",
    "img_jpeg_bytes_named.png": None,
    "img_no_eoi_truncated.jpg": "truncated",
    "img_png_bytes_named.jpg": None,
    "img_sof_claims_65500x65500.jpg": "4290250000",
    "img_svg.svg": "SVG",
    "img_text_named.jpg": "text",
    "img_truncated_50pct.png": "",
    "img_truncated_header.jpg": "",
    "img_zero_byte.jpg": "empty",
}


@pytest.fixture(scope="module")
def good(shared):
    return sorted((shared / "datasets/coco_ccby/images").glob("*.jpg"))[:3]


@pytest.fixture(scope="module")
def job(shared, good, tmp_path_factory):
    """Every odd and every real picture with a good one between, and what the disk can do."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "folder.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    bad = sorted((shared / "odd").glob("img_*")) + sorted((shared / "images").glob("*.*"))
    bad = [path for path in bad if path.suffix != ".json"]
    bad += [folder / name for name in ("folder.jpg", "dangling.jpg", "pipe.jpg", "missing.jpg")]
    inputs = []
    for index, path in enumerate(bad):
        inputs += [path, good[index % len(good)]]
    return inputs


@pytest.fixture(scope="module")
def detector(shared):
    with saccade.load(shared / "models/fastestdet_352.onnx") as made:
        yield made


@pytest.fixture(scope="module")
def reference(detector, good):
    return {str(path): detector(path) for path in good}


def same(a, b):
    return (
        a.classes.tolist() == b.classes.tolist()
        and np.allclose(a.boxes_xyxy, b.boxes_xyxy, atol=0.01)
        and np.allclose(a.scores, b.scores, atol=1e-4)
    )


def test_the_list_is_complete(shared):
    assert {path.name for path in (shared / "odd").glob("img_*")} == set(ODD)


@pytest.mark.parametrize("how", [{}, {"is_overlapped": False}, {"workers": 3}], ids=str)
def test_every_picture_has_its_own_outcome(detector, job, good, reference, how):
    results = list(saccade.run(detector, job, **how))
    assert [r.path for r in results] == [str(path) for path in job]
    for result, path in zip(results, job, strict=True):
        if path in good:
            assert result.error is None
            assert same(result.detections, reference[result.path])
            continue
        text = str(result.error or "")
        if "odd" in path.parts and ODD[path.name] is not None:
            assert ODD[path.name].lower() in text.lower(), (path.name, text)
            assert text
        elif path.parent.name.startswith("hostile"):
            assert text, path.name
        else:
            assert result.error is None, text
            assert result.size_wh is not None
        assert path.name in text or not text


def test_the_command_line_tells_each_and_ends_with_3(shared, job, tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "saccade", "detect", str(shared / "models/fastestdet_352.onnx"),
         *map(str, job), "-o", str(out), "--format", "jsonl,coco,npz"],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in job]
    failed = [line for line in lines if "error" in line]
    assert len(failed) == sum(text is not None for text in ODD.values()) + 4
    for line in failed[:20]:
        assert line["error"]["message"] in done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "contract.toml",
        "detections.coco.json",
        "detections.jsonl",
        "detections.npz",
    ]


def test_strict_stops_at_the_first_and_keeps_what_was_done(shared, good, tmp_path):
    inputs = [str(good[0]), str(good[1]), str(shared / "odd/img_zero_byte.jpg"), str(good[2])]
    command = [sys.executable, "-m", "saccade", "detect",
               str(shared / "models/fastestdet_352.onnx"), *inputs,
               "-o", str(tmp_path / "out"), "--format", "jsonl"]  # fmt: skip
    done = subprocess.run([*command, "--strict"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "img_zero_byte.jpg" in done.stderr
    assert "2 pictures are safe" in done.stderr
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    lines = (tmp_path / "out/detections.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == inputs


def test_unreadable_files_are_told(detector, good):
    # Not below tmp_path, whose folders only their owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        check_unreadable(detector, good, Path(folder) / "locked.jpg")


def check_unreadable(detector, good, locked):
    locked.write_bytes(good[0].read_bytes())
    locked.chmod(0)
    # Root may read everything, so the process gives that up once all is imported and loaded.
    code = """
import os, sys, saccade
with saccade.load(sys.argv[1], backend="null") as detector:
    assert next(saccade.run(detector, [sys.argv[2]])).error is None
    if os.geteuid() == 0:
        os.setuid(65534)
    print(*(r.error for r in saccade.run(detector, [sys.argv[3]])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(detector.model.path), str(good[0]), str(locked)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stdout
    assert "locked.jpg" in done.stdout


def test_a_picture_that_vanishes_during_the_job_is_one_error(detector, good, tmp_path):
    paths = [tmp_path / f"{index}.jpg" for index in range(40)]
    for path in paths:
        path.write_bytes(good[0].read_bytes())
    run = saccade.run(detector, paths, workers=1, streams=1)
    first = next(run)
    paths[-1].unlink()
    results = [first, *run]
    assert [r.error is None for r in results] == [True] * 39 + [False]
    assert "39.jpg" in str(results[-1].error)
