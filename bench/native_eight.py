"""Time 8 bits in the engine of our own beside its FP16; every answer is checked before.

    python -m bench.native_eight cells_640.onnx cells_640_int8.onnx --images FOLDER \
        --labels instances.json --json FILE

The second file is the first with explicit Q/DQ pairs, as `saccade build` writes it (`--make` writes
one here, from calibration pictures); from it a third in e4m3 is derived. All are built for one
batch, checked against ONNX Runtime on the CPU (the FP32 file, and the Q/DQ file) on fresh pictures
with outputs poisoned, timed in rounds in turn, and judged by AP on labelled pictures through the
whole path on the card. A file that is there already gets the row added, or replaced.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

import saccade
from bench.native_engine import (
    answers,
    errors,
    machine_of,
    noise,
    read_pictures,
    shapes_of,
    table_of,
    timed,
)
from saccade.cuda.runtime import Device
from saccade.errors import SaccadeError
from saccade.evaluation.run import evaluate_detector
from saccade.graph.passes.fold_focus import fold_focus
from saccade.graph.passes.free_batch import free_batch
from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.native.build import build, loaded, stored
from saccade.native.kernels.registry import KERNELS
from saccade.native.reference import as_e4m3
from saccade.pipeline.run import RunOptions
from saccade.types import Plan

LARGEST_INT8, LARGEST_E4M3 = 127.0, 448.0


def make_int8(model: Path, pictures: Path, labels: Path, calibrator: str, folder: Path) -> Path:
    """The Q/DQ file that the build step makes of a model."""
    from saccade.builder.build import items_of
    from saccade.builder.calibration import cached
    from saccade.builder.pictures import calibration_pictures
    from saccade.builder.recipes import calibration_tensors, make_model
    from saccade.builder.records import Recipe

    with saccade.load(model) as detector:
        read, contract = detector.model, detector.contract
    items = items_of(calibration_pictures(labels, pictures))
    found = cached(folder, read, contract, items, tensors=calibration_tensors(read))
    return make_model(read, contract, Recipe("int8", calibrator), folder, found)


def to_e4m3(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A Q/DQ graph in INT8 as one in e4m3: every range is kept, codes are rounded anew."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    stored_tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    factor = np.float32(LARGEST_INT8 / LARGEST_E4M3)
    for node in made.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            tensor = stored_tensors.get(name)
            if tensor is None or tensor.data_type == TensorProto.FLOAT8E4M3FN:
                continue
            array = numpy_helper.to_array(tensor)
            if tensor.data_type == TensorProto.INT8:
                codes = as_e4m3(array.astype(np.float32) / factor)[1]
                tensor.CopyFrom(
                    onnx.helper.make_tensor(
                        name, TensorProto.FLOAT8E4M3FN, array.shape, codes.tobytes(), raw=True
                    )
                )
            elif index == 1:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(array * factor), name))
                stored_tensors.pop(name)
    return made


def proto_of(path: Path, batch: int) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    model = read_model(path)
    proto = load_tidy(model)
    if batch > 1 and all(spec.shape[0] == 1 for spec in model.inputs):
        proto = free_batch(proto, model_path=path)
    fold_focus(proto)
    return proto, shapes_of(model, batch)


def on_cpu(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX Runtime's answers, picture by picture."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (key,) = feeds
    found = [session.run(names, {key: feeds[key][i : i + 1]}) for i in range(len(feeds[key]))]
    return {name: np.concatenate([one[i] for one in found]) for i, name in enumerate(names)}


def measure_ap(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """AP on labelled pictures, everything from the JPEG on the card."""
    start = time.perf_counter()
    with saccade.load(path, backend="native", precision="fp16", device="cuda:0") as detector:
        report = evaluate_detector(
            detector, args.labels, args.images, options=RunOptions(batch=args.batch)
        )
    return {
        "ap": report.metrics.AP,
        "errors": report.num_errors,
        "seconds": round(time.perf_counter() - start, 1),
    }


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    proto, shapes = proto_of(args.fp32, args.batch)
    wanted = Plan("native", "fp16", args.batch, device="cuda:0")
    files = {"fp16": args.fp32, "int8": args.int8}
    protos = {"fp16": proto, "int8": proto_of(args.int8, args.batch)[0]}
    if "fp8" in args.kinds:
        protos["fp8"] = to_e4m3(protos["int8"])
    (key,) = shapes
    few = {key: read_pictures(args.images, (2, *shapes[key][1:])) * np.float32(args.highest)}
    feeds = {key: np.concatenate([few[key]] * -(-args.batch // 2))[: args.batch]}
    whole = -(-args.batch // 2)
    want = {
        kind: {n: np.concatenate([a] * whole)[: args.batch] for n, a in on_cpu(path, few).items()}
        for kind, path in files.items()
    }
    made: dict[str, Any] = {}
    row: dict[str, Any] = {"model": args.fp32.stem, "batch": args.batch, "kinds": {}}
    for kind, one in protos.items():
        start = time.perf_counter()
        try:
            made[kind] = build(one, shapes, wanted, KERNELS)
        except SaccadeError as exc:
            row["kinds"][kind] = {"refused": str(exc)}
            print(kind, "refused:", exc, flush=True)
            continue
        seconds = time.perf_counter() - start
        print(f"{kind} built in {seconds:.1f} s", flush=True)
        row["kinds"][kind] = {"build_s": round(seconds, 1), **mix_of(made[kind])}
    device = Device(0)
    stream = device.stream()
    for kind, one in made.items():
        again = {key: noise(np.random.default_rng(3), shapes[key]) * np.float32(args.highest)}
        answers(one.engine, again, stream)  # what follows must not be what was there
        found = answers(one.engine, feeds, stream)
        item = row["kinds"][kind]
        item["is_finite"] = all(bool(np.isfinite(a).all()) for a in found.values())
        item["errors_fp32"] = errors(found, want["fp16"])
        item["errors_qdq"] = errors(found, want["int8"])
        from_bytes, _ = loaded(stored(one), wanted, KERNELS)
        after = answers(from_bytes, feeds, stream)
        item["same_when_loaded"] = all(np.array_equal(found[n], after[n]) for n in found)
        from_bytes.close()
        item["steps"] = table_of(one)
        item["types"] = [str(step.x.dtype) if hasattr(step, "x") else "" for step in one.plan.steps]
        item["arena_bytes"] = one.plan.arena_bytes
        item["sum_us"] = sum(choice.us for choice in one.choices)
        print(
            kind,
            {n: item[n] for n in ("errors_fp32", "errors_qdq", "sum_us", "is_finite")},
            flush=True,
        )
    for kind, times in timed({kind: one.engine for kind, one in made.items()}, device).items():
        row["kinds"][kind]["times"] = times
        print(f"{kind}: {times['ms']:.4f} ms, {args.batch * 1000 / times['ms']:,.0f} pictures/s")
    for one in made.values():
        one.engine.close()
    if args.labels is not None:
        if "fp8" in made:
            files["fp8"] = folder / "e4m3.onnx"
            onnx.save(to_e4m3(onnx.load(args.int8)), files["fp8"])
        for kind, path in files.items():
            try:
                row["kinds"][kind]["judged"] = measure_ap(path, args)
            except SaccadeError as exc:
                row["kinds"][kind]["judged"] = {"refused": str(exc)}
            print(kind, row["kinds"][kind]["judged"], flush=True)
    return row


def mix_of(made: Any) -> dict[str, Any]:
    if made.mix is None:
        return {}
    return {
        "codes": len(made.mix.groups),
        "halves": len(made.mix.halves),
        "halves_names": sorted(
            made.mix.draft.buffers[n].name for group in made.mix.halves for n in group.buffers
        ),
        "us": made.mix.us,
        "us_halves": made.mix.us_halves,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("int8", type=Path, help="with --make: the folder to write it to")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--make", metavar="CALIBRATOR", help="e.g. percentile-99.99; write and end")
    parser.add_argument("--kinds", nargs="*", default=["int8", "fp8"])
    parser.add_argument("--highest", type=float, default=1.0, help="of the values that are fed")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path, default=Path("native_eight.json"))
    args = parser.parse_args()
    if args.make:
        print(make_int8(args.fp32, args.images, args.labels, args.make, args.int8))
        return
    with tempfile.TemporaryDirectory() as folder:
        row = run(args, Path(folder))
    row["machine"] = machine_of()
    rows = json.loads(args.json.read_text())["rows"] if args.json.exists() else []
    about = (row["model"], row["batch"])
    rows = [one for one in rows if (one["model"], one["batch"]) != about]
    args.json.write_text(json.dumps({"rows": [*rows, row]}, indent=1))


if __name__ == "__main__":
    main()
