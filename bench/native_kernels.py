"""Time the engine's kernels on this GPU, each way of each step, checked before it is timed.

Run on a machine with a GPU and PyTorch (the reference in float64), from the repository's root:

    python -m bench.native_kernels --json FILE [--cases conv] [--batch 32 1]

The steps are the convolutions of cells_640. Each way is launched inside a CUDA graph over four
sets of buffers in turn; times are medians over replays. `floor` is the larger of operations /
780 TFLOP/s and bytes / 4.0 TB/s, as in the notes that the engine began with.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from saccade.cuda import driver
from saccade.cuda.compile import compile_kernels, nvrtc_version
from saccade.cuda.runtime import Device, Kernel, Stream
from saccade.errors import BuildError, EngineError
from saccade.native.kernels.conv import conv_ways
from saccade.native.kernels.cudnn import cudnn_version, cudnn_ways, open_plan
from saccade.native.kernels.stem import stem_ways
from saccade.native.ops import Activation, Conv
from saccade.native.seam import (
    Blob,
    Built,
    Launch,
    LibraryLaunch,
    OfView,
    OfWeight,
    OfWorkspace,
    Scalar,
    Source,
    Target,
)
from saccade.native.tensors import SIZES, dense, pixels

SETS = 4
TFLOPS, BANDWIDTH = 780e12, 4.0e12

# Channels, input height and width, output channels, kernel, stride, how often in the network.
CELLS = (
    (3, 640, 16, 3, 2, 1), (16, 320, 32, 3, 2, 1), (32, 160, 32, 1, 1, 1), (16, 160, 16, 3, 1, 2),
    (48, 160, 32, 1, 1, 1), (32, 160, 64, 3, 2, 1), (64, 80, 64, 1, 1, 1), (32, 80, 32, 3, 1, 6),
    (128, 80, 64, 1, 1, 1), (64, 80, 128, 3, 2, 1), (128, 40, 128, 1, 1, 1), (64, 40, 64, 3, 1, 10),
    (256, 40, 128, 1, 1, 1), (128, 40, 256, 3, 2, 1), (256, 20, 256, 1, 1, 1),
    (128, 20, 128, 3, 1, 4), (384, 20, 256, 1, 1, 3), (256, 20, 128, 1, 1, 1),
    (512, 20, 256, 1, 1, 1), (384, 40, 128, 1, 1, 1), (192, 40, 128, 1, 1, 3),
    (192, 80, 64, 1, 1, 1), (96, 80, 64, 1, 1, 1), (64, 80, 64, 3, 2, 1), (64, 80, 64, 3, 1, 4),
    (64, 80, 3, 1, 1, 1), (128, 40, 128, 3, 2, 1), (128, 40, 64, 3, 1, 2), (64, 40, 64, 1, 1, 1),
    (64, 40, 3, 1, 1, 1), (256, 20, 64, 3, 1, 2), (64, 20, 64, 3, 1, 2), (64, 20, 64, 1, 1, 1),
    (64, 20, 3, 1, 1, 1),
)  # fmt: skip


def conv_step(
    batch: int, c: int, size: int, k: int, kernel: int, stride: int, dtype: str = "float16"
) -> Conv:
    """One layer; three channels lie in planes, as a prepared input does."""
    pad, out = kernel // 2, (size + 2 * (kernel // 2) - kernel) // stride + 1
    if c == 3:
        x = dense(0, dtype, (batch, c, size, size)).permuted(0, 2, 3, 1)  # type: ignore[arg-type]
    else:
        x = pixels(0, "float16", (batch, size, size, c))
    return Conv(
        f"{c}x{size} {k} {kernel}/{stride}", x, pixels(1, "float16", (batch, out, out, k)), "w",
        (kernel, kernel), "b", (stride, stride), (pad,) * 4, activation=Activation("silu"),
    )  # fmt: skip


def floor_us(step: Conv) -> float:
    """The least time that arithmetic and memory allow, in microseconds."""
    n, h, w, k = step.y.shape
    operations = 2 * n * h * w * k * step.x.c // step.groups * step.kernel[0] * step.kernel[1]
    moved = step.x.num_bytes + step.y.num_bytes
    if step.residual is not None:
        moved += step.residual.num_bytes
    return max(operations / TFLOPS, moved / BANDWIDTH) * 1e6


class Card:
    """A device, and steps placed on it: what the engine's executor does, for one step alone."""

    def __init__(self, device: Device, *, is_chained: bool) -> None:
        self.device = device
        self.stream = device.stream()
        self.is_chained = is_chained
        self._kernels: dict[Any, Kernel] = {}

    def kernel(self, source: Source, launch: Launch) -> Kernel:
        """Compile, or find in the cache, and load."""
        key = (source, launch.function, launch.shared_bytes)
        if key not in self._kernels:
            module = self.device.load(
                compile_kernels(source.text, self.device.arch, source.defines)
            )
            self._kernels[key] = module.kernel(launch.function, shared_bytes=launch.shared_bytes)
        return self._kernels[key]

    def put(self, array: np.ndarray, at: int) -> None:
        """Copy to a device address."""
        array = np.ascontiguousarray(array)
        copy = driver.bindings().cuMemcpyHtoD
        driver.call("copying", copy, at, array.ctypes.data, array.nbytes)

    def get(self, at: int, num_bytes: int) -> np.ndarray:
        """Copy from a device address."""
        array = np.empty(num_bytes, np.uint8)
        copy = driver.bindings().cuMemcpyDtoH
        driver.call("copying", copy, array.ctypes.data, at, num_bytes)
        return array

    def enqueue(
        self, built: Built, buffers: Mapping[int, int], weights: list[int], workspace: int
    ) -> None:
        """Launch one step on the stream."""

        def address(of: Any) -> int:
            if isinstance(of, OfView):
                return buffers[of.view.buffer] + of.view.offset * SIZES[of.view.dtype]
            if isinstance(of, OfWeight):
                return weights[of.index] + of.offset
            assert isinstance(of, OfWorkspace)
            return workspace + of.offset

        for launch in built.launches:
            if isinstance(launch, LibraryLaunch):
                run = _opened(launch)
                run(self.stream.handle, {i: address(of) for i, of in launch.pointers}, workspace)
                continue
            args: list[Any] = []
            for argument in launch.arguments:
                if isinstance(argument, Blob):
                    data = bytearray(argument.data)
                    for at, of in argument.pointers:
                        data[at : at + 8] = address(of).to_bytes(8, "little")
                    args.append((ctypes.c_uint8 * len(data)).from_buffer(data))
                elif isinstance(argument, Scalar):
                    kinds: dict[str, Any] = {
                        "i32": ctypes.c_int32,
                        "u32": ctypes.c_uint32,
                        "i64": ctypes.c_int64,
                        "u64": ctypes.c_uint64,
                        "f32": ctypes.c_float,
                        "u8": ctypes.c_uint8,
                    }
                    kind = kinds[argument.kind]
                    is_real = argument.kind == "f32"
                    args.append(kind(argument.value if is_real else int(argument.value)))
                else:
                    args.append(ctypes.c_uint64(address(argument)))
            kernel = self.kernel(built.sources[launch.source], launch)
            launch_kernel(kernel, self.stream, launch, args, is_chained=self.is_chained)


