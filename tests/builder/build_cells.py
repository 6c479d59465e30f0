"""A build of cells_640 among back ends that hang and that eat memory, in a process of its own, to
be killed: python build_cells.py SHARED OUTPUT [resume]."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from builder import wrong_worker
from builder.build_quickly import WRONG, tell
from saccade.builder.build import BuildOptions, Built, build
from saccade.pipeline.detector import load

NUM_PICTURES = 24
BACKENDS = ("onnxruntime", "openvino", "wrong_hang", "wrong_eater")


def run(shared: Path, output: Path, say=lambda text: None, **more) -> Built:
    """Build on some of the labelled test pictures, without any to calibrate on."""
    wrong_worker.install()
    cells = shared / "datasets" / "bccd"
    data = output.with_name("some.json")
    data.write_text(json.dumps(_some(json.loads((cells / "annotations/test.json").read_text()))))
    given = {
        "data": data,
        "images": cells / "images",
        "max_drop": "AP=0.005",
        "backends": BACKENDS,
        "batches": (1,),
        "budget_s": 90.0,
        "round_s": 0.5,
        "patience_s": 12.0,
        "memory_bytes": 1 << 30,
        "command": WRONG,
    }
    with load(shared / "models" / "cells_640.onnx") as detector:
        model, contract = detector.model, detector.contract
    return build(model, contract, output, BuildOptions(**given | more), say)


def _some(labels: dict) -> dict:
    images = sorted(labels["images"], key=lambda image: image["id"])[:NUM_PICTURES]
    ids = {image["id"] for image in images}
    boxes = [one for one in labels["annotations"] if one["image_id"] in ids]
    return {**labels, "images": images, "annotations": boxes}


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), tell)
