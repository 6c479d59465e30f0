"""From a model to an engine on this card: plan, ways by measurement, arrangement by measurement."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saccade.cuda.compile import cache_dir, nvrtc_version
from saccade.cuda.driver import bindings, call
from saccade.cuda.runtime import Device
from saccade.errors import BuildError
from saccade.native.artefact import Artefact, packed, unpacked
from saccade.native.depends import depends
from saccade.native.drafting import drafted
from saccade.native.engine import NativeEngine, Options
from saccade.native.launching import Loader
from saccade.native.lowering.units import Kind, without_pairs
from saccade.native.memory import placed
from saccade.native.mixing import Mix, mixed
from saccade.native.ops import Step
from saccade.native.plan import Draft, Plan
from saccade.native.seam import Kernels, LibraryLaunch, Target
from saccade.native.tuning import Choice, Timings, choose, step_key
from saccade.native.turns import card_lock
from saccade.types import Plan as Wanted

if TYPE_CHECKING:
    import onnx

__all__ = ["Engine", "build", "key_of", "loaded", "stored", "target_of"]

ARRANGEMENTS = (
    Options(1, is_chained=False),
    Options(1, is_chained=True),
    Options(4, is_chained=False),
    Options(4, is_chained=True),
)
REPEATS = 20
# Of the device's memory, for buffers that could share bytes but then could not be used at once.
MAX_APART_SHARE = 1 / 16


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """An engine and how it came about.

    Attributes:
        engine: Runs.
        plan: Its steps.
        choices: What runs each.
        arrangements: Options and microseconds per inference, as measured.
        can_run: Whether there is a kernel for a step on this card.
        artefact: To be stored.
        mix: Which tensors are 8-bit codes, if the graph has Q/DQ pairs.
    """

    engine: NativeEngine
    plan: Plan
    choices: tuple[Choice, ...]
    arrangements: tuple[tuple[Options, float], ...]
    can_run: Callable[[Step], bool]
    artefact: Artefact
    mix: Mix | None = None


def target_of(device: Device) -> Target:
    """What kernels need to know of a card."""
    cuda = bindings()
    attribute = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
    handle = call("opening the device", cuda.cuDeviceGet, device.index)
    l2_bytes = int(call("asking for the cache", cuda.cuDeviceGetAttribute, attribute, handle))
    return Target(
        device.arch,
        device.num_multiprocessors,
        device.shared_bytes,
        l2_bytes,
        has_device=True,
    )


def timings_of(device: Device, kernels: Kernels) -> Timings:
    """The file of times for this card and these versions."""
    key = f"{device.name} {device.arch} {nvrtc_version()} {kernels.version}"
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return Timings(cache_dir().parent / "native-times" / f"{name}.json")


def key_of(device: Device, kernels: Kernels) -> dict[str, str]:
    """What an engine's bytes are good for."""
    return {"device": device.name, "arch": device.arch, "kernels": kernels.version}


def build(
    proto: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Wanted,
    kernels: Kernels,
    *,
    timings: Timings | None = None,
    libraries: bool = False,
    half_inputs: bool = False,
) -> Engine:
    """Plan, measure, load.

    A graph with explicit Q/DQ pairs computes in 8 bits where that is faster on this card.

    Args:
        proto: From `tidy`, weights loaded.
        shapes: Input name to shape.
        wanted: Device and precision.
        kernels: All there are.
        timings: Where times are kept; by default in the user's cache folder.
        libraries: Whether other libraries' kernels may be chosen.
        half_inputs: Whether pictures are fed in the plan's precision, not in the graph's type.

    Raises:
        BuildError: A node or a step is not covered; names it. Or the card knows no e4m3.
        BackendUnavailable: There is no such device.
        EngineError: It does not fit on the card.
    """
    device = Device(int(wanted.device.partition(":")[2] or 0))
    try:
        target = replace(target_of(device), has_device=libraries)
        timings = timings or timings_of(device, kernels)

        def can_run(step: Step) -> bool:
            return bool(kernels.ways(step, target))

        pairs = without_pairs(proto) if wanted.precision == "fp16" else None
        if pairs is not None:
            proto = pairs[0]
        draft = drafted(
            proto,
            shapes,
            wanted.precision,
            can_run,
            half_inputs=half_inputs,
            units=None if pairs is None else pairs[1],
        )
        loader = Loader(device, kernels)
        total_bytes = device.memory()[1]
        mix = None
        if pairs is not None:
            kind = pairs[1].kind
            _check_codes(kind, device)

            def is_worth(step: Step) -> bool:
                return any(way.name != "direct" for way in kernels.ways(step, target))

            def price(draft: Draft) -> list[float]:
                plan = roomy(draft, total_bytes)
                found = choose(plan, device, loader, kernels, target, timings)
                return [choice.us for choice in found]

            mix = mixed(draft, kind, is_worth, price)
            draft = mix.draft
        plan = roomy(draft, total_bytes)
        choices = choose(plan, device, loader, kernels, target, timings)
        built = [choice.built for choice in choices]
        engine = NativeEngine(wanted, plan, built, device, loader, ARRANGEMENTS[0])
        found = _arrangements(engine, plan, device, choices, timings)
        best = min(found, key=lambda pair: pair[1])[0]
        engine.arrange(best)
        sources = dict.fromkeys(source for item in built for source in item.sources)
        artefact = Artefact(
            key=key_of(device, kernels),
            plan=plan,
            built=tuple(built),
            ways=tuple(choice.way for choice in choices),
            us=tuple(choice.us for choice in choices),
            cubins={source: loader.cubin(source) for source in sources},
            options=best,
        )
    except BaseException:
        device.close()
        raise
    return Engine(engine, plan, tuple(choices), tuple(found), can_run, artefact, mix)


