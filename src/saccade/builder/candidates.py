"""What is tried: back end x precision x recipe, then batch x streams x threads x workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from saccade import backends
from saccade.builder.records import Candidate, Recipe
from saccade.errors import InputError, SaccadeError
from saccade.types import Model, Plan, Precision

__all__ = [
    "Space",
    "available_backends",
    "families",
    "gpu_backends",
    "key_of",
    "kind_of",
    "plan_in",
    "reference",
    "variants",
]

# No network behind it: it would always win.
_NOT_DEPLOYABLE = ("null",)
# Where a back end's plans run, if not on the processor.
_DEVICES = {"native": "cuda:0", "tensorrt": "cuda:0"}
_PLAN_INPUT = (("input", "plan"),)
_GPU = "cuda:0"
# Batches in flight on a GPU, and pictures in each: more of both than a processor wants.
_GPU_STREAMS = (4, 8)
_GPU_BATCH = 32
_GPU_BATCH_FACTOR = 8
_INDUCTOR = (("compile", "inductor"), ("input", "channels_last"))
# Ways to run a file on a GPU: precision and options of the plan. Where precision is in the graph
# (onnxruntime, tensorrt), FP16 is a recipe's business.
_GPU_WAYS: dict[str, tuple[tuple[Precision, tuple[tuple[str, str], ...]], ...]] = {
    "torch": (
        ("fp32", ()),
        ("fp32", _INDUCTOR),
        ("fp16", _INDUCTOR),
        ("bf16", _INDUCTOR),
    ),
    "onnxruntime": (("fp32", ()),),
    "native": (("fp16", _PLAN_INPUT), ("bf16", _PLAN_INPUT), ("fp32", ())),
}


@dataclass(frozen=True, slots=True)
class Space:
    """What plans may be made of.

    Attributes:
        num_cores: Cores to share out.
        batches: Pictures per inference to try; the graph's own if it fixes them.
        objective: What plans are made for.
        scaled_decode: Whether scaled decoding may be tried.
        on_gpu: Back ends that work on cuda:0 besides on the processor. There eight times as many
            pictures per inference are tried.
    """

    num_cores: int
    batches: tuple[int, ...]
    objective: Literal["throughput", "latency"] = "throughput"
    scaled_decode: bool = False
    on_gpu: tuple[str, ...] = ()


def key_of(candidate: Candidate) -> str:
    """Short name that tells any two candidates apart, for files and records."""
    return hashlib.sha256(msgspec.json.encode(candidate, order="sorted")).hexdigest()[:16]


def available_backends(
    wanted: Sequence[str] = (), model: Model | None = None
) -> tuple[dict[str, tuple[Precision, ...]], tuple[str, ...]]:
    """Back ends that work here with their precisions, and a sentence for each that does not.

    Args:
        wanted: Names; all if empty.
        model: What they are to run: a back end of our own that lacks one of its operators is left
            out, and names it, before anything is built.

    Raises:
        InputError: There is no back end of that name, or none of those named works.
    """
    chosen = {name: backends.get(name) for name in wanted or backends.names()}
    usable: dict[str, tuple[Precision, ...]] = {}
    notes = []
    for name, backend in chosen.items():
        probed = backend.probe()
        if name in _NOT_DEPLOYABLE and not wanted:
            continue
        reasons = [] if probed.ok else [probed.reason]
        covers = getattr(backend, "covers", None)
        if model is not None and covers is not None:
            covered = covers(model)
            reasons += [] if covered.ok else [covered.reason]
        if not reasons:
            usable[name] = getattr(backend, "cpu_precisions", backend.precisions)
        else:
            notes.append(f"back end {name} was not tried: {'; '.join(reasons)}")
    if not usable:
        raise InputError(f"at least one back end must work here; {'; '.join(notes)}")
    return usable, tuple(notes)


def gpu_backends(usable: Iterable[str]) -> tuple[str, ...]:
    """Of the back ends that work here, those that also work on this machine's first GPU."""
    from saccade.profiler.gpus import look_at_cards

    try:
        cards = look_at_cards()
    except SaccadeError:
        return ()
    if not cards or cards[0].problem:
        return ()
    able: list[str] = []
    for name in usable:
        runtime: Any = backends.get(name)
        if name in _GPU_WAYS and name not in _DEVICES and runtime.probe_device().ok:
            able.append(name)
    return tuple(able)


def reference(model: Model, num_cores: int) -> Candidate:
    """FP32 ONNX Runtime with each core its own pictures: what everything is held against."""
    plan = Plan("onnxruntime", batch=_fixed_batch(model) or 1, streams=num_cores)
    return Candidate(Recipe(), plan, num_cores)


