"""Which way runs each step: measured on this card, as the steps will run.

Each way is timed inside a CUDA graph over several sets of buffers in turn, so that what it reads is
as cold as in the network: the sets together are as large as all that the network touches, or twice
the second-level cache, whichever is less. Times are kept on disk; equal files give equal choices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from saccade.cuda import driver
from saccade.cuda.driver import call
from saccade.cuda.runtime import Device, Stream
from saccade.errors import BuildError, EngineError
from saccade.native.launching import Addresses, Bound, Loader, compile_all, put, zero
from saccade.native.ops import Step, reads, writes
from saccade.native.plan import Plan, with_views
from saccade.native.seam import Built, Kernels, Target, Way
from saccade.native.tensors import SIZES, View
from saccade.native.turns import card_lock
from saccade.native.views import footprint

__all__ = [
    "Choice",
    "Timings",
    "check_ways",
    "choose",
    "chosen",
    "step_key",
    "time_graph",
    "touched_bytes",
]

_LOG = logging.getLogger(__name__)
MAX_SETS = 16
REPLAYS = 9
WARM_UPS = 2
GRAPH_US = 400.0
_ALIGNMENT = 256
# Fields that name weights.
_NAMES = ("weight", "bias", "gain", "shift", "y_units")
# What 8-bit codes are worth: it changes no time.
_UNITS = ("x_scale", "y_scale", "residual_scale", "weight_scale")


class Timings:
    """Measured times on disk: one JSON file per card and versions.

    Args:
        path: The file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._times: dict[str, dict[str, float]] = {}
        if path is not None:
            try:
                self._times = json.loads(path.read_text())
            except (OSError, ValueError):
                self._times = {}

    def get(self, key: str) -> dict[str, float]:
        """Way to microseconds, of one step."""
        return self._times.get(key, {})

    def set(self, key: str, times: Mapping[str, float]) -> None:
        self._times[key] = dict(times)

    def save(self) -> None:
        """Write the file aside and rename it; a folder that cannot be written is no error."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(self._times, file, sort_keys=True, indent=0)
            os.replace(file.name, self._path)
        except OSError:
            return


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What runs a step.

    Attributes:
        way: Its name.
        built: Ready but for addresses.
        us: Microseconds, measured.
        others: Name and microseconds of every way that was measured, fastest first.
    """

    way: str
    built: Built
    us: float
    others: tuple[tuple[str, float], ...]


def step_key(step: Step) -> str:
    """What two steps share if they run alike: everything but names and which buffers they are."""
    numbers: dict[int, int] = {}

    def renumber(view: View) -> View:
        number = numbers.setdefault(view.buffer, len(numbers))
        return replace(view, buffer=number)

    moved = with_views(step, renumber)
    said = []
    for field in fields(step):
        value = getattr(moved, field.name)
        # What is as always is left out, so that a new field leaves the keys of old steps alone.
        if field.name in ("label", *_UNITS) or value == field.default:
            continue
        is_name = isinstance(value, str) and field.name in _NAMES
        said.append((field.name, "named" if is_name else value))
    return f"{type(step).__name__} {hashlib.sha256(repr(said).encode()).hexdigest()[:32]}"


def touched_bytes(plan: Plan) -> int:
    """Bytes of all buffers and weights."""
    return sum(buffer.num_bytes for buffer in plan.buffers) + sum(
        array.size * 2 for array in plan.weights.values()
    )