_plans: dict[int, Any] = {}


def _opened(launch: LibraryLaunch) -> Any:
    if id(launch) not in _plans:
        _plans[id(launch)] = (open_plan(launch), launch)
    return _plans[id(launch)][0]


def launch_kernel(
    kernel: Kernel, stream: Stream, launch: Launch, args: list[Any], *, is_chained: bool
) -> None:
    """Enqueue a kernel; a chained one may start while the one before it ends."""
    cuda = driver.bindings()
    config = cuda.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid
    config.blockDimX, config.blockDimY, config.blockDimZ = launch.block
    config.sharedMemBytes = launch.shared_bytes
    config.hStream = stream.handle
    if is_chained:
        attribute = cuda.CUlaunchAttribute()
        attribute.id = (
            cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        )
        value = cuda.CUlaunchAttributeValue()
        value.programmaticStreamSerializationAllowed = 1
        attribute.value = value
        config.attrs = [attribute]
        config.numAttrs = 1
    pointers = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
    driver.call(
        "launching", cuda.cuLaunchKernelEx, config, kernel.function, ctypes.addressof(pointers), 0
    )


def time_us(card: Card, works: list[Any], floor: float) -> dict[str, float]:
    """Median microseconds of one launch, from graphs that hold each of the works some times."""
    stream, device = card.stream, card.device
    repeats = max(1, min(16, int(400 / max(floor, 2.0) / len(works)) + 1))
    with stream.capture() as captured:
        for _ in range(repeats):
            for work in works:
                work()
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    times = []
    for i in range(9):
        start.record(stream)
        captured.graph.launch(stream)
        stop.record(stream)
        stream.synchronize()
        if i >= 2:
            times.append(stop.ms_since(start) * 1000 / (repeats * len(works)))
    captured.graph.close()
    return {"us": round(statistics.median(times), 3), "low": round(min(times), 3)}


