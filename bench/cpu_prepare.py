"""What do decode, resize, convert, place and suppress cost on one CPU thread, by each way to do it?

    python -m bench.cpu_prepare -o bench/results/cpu/prepare.json

Every candidate first answers and is held against the plain reference; one that is further off than
allowed is refused and not timed. Then all of a group run in turns, so that what else the machine
does hits them alike. `python -m bench.tables` writes docs/performance/cpu-prepare.md's tables.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from bench.cases import JPEG_QUALITY, SEED, SHARED, list_1080p
from bench.conversions import FLOAT32_ERROR, convert_case, fill
from bench.environment import describe
from bench.turns import Candidate, largest, measure
from saccade.types import InputRule
from saccade.vision import exif
from saccade.vision.decode import Decoder
from saccade.vision.jpeg import read_header
from saccade.vision.place import Placer, place_reference, single_threaded_cv2
from saccade.vision.resample import resample_antialias, resample_reference
from saccade.vision.suppress import suppress, suppress_reference

ROUNDS = {"steps": 61, "suppress": 21, "suppress_20000": 3}
ONE_LEVEL = 1.0  # of 255; OpenCV and Pillow resize in fixed point
IOU = 0.65
NUM_CLASSES = 80
NUM_OBJECTS = 20
MAX_DETECTIONS = 300


def people(size_wh: tuple[int, int]) -> np.ndarray:
    """The shared photograph of people, cut to the shape and shrunk to the size."""
    photo = cv2.imread(str(SHARED / "images" / "people_group_1200x800.jpeg"), cv2.IMREAD_COLOR_RGB)
    h, w = photo.shape[:2]
    cut_w = min(w, round(h * size_wh[0] / size_wh[1]))
    cut_h = min(h, round(w * size_wh[1] / size_wh[0]))
    left, top = (w - cut_w) // 2, (h - cut_h) // 2
    cut = np.ascontiguousarray(photo[top : top + cut_h, left : left + cut_w])
    return np.asarray(cv2.resize(cut, size_wh, interpolation=cv2.INTER_AREA))


def as_jpeg(picture: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def steps() -> dict[str, Candidate]:
    """One candidate per step: what the pipeline calls."""
    vga, full_hd, wide = people((640, 480)), list_1080p()[0].read_bytes(), people((1200, 800))
    vga_jpeg = as_jpeg(vga)
    hd = Decoder().decode(full_hd).copy()
    return {
        "JPEG header: size, orientation, stray bytes": header(vga_jpeg),
        f"decode 640 x 480 ({kilobytes(vga_jpeg)}), `Decoder`": decode(vga_jpeg),
        f"decode 640 x 480 ({kilobytes(vga_jpeg)}), simplejpeg alone": decode_bare(vga_jpeg),
        f"decode 1920 x 1080 ({kilobytes(full_hd)}), `Decoder`": decode(full_hd),
        "resize 640 x 480 to 416 x 312, linear": resize(vga, (416, 312)),
        "resize 1920 x 1080 to 640 x 360, linear": resize(hd, (640, 360)),
        "resize 1920 x 1080 to 320 x 320, antialias (Pillow)": antialias(hd, (320, 320)),
        "turn 1200 x 800 by EXIF": turn(wide),
        "fill a 640 x 640 input with one constant": fill(np.empty((3, 640, 640), np.float32)),
        "padding of a 640 x 640 input, 160 rows": pad(),
        "`Placer.place` 640 x 480 in 640 x 640, float32": place(vga, (640, 640)),
        "the same, float16 (by table)": place(vga, (640, 640), dtype="float16"),
        "the same, float32 (h, w, 3)": place(vga, (640, 640), layout="nhwc"),
        "`Placer.place` 12 x 8 in 24 x 24: all calls, no work": place(people((12, 8)), (24, 24)),
    }


def kilobytes(data: bytes) -> str:
    return f"{len(data) / 1000:.0f} KB"


def header(data: bytes) -> Candidate:
    def error() -> float:
        found, opened = read_header(data), Image.open(io.BytesIO(data))
        told = (*opened.size, opened.getexif().get(0x0112, 1), False)
        return float((*found.wh, found.orientation, found.is_untidy) != told)

    return Candidate(lambda: read_header(data), error)


def decode(data: bytes) -> Candidate:
    decoder = Decoder()
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return Candidate(lambda: decoder.decode(data), lambda: largest(decoder.decode(data), want))


def decode_bare(data: bytes) -> Candidate:
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    buffer = np.empty(want.size, np.uint8)

    def run() -> np.ndarray:
        return np.asarray(simplejpeg.decode_jpeg(data, "rgb", buffer=buffer))

    return Candidate(run, lambda: largest(run(), want))


def resize(picture: np.ndarray, size_wh: tuple[int, int]) -> Candidate:
    out = np.empty((*size_wh[::-1], 3), np.uint8)

    def run() -> None:
        cv2.resize(picture, size_wh, dst=out, interpolation=cv2.INTER_LINEAR)

    def error() -> float:
        run()
        return largest(out, np.rint(resample_reference(picture, size_wh[::-1], "linear")))

    return Candidate(run, error, ONE_LEVEL)


def antialias(picture: np.ndarray, size_wh: tuple[int, int]) -> Candidate:
    def error() -> float:
        want = np.rint(resample_reference(picture, size_wh[::-1], "antialias"))
        return largest(resample_antialias(picture, size_wh[::-1]), want)

    return Candidate(lambda: resample_antialias(picture, size_wh[::-1]), error, ONE_LEVEL)


def turn(picture: np.ndarray) -> Candidate:
    h, w = picture.shape[:2]
    out = np.empty((w, h, 3), np.uint8)

    def error() -> float:
        exif.apply(picture, 6, out)
        return largest(out, np.rot90(picture, -1))

    return Candidate(lambda: exif.apply(picture, 6, out), error)


def pad() -> Candidate:
    """As Placer pads above and below a 640 x 480 picture."""
    rule = InputRule(name="images", size_hw=(640, 640))
    value = np.float32(rule.pad_value / rule.std[0])
    out = np.empty((3, 640, 640), np.float32)

    def run() -> None:
        for plane in out:
            plane[:80] = value
            plane[560:] = value

    def error() -> float:
        out.fill(np.nan)
        run()
        want = place_reference(np.zeros((480, 640, 3), np.uint8), rule)[0]
        above, below = largest(out[:, :80], want[:, :80]), largest(out[:, 560:], want[:, 560:])
        return max(above, below)

    return Candidate(run, error, FLOAT32_ERROR)


def place(picture: np.ndarray, input_wh: tuple[int, int], **changes: Any) -> Candidate:
    rule = InputRule(name="images", size_hw=input_wh[::-1], **changes)
    want, placement = place_reference(picture, rule)
    out, placer = np.empty_like(want), Placer(rule)
    is_resized = 1.0 not in placement.scale_xy

    def error() -> float:
        out.fill(np.nan)
        return largest(out, want) if placer.place(picture, out) == placement else math.inf

    allowed = ONE_LEVEL / 255 + FLOAT32_ERROR if is_resized else FLOAT32_ERROR
    return Candidate(lambda: placer.place(picture, out), error, allowed)


def suppression(kind: str, num: int) -> dict[str, Candidate]:
    """Ours, OpenCV's and, where it ends in time, the reference, on the same candidates."""
    boxes, scores, classes = scattered(kind, num)
    want = suppress_best(boxes, scores, classes)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)

    def ours() -> np.ndarray:
        return suppress(boxes, scores, classes, IOU, max_detections=MAX_DETECTIONS)

    def opencv() -> np.ndarray:
        kept = cv2.dnn.NMSBoxesBatched(xywh, scores, classes, 0.0, IOU)
        return np.asarray(kept)[:MAX_DETECTIONS]

    def reference() -> np.ndarray:
        return suppress_reference(boxes, scores, classes, IOU)[:MAX_DETECTIONS]

    ways = {"saccade": ours, "cv2": opencv} | ({"reference": reference} if num <= 300 else {})
    return {name: Candidate(way, lambda w=way: largest(w(), want)) for name, way in ways.items()}