def choose(
    plan: Plan, device: Device, loader: Loader, kernels: Kernels, target: Target, timings: Timings
) -> list[Choice]:
    """The fastest way of each step of a plan.

    Raises:
        BuildError: A step has no way; names it.
    """
    ways = [kernels.ways(step, target) for step in plan.steps]
    check_ways(plan, ways)
    keys = [step_key(step) for step in plan.steps]
    builds = _builds(plan, keys, ways, timings)
    refused = compile_all((s for built in builds.values() for s in built.sources), device.arch)
    for error in refused.values():
        _LOG.info("a kernel does not compile: %s", error)
    bench = _Bench(plan, device, loader, target)
    for index, key in enumerate(keys):
        names = {way.name for way in ways[index]}
        if set(timings.get(key)) >= names:
            continue
        times = {}
        for way in ways[index]:
            built = builds.get((key, way.name))
            times[way.name] = (
                math.inf if built is None else bench.time(plan.steps[index], way.name, built)
            )
        timings.set(key, times)
        timings.save()
    bench.close()
    return chosen(plan, kernels, target, timings, bench.failures)


def chosen(
    plan: Plan,
    kernels: Kernels,
    target: Target,
    timings: Timings,
    failures: Mapping[tuple[str, str], str] | None = None,
) -> list[Choice]:
    """The fastest way of each step by times that are known; equal times give equal choices.

    Args:
        plan: What is to run.
        kernels: All there are.
        target: The card.
        timings: Of every way of every step.
        failures: Why a way of a step, by its key and the way's name, does not run.

    Raises:
        BuildError: A step has no way that runs; names it.
    """
    return [
        _choice(plan, index, step_key(step), kernels.ways(step, target), timings, failures or {})
        for index, step in enumerate(plan.steps)
    ]


def check_ways(plan: Plan, ways: Sequence[Sequence[Way]]) -> None:
    """Refuse a plan with steps that nothing runs.

    Raises:
        BuildError: Names the first such step.
    """
    lacking = [step for step, found in zip(plan.steps, ways, strict=True) if not found]
    if lacking:
        first = lacking[0]
        raise BuildError(
            f"every step must have a kernel, {len(lacking)} of {len(plan.steps)} have none, first "
            f"{type(first).__name__} ({first.label}); choose another back end"
        )


def _builds(
    plan: Plan, keys: Sequence[str], ways: Sequence[Sequence[Way]], timings: Timings
) -> dict[tuple[str, str], Built]:
    """What has to be timed, built."""
    made: dict[tuple[str, str], Built] = {}
    for key, found in zip(keys, ways, strict=True):
        if set(timings.get(key)) >= {way.name for way in found}:
            continue
        for way in found:
            if (key, way.name) not in made:
                try:
                    made[key, way.name] = way.build(plan.weights)
                except BuildError:
                    continue  # this way cannot after all; others can
    return made


def _choice(
    plan: Plan,
    index: int,
    key: str,
    ways: Sequence[Way],
    timings: Timings,
    failures: Mapping[tuple[str, str], str],
) -> Choice:
    times = timings.get(key)
    # The order of the ways breaks ties; what failed is not chosen.
    able = [way for way in ways if times.get(way.name, math.inf) < math.inf]
    if not able:
        reasons = [failures.get((key, way.name), "") for way in ways]
        step = plan.steps[index]
        raise BuildError(
            f"every step must have a kernel that runs, all {len(ways)} for "
            f"{type(step).__name__} ({step.label}) fail: {next(filter(None, reasons), '')}; "
            "choose another back end"
        )
    ranked = sorted(able, key=lambda way: times[way.name])
    return Choice(
        ranked[0].name,
        ranked[0].build(plan.weights),
        times[ranked[0].name],
        tuple((way.name, times[way.name]) for way in ranked),
    )


