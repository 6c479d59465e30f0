"""From a model to a bundle: files are made, candidates searched, evidence written."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from saccade.backends.tensorrt import BACKEND
from saccade.builder.budget import Budget
from saccade.builder.calibration import Calibration, CalibrationSettings, cached
from saccade.builder.candidates import Space, available_backends, gpu_backends
from saccade.builder.differing import differences
from saccade.builder.engines import (
    Engines,
    carried,
    check_asked,
    shapes_for,
    try_engines,
    without_engines,
)
from saccade.builder.files import Files
from saccade.builder.fleet import Fleet
from saccade.builder.gate import parse_max_drop
from saccade.builder.islands import blocks_of
from saccade.builder.native_engines import kept_engines
from saccade.builder.pictures import Pictures, calibration_pictures, gate_pictures, refuse_shared
from saccade.builder.process import COMMAND, Limits
from saccade.builder.recipes import calibration_tensors, candidate_recipes, why_not
from saccade.builder.records import BuildRecord, Candidate, GateLimits, Recipe, Row
from saccade.builder.report import write_report
from saccade.builder.search import find_fastest
from saccade.builder.state import State, digest_of_files, open_state
from saccade.builder.task import Outcome, Settings, Subject
from saccade.builder.trials import Trials
from saccade.builder.wording import engine_notes, notes, sentence
from saccade.builder.worker import items_of
from saccade.bundles import Bundle, BundleExtras, write_bundle
from saccade.errors import BackendUnavailable, InputError
from saccade.graph.reading import read_model
from saccade.profiler.machine import machine, num_cores
from saccade.types import Contract, Model

__all__ = ["BuildOptions", "Built", "build"]

_MIN_MEMORY_BYTES = 2 << 30
_BYTES_PER_PROCESS = 384 << 20
_MAX_ALIVE = 32
_NUM_FOR_ALL = 24
# What may be another in a resumed build: findings hold all the same.
_FREE = (
    "resume",
    "overwrite",
    "budget_s",
    "patience_s",
    "memory_bytes",
    "command",
    "targets",
    "shapes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build is asked for.

    Attributes:
        data: COCO instances JSON with labels for the gate's pictures; None judges by agreement.
        images: Folder of the gate's pictures.
        calibration_data: COCO instances JSON that lists calibration pictures; None takes all in
            the folder.
        calibration_images: Folder of calibration pictures; without it INT8 is not tried.
        min_calibration: Fewest calibration pictures; None is the default of the calibration.
        max_drop: How far metrics may fall, e.g. "AP=0.005,class:WBC=0.01"; None is the default.
        objective: What counts.
        latency_ms: Limit on p99 end to end of single pictures.
        budget_s: Seconds that the build may take.
        backends: Names; all that work here if empty.
        batches: Pictures per inference to try.
        scaled_decode: Whether scaled decoding may be tried.
        targets: Cards to build TensorRT engines for, of the chosen network; they go into the
            bundle unrun.
        shapes: LEAST:BEST:MOST of the picture input for these engines, several with commas; "" is
            a range over the batches tried.
        resume: Go on with an interrupted build.
        overwrite: Replace a bundle that is there.
        round_s: Seconds of one candidate's turn in a round.
        patience_s: Longest that a candidate may be silent.
        memory_bytes: What one candidate's process may take; None is half of the machine's.
        command: What to start for a candidate.
        only: The one candidate to judge and measure, instead of searching.
    """

    data: Path | None = None
    images: Path | None = None
    calibration_data: Path | None = None
    calibration_images: Path | None = None
    min_calibration: int | None = None
    max_drop: str | None = None
    objective: Literal["throughput", "latency"] = "throughput"
    latency_ms: float | None = None
    budget_s: float = 300.0
    backends: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 4, 8)
    scaled_decode: bool = False
    targets: tuple[str, ...] = ()
    shapes: str = ""
    resume: bool = False
    overwrite: bool = False
    round_s: float = 1.0
    patience_s: float = 120.0
    memory_bytes: int | None = None
    command: tuple[str, ...] = COMMAND
    only: Candidate | None = None

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise InputError(f"--batch must be numbers from 1, got {self.batches}")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise InputError(f"--latency-ms must be above 0, got {self.latency_ms}")
        if not self.budget_s > 0:
            raise InputError(f"the budget must be above 0 seconds, got {self.budget_s}")


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gave.

    Attributes:
        bundle: Where it was written.
        record: Everything that was found out.
    """

    bundle: Bundle
    record: BuildRecord


def build(
    model: Model,
    contract: Contract,
    output: Path,
    options: BuildOptions,
    say: Callable[[str], None] = lambda text: None,
) -> Built:
    """Find the fastest deployment whose answers stayed right, and write it as a bundle.

    Findings are kept in a folder beside the output until the bundle is there, so that an
    interrupted build can be resumed.

    Args:
        model: The FP32 network.
        contract: How it is fed and read.
        output: Folder of the bundle.
        options: What is asked for.
        say: Told what happens, line by line.

    Raises:
        InputError: The call is wrong, or pictures are missing or too few.
        BuildError: The FP32 reference itself cannot run.
        SinkError: The bundle could not be written.
    """
    _check_output(output, options)
    pictures = gate_pictures(options.data, options.images)
    limits = _limits(options, pictures, contract)
    check_asked(contract, options.targets, options.shapes)
    for_calibration = calibration_pictures(options.calibration_data, options.calibration_images)
    refuse_shared(pictures.paths, for_calibration)
    usable, absent = available_backends(options.backends, model)
    _check_only(options.only, usable, absent)
    recipes, left_out = _recipes(model, contract, for_calibration, options.only)
    identity = _identity(model, contract, options, (*pictures.paths, *for_calibration))
    aside = output.with_name(f"{output.name}.build")
    state = open_state(aside, identity, resume=options.resume)
    budget = Budget(options.budget_s, state.spent_s)
    calibration = _calibrate(model, contract, for_calibration, options, aside, recipes, budget)
    files = Files(
        model,
        contract,
        aside / "files",
        calibration,
        lambda: _calibrate_all(model, contract, for_calibration, aside),
    )
    files.folder.mkdir(exist_ok=True)
    subject = Subject(
        model=model,
        contract=contract,
        num_pictures=len(pictures.paths),
        limits=limits,
        annotations=pictures.annotations,
        recipes=recipes,
        make=files.make,
        blocks=lambda: blocks_of(model),
    )
    settings = Settings(
        objective=options.objective,
        latency_ms=options.latency_ms,
        space=Space(
            num_cores(),
            options.batches,
            options.objective,
            options.scaled_decode,
            gpu_backends(usable),
        ),
        usable=usable,
        round_s=options.round_s,
        patience_s=options.patience_s,
        only=options.only,
    )
    with _fleet(aside, contract, pictures, options) as fleet:
        outcome = find_fastest(Trials(subject, settings, state, fleet, budget, say))
    engines = _engines(files, options, outcome, budget, say)
    record = _record(model, subject, options, outcome, budget, (*absent, *left_out), engines)
    bundle = _write(output, files, record, state, pictures, options, engines)
    shutil.rmtree(aside)
    return Built(bundle, record)


def _check_output(output: Path, options: BuildOptions) -> None:
    """Fail before the work, not after it."""
    if output.exists() and not options.overwrite and (output.is_file() or any(output.iterdir())):
        raise InputError(
            f"the bundle must be a new folder, {output} is there; choose another one, or replace "
            "it with --overwrite"
        )
    output.parent.mkdir(parents=True, exist_ok=True)


def _check_only(only: Candidate | None, usable: Mapping[str, Any], absent: Sequence[str]) -> None:
    if only is not None and only.plan.backend not in usable:
        raise BackendUnavailable(
            f"the back end {only.plan.backend} must work here to build again what a bundle runs, "
            f"it does not: {'; '.join(absent)}"
        )


def _limits(options: BuildOptions, pictures: Pictures, contract: Contract) -> GateLimits:
    if options.max_drop is None:
        return GateLimits()
    if pictures.annotations is None:
        raise InputError(
            "--max-drop limits figures on labelled pictures, there are no labels; give them with "
            "--data, or leave --max-drop out to judge by agreement"
        )
    names = [category.name for category in pictures.annotations.categories]
    return GateLimits(parse_max_drop(options.max_drop, names or contract.labels))


def _recipes(
    model: Model, contract: Contract, for_calibration: Sequence[Path], only: Candidate | None
) -> tuple[list[Recipe], tuple[str, ...]]:
    if only is not None:
        if only.recipe.precision == "int8" and not for_calibration:
            raise InputError(
                f"recipe {only.recipe.label!r} needs pictures to calibrate on, there are none; "
                "give them with --calibration-images"
            )
        return [only.recipe], ()
    recipes = list(candidate_recipes(model, contract))
    left_out = [f"{kind} was not tried: {why}" for kind, why in why_not(model).items()]
    if not for_calibration and any(recipe.precision == "int8" for recipe in recipes):
        recipes = [recipe for recipe in recipes if recipe.precision != "int8"]
        left_out.append(
            "INT8 was not tried: it needs pictures to calibrate on; give them with "
            "--calibration-images"
        )
    return recipes, tuple(left_out)


def _calibrate(
    model: Model,
    contract: Contract,
    paths: Sequence[Path],
    options: BuildOptions,
    aside: Path,
    recipes: Sequence[Recipe],
    budget: Budget,
) -> Calibration | None:
    if not any(recipe.precision == "int8" for recipe in recipes):
        return None
    settings = CalibrationSettings()
    if options.min_calibration is not None:
        settings = dataclasses.replace(settings, min_pictures=options.min_calibration)
    with budget.book("calibrating"):
        return cached(
            aside,
            model,
            contract,
            items_of(paths),
            tensors=calibration_tensors(model),
            settings=settings,
        )


def _calibrate_all(
    model: Model, contract: Contract, paths: Sequence[Path], aside: Path
) -> Calibration:
    """Ranges of every operator, from few pictures."""
    return cached(
        aside,
        model,
        contract,
        items_of(paths),
        tensors=calibration_tensors(model, everything=True),
        settings=CalibrationSettings(min_pictures=1, max_pictures=_NUM_FOR_ALL),
    )


def _identity(
    model: Model, contract: Contract, options: BuildOptions, paths: Sequence[Path]
) -> dict[str, str]:
    """What must be the same for an earlier run's findings to hold."""
    here = machine()
    own = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    for name in _FREE:
        del own[name]
    return {
        "model": model.digest,
        "contract": hashlib.sha256(msgspec.json.encode(contract, order="sorted")).hexdigest(),
        "pictures": digest_of_files(list(paths)),
        "labels": digest_of_files([options.data] if options.data else []),
        **{f"option {name}": str(value) for name, value in own.items()},
        "machine": f"{here.cpu}, {here.num_cores} cores",
        "versions": ", ".join(f"{name} {version}" for name, version in here.versions.items()),
    }