def plan_in(backend: str, plan: Plan) -> Plan:
    """The same plan in another back end; its precision if that back end has it.

    Raises:
        InputError: There is no back end of that name.
    """
    precisions = backends.get(backend).precisions
    precision = plan.precision if plan.precision in precisions else precisions[0]
    device = _DEVICES.get(backend, "cpu")
    return Plan(backend, precision, plan.batch, plan.streams, plan.threads, device)


def _fixed_batch(model: Model) -> int | None:
    fixed = [s.shape[0] for s in model.inputs if s.shape and isinstance(s.shape[0], int)]
    return int(fixed[0]) if fixed else None


def families(
    model: Model,
    recipes: Iterable[Recipe],
    usable: Mapping[str, Sequence[Precision]],
    space: Space,
) -> list[Candidate]:
    """One plan for each file, back end and precision: enough to know whether the answers stay
    right and about how fast they come. Cheap ones first: files that need no making."""
    if space.objective == "latency":
        streams, threads = 1, space.num_cores
    else:
        streams, threads = space.num_cores, 1
    batch = _fixed_batch(model) or 1
    workers = 1 if space.objective == "latency" else space.num_cores
    made = [
        Candidate(
            recipe,
            Plan(name, precision, batch, streams, threads),
            workers,
            scaled_decode=scaled,
        )
        for scaled in ((False, True) if space.scaled_decode else (False,))
        for recipe in recipes
        for name, precisions in usable.items()
        for precision in precisions
        if name not in _DEVICES
    ]
    made += _on_gpu(model, tuple(recipes), usable, space)
    order = {"fp32": 0, "fp16": 1, "int8": 2}
    return sorted(made, key=lambda c: (c.scaled_decode, order[c.recipe.precision]))


def _on_gpu(
    model: Model,
    recipes: Iterable[Recipe],
    usable: Mapping[str, Sequence[Precision]],
    space: Space,
) -> list[Candidate]:
    """Families on the GPU, where everything around the network is on the GPU as well."""
    ways = {name: _GPU_WAYS[name] for name in space.on_gpu}
    ways |= {
        name: _GPU_WAYS.get(name, tuple((precision, ()) for precision in precisions))
        for name, precisions in usable.items()
        if name in _DEVICES
    }
    is_single = space.objective == "latency"
    batch = _fixed_batch(model) or (1 if is_single else _GPU_BATCH)
    streams = 1 if is_single else _GPU_STREAMS[0]
    return [
        Candidate(
            recipe,
            Plan(name, precision, batch, streams, 1, _GPU, options),
            space.num_cores,
        )
        for name, several in ways.items()
        for precision, options in several
        for recipe in recipes
        if _can_run(name, precision, recipe)
    ]


def _can_run(name: str, precision: Precision, recipe: Recipe) -> bool:
    """Whether a back end on a GPU makes something of a file's types and pairs of its own."""
    if recipe.precision == "fp32":
        return True
    if name == "native":  # computes in 8 bits where pairs say so, else in its plan's precision
        return recipe.precision == "int8" and precision == "fp16"
    return name != "torch"


def kind_of(candidate: Candidate) -> tuple[object, ...]:
    """What decides the speed of a family: not which numbers a calibrator found."""
    recipe, plan = candidate.recipe, candidate.plan
    precision = (recipe.precision, recipe.everything, recipe.kept)
    way = (plan.backend, plan.precision, plan.device, plan.options)
    return (*precision, *way, candidate.scaled_decode)


def variants(base: Candidate, model: Model, space: Space) -> list[Candidate]:
    """Other schedules for a family, those nearest to its base first."""
    fixed = _fixed_batch(model)
    batches = (fixed,) if fixed else tuple(sorted(set(space.batches)))
    num_workers = [base.workers]
    if base.plan.device != "cpu":
        several = (fixed,) if fixed else sorted({_GPU_BATCH_FACTOR * b for b in batches})
        on_gpu = [
            replace(base, plan=replace(base.plan, batch=batch, streams=streams))
            for batch in ((fixed or 1,) if space.objective == "latency" else several)
            for streams in ((1,) if space.objective == "latency" else _GPU_STREAMS)
        ]
        return [candidate for candidate in dict.fromkeys(on_gpu) if candidate != base]
    if space.objective == "latency":
        batches = (fixed or 1,)
        shares = [(1, threads) for threads in _halves(space.num_cores)]
    else:
        num_workers.append(base.workers + 1)
        shares = [(space.num_cores // threads, threads) for threads in _halves(space.num_cores)]
    made = [
        replace(
            base,
            plan=replace(base.plan, batch=batch, streams=streams, threads=threads),
            workers=workers,
        )
        for workers in num_workers
        for streams, threads in shares
        for batch in batches
    ]
    return [candidate for candidate in dict.fromkeys(made) if candidate != base]


def _halves(num_cores: int) -> list[int]:
    """1, 2, 4, ... and num_cores itself."""
    counts = [1]
    while counts[-1] * 2 <= num_cores:
        counts.append(counts[-1] * 2)
    return sorted({*counts, num_cores})
