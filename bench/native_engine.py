"""Time the engine of our own beside its peers on this GPU; every answer is checked before.

Run on a machine with a GPU and PyTorch, from the repository's root, for one network:

    python -m bench.native_engine cells_640.onnx --batch 32 1 --json FILE --peers

Contenders take the prepared FP32 input (n, 3, h, w) and give the graph's raw outputs: the engine,
and with --peers torch.compile (default and max-autotune) and eager in a CUDA graph through the back
end `torch`, all FP16. Rounds of replays in turn; the median of each. The answers are compared with
the engine's plan computed on the CPU in FP32, on fresh inputs, with outputs poisoned before.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from saccade.cuda import driver
from saccade.cuda.runtime import Device
from saccade.graph.passes.fold_focus import fold_focus
from saccade.graph.passes.free_batch import free_batch
from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.native.build import build, loaded, stored
from saccade.native.drafting import drafted
from saccade.native.floors import floor_us
from saccade.native.memory import placed
from saccade.native.ops import reads, writes
from saccade.native.reference import Machine, interpret
from saccade.types import Plan

# Networks that take values from 0 to 255.
UNSCALED = ("yolox_nano_416", "light_person_192", "yunet_n_320")
ROUNDS = 7
ROUND_MS = 60.0


def shapes_of(model: Any, batch: int) -> dict[str, tuple[int, ...]]:
    """Input shapes for a batch; a second input holds two numbers per picture."""
    shapes = {}
    for spec in model.inputs:
        sizes = [batch, *(s if isinstance(s, int) else 2 for s in spec.shape[1:])]
        shapes[spec.name] = tuple(sizes)
    return shapes


def feeds_of(model: Any, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Random pictures: smooth, so that a trained network sees something."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in model.inputs:
        shape = shapes[spec.name]
        if len(shape) == 4:
            n, c, h, w = shape
            small = rng.random((n, c, -(-h // 16), -(-w // 16)), dtype=np.float32)
            high = 255 if model.path.stem in UNSCALED else 1
            feeds[spec.name] = small.repeat(16, 2).repeat(16, 3)[:, :, :h, :w] * np.float32(high)
        else:
            feeds[spec.name] = np.full(shape, 640, spec.dtype)
    return feeds


def put(pointer: int, array: np.ndarray) -> None:
    array = np.ascontiguousarray(array)
    copy = driver.bindings().cuMemcpyHtoD
    driver.call("copying", copy, pointer, array.ctypes.data, array.nbytes)


def get(buffer: Any) -> np.ndarray:
    array = np.empty(buffer.shape, buffer.dtype)
    copy = driver.bindings().cuMemcpyDtoH
    driver.call("copying", copy, array.ctypes.data, buffer.pointer, buffer.num_bytes)
    return array


def answers(engine: Any, feeds: dict[str, np.ndarray], stream: Any) -> dict[str, np.ndarray]:
    """One inference with poisoned outputs."""
    for name, array in feeds.items():
        buffer = engine.inputs[name]
        array = array.astype(buffer.dtype)
        if buffer.shape != array.shape:
            array = array.transpose(0, 2, 3, 1)
        put(buffer.pointer, array)
    for buffer in engine.outputs.values():
        fill = driver.bindings().cuMemsetD8
        driver.call("poisoning", fill, buffer.pointer, 0xFF, buffer.num_bytes)
    driver.call("waiting", driver.bindings().cuCtxSynchronize)
    engine.enqueue(stream.handle)
    stream.synchronize()
    return {name: get(buffer) for name, buffer in engine.outputs.items()}


def errors(found: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative error in the Euclidean norm, per output."""
    made = {}
    for name, array in want.items():
        difference = np.linalg.norm((found[name].astype(np.float64) - array).ravel())
        made[name] = float(difference / max(np.linalg.norm(array.astype(np.float64).ravel()), 1e-9))
    return made