def _fleet(aside: Path, contract: Contract, pictures: Pictures, options: BuildOptions) -> Fleet:
    listed = aside / "pictures.json"
    listed.write_bytes(msgspec.json.encode([str(path.resolve()) for path in pictures.paths]))
    memory_bytes = machine().memory_bytes
    return Fleet(
        aside / "logs",
        contract,
        listed,
        limits=Limits(options.memory_bytes or max(memory_bytes // 2, _MIN_MEMORY_BYTES)),
        max_alive=int(np.clip(memory_bytes // 2 // _BYTES_PER_PROCESS, 2, _MAX_ALIVE)),
        command=options.command,
    )


def _engines(
    files: Files,
    options: BuildOptions,
    outcome: Outcome,
    budget: Budget,
    say: Callable[[str], None],
) -> Engines:
    """The engines that the gate ran, and those that were asked for, of the network chosen."""
    chosen = outcome.rows[outcome.chosen].candidate
    ran = carried(chosen.plan, BACKEND.card()) if chosen.plan.backend == BACKEND.name else {}
    network = read_model(files.make(chosen.recipe))
    kept = kept_engines(outcome.rows[outcome.chosen], network, files.contract.input.size_hw)
    ran = {**ran, **kept.files}
    if not options.targets:
        return Engines(ran, kept.refused)
    batch = chosen.plan.batch
    with budget.book("building engines"):
        shapes = options.shapes or shapes_for(
            network, files.contract, batch=batch, batches=options.batches
        )
        made = try_engines(network, options.targets, batch=batch, shapes=shapes)
    for target in options.targets:
        say(f"engine for {target}: {made.refused.get(target, 'built, not run by the gate')}")
    return Engines({**made.files, **ran}, {**made.refused, **kept.refused})


def _record(
    model: Model,
    subject: Subject,
    options: BuildOptions,
    outcome: Outcome,
    budget: Budget,
    left_out: tuple[str, ...],
    engines: Engines,
) -> BuildRecord:
    spent_s = budget.by_activity()
    return BuildRecord(
        model=model.path.name,
        model_digest=model.digest,
        objective=options.objective,
        latency_ms=options.latency_ms,
        limits=subject.limits,
        rows=outcome.rows,
        reference=outcome.reference,
        chosen=outcome.chosen,
        verdict=sentence(outcome, options.objective, options.latency_ms),
        notes=(*notes(outcome, options.objective, spent_s), *left_out, *engine_notes(engines)),
        machine=dataclasses.asdict(machine()),
        seconds=sum(spent_s.values()),
        islands=outcome.islands,
        engines={target: engines.refused.get(target, "") for target in options.targets},
    )


def _movable(row: Row) -> Row:
    """Engines lie in the bundle, wherever that is."""
    plan = without_engines(row.candidate.plan)
    return dataclasses.replace(row, candidate=dataclasses.replace(row.candidate, plan=plan))


def _write(
    output: Path,
    files: Files,
    record: BuildRecord,
    state: State,
    pictures: Pictures,
    options: BuildOptions,
    engines: Engines,
) -> Bundle:
    chosen = record.rows[record.chosen].candidate
    contract = files.contract
    calibration = files.calibration
    differing = differences(record, state, pictures, contract)
    record = dataclasses.replace(record, rows=tuple(map(_movable, record.rows)))
    page, data = write_report(record, state.folder, differing, labels=contract.labels)
    is_int8 = chosen.recipe.precision == "int8" and calibration is not None
    extras = BundleExtras(
        source_metadata=files.model.metadata,
        calibration=_told(calibration) if is_int8 else None,
        settings={"model": str(files.model.path), **_settings(options)},
        engines=engines.files,
        files={page.name: page, data.name: data},
    )
    return write_bundle(
        output,
        model_path=files.make(chosen.recipe),
        contract=contract,
        record=record,
        extras=extras,
        overwrite=options.overwrite,
    )


def _told(calibration: Calibration | None) -> Mapping[str, Any]:
    assert calibration is not None
    return {"digest": calibration.digest, "num_pictures": calibration.num_pictures}


def _settings(options: BuildOptions) -> dict[str, Any]:
    own = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    for name in ("resume", "overwrite", "command", "only"):
        del own[name]
    return {k: str(v) if isinstance(v, Path) else v for k, v in own.items() if v is not None}
