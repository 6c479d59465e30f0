"""Sizes and build times of TensorRT for RTX engines, built ahead of time without a GPU.

    python -m bench.tensorrt_build -o bench/results/tensorrt-rtx-build.json

Nothing is run: that needs a card. What the library refuses is recorded in its words.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.cases import SHARED
from bench.environment import describe, without_paths
from saccade import backends, contracts
from saccade.backends._shape_ranges import parse_shapes
from saccade.builder.calibration import Calibration, CalibrationSettings, collect
from saccade.builder.recipes import calibration_tensors, make_model
from saccade.builder.records import Recipe
from saccade.errors import SaccadeError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.pipeline.sources import expand
from saccade.types import Contract, Model, Plan

TARGETS = ("sm86", "sm89", "sm120", "sm86+sm89+sm120")
MODELS = {
    "cells_640": ("datasets/bccd/images", "1x3x640x640:8x3x640x640:32x3x640x640"),
    "yolox_nano_416": ("datasets/coco_ccby/images", ""),
}
RECIPES = (Recipe(), Recipe("fp16"), Recipe("int8", "minmax"))
FREE_SHAPES = "1x3x320x320:8x3x640x640:32x3x640x640"
NUM_CALIBRATION = 24
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_rows(Path(folder)))
    machine = describe()
    machine["packages"]["tensorrt-rtx"] = metadata.version("tensorrt-rtx")
    result = {
        "machine": machine,
        "probe": backends.get("tensorrt").probe().reason,
        "rounds": ROUNDS,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(without_paths(result), indent=1) + "\n")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for name, (pictures, shapes) in MODELS.items():
        model = read_model(SHARED / "models" / f"{name}.onnx")
        contract = _contract(model)
        calibration = _calibration(model, contract, SHARED / pictures)
        for recipe in RECIPES:
            path = make_model(
                model, contract, recipe, folder / f"{name}-{recipe.precision}", calibration
            )
            for target in TARGETS:
                yield _row(name, recipe.label, read_model(path), target, shapes)
    cells = read_model(SHARED / "models" / "cells_640.onnx")
    yield _row(
        "cells_640",
        "fp32, three ranges",
        cells,
        TARGETS[-1],
        "1x3x640x640,8x3x640x640,32x3x640x640",
    )
    free = read_model(_freed(SHARED / "models" / "yolox_nano_416.onnx", folder / "free.onnx"))
    deimv2 = read_model(SHARED / "models" / "deimv2_atto_320.onnx")
    for target in TARGETS:
        yield _row("yolox_nano, batch, height and width free", "fp32", free, target, FREE_SHAPES)
        yield _row(
            "deimv2_atto_320", "fp32", deimv2, target, "1x3x320x320:8x3x320x320:16x3x320x320"
        )
    yield from _unsupported(folder)


def _contract(model: Model) -> Contract:
    return contracts.resolve(signature_of(model, None))


def _calibration(model: Model, contract: Contract, pictures: Path) -> Calibration:
    paths = sorted(p for p in pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    items = list(expand([str(p) for p in paths[:NUM_CALIBRATION]]))
    settings = CalibrationSettings(min_pictures=8, max_pictures=NUM_CALIBRATION)
    tensors = calibration_tensors(model)
    return collect(model, contract, items, tensors=tensors, settings=settings)


def _freed(source: Path, path: Path) -> Path:
    """YOLOX up to its last maps, one per stride, with batch, height and width left open.

    Its last reshapes hold the number of cells as a constant, so they cannot stay.
    """
    proto = onnx.load(str(source))
    cuts = [node.input[0] for node in proto.graph.node if node.op_type == "Reshape"]
    inner = onnx.utils.Extractor(proto).extract_model([proto.graph.input[0].name], cuts)
    del inner.graph.value_info[:]
    dims = inner.graph.input[0].type.tensor_type.shape.dim
    for axis, free in ((0, "n"), (2, "h"), (3, "w")):
        dims[axis].dim_param = free
    for value in inner.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis != 1:
                dim.dim_param = f"{value.name}_{axis}"
    onnx.save(inner, path)
    return path


def _unsupported(folder: Path) -> Iterator[dict[str, Any]]:
    plug_in = read_model(SHARED / "odd" / "onnx_trt_plugin_efficientnms.onnx")
    yield _row("fastestdet with a plug-in (EfficientNMS_TRT)", "fp32", plug_in, "sm89", "")
    suppressing = read_model(SHARED / "models" / "fastestdet_352_nms.onnx")
    yield _row("fastestdet_352_nms", "fp32", suppressing, "sm89", "")
    biased = read_model(SHARED / "models" / "fastestdet_352_qdq_int8.onnx")
    yield _row("fastestdet_352_qdq_int8", "int8 with 32-bit biases", biased, "sm89", "")
    fp8 = read_model(_fp8_convolution(folder / "fp8.onnx"))
    for target in ("sm86", "sm89"):
        yield _row("one convolution", "fp8", fp8, target, "")


def _fp8_convolution(path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32)
    nodes = []
    for name in ("images", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"])
        )
    nodes.append(helper.make_node("Conv", ["images_d", "w_d"], ["out"], pads=[1, 1, 1, 1]))
    graph = helper.make_graph(
        nodes,
        "fp8",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 16, 64, 64])],
        [
            onnx.numpy_helper.from_array(weights, "w"),
            onnx.numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
            helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0]),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path
    )
    return path


def _row(name: str, precision: str, model: Model, target: str, shapes: str) -> dict[str, Any]:
    """Best of some rounds, or the words of the refusal."""
    ranges = parse_shapes(shapes) if shapes else ()
    row: dict[str, Any] = {
        "model": name,
        "precision": precision,
        "target": target,
        "shapes": shapes,
        "onnx_bytes": model.path.stat().st_size,
    }
    try:
        built = [
            backends.get("tensorrt").build(model, Plan("tensorrt"), [target], shapes=ranges)[target]
            for _ in range(ROUNDS)
        ]
    except SaccadeError as exc:
        print(f"{name:42} {precision:24} {target:16} refused: {exc}")
        return {**row, "refused": str(exc)}
    best = min(built, key=lambda one: one.build_s)
    warnings = sorted({m for m in best.messages if m.startswith("WARNING")})
    print(
        f"{name:42} {precision:24} {target:16} {len(best.data) / 1e6:6.1f} MB "
        f"{best.parse_s:.2f} + {best.build_s:.2f} s, {len(warnings)} warnings"
    )
    told = dataclasses.asdict(best)
    kept = {key: round(told[key], 3) for key in ("parse_s", "build_s")}
    return {**row, "engine_bytes": len(best.data), **kept, "warnings": warnings[:5]}


if __name__ == "__main__":
    main()