def explain(made: Any, small_plan: Any, feeds: dict[str, np.ndarray]) -> None:
    """Print the steps whose results on the card are not those of the plan on the CPU.

    After an inference every buffer still holds what was written, since none are shared.
    """
    machine = Machine(small_plan)
    machine.feed(feeds)
    for number, (step, small, choice) in enumerate(
        zip(made.plan.steps, small_plan.steps, made.choices, strict=True)
    ):
        # Operands as the card has them, so that an error is seen where it arises.
        for view, own in zip(reads(small), reads(step), strict=True):
            if small_plan.buffers[view.buffer].kind == "arena":
                machine.array(view)[...] = _first(made, own, view)
        machine.run(small)
        for view, own in zip(writes(small), writes(step), strict=True):
            want = machine.load(view)
            copies = own.shape[0] // max(view.shape[0], 1)
            worst = 0.0
            for copy in range(copies):
                got = _first(made, own, view, copy).astype(np.float64)
                scale = max(float(np.linalg.norm(want.ravel())), 1e-9)
                error = float(np.linalg.norm((got - want).ravel())) / scale
                worst = max(worst, error if error == error else float("inf"))
            if not worst < 3e-3:
                print("DIFFERS", number, type(step).__name__, choice.way, worst, step, flush=True)


def _first(made: Any, own: Any, view: Any, copy: int = 0) -> np.ndarray:
    """Elements of a view of the large plan, the pictures that the small plan has."""
    engine = made.engine
    buffer = made.plan.buffers[own.buffer]
    raw = np.empty(buffer.num_bytes, np.uint8)
    copy_down = driver.bindings().cuMemcpyDtoH
    driver.call("copying", copy_down, raw.ctypes.data, engine.addresses[own.buffer], raw.nbytes)
    dtype = np.dtype(own.dtype)
    offset = (own.offset + copy * view.shape[0] * own.strides[0]) * dtype.itemsize
    strides = [stride * dtype.itemsize for stride in own.strides]
    return np.ndarray(view.shape, dtype, raw.data, offset, strides).copy()


