"""Every kernel compiles for every architecture, and agrees with NumPy in float64 on a GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from native.kernel_cases import CASES, Case, contents
from saccade.cuda.compile import ARCHITECTURES, compile_kernels
from saccade.cuda.runtime import Device
from saccade.native.kernels.packing import as_bits
from saccade.native.kernels.registry import KERNELS
from saccade.native.launching import Addresses, Loader, put
from saccade.native.ops import Conv, writes
from saccade.native.reference import Machine, as_e4m3, of_e4m3
from saccade.native.seam import Launch, Target, Way
from saccade.native.views import footprint

PRECISION = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}


def ways_of(case: Case, target: Target) -> tuple[Way, ...]:
    ways = KERNELS.ways(case.step, target)
    assert ways, f"no kernel for {case.name}"
    assert len({way.name for way in ways}) == len(ways)
    return ways


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", CASES)
def test_compiles(name: str, arch: str) -> None:
    case = CASES[name]
    shared = 227 * 1024 if arch in ("sm_80", "sm_90") else 99 * 1024
    ways = ways_of(case, Target(arch, shared_bytes=shared))
    # Tilings are macros of one source: the first of each source will do here, a GPU tries all.
    texts = set()
    for way in ways:
        for source in way.build(case.draft.weights).sources:
            if source.text not in texts:
                texts.add(source.text)
                assert compile_kernels(source.text, arch, source.defines)


def bits_of(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float8_e4m3":
        return as_e4m3(array)[1]
    return as_bits(array, dtype) if dtype == "bfloat16" else array


def values_of(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "float8_e4m3":
        return of_e4m3(raw.view(np.uint8))
    return raw.view(dtype)


def run_way(device: Device, loader: Loader, case: Case, way: Way, held: dict[int, np.ndarray]):
    """Contents of all buffers after one way of the step."""
    built = way.build(case.draft.weights)
    buffers = case.draft.buffers
    raw = {n: bits_of(array, buffers[n].dtype) for n, array in held.items()}
    sizes = {f"b{n}": array.nbytes for n, array in raw.items()}
    sizes |= {f"w{i}": array.nbytes for i, array in enumerate(built.weights)}
    own = device.share()
    arena = own.arena({**sizes, "work": built.workspace_bytes})
    for n, array in raw.items():
        put(array, arena.address(f"b{n}"))
    for i, array in enumerate(built.weights):
        put(array, arena.address(f"w{i}"))
    addresses = Addresses(
        {n: arena.address(f"b{n}") for n in raw},
        [arena.address(f"w{i}") for i in range(len(built.weights))],
        arena.address("work"),
    )
    stream = own.stream()
    for bound in loader.bind(built, addresses):
        bound.enqueue(stream.handle, False)
    found = {}
    for n, array in raw.items():
        pinned = own.pinned(array.nbytes)
        stream.download(pinned, arena.address(f"b{n}"), array.nbytes)
        stream.synchronize()
        found[n] = values_of(pinned.array.copy(), buffers[n].dtype)
    own.close()
    return found


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_numpy(device: Device, name: str) -> None:
    case = CASES[name]
    rng = np.random.default_rng(7)
    held = contents(case, rng)
    machine = Machine(case.draft, np.float64)
    machine.memory.update({n: array.copy() for n, array in held.items()})
    machine.run(case.step)
    loader = Loader(device, KERNELS)
    target = Target(device.arch, device.num_multiprocessors, device.shared_bytes, has_device=True)
    for view in writes(case.step):  # poison: whatever is not written is seen
        array = np.lib.stride_tricks.as_strided(
            held[view.buffer][view.offset :], view.shape,
            [s * held[view.buffer].itemsize for s in view.strides],
        )  # fmt: skip
        shared_with_input = view.buffer in {v.buffer for v in _inputs(case)}
        if array.dtype.kind == "f" and not shared_with_input:
            array[...] = np.nan
    for way in ways_of(case, target):
        found = run_way(device, loader, case, way, held)
        for n, want in machine.memory.items():
            check(case, way, case.draft.buffers[n].dtype, found[n], want, held[n], n)


def _inputs(case: Case):
    from saccade.native.ops import reads

    return reads(case.step)


def check(case: Case, way: Way, dtype: str, found, want, before, number: int) -> None:
    """What was to be written is close; every other element of the buffer is what it was."""
    written = np.zeros(len(want), bool)
    for view in writes(case.step):
        if view.buffer == number:
            marks = np.lib.stride_tricks.as_strided(
                written[view.offset :], view.shape, list(view.strides)
            )
            marks[...] = True
    label = f"{case.name}: {way.name}"
    assert np.array_equal(found[~written], before[~written], equal_nan=found.dtype.kind == "f"), (
        f"{label} wrote beside its result"
    )
    found, want = found[written], want[written]
    if dtype not in PRECISION:
        assert np.array_equal(found, want), label
        return
    found, want = found.astype(np.float64), want.astype(np.float64)
    assert np.array_equal(np.isnan(found), np.isnan(want)), f"{label}: not a number elsewhere"
    with np.errstate(invalid="ignore", over="ignore"):
        limit = case.atol + case.rtol * PRECISION[dtype] * np.abs(want)
        is_near = (np.abs(found - want) <= limit) | (found == want) | np.isnan(want)
        if dtype == "float16":  # on the verge of overflow either is right
            is_near |= (np.abs(found) >= 65472) & (np.abs(want) >= 65472)
    worst = np.flatnonzero(~is_near)
    assert not len(worst), (
        f"{label}: {len(worst)} of {len(want)} wrong, first {found[worst[0]]} for {want[worst[0]]}"
    )


def test_ways_are_the_same_every_time() -> None:
    target = Target("sm_90")
    for case in CASES.values():
        names = [way.name for way in KERNELS.ways(case.step, target)]
        assert names == [way.name for way in KERNELS.ways(case.step, target)]


def test_weights_are_not_changed() -> None:
    case = CASES["3x3"]
    before = {name: array.copy() for name, array in case.draft.weights.items()}
    for way in KERNELS.ways(case.step, Target("sm_90")):
        way.build(case.draft.weights)
    assert all(np.array_equal(before[name], array) for name, array in case.draft.weights.items())


def test_launches_fit_small_cards() -> None:
    target = Target("sm_86", num_multiprocessors=28, shared_bytes=99 * 1024)
    for case in CASES.values():
        for way in KERNELS.ways(case.step, target):
            for launch in way.build(case.draft.weights).launches:
                assert isinstance(launch, Launch)
                assert launch.shared_bytes <= target.shared_bytes
                assert launch.block[0] <= 1024


def test_a_convolution_with_two_activations_and_no_residual_goes_to_the_plain_kernel() -> None:
    case = CASES["3x3"]
    assert isinstance(case.step, Conv)
    step = dataclasses.replace(case.step, after=dataclasses.replace(case.step.activation))
    assert [way.name for way in KERNELS.ways(step, Target("sm_90"))] == ["direct"]


def test_reads_stay_inside_buffers() -> None:
    for case in CASES.values():
        for view in (*_inputs(case), *writes(case.step)):
            low, high = footprint(view)
            assert 0 <= low <= high <= case.draft.buffers[view.buffer].num_elements
