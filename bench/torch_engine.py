"""How fast is the bare torch engine on a CUDA device, and does it answer as ONNX Runtime does?

    python -m bench.torch_engine feeds FOLDER            real pictures as network inputs, and models
    python -m bench.torch_engine run FOLDER -o FILE      check, then time; needs a CUDA device

The check comes first, in the process that is timed: outputs against ONNX Runtime on the CPU in FP32
on real pictures, element by element and box by box. A plan whose boxes do not agree is not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import SHARED
from saccade.contracts import resolve
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.types import Contract, Model, Placement, Plan

# Preset where the graph alone does not tell how it is fed.
MODELS: dict[str, str | None] = {
    "cells_640": None,
    "yolox_nano_416": None,
    "nanodet_m_320": None,
    "fastestdet_352": None,
    "deimv2_atto_320": "rtdetr_coco",
    "light_person_192": None,
    "ultraface_rfb_320": None,
    "yunet_n_320": None,
}
NUM_PICTURES = 12
SIZES = {"cells_640": (1, 8, 16, 32, 64)}
OTHERS = ("yolox_nano_416", "nanodet_m_320", "fastestdet_352", "deimv2_atto_320")
MIN_AGREEMENT = 0.97
MAX_SCORE_SHIFT = 0.03
ROUNDS, ROUND_S, WARM_S = 7, 0.3, 0.5


def make_feeds(folder: Path) -> None:
    """Write each model and its inputs for real pictures, as the contract prepares them."""
    from saccade.pipeline.stages import Lane, Stages
    from saccade.vision.decode import DEFAULT_MAX_PIXELS

    folder.mkdir(parents=True, exist_ok=True)
    for name, preset in MODELS.items():
        shutil.copy(SHARED / f"models/{name}.onnx", folder)
        model = read_model(folder / f"{name}.onnx")
        contract = resolve(signature_of(model), preset=preset)
        data = "bccd" if name == "cells_640" else "coco_ccby"
        paths = sorted((SHARED / "datasets" / data / "images").glob("*.jp*g"))
        # Pictures of 640 x 640 are large to carry, and show many cells each.
        paths = paths[: 4 if name == "cells_640" else NUM_PICTURES]
        lane = Lane(Stages(contract, contract.detect, DEFAULT_MAX_PIXELS))
        rule = contract.input
        batch = np.zeros((len(paths), rule.num_channels, *rule.size_hw), np.float32)
        for place, path in enumerate(paths):
            lane.placer.place(lane.decoder.read(path), batch[place])
        np.savez_compressed(folder / f"{name}.npz", picture=batch)


def feeds_of(folder: Path, model: Model, contract: Contract, batch: int) -> dict[str, np.ndarray]:
    """The pictures repeated to a batch; boxes of graphs that rescale come in input pixels."""
    pictures = np.load(folder / f"{model.path.stem}.npz")["picture"]
    feeds = {contract.input.name: pictures[np.arange(batch) % len(pictures)]}
    if contract.input.size_input is not None:
        height, width = contract.input.size_hw
        feeds[contract.input.size_input] = np.array([[width, height]] * batch, np.int64)
    return feeds


def reference_of(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX Runtime on the CPU in FP32, one picture at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(model.path), options, providers=["CPUExecutionProvider"]
    )
    num = min(len(next(iter(feeds.values()))), NUM_PICTURES)
    rows = [session.run(None, {k: v[i : i + 1] for k, v in feeds.items()}) for i in range(num)]
    names = [spec.name for spec in model.outputs]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}


def boxes_of(contract: Contract, outputs: dict[str, np.ndarray]) -> list[Any]:
    from saccade import heads
    from saccade.vision.suppress import finish

    rule, size_hw = contract.head, contract.input.size_hw
    num = len(next(iter(outputs.values())))
    rule = dataclasses.replace(rule, options={**rule.options, "batch": num})
    same = Placement((size_hw[1], size_hw[0]), (1.0, 1.0), (0.0, 0.0))
    found = heads.get(rule.family).decode(outputs, rule, size_hw, contract.detect)
    return [finish(one, same, contract.detect, class_agnostic=rule.class_agnostic) for one in found]


def agreement(ours: list[Any], theirs: list[Any], score: float) -> tuple[int, float]:
    """How many boxes the reference has above a score, and which share has a partner.

    A partner has the same class, an IoU of .9 and a score within MAX_SCORE_SHIFT. Partners are
    looked for down to the threshold for looking at pictures, which lies that much lower: a box at
    the threshold may fall on either side of it. The lower share of both directions counts.
    """
    from saccade.vision.boxes import iou_matrix

    shares, num = [], 0
    for many, few in ((theirs, ours), (ours, theirs)):
        matched, count = 0, 0
        for a, b in zip(many, few, strict=True):
            near = iou_matrix(a.boxes_xyxy, b.boxes_xyxy) >= 0.9
            near &= a.classes[:, None] == b.classes[None]
            near &= np.abs(a.scores[:, None] - b.scores[None]) <= MAX_SCORE_SHIFT
            counts = a.scores > score
            matched += int(near[counts].any(axis=1).sum())
            count += int(counts.sum())
        shares.append(matched / count if count else 1.0)
        num = num or count
    return num, min(shares)


class OnDevice:
    """A DeviceBuffer as an array that torch and CuPy understand."""

    def __init__(self, buffer: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": buffer.shape,
            "typestr": np.dtype(buffer.dtype).str,
            "data": (buffer.pointer, False),
            "version": 3,
        }


def tensor_of(buffer: Any) -> Any:
    import torch

    return torch.as_tensor(OnDevice(buffer), device="cuda")


def answers_of(engine: Any, feeds: dict[str, np.ndarray], *, captured: bool) -> dict[str, Any]:
    """Outputs by way of the engine's own graph, or of one that we capture around it."""
    import torch

    for name, buffer in engine.inputs.items():
        array = feeds[name]
        if buffer.shape != array.shape:
            array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
        tensor_of(buffer).copy_(torch.from_numpy(array))
    views = {name: tensor_of(buffer) for name, buffer in engine.outputs.items()}
    for view in views.values():
        view.fill_(float("nan") if view.is_floating_point() else -1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            engine.enqueue(stream.cuda_stream)
        graph.replay()
    else:
        engine.enqueue(stream.cuda_stream)
    torch.cuda.synchronize()
    return {name: view.cpu().numpy() for name, view in views.items()}


def _part(feeds: dict[str, np.ndarray], start: int, num: int) -> dict[str, np.ndarray]:
    return {name: array[start : start + num] for name, array in feeds.items()}


def _joined(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    rows = list(parts)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def check(engine: Any, model: Model, contract: Contract, feeds: dict[str, np.ndarray]) -> Any:
    """Errors against the reference; every copy of a picture in the batch must answer alike."""
    truth = reference_of(model, feeds)
    num = len(next(iter(truth.values())))
    got, again = (
        _joined(
            answers_of(engine, _part(feeds, start, engine.plan.batch), captured=captured)
            for start in range(0, len(next(iter(feeds.values()))), engine.plan.batch)
        )
        for captured in (False, True)
    )
    repeat = np.arange(len(next(iter(got.values())))) % num
    num_boxes, share = agreement(
        boxes_of(contract, {name: array[:num] for name, array in got.items()}),
        boxes_of(contract, truth),
        contract.detect.score + MAX_SCORE_SHIFT,
    )
    return {
        "max_abs_error": max(float(np.abs(got[n][:num] - truth[n]).max()) for n in truth),
        "relative_error": max(
            float(np.linalg.norm(got[n][:num] - truth[n]) / np.linalg.norm(truth[n])) for n in truth
        ),
        "max_abs_output": max(float(np.abs(array).max()) for array in truth.values()),
        "between_copies": max(float(np.abs(a - a[:num][repeat]).max()) for a in got.values()),
        "captured_by_caller": max(float(np.abs(again[n] - got[n]).max()) for n in got),
        "reference_boxes": num_boxes,
        "agreement": share,
        "finite": all(bool(np.isfinite(array).all()) for array in got.values()),
    }


def timed(engine: Any) -> list[float]:
    """Seconds of one inference, per round, by events around many of them."""
    import torch

    stream = torch.cuda.Stream()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def round_of(num: int) -> float:
        start.record(stream)
        for _ in range(num):
            engine.enqueue(stream.cuda_stream)
        end.record(stream)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / num

    each_s = round_of(3)
    each_s = round_of(max(1, int(WARM_S / each_s)))
    num = max(5, int(ROUND_S / each_s))
    return [round_of(num) for _ in range(ROUNDS)]


def _label(name: str, plan: Plan) -> str:
    return " ".join(
        [name, plan.precision, f"b{plan.batch}", *(f"{k}={v}" for k, v in plan.options)]
    )


def kernels_of(engine: Any) -> list[tuple[str, int, float]]:
    """Name, launches and microseconds of the kernels of one inference, longest first."""
    import torch

    stream = torch.cuda.Stream()
    num = 10
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(num):
            engine.enqueue(stream.cuda_stream)
        torch.cuda.synchronize()
    rows = [
        (event.key[:90], event.count // num, event.self_device_time_total / num)
        for event in profile.key_averages()
    ]
    return sorted(rows, key=lambda row: -row[2])


def _freed(model: Model) -> Model:
    """The model for any batch; references are computed with the one it came from."""
    import onnx

    from saccade.graph.passes.free_batch import free_batch

    if isinstance(model.inputs[0].shape[0], str):
        return model
    path = Path(tempfile.mkdtemp()) / model.path.name
    onnx.save(free_batch(onnx.load(str(model.path)), model_path=model.path), str(path))
    return read_model(path)


def measure(folder: Path, name: str, plan: Plan, *, profile: bool) -> dict[str, Any]:
    """Load, check and time one plan."""
    from saccade import backends

    model = read_model(folder / f"{name}.onnx")
    contract = resolve(signature_of(model), preset=MODELS[name])
    row: dict[str, Any] = {
        "model": name,
        "precision": plan.precision,
        "batch": plan.batch,
        **dict(plan.options),
    }
    started_s = time.perf_counter()
    try:
        loaded = model if plan.batch == 1 else _freed(model)
        engine = backends.get("torch").load_device(loaded, plan, contract.input.size_hw)  # type: ignore[attr-defined]
    except Exception as exc:  # a row that failed is a result; the others go on
        traceback.print_exc()
        return row | {"failed": f"{type(exc).__name__}: {exc}"}
    row["load_s"] = round(time.perf_counter() - started_s, 2)
    row["workspace_bytes"] = engine.workspace_bytes
    row["weight_bytes"] = engine.weight_bytes
    num = max(plan.batch, NUM_PICTURES)
    row |= check(engine, model, contract, feeds_of(folder, model, contract, num))
    if row["finite"] and row["agreement"] >= MIN_AGREEMENT:
        rounds_s = timed(engine)
        row["median_ms"] = statistics.median(rounds_s) * 1000
        row["least_ms"], row["most_ms"] = min(rounds_s) * 1000, max(rounds_s) * 1000
        row["images_per_s"] = plan.batch / statistics.median(rounds_s)
    if profile:
        row["kernels"] = kernels_of(engine)[:24]
    engine.close()
    return row


def environment() -> dict[str, Any]:
    import onnxruntime
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,memory.total", "--format=csv"]
    return {
        "gpu": torch.cuda.get_device_name(),
        "smi": subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def plans() -> list[tuple[str, Plan]]:
    def plan(precision: Any, batch: int, **options: str) -> Plan:
        return Plan("torch", precision, batch, device="cuda:0", options=tuple(options.items()))

    found = [(name, plan(p, 1)) for name in MODELS for p in ("fp32", "fp16", "bf16")]
    for way in ("none", "inductor"):
        found += [("cells_640", plan("fp16", b, compile=way)) for b in SIZES["cells_640"]]
        found += [(name, plan("fp16", 32, compile=way)) for name in OTHERS]
    found.append(("cells_640", plan("fp16", 32, compile="inductor", input="plan")))
    found.append(("cells_640", plan("fp16", 32, compile="inductor", input="channels_last")))
    for batch in SIZES["cells_640"]:
        found.append(("cells_640", plan("fp16", batch, compile="tuned", input="channels_last")))
    found.append(("cells_640", plan("fp16", 32, compile="max-autotune", input="channels_last")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("feeds", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("torch_engine.json"))
    parser.add_argument("--only", default="", help="plans whose label has one of these, by ','")
    parser.add_argument("--skip", default="none of them", help="but not if it has one of these")
    parser.add_argument("--profile", action="store_true", help="print the kernels of each plan")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no plan after this")
    given = parser.parse_args()
    if given.step == "feeds":
        make_feeds(given.folder)
        return
    started_s, rows = time.perf_counter(), []
    for name, plan in plans():
        label = _label(name, plan)
        if not any(part in label for part in given.only.split(",")):
            continue
        if any(part in label for part in given.skip.split(",")):
            continue
        if time.perf_counter() - started_s > given.seconds:
            break
        rows.append(measure(given.folder, name, plan, profile=given.profile))
        for kernel in rows[-1].get("kernels", ()):
            print(kernel)
        told = {
            k: round(v, 5) if isinstance(v, float) else v
            for k, v in rows[-1].items()
            if k != "kernels"
        }
        print(json.dumps(told), flush=True)
        given.out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