def reference(step: Conv, x: Any, weights: Mapping[str, np.ndarray], residual: Any) -> Any:
    """The step in float64, in PyTorch: (n, k, h, w)."""
    import torch

    w = torch.from_numpy(weights["w"].astype(np.float16).astype(np.float64)).cuda()
    w = w.permute(0, 3, 1, 2)
    b = torch.from_numpy(weights["b"].astype(np.float64)).cuda()
    y = torch.nn.functional.conv2d(
        x.double(), w, b, step.stride, step.pads[:2], step.dilation, step.groups
    )
    kind = step.activation.kind
    y = torch.nn.functional.silu(y) if kind == "silu" else torch.relu(y) if kind == "relu" else y
    if residual is not None:
        y = y + residual.double()
    return y


def ways_of(step: Conv, target: Target, limit: int) -> list[Any]:
    """All contenders for a step."""
    return [*stem_ways(step, target), *conv_ways(step, target, limit), *cudnn_ways(step, target)]


def _compile(task: tuple[str, tuple[str, ...], str]) -> str:
    text, defines, arch = task
    try:
        compile_kernels(text, arch, defines)
    except BuildError as exc:
        return str(exc)
    return ""


def random_weights(step: Conv, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights that keep the size of values."""
    depth = step.x.c // step.groups * step.kernel[0] * step.kernel[1]
    shape = (step.y.c, *step.kernel, step.x.c // step.groups)
    w = rng.normal(0, depth**-0.5, shape).astype(np.float32)
    return {"w": w, "b": rng.normal(0, 0.5, step.y.c).astype(np.float32)}


def compile_all(steps: list[Conv], target: Target, limit: int) -> dict[str, Any]:
    """Compile what the steps need, on all cores."""
    target = replace(target, has_device=False)
    tasks = set()
    for step in steps:
        shapes = {"w": (step.y.c, *step.kernel, step.x.c // step.groups), "b": (step.y.c,)}
        weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        for way in ways_of(step, target, limit):
            for source in way.build(weights).sources:
                tasks.add((source.text, source.defines, target.arch))
    start = time.perf_counter()
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        errors = [error for error in pool.map(_compile, sorted(tasks), chunksize=1) if error]
    for error in errors[:3]:
        print(error, flush=True)
    return {"kernels": len(tasks), "errors": len(errors), "s": time.perf_counter() - start}


def run_step(
    card: Card, target: Target, step: Conv, limit: int, named: str = "", *, is_timed: bool = True
) -> list[dict[str, Any]]:
    """All ways of one step (those whose names begin so): the answer, then the time."""
    import torch

    rng = np.random.default_rng(0)
    weights = random_weights(step, rng)
    shape = (step.x.n, step.x.c, step.x.h, step.x.w)
    kinds = {"float16": torch.float16, "float32": torch.float32}
    xs = []
    for _ in range(SETS):
        x = torch.randn(shape, device="cuda").to(kinds[step.x.dtype])
        if step.x.strides[3] == 1:
            x = x.contiguous(memory_format=torch.channels_last)
        xs.append(x)
    residuals: list[Any] = [None] * SETS
    if step.residual is not None:
        residuals = [
            torch.randn(
                (step.y.n, step.y.c, step.y.h, step.y.w), device="cuda", dtype=torch.float16
            ).contiguous(memory_format=torch.channels_last)
            for _ in range(SETS)
        ]
    ys = [
        torch.empty((step.y.n, step.y.h, step.y.w, step.y.c), device="cuda", dtype=torch.float16)
        for _ in range(SETS)
    ]
    want = reference(step, xs[0], weights, residuals[0]).permute(0, 2, 3, 1).contiguous()
    norm = float(want.norm())
    rows = []
    for way in ways_of(step, target, limit):
        if not way.name.startswith(named):
            continue
        row: dict[str, Any] = {"way": way.name}
        rows.append(row)
        try:
            built = way.build(weights)
            held = [torch.from_numpy(a.view(np.uint8).reshape(-1)).cuda() for a in built.weights]
            at = [t.data_ptr() for t in held]
            work = torch.empty(built.workspace_bytes + 256, dtype=torch.uint8, device="cuda")
            for y in ys:
                y.fill_(float("nan"))
            torch.cuda.synchronize()

            def enqueue(i: int, built: Built = built, at: Any = at, work: Any = work) -> None:
                buffers = {0: xs[i].data_ptr(), 1: ys[i].data_ptr()}
                if residuals[i] is not None:
                    buffers[2] = residuals[i].data_ptr()
                card.enqueue(built, buffers, at, work.data_ptr())

            enqueue(0)
            card.stream.synchronize()
            error = float((ys[0].double() - want).norm()) / norm
            row["error"] = error
            if not error < 2e-3:
                row["wrong"] = True
                print("WRONG", step.label, way.name, error, flush=True)
                continue
            row.update(time_us(card, [lambda i=i: enqueue(i) for i in range(SETS)], floor_us(step)))
        except (BuildError, EngineError) as exc:
            row["failed"] = str(exc)[:200]
            print("FAILED", step.label, way.name, row["failed"], flush=True)
            if "device was lost" in row["failed"]:
                raise
    return rows


@contextlib.contextmanager
def opened(is_chained: bool) -> Iterator[Card]:
    """The first GPU, in the context that PyTorch uses."""
    import torch

    torch.zeros(1, device="cuda")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with Device(0) as device:
        yield Card(device, is_chained=is_chained)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="sessions; one is added")
    parser.add_argument("--note", default="", help="what this session is about")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 1])
    parser.add_argument("--limit", type=int, default=12, help="tilings per step")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of layers")
    parser.add_argument("--chained", action="store_true", help="let kernels overlap at their ends")
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--once", action="store_true", help="check only, for a profiler")
    parser.add_argument("--ways", default="", help="how the names of ways begin")
    parser.add_argument("--arch", default="sm_90")
    args = parser.parse_args()
    layers = [CELLS[i] for i in args.only] if args.only else list(CELLS)
    cases = [(layer, batch) for batch in args.batch for layer in layers]
    steps = [conv_step(batch, *layer[:5]) for layer, batch in cases]
    target = Target(args.arch)
    compiled = compile_all(steps, target, args.limit)
    print("compiled", compiled, flush=True)
    if args.compile_only:
        return
    sessions = json.loads(args.json.read_text())["sessions"] if args.json.is_file() else []
    with opened(args.chained) as card:
        target = Target(
            card.device.arch, card.device.num_multiprocessors, card.device.shared_bytes,
            has_device=True,
        )  # fmt: skip
        rows: list[dict[str, Any]] = []
        sessions.append(environment(card, args.note) | {"rows": rows})
        for ((*layer, count), batch), step in zip(cases, steps, strict=True):
            found = run_step(card, target, step, args.limit, args.ways, is_timed=not args.once)
            rows.append(
                {
                    "layer": layer,
                    "count": count,
                    "batch": batch,
                    "floor_us": round(floor_us(step), 2),
                    "worst_error": max((way.get("error", 0.0) for way in found), default=0.0),
                    "refused": [way["way"] for way in found if "us" not in way],
                    "ways": {way["way"]: way["us"] for way in found if "us" in way},
                }
            )
            print(batch, step.label, f"x{count}", best_of_kinds(rows[-1]["ways"]), flush=True)
            text = json.dumps({"sessions": sessions}, separators=(",", ":"))
            args.json.write_text(text.replace('{"layer"', '\n{"layer"') + "\n")


def environment(card: Card, note: str) -> dict[str, Any]:
    """Where and with what it is measured."""
    import torch

    version = driver.call("asking", driver.bindings().cuDriverGetVersion)
    return {
        "note": note,
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "gpu": card.device.name,
        "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
        "packages": f"torch {torch.__version__}, cuDNN {cudnn_version()}, "
        f"NVRTC {'.'.join(map(str, nvrtc_version()))}",
    }


def best_of_kinds(ways: Mapping[str, float]) -> dict[str, tuple[float, str]]:
    """The fastest way of each kind (the first word of its name)."""
    best: dict[str, tuple[float, str]] = {}
    for name, us in sorted(ways.items(), key=lambda item: item[1]):
        best.setdefault(name.split()[0], (us, name))
    return best


if __name__ == "__main__":
    main()
