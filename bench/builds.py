"""Builds whose records are committed: what `saccade build` finds for the shared models here.

    python -m bench.builds cells_640                 writes bench/results/builds/cells_640.json
    python -m bench.builds fastestdet --budget 20s -o try.json --keep folder

The record is the bundle's own report.json, less the figures by class of what was not chosen, with
the machine and the commit beside it. Run it with
nothing else on the machine: candidates are timed in interleaved rounds, but noise costs rounds.

Pictures to judge by: the labelled test part of the blood cells; for the others the COCO
photographs and the shared test pictures together, without labels, by agreement. Calibration: the
training part of the blood cells; for the others frames of the two shared videos, as no further
photographs are at hand. Large pictures: `cases.list_4k`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.cases import ROOT, SHARED, WORK, list_4k
from bench.environment import describe, without_paths

__all__ = ["BUILDS", "RESULTS", "BuildCase"]

RESULTS = ROOT / "bench" / "results" / "builds"
BCCD = SHARED / "datasets" / "bccd"
COCO = SHARED / "datasets" / "coco_ccby"
FRAMES_PER_VIDEO = 60
JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class BuildCase:
    """One build.

    Attributes:
        title: What the tables call it.
        model: File in the folder of shared models.
        images: Finds or makes the folder of pictures to judge by.
        calibration: Finds or makes the folder to calibrate on; None tries no INT8.
        options: Further fields of BuildOptions.
    """

    title: str
    model: str
    images: Callable[[], Path]
    calibration: Callable[[], Path] | None = None
    options: dict[str, Any] = field(default_factory=dict)


def coco_and_odd() -> Path:
    """The COCO photographs and the shared test pictures, in one folder."""
    folder = WORK / "pictures" / "coco_and_odd"
    if not folder.is_dir():
        aside = folder.with_name("coco_and_odd.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for path in sorted((COCO / "images").iterdir()) + sorted((SHARED / "images").iterdir()):
            shutil.copyfile(path, aside / path.name)
        aside.rename(folder)
    return folder


def video_frames() -> Path:
    """Frames of the shared videos, evenly over each."""
    folder = WORK / "pictures" / "video_frames"
    if not folder.is_dir():
        aside = folder.with_name("video_frames.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for path in sorted((SHARED / "video").glob("*.mp4")):
            _write_frames(path, aside)
        aside.rename(folder)
    return folder


def _write_frames(path: Path, folder: Path) -> None:
    import cv2

    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    for number in range(FRAMES_PER_VIDEO):
        frame = frames[number * len(frames) // FRAMES_PER_VIDEO]
        name = folder / f"{path.stem}_{number:02}.jpg"
        cv2.imwrite(str(name), frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def _large() -> Path:
    return list_4k()[0].parent


def _cells(title: str, **more: Any) -> BuildCase:
    options = {
        "data": BCCD / "annotations" / "test.json",
        "calibration_data": BCCD / "annotations" / "train.json",
        "max_drop": "AP=0.005",
        **more,
    }
    pictures = BCCD / "images"
    return BuildCase(title, "cells_640.onnx", lambda: pictures, lambda: pictures, options)


def _coco(title: str, model: str, **more: Any) -> BuildCase:
    return BuildCase(title, model, coco_and_odd, video_frames, more)


BUILDS = {
    "cells_640": _cells("cells_640", budget_s=280.0),
    "cells_640_latency": _cells("cells_640, latency", objective="latency", budget_s=100.0),
    "cells_640_limit": _cells("cells_640, p99 of 30 ms", latency_ms=30.0, budget_s=150.0),
    "yolox_nano": _coco("yolox_nano", "yolox_nano_416.onnx", budget_s=190.0),
    "nanodet_m": _coco("nanodet_m", "nanodet_m_320.onnx", budget_s=190.0),
    "fastestdet": _coco("fastestdet", "fastestdet_352.onnx", budget_s=190.0),
    "fastestdet_labels": BuildCase(
        "fastestdet, with labels",
        "fastestdet_352.onnx",
        lambda: COCO / "images",
        video_frames,
        {"data": COCO / "annotations" / "instances_80.json", "budget_s": 120.0},
    ),
    "deimv2_atto": _coco("deimv2_atto", "deimv2_atto_320.onnx", budget_s=190.0),
    "yolox_nano_4k": BuildCase(
        "yolox_nano, 4K pictures",
        "yolox_nano_416.onnx",
        _large,
        options={"scaled_decode": True, "budget_s": 120.0},
    ),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=sorted(BUILDS))
    parser.add_argument("--budget", help="in place of the case's")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--keep", type=Path, help="where to keep the bundle")
    given = parser.parse_args(arguments)
    output = given.output or RESULTS / f"{given.case}.json"
    with tempfile.TemporaryDirectory() as folder:
        report = _build(BUILDS[given.case], Path(folder) / "bundle", given.budget)
        if given.keep:
            shutil.copytree(Path(folder) / "bundle", given.keep, dirs_exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(without_paths({"case": given.case, **report}), indent=1)
    output.write_text(text + "\n")
    return 0


def _build(case: BuildCase, folder: Path, budget: str | None) -> dict[str, Any]:
    from saccade.builder.budget import parse_seconds
    from saccade.builder.build import BuildOptions, build
    from saccade.pipeline.detector import load

    options = {"images": case.images(), **case.options}
    if case.calibration:
        options["calibration_images"] = case.calibration()
    if budget:
        options["budget_s"] = parse_seconds(budget)
    environment = describe()
    with load(SHARED / "models" / case.model) as detector:
        model, contract = detector.model, detector.contract
    built = build(model, contract, folder, BuildOptions(**options), _say)
    report = json.loads((built.bundle.path / "report.json").read_text())
    asked = {k: v.name if isinstance(v, Path) else v for k, v in options.items()}
    return {"title": case.title, "asked": asked, "environment": environment, **_smaller(report)}


def _smaller(report: dict[str, Any]) -> dict[str, Any]:
    """Without the figures by class of what was not chosen: with 80 classes they are most of it."""
    for index, row in enumerate(report["rows"]):
        for key in ("metrics", "reference", "drops") if row["verdict"] else ():
            if index != report["chosen"]:
                known = row["verdict"][key].items()
                row["verdict"][key] = {k: v for k, v in known if not k.startswith("class:")}
    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