class _Bench:
    """Scratch memory, and timing of single steps in it."""

    def __init__(self, plan: Plan, device: Device, loader: Loader, target: Target) -> None:
        self._device = device.share()
        self._loader = loader
        self._stream = self._device.stream()
        self._rotation = min(touched_bytes(plan), 2 * target.l2_bytes)
        # Values as activations have them; as whole numbers they would be absurd indices.
        self._pattern = np.random.default_rng(0).normal(size=2**22).astype(np.float16)
        self._base, self._size = 0, 0
        self.failures: dict[tuple[str, str], str] = {}

    def time(self, step: Step, name: str, built: Built) -> float:
        """Microseconds of one way; infinite if it fails, and why is noted."""
        spans = _spans(step)
        one = sum(_rounded((high - low) * size) for low, high, size in spans.values())
        sets = max(1, min(MAX_SETS, -(-self._rotation // max(one, 1))))
        extra = sum(_rounded(a.nbytes) for a in built.weights) + _rounded(built.workspace_bytes)
        self._reserve(sets * one + extra)
        at = self._base
        weights = []
        for array in built.weights:
            put(array, at)
            weights.append(at)
            at += _rounded(array.nbytes)
        workspace, at = at, at + _rounded(built.workspace_bytes)
        bound = []
        try:
            for _ in range(sets):
                buffers = {}
                for number, (low, high, size) in spans.items():
                    buffers[number] = at - low * size
                    at += _rounded((high - low) * size)
                for view in reads(step):
                    if view.dtype in ("int64", "int32", "bool"):
                        low, high, size = spans[view.buffer]
                        zero(buffers[view.buffer] + low * size, (high - low) * size)
                bound.append(self._loader.bind(built, Addresses(buffers, weights, workspace)))
            with card_lock(self._device.index):
                return time_graph(self._device, self._stream, bound)
        except (BuildError, EngineError) as exc:
            if "device was lost" in str(exc):
                raise
            self.failures[step_key(step), name] = str(exc)
            _LOG.info("%s (%s) fails: %s", name, step.label, exc)
            return math.inf

    def _reserve(self, num_bytes: int) -> None:
        """Room of that size, filled with values."""
        if num_bytes <= self._size:
            return
        cuda = driver.bindings()
        self._release()
        self._size = int(num_bytes * 1.25)
        self._base = int(call("reserving scratch memory", cuda.cuMemAlloc, self._size))
        step = self._pattern.nbytes
        put(self._pattern[: min(self._size, step) // 2], self._base)
        done = min(self._size, step)
        while done < self._size:
            part = min(done, self._size - done)
            call("filling", cuda.cuMemcpyDtoD, self._base + done, self._base, part)
            done += part

    def close(self) -> None:
        """Release memory, events and the stream."""
        self._release()
        self._device.close()

    def _release(self) -> None:
        if self._base:
            call("releasing memory", driver.bindings().cuMemFree, self._base)
        self._base = self._size = 0


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _spans(step: Step) -> dict[int, tuple[int, int, int]]:
    """For each buffer the elements that a step touches, from and to, and their size.

    Starts are rounded down so that addresses keep their alignment.
    """
    spans: dict[int, tuple[int, int, int]] = {}
    for view in (*reads(step), *writes(step)):
        low, high = footprint(view)
        low -= low % (_ALIGNMENT // SIZES[view.dtype])
        if view.buffer in spans:
            low, high = min(low, spans[view.buffer][0]), max(high, spans[view.buffer][1])
        spans[view.buffer] = (low, high, SIZES[view.dtype])
    return spans


def time_graph(device: Device, stream: Stream, works: Sequence[Sequence[Bound]]) -> float:
    """Median microseconds of one of several works, launched in turn inside a graph."""

    def run(times: int) -> None:
        for _ in range(times):
            for work in works:
                for bound in work:
                    bound.enqueue(stream.handle, False)

    run(1)
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    start.record(stream)
    run(1)
    stop.record(stream)
    stream.synchronize()
    estimate = max(stop.ms_since(start) * 1000, 1.0)
    repeats = max(1, min(20, round(GRAPH_US / estimate)))
    with stream.capture() as captured:
        run(repeats)
    samples = []
    for index in range(WARM_UPS + REPLAYS):
        start.record(stream)
        captured.graph.launch(stream)
        stop.record(stream)
        stream.synchronize()
        if index >= WARM_UPS:
            samples.append(stop.ms_since(start) * 1000 / (repeats * len(works)))
    captured.graph.close()
    return statistics.median(samples)