def scattered(kind: str, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in a 640 x 640 input: all over it, or about a few objects of one class each."""
    rng = np.random.default_rng([SEED, num])
    classes = rng.integers(0, NUM_CLASSES, num)
    xy, wh = rng.uniform(0, 540, (num, 2)), rng.uniform(10, 100, (num, 2))
    if kind == "crowded":
        one = rng.integers(0, NUM_OBJECTS, num)
        xy = rng.uniform(0, 540, (NUM_OBJECTS, 2))[one] + rng.normal(0, 3, (num, 2))
        wh = rng.uniform(40, 100, (NUM_OBJECTS, 2))[one] * rng.uniform(0.9, 1.1, (num, 2))
        classes = rng.integers(0, NUM_CLASSES, NUM_OBJECTS)[one]
    boxes = np.concatenate([xy, xy + wh], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.01, 0.99, num)).astype(np.float32)
    return boxes, scores, classes.astype(np.int32)


def suppress_best(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The reference's best boxes; it looks at twice as many candidates until it has enough.

    What is kept among the best candidates does not depend on the rest.
    """
    order, num = np.argsort(-scores, kind="stable"), 2 * MAX_DETECTIONS
    while True:
        best = np.sort(order[:num])
        kept = best[suppress_reference(boxes[best], scores[best], classes[best].tolist(), IOU)]
        if len(kept) >= MAX_DETECTIONS or num >= len(order):
            return kept[:MAX_DETECTIONS]
        num *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/cpu/prepare.json"))
    args = parser.parse_args()
    environment = describe()
    environment["packages"]["pillow"] = metadata.version("pillow")
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with single_threaded_cv2():
        report: dict[str, Any] = {
            "convert": {
                "640 x 480 in 640 x 640": convert_case(people((640, 480)), (640, 640)),
                "416 x 234 in 416 x 416": convert_case(people((416, 234)), (416, 416)),
            },
            "steps": measure(steps(), ROUNDS["steps"]),
            "suppress": {
                kind: {
                    str(num): measure(
                        suppression(kind, num),
                        ROUNDS.get(f"suppress_{num}", ROUNDS["suppress"]),
                    )
                    for num in (50, 300, 3000, 20000)
                }
                for kind in ("spread", "crowded")
            },
        }
    report |= {
        "threads": 1,
        "clock": "CPU time of the process",
        "iou": IOU,
        "num_classes": NUM_CLASSES,
        "num_objects": NUM_OBJECTS,
        "max_detections": MAX_DETECTIONS,
        "wall_s": round(time.perf_counter() - began_s, 1),
        "cpu_s": round(time.process_time() - began_cpu_s, 1),
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "environment": environment,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    show(report)


def show(value: Any, path: str = "") -> None:
    """One line per entry: what was refused, what the rest costs."""
    if not isinstance(value, dict):
        return
    if "error" in value:
        said = value.get("refused") or f"{value['median_us']:9.1f} us, least {value['min_us']:9.1f}"
        print(f"{said}  {path}  (error {value['error']})")
        return
    for key, item in value.items():
        show(item, f"{path} / {key}" if path else key)


if __name__ == "__main__":
    main()