def timed(contenders: dict[str, Any], device: Device) -> dict[str, dict[str, float]]:
    """Milliseconds per inference, in rounds in turn."""
    stream = device.stream()
    start, stop = device.event(is_timed=True), device.event(is_timed=True)

    def run(engine: Any, times: int) -> float:
        start.record(stream)
        for _ in range(times):
            engine.enqueue(stream.handle)
        stop.record(stream)
        stream.synchronize()
        return stop.ms_since(start) / times

    times = {}
    for name, engine in contenders.items():
        run(engine, 3)
        times[name] = max(3, int(ROUND_MS / max(run(engine, 5), 1e-3)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, engine in contenders.items():
            samples[name].append(run(engine, times[name]))
    return {
        name: {"ms": statistics.median(found), "low": min(found), "high": max(found)}
        for name, found in samples.items()
    }


def table_of(engine: Any) -> list[dict[str, Any]]:
    """What each step fuses, its way, time and floor."""
    return [
        {
            "step": type(step).__name__,
            "label": step.label,
            "reads": [list(v.shape) for v in (step.x,)] if hasattr(step, "x") else [],
            "writes": [list(v.shape) for v in (step.y,)] if hasattr(step, "y") else [],
            "way": choice.way,
            "us": round(choice.us, 2),
            "floor_us": round(floor_us(step), 2),
            "others": [(name, round(us, 2)) for name, us in choice.others[:6]],
        }
        for step, choice in zip(engine.plan.steps, engine.choices, strict=True)
    ]


PEERS = {
    "none": "torch eager graph",
    "inductor": "torch.compile",
    "max-autotune": "torch.compile max-autotune",
}


def peers(
    model_path: Path, batch: int, size_hw: tuple[int, int], ways: list[str]
) -> dict[str, Any]:
    """Engines of the back end `torch`."""
    from saccade import backends

    model = read_model(model_path)
    made = {}
    for compiler in ways:
        name = PEERS[compiler]
        plan = Plan("torch", "fp16", batch, device="cuda:0", options=(("compile", compiler),))
        start = time.perf_counter()
        try:
            made[name] = backends.get("torch").load_device(model, plan, size_hw)
        except Exception as exc:
            print(name, "failed:", str(exc)[:300], flush=True)
        print(name, f"built in {time.perf_counter() - start:.1f} s", flush=True)
    return made


def run_case(path: Path, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """One network, one batch."""
    model = read_model(path)
    proto = load_tidy(model)
    is_fixed = all(spec.shape[0] == 1 for spec in model.inputs)
    if is_fixed and batch > 1:
        proto = free_batch(proto, model_path=path)
    fold_focus(proto)
    shapes = shapes_of(model, batch)
    wanted = Plan("native", args.precision, batch, device="cuda:0")
    from saccade.native.kernels.registry import KERNELS

    start = time.perf_counter()
    made = build(proto, shapes, wanted, KERNELS, libraries=args.libraries)
    built_s = time.perf_counter() - start
    start = time.perf_counter()
    again = build(proto, shapes, wanted, KERNELS, libraries=args.libraries)
    again_s = time.perf_counter() - start
    same = [c.way for c in made.choices] == [c.way for c in again.choices]
    again.engine.close()
    raw = stored(made)
    start = time.perf_counter()
    from_bytes, _ = loaded(raw, wanted, KERNELS)
    load_s = time.perf_counter() - start
    device = Device(0)
    stream = device.stream()
    few = min(batch, 2)
    few_shapes = shapes_of(model, few)
    reference = placed(drafted(proto, few_shapes, "fp32"))
    small = feeds_of(model, few_shapes, 7)
    # The same two pictures again and again: every place of the batch is checked.
    feeds = {name: np.concatenate([a] * (batch // few)) for name, a in small.items()}
    want = {
        name: np.concatenate([a] * (batch // few))
        for name, a in interpret(reference, small).items()
    }

    def check(engine: Any) -> dict[str, float]:
        found = answers(engine, feeds, stream)
        if any(np.isnan(a).any() for a in found.values() if a.dtype.kind == "f"):
            return {"nan": float("nan")}
        return errors(found, want)

    row: dict[str, Any] = {
        "model": path.stem,
        "batch": batch,
        "precision": args.precision,
        "build_s": built_s,
        "again_s": again_s,
        "same_choices": same,
        "load_s": load_s,
        "num_bytes": len(raw),
        "errors_loaded": {},
        "arena_bytes": made.plan.arena_bytes,
        "arrangements": [
            (o.num_streams, o.is_chained, round(us, 1)) for o, us in made.arrangements
        ],
        "errors": {"native": check(made.engine)},
    }
    row["errors_loaded"] = check(from_bytes)
    from_bytes.close()
    print(row, flush=True)
    if args.explain or not max(row["errors"]["native"].values()) < 1e-2:
        draft = drafted(proto, few_shapes, args.precision, made.can_run)
        explain(made, placed(draft, share=False), small)
    contenders: dict[str, Any] = {"native": made.engine}
    if args.peers:
        hw = shapes[model.inputs[0].name][2:]
        source = path
        if is_fixed and batch > 1:
            import onnx

            source = Path(tempfile.gettempdir()) / f"{path.stem}-b{batch}.onnx"
            onnx.save(proto, source)
        for name, engine in peers(source, batch, (hw[0], hw[1]), args.peers).items():
            row["errors"][name] = check(engine)
            contenders[name] = engine
    row["times"] = timed(contenders, device)
    row["steps"] = table_of(made)
    for name, found in row["times"].items():
        rate = batch * 1000 / found["ms"]
        print(f"{path.stem} b{batch} {name}: {found['ms']:.4f} ms, {rate:,.0f} pictures/s, errors",
              row["errors"][name], flush=True)  # fmt: skip
    total = sum(step["us"] for step in row["steps"])
    floor = sum(step["floor_us"] for step in row["steps"])
    print(f"sum of steps {total:.1f} us, floor {floor:.1f} us", flush=True)
    for step in sorted(row["steps"], key=lambda step: -step["us"])[: args.top]:
        print("  ", step["step"], step["reads"], step["writes"], step["way"], step["us"],
              step["floor_us"], step["label"][:40], flush=True)  # fmt: skip
    for engine in contenders.values():
        engine.close()
    return row


def machine_of() -> dict[str, Any]:
    """What the numbers belong to."""
    import platform
    from importlib import metadata

    from saccade.cuda.compile import nvrtc_version

    with Device(0) as device:
        name = device.name
    version = driver.call("asking for the version", driver.bindings().cuDriverGetVersion)
    found = {}
    for package in ("torch", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "gpu": name,
        "cuda_driver": int(version),
        "nvrtc": ".".join(map(str, nvrtc_version())),
        "python": platform.python_version(),
        "packages": found,
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--peers", nargs="*", default=[], help="of torch: none inductor max-autotune"
    )
    parser.add_argument("--libraries", action="store_true", help="let cuDNN's plans compete")
    parser.add_argument("--explain", action="store_true", help="check every step")
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--limit-s", type=int, default=300)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    faulthandler.dump_traceback_later(args.limit_s, exit=True)
    rows = []
    for path in args.models:
        for batch in args.batch:
            try:
                rows.append(run_case(path, batch, args))
            except Exception as exc:
                print(f"{path.stem} b{batch} FAILED: {str(exc)[:1000]}", flush=True)
                rows.append({"model": path.stem, "batch": batch, "failed": str(exc)[:1000]})
            args.json.write_text(json.dumps({**machine_of(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
