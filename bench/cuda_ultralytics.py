"""Ultralytics `predict` on this GPU: YOLOv8n in FP16, from files and from decoded arrays.

Ultralytics (AGPL-3.0) is an outside peer, in its own folder of packages:

    python -m bench.cuda_ultralytics FOLDER --json FILE

`FOLDER` is what `bench.cuda_path prepare` wrote. There are no weights here, so the network is built
from its description with random ones; its work is the same. Random weights find nothing, or
everything: the score threshold is set so that about as many boxes are left as in cells_640, and
their number is told. By default it pads to the shape of the pictures, here 480 x 640, which is less
work than the 640 x 640 of saccade's path; both are measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (32,)
ROUNDS = 3
NUM = 1024
# Of a picture: what cells_640 finds.
BOXES = 16
SIDE = 640


def load(folder: str, arrays: Sequence[np.ndarray]) -> Any:
    """Without any of its calls home."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false")
    os.environ["YOLO_CONFIG_DIR"] = folder
    from ultralytics import YOLO, settings

    settings.update(sync=False)
    model = YOLO("yolov8n.yaml", task="detect")
    spread(model.model, arrays)
    file = f"{folder}/yolov8n_random.pt"
    model.save(file)
    return YOLO(file, task="detect")


def spread(network: Any, arrays: Sequence[np.ndarray]) -> None:
    """Make scores of random weights differ from place to place: statistics of the normalisation
    from real pictures, and class logits with a median of -6 and at most 3."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what follows
    pictures = torch.from_numpy(np.stack(arrays[:8])).permute(0, 3, 1, 2).float() / 255
    seen: list[Any] = []
    last = [branch[-1] for branch in network.model[-1].cv3]
    with torch.no_grad():
        network.train()(pictures)
        hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in last]
        network.eval()(pictures)
        for layer, out, hook in zip(last, seen, hooks, strict=True):
            hook.remove()
            scale = 9 / (out.max() - out.median())
            layer.weight.mul_(scale)
            layer.bias.sub_(out.max()).mul_(scale).add_(3)


def threshold(model: Any, arrays: Sequence[np.ndarray], common: dict[str, Any]) -> float:
    """The score at which about BOXES of a picture are left, found by halving."""
    low, high = 0.0, 1.0
    for _ in range(40):
        score = (low + high) / 2
        results = model.predict(list(arrays[:8]), **common, conf=score)
        boxes = sum(len(result.boxes) for result in results) / len(results)
        if abs(boxes - BOXES) <= 2:
            break
        low, high = (score, high) if boxes > BOXES else (low, score)
    return score


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Pictures per second of three rounds after one to warm up."""
    work()
    rates, boxes = [], 0
    for _ in range(ROUNDS):
        start_s = time.perf_counter()
        boxes = work()
        rates.append(NUM / (time.perf_counter() - start_s))
    rates.sort()
    return {
        "pictures_per_s": rates[len(rates) // 2],
        "least": rates[0],
        "most": rates[-1],
        "boxes_per_picture": boxes / NUM,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_args()
    import cv2

    paths = sorted((given.folder / "bccd").glob("*.jpg"))
    arrays = [np.asarray(cv2.imread(str(path))) for path in paths]
    with tempfile.TemporaryDirectory() as scratch:
        model = load(scratch, arrays)
        from ultralytics import __version__

        rows: list[dict[str, Any]] = []
        for batch, is_rect in itertools.product(BATCHES, (True, False)):
            common: dict[str, Any] = {
                "batch": batch, "half": True, "imgsz": SIDE, "iou": 0.45, "device": 0,
                "verbose": False, "rect": is_rect,
            }  # fmt: skip
            score = common["conf"] = threshold(model, arrays, common)
            # A list of files is read and decoded by its loader, batch by batch.
            listing = Path(scratch) / f"files_{batch}.txt"
            names = [str(paths[i % len(paths)].resolve()) for i in range(NUM)]
            listing.write_text("\n".join(names))

            def from_files(common: Any = common, listing: Path = listing) -> int:
                results = model.predict(str(listing), stream=True, **common)
                return sum(len(result.boxes.data.cpu().numpy()) for result in results)

            def from_arrays(common: Any = common) -> int:
                boxes = 0
                for start in range(0, NUM, common["batch"]):
                    some = [arrays[(start + i) % len(arrays)] for i in range(common["batch"])]
                    results = model.predict(some, **common)
                    boxes += sum(len(result.boxes.data.cpu().numpy()) for result in results)
                return boxes

            for name, work in (("files", from_files), ("decoded arrays", from_arrays)):
                row = {"version": __version__, "source": name, "batch": batch, "score": score}
                rows.append(row | {"size_hw": [480 if is_rect else SIDE, SIDE]} | timed(work))
                print(rows[-1], flush=True)
    report = json.loads(given.json.read_text()) if given.json.is_file() else {"sections": {}}
    report["sections"]["ultralytics"] = rows
    given.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