def _check_codes(kind: Kind, device: Device) -> None:
    if kind == "float8_e4m3" and int(device.arch.removeprefix("sm_")) < 89:
        raise BuildError(
            f"a card must be of capability 8.9 or newer to compute in float8_e4m3, {device.name} "
            f"is {device.arch}; use a file in INT8 or FP16"
        )


def stored(engine: Engine) -> bytes:
    """An engine as bytes."""
    return packed(engine.artefact)


def loaded(raw: bytes, wanted: Wanted, kernels: Kernels) -> tuple[NativeEngine, Artefact]:
    """An engine from its bytes: nothing is compiled and nothing is measured.

    Raises:
        BuildError: The bytes are damaged, or were built for another card or other versions.
        BackendUnavailable: There is no such device.
    """
    device = Device(int(wanted.device.partition(":")[2] or 0))
    try:
        artefact = unpacked(raw, key_of(device, kernels))
        loader = Loader(device, kernels, artefact.cubins)
        engine = NativeEngine(
            wanted, artefact.plan, artefact.built, device, loader, artefact.options
        )
    except BaseException:
        device.close()
        raise
    return engine, artefact


def roomy(draft: Draft, device_bytes: int) -> Plan:
    """A plan whose buffers lie apart, so that steps can run side by side, where there is room."""
    plan = placed(draft, share=False)
    return plan if plan.arena_bytes <= device_bytes * MAX_APART_SHARE else placed(draft)


def _arrangements(
    engine: NativeEngine,
    plan: Plan,
    device: Device,
    choices: Sequence[Choice],
    timings: Timings,
) -> list[tuple[Options, float]]:
    """Microseconds of each arrangement, measured once for the same work."""
    said = [*map(step_key, plan.steps), *(choice.way for choice in choices), depends(plan)]
    key = f"arrangement {hashlib.sha256(repr(said).encode()).hexdigest()[:32]}"
    # Kernels of a library were seen to read what a kernel of ours that started early had not yet
    # written (docs/performance/native-engine.md): beside them nothing starts early.
    has_library = any(
        isinstance(launch, LibraryLaunch) for c in choices for launch in c.built.launches
    )
    names = {
        str(options): options
        for options in ARRANGEMENTS
        if not (has_library and options.is_chained)
    }
    known = timings.get(key)
    if set(known) != set(names):
        with card_lock(device.index):
            known = {name: _time(engine, device, options) for name, options in names.items()}
        timings.set(key, known)
        timings.save()
    return [(options, known[name]) for name, options in names.items()]


def _time(engine: NativeEngine, device: Device, options: Options) -> float:
    """Microseconds of one inference, the median of several."""
    engine.arrange(options)
    stream = device.stream()
    start, stop = device.event(is_timed=True), device.event(is_timed=True)
    samples = []
    for _ in range(REPEATS):
        start.record(stream)
        engine.enqueue(stream.handle)
        stop.record(stream)
        stream.synchronize()
        samples.append(stop.ms_since(start) * 1000)
    return sorted(samples)[len(samples) // 2]
