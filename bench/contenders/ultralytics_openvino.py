"""Ultralytics on its OpenVINO path, in the arithmetic that OpenVINO picks there by itself."""

from __future__ import annotations

from typing import Any

from bench.cases import WORK, Case
from bench.contenders import ultralytics_onnx
from bench.contenders.ultralytics_onnx import run

__all__ = ["run", "setup", "versions"]

LABEL = "Ultralytics predict on OpenVINO"
NOTE = (
    "batch 1 from a list of files; its LATENCY hint; BF16 where the CPU has it, hence checked by "
    "AP; box suppression through OpenCV in place of torchvision"
)
CASES = ("cells_640",)
VENV = "ultralytics"
CHECK = "ap"
NAMES = {0: "Platelets", 1: "RBC", 2: "WBC"}


def setup(case: Case) -> tuple[Case, Any]:
    folder = WORK / f"{case.name}_openvino_model"
    if not (folder / "metadata.yaml").is_file():
        convert(case, folder)
    return ultralytics_onnx.start(case, str(folder))


def convert(case: Case, folder: Any) -> None:
    """The folder that Ultralytics expects, made with OpenVINO's own converter, in FP32."""
    import openvino
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    model = openvino.Core().read_model(case.model_path)
    model.reshape([1, 3, *case.size_hw])
    openvino.save_model(model, str(folder / f"{case.name}.xml"), compress_to_fp16=False)
    facts = {
        "task": "detect",
        "stride": 32,
        "batch": 1,
        "imgsz": list(case.size_hw),
        "names": NAMES,
        "channels": 3,
        "args": {},
    }
    (folder / "metadata.yaml").write_text(yaml.safe_dump(facts))


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("ultralytics", "torch", "numpy", "openvino", "opencv-python-headless")
    return {name: version(name) for name in names}
