"""A build of cells_640 among back ends that hang and that eat memory, in a process of its own, to
be killed: python build_cells.py SHARED OUTPUT [resume]."""

from __future__ import annotations

import sys
from pathlib import Path

from builder import wrong_worker
from builder.build_quickly import WRONG, tell
from saccade.builder.build import BuildOptions, Built, build
from saccade.pipeline.detector import load

BACKENDS = ("onnxruntime", "openvino", "wrong_hang", "wrong_eater")


def run(shared: Path, output: Path, say=lambda text: None, **more) -> Built:
    """Build on the labelled test part, without calibration pictures: FP32, BF16, FP16."""
    wrong_worker.install()
    cells = shared / "datasets" / "bccd"
    given = {
        "data": cells / "annotations" / "test.json",
        "images": cells / "images",
        "max_drop": "AP=0.005",
        "backends": BACKENDS,
        "batches": (1,),
        "budget_s": 60.0,
        "round_s": 0.5,
        "patience_s": 6.0,
        "memory_bytes": 1 << 30,
        "command": WRONG,
    }
    with load(shared / "models" / "cells_640.onnx") as detector:
        model, contract = detector.model, detector.contract
    return build(model, contract, output, BuildOptions(**given | more), say)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), tell)
