"""A build in a process of its own, to be killed: python build_quickly.py FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

from builder import colours, wrong_worker
from saccade.builder.build import BuildOptions, Built, build
from saccade.pipeline.detector import load

WRONG = (sys.executable, str(Path(__file__).parent / "wrong_worker.py"))


def run(folder: Path, say=lambda text: None, **more) -> Built:
    """Build folder/net.onnx on folder/pictures into folder/out."""
    wrong_worker.install()
    given = {
        "data": folder / "pictures" / "annotations.json",
        "images": folder / "pictures",
        "backends": ("onnxruntime", "right_quick"),
        "batches": (4,),
        "budget_s": 60.0,
        "round_s": 0.1,
        "command": WRONG,
    }
    size_hw = more.pop("size_hw", None)
    with load(folder / "net.onnx", labels=colours.NAMES, size_hw=size_hw) as detector:
        model, contract = detector.model, detector.contract
    return build(model, contract, folder / "out", BuildOptions(**given | more), say)


def tell(text: str) -> None:
    """A line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(Path(sys.argv[1]), tell)
