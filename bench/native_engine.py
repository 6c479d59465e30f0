"""Time the engine of our own beside its peers on this GPU; every answer is checked before.

Run on a machine with a GPU and PyTorch, from the repository's root, for some networks:

    python -m bench.native_engine cells_640.onnx resnet50:224 --batch 32 1 --json FILE --peers none

A network is a file, or a name of `bench.networks` and the side of its pictures. Contenders take
the prepared FP32 input (n, 3, h, w) and give the graph's raw outputs: the engine, and with --peers
those of `bench.native_peers`, all FP16. Rounds of replays in turn; the median of each. Before,
every picture of the batch is compared with ONNX Runtime in FP32 on the CPU, on fresh inputs,
with outputs poisoned. `python -m bench.native_suite` runs many networks, built side by side and
timed one by one.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bench.native_peers import LONG, PEERS, TORCH, load_peer, share_card, within
from saccade.cuda import driver
from saccade.cuda.runtime import Device
from saccade.graph.passes.fold_focus import fold_focus
from saccade.graph.passes.free_batch import free_batch
from saccade.graph.passes.loading import load_tidy
from saccade.graph.reading import read_model
from saccade.native.build import build, loaded, stored
from saccade.native.drafting import drafted
from saccade.native.floors import floor_us
from saccade.native.kernels.registry import KERNELS
from saccade.native.memory import placed
from saccade.native.ops import reads, writes
from saccade.native.reference import Machine
from saccade.native.tuning import Timings
from saccade.native.turns import card_lock
from saccade.types import Plan

# Networks that take values from 0 to 255.
UNSCALED = ("yolox_nano_416", "light_person_192", "yunet_n_320")
ROUNDS = 7
ROUND_MS = 60.0


def shapes_of(model: Any, batch: int) -> dict[str, tuple[int, ...]]:
    """Input shapes for a batch; a second input holds two numbers per picture."""
    shapes = {}
    for spec in model.inputs:
        if len(spec.shape) == 2 and all(isinstance(s, int) and s > 1 for s in spec.shape):
            shapes[spec.name] = tuple(spec.shape)  # regions, a fixed number of them
            continue
        sizes = [batch, *(s if isinstance(s, int) else 2 for s in spec.shape[1:])]
        shapes[spec.name] = tuple(sizes)
    return shapes


def feeds_of(
    model: Any, shapes: dict[str, tuple[int, ...]], seed: int, pictures: Path | None = None
) -> dict[str, np.ndarray]:
    """Pictures of a folder where there is one, so that a trained network sees something; else
    smooth noise. Regions lie anywhere."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in model.inputs:
        shape = shapes[spec.name]
        if len(shape) == 4:
            high = 255 if model.path.stem in UNSCALED else 1
            made = read_pictures(pictures, shape) if pictures else noise(rng, shape)
            feeds[spec.name] = made * np.float32(high)
        elif shape[1] == 4:
            height, width = next(s for s in shapes.values() if len(s) == 4)[2:]
            low = rng.random((shape[0], 2)) * 0.7
            high_corner = low + 0.02 + rng.random((shape[0], 2)) * 0.28
            corners = np.concatenate([low, high_corner], 1) * [width, height, width, height]
            feeds[spec.name] = corners.astype(np.float32)
        else:
            feeds[spec.name] = np.full(shape, 640, spec.dtype)
    return feeds


def noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    n, c, h, w = shape
    small = rng.random((n, c, -(-h // 16), -(-w // 16)), dtype=np.float32)
    return small.repeat(16, 2).repeat(16, 3)[:, :, :h, :w]


def read_pictures(folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The first pictures of a folder, stretched; values from 0 to 1."""
    from PIL import Image

    n, _, h, w = shape
    files = sorted(folder.iterdir())
    made = [Image.open(files[i % len(files)]).convert("RGB").resize((w, h)) for i in range(n)]
    return np.stack([np.asarray(p, np.float32).transpose(2, 0, 1) / 255 for p in made])


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


def model_of(name: str, batch: int) -> tuple[Path, Any]:
    """A network with its batch free or fixed at this one: its file and its tidy graph.

    Args:
        name: A file, or a name of `bench.networks`, a colon and the side of its pictures.
        batch: Pictures at a time.
    """
    folder = Path(tempfile.mkdtemp(prefix="saccade-"))
    if not name.endswith(".onnx"):
        from bench.networks import write

        kind, _, side = name.partition(":")
        path = write(kind, int(side), batch, folder / f"{kind}_{side}.onnx")
        return path, load_tidy(read_model(path))
    path = Path(name)
    model = read_model(path)
    proto = load_tidy(model)
    if batch > 1 and all(spec.shape[0] == 1 for spec in model.inputs):
        proto = free_batch(proto, model_path=path)
        path = folder / path.name
        onnx.save(proto, path)
    return path, proto


def reference_of(
    name: str, batch: int, pictures: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs for a whole batch, and ONNX Runtime's FP32 answers to them on the CPU.

    Two pictures take turns in every place of the batch, so that every place is checked and few have
    to be computed. Regions belong to pictures by their place, so with them all are computed.
    """
    path, _ = model_of(name, batch)
    shapes = shapes_of(read_model(path), batch)
    few = batch if any(len(s) == 2 and s[1] == 4 for s in shapes.values()) else min(batch, 2)
    path, _ = model_of(name, few)
    model = read_model(path)
    small = feeds_of(model, shapes_of(model, few), 7, pictures)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in model.outputs]
    found = dict(zip(names, session.run(names, small), strict=True))
    tiles = batch // few
    return tuple(  # type: ignore[return-value]
        {key: np.concatenate([array] * tiles) for key, array in arrays.items()}
        for arrays in (small, found)
    )


def agreement(found: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float | None:
    """Of final boxes with a score of .3: the share that has one of its label at IoU .9 with a
    score within .05. None for networks whose outputs are no final boxes."""
    if set(want) != {"labels", "boxes", "scores"}:
        return None
    hits = total = 0
    for picture in range(len(want["scores"])):
        for row in np.flatnonzero(want["scores"][picture] >= 0.3):
            box = want["boxes"][picture, row]
            others = found["boxes"][picture].astype(np.float64)
            low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
            shared = np.prod(np.clip(high - low, 0, None), 1)
            both = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], 1)
            near = shared / np.maximum(both - shared, 1e-9) > 0.9
            near &= found["labels"][picture] == want["labels"][picture, row]
            near &= np.abs(found["scores"][picture] - want["scores"][picture, row]) < 0.05
            hits, total = hits + bool(near.any()), total + 1
    return hits / total if total else None


def run_case(name: str, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """One network, one batch: build all, wait for the turn, check all, time all."""
    started = time.monotonic()
    path, proto = model_of(name, batch)
    model = read_model(path)
    fold_focus(proto)
    shapes = shapes_of(model, batch)
    wanted = Plan("native", args.precision, batch, device="cuda:0")
    times = Timings(args.times / f"{path.stem}-{batch}.json") if args.times else None

    def built() -> Any:
        return build(proto, shapes, wanted, KERNELS, timings=times, libraries=args.libraries)

    start = time.perf_counter()
    made = built()
    row: dict[str, Any] = {
        "model": path.stem,
        "batch": batch,
        "precision": args.precision,
        "libraries": args.libraries,
        "build_s": time.perf_counter() - start,
        "peers_s": {},
        "errors": {},
        "not_built": {},
    }
    print(f"{path.stem} b{batch} native built in {row['build_s']:.1f} s", flush=True)
    feeds, want = reference_of(name, batch, args.pictures)
    device = Device(0)
    contenders: dict[str, Any] = {"native": made.engine}
    if set(args.peers) & set(TORCH):
        share_card(card_lock)
    load_caches(args, path.stem, batch)
    for kind in args.peers:
        peer = PEERS[kind][2]
        start = time.perf_counter()
        try:
            if kind in LONG:
                ask(args, "tune", path.stem, batch)
            with within(args.budget_s - (time.monotonic() - started)):
                h, w = shapes[model.inputs[0].name][2:]
                contenders[peer] = load_peer(kind, path, batch, (h, w))
        except Exception as exc:
            # Whatever a compiler raises: this contender has no time here, and the row says why.
            row["not_built"][peer] = f"{type(exc).__name__}: {str(exc)[:300]}"
            print(path.stem, batch, peer, "failed:", row["not_built"][peer], flush=True)
        row["peers_s"][peer] = time.perf_counter() - start
        print(f"{path.stem} b{batch} {peer} in {row['peers_s'][peer]:.1f} s", flush=True)
    save_caches(args, path.stem, batch)
    start = time.perf_counter()
    again = built()
    row["again_s"] = time.perf_counter() - start
    row["same_choices"] = [c.way for c in made.choices] == [c.way for c in again.choices]
    again.engine.close()
    ask(args, "time", path.stem, batch)
    stream = device.stream()
    raw = stored(made)
    start = time.perf_counter()
    from_bytes, _ = loaded(raw, wanted, KERNELS)
    row["load_s"] = time.perf_counter() - start
    row |= {
        "num_bytes": len(raw),
        "arena_bytes": made.plan.arena_bytes,
        "arrangements": [
            (o.num_streams, o.is_chained, round(us, 1)) for o, us in made.arrangements
        ],
    }

    def check(engine: Any) -> dict[str, float]:
        found = answers(engine, feeds, stream)
        if any(np.isnan(a).any() for a in found.values() if a.dtype.kind == "f"):
            return {"nan": float("nan")}
        made_errors = errors(found, want)
        agreed = agreement(found, want)
        return made_errors if agreed is None else {**made_errors, "agreement": agreed}

    row["errors_loaded"] = check(from_bytes)
    from_bytes.close()
    row["errors"] = {peer: check(engine) for peer, engine in contenders.items()}
    if args.explain:
        few = min(batch, 2)
        small_path, small_proto = model_of(name, few)
        fold_focus(small_proto)
        draft = drafted(small_proto, shapes_of(read_model(small_path), few), args.precision,
                        made.can_run)  # fmt: skip
        explain(made, placed(draft, share=False), {k: v[:few] for k, v in feeds.items()})
    row["times"] = timed(contenders, device)
    row["steps"] = table_of(made)
    for peer, found in row["times"].items():
        rate = batch * 1000 / found["ms"]
        print(f"{path.stem} b{batch} {peer}: {found['ms']:.4f} ms, {rate:,.0f} pictures/s, errors",
              row["errors"][peer], flush=True)  # fmt: skip
    total = sum(step["us"] for step in row["steps"])
    floor = sum(step["floor_us"] for step in row["steps"])
    print(f"sum of steps {total:.1f} us, floor {floor:.1f} us", flush=True)
    for step in sorted(row["steps"], key=lambda step: -step["us"])[: args.top]:
        print("  ", step["step"], step["reads"], step["writes"], step["way"], step["us"],
              step["floor_us"], step["label"][:40], flush=True)  # fmt: skip
    for engine in contenders.values():
        engine.close()
    return row


def ask(args: argparse.Namespace, what: str, stem: str, batch: int) -> None:
    """Ask for a turn and wait for it: to let a compiler search ("tune"), which few may do at once,
    or to be timed ("time"), alone on the card.

    Raises:
        TimeoutError: There is no time left for this.
    """
    if args.turns is None:
        return
    (args.turns / f"{stem}-{batch}.wants.{what}").touch()
    while not (args.turns / f"{stem}-{batch}.may.{what}").exists():
        if (args.turns / f"{stem}-{batch}.no.{what}").exists():
            raise TimeoutError("its turn did not come in the time for building")
        time.sleep(0.05)


def load_caches(args: argparse.Namespace, stem: str, batch: int) -> None:
    """What torch's compilers made of this network before, if it was kept."""
    if args.caches is None or not set(args.peers) & set(TORCH):
        return
    import torch

    file = args.caches / f"{stem}-{batch}.torch"
    if file.exists():
        torch.compiler.load_cache_artifacts(file.read_bytes())


def save_caches(args: argparse.Namespace, stem: str, batch: int) -> None:
    if args.caches is None or not set(args.peers) & set(TORCH):
        return
    import torch

    saved = torch.compiler.save_cache_artifacts()
    if saved is not None:
        (args.caches / f"{stem}-{batch}.torch").write_bytes(saved[0])


def machine_of() -> dict[str, Any]:
    """What the numbers belong to."""
    import platform
    from importlib import metadata

    from saccade.cuda.compile import nvrtc_version

    with Device(0) as device:
        name = device.name
    version = driver.call("asking for the version", driver.bindings().cuDriverGetVersion)
    found = {}
    for package in ("torch", "triton", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend",
                    "onnxruntime-gpu", "onnxruntime", "numpy"):  # fmt: skip
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
    parser.add_argument("models", nargs="+", help="files, or names of bench.networks as NAME:SIDE")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--peers", nargs="*", default=[], choices=PEERS)
    parser.add_argument("--pictures", type=Path, help="folder of pictures to feed")
    parser.add_argument("--libraries", action="store_true", help="let cuDNN's plans compete")
    parser.add_argument("--times", type=Path, help="folder of kernels' times, to go on from")
    parser.add_argument("--caches", type=Path, help="folder for what torch's compilers made")
    parser.add_argument("--turns", type=Path, help="folder in which turns are asked for")
    parser.add_argument("--budget-s", type=float, default=600, help="for building, in all")
    parser.add_argument("--explain", action="store_true", help="check every step")
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--limit-s", type=int, default=590)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    faulthandler.dump_traceback_later(args.limit_s, exit=True)
    rows = []
    for name in args.models:
        for batch in args.batch:
            try:
                rows.append(run_case(name, batch, args))
            except Exception as exc:
                print(f"{name} b{batch} FAILED: {str(exc)[:1000]}", flush=True)
                traceback.print_exc()
                rows.append({"model": name, "batch": batch, "failed": str(exc)[:1000]})
            args.json.write_text(json.dumps({**machine_of(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
