"""saccade build"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from saccade.cli._options import read_labels, read_size

_BATCHES = "1,4,8"


def build(
    model: Path | None = None,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    data: Path | None = None,
    images: Path | None = None,
    calibration_data: Path | None = None,
    calibration_images: Path | None = None,
    min_calibration: int | None = None,
    max_drop: str | None = None,
    objective: Literal["throughput", "latency"] = "throughput",
    latency_ms: float | None = None,
    budget: str | None = None,
    backends: str = "",
    batch: str = _BATCHES,
    scaled_decode: Annotated[bool, Parameter(negative="")] = False,
    targets: str = "",
    shapes: str = "",
    preset: str | None = None,
    contract: Path | None = None,
    labels: Path | None = None,
    size: str | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="", name=["--quiet", "-q"])] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find the fastest deployment whose answers stayed right, and write it as a bundle.

    Candidates run on this machine, each in its own process; every one whose answers got worse than
    --max-drop allows is refused. Without --data they are judged by how far they agree with FP32.
    Exit code 3 if the bundle is written but an engine that was asked for could not be built.

    Args:
        model: An ONNX file.
        output: Folder of the bundle.
        data: COCO instances JSON with the labels to judge by.
        images: Folder of the pictures to judge by.
        calibration_data: COCO instances JSON that lists pictures to calibrate INT8 on.
        calibration_images: Folder of these pictures. They must be others than those to judge by.
        min_calibration: Accept ranges from so few pictures.
        max_drop: Largest losses, such as AP=0.005,AP_small=0.01,class:WBC=0.01. Default: AP=0.005,
            AP50=0.01, AP_small=0.02, AR100=0.01; by agreement, 0.95 must be reached.
        objective: What counts: pictures per second, or milliseconds of a single picture.
        latency_ms: The 99th percentile of single pictures, end to end, must not be above this.
        budget: Time to take, such as 300s or 10min; default 300s.
        backends: Runtimes to try, separated by commas; all that work here by default. With --from,
            the one to run the bundle's network in, in place of its own.
        batch: Pictures per inference to try, separated by commas.
        scaled_decode: Also try to decode large JPEGs at a fraction of their size.
        targets: Cards to build TensorRT engines for, separated by commas, such as
            sm86,sm89,sm120; "sm86+sm89" is one engine for both. They go into the bundle without
            having been run.
        shapes: LEAST:BEST:MOST of the picture input for these engines, such as
            1x3x640x640:8x3x640x640:32x3x640x640, with commas between several.
        preset: Name of a preset that says how pictures go in and outputs are read.
        contract: TOML file that says so.
        labels: Text file with one class name per line.
        size: Input size as WIDTHxHEIGHT, where the model leaves it free.
        from_: A bundle whose deployment is built again and judged here, as it was built; only where
            things are and the budget may be given anew.
        resume: Go on with a build that was interrupted.
        overwrite: Replace a bundle that is there.
        quiet: Do not tell what happens.
        json: Print JSON.
    """
    from saccade.builder.budget import parse_seconds
    from saccade.builder.build import BuildOptions
    from saccade.builder.build import build as build_bundle
    from saccade.errors import InputError
    from saccade.pipeline.detector import load

    given: dict[str, Any] = {
        "data": data,
        "images": images,
        "calibration_data": calibration_data,
        "calibration_images": calibration_images,
        "budget_s": parse_seconds(budget) if budget else None,
    }
    known = {name: value for name, value in given.items() if value is not None}
    known |= {"resume": resume, "overwrite": overwrite}
    if targets or shapes:
        known |= {"targets": _names(targets), "shapes": shapes}
    if from_ is not None:
        from saccade.builder.again import from_bundle

        fixed = {
            "--min-calibration": min_calibration is not None,
            "--max-drop": max_drop is not None,
            "--objective": objective != "throughput",
            "--latency-ms": latency_ms is not None,
            "--batch": batch != _BATCHES,
            "--scaled-decode": scaled_decode,
            "--preset": preset is not None,
            "--contract": contract is not None,
            "--labels": labels is not None,
            "--size": size is not None,
        }
        _refuse_fixed([name for name, is_given in fixed.items() if is_given])
        again = from_bundle(from_, model, known, _only_one(backends))
        model, contract, options = again.model, again.contract, again.options
    else:
        options = BuildOptions(
            **known,
            min_calibration=min_calibration,
            max_drop=max_drop,
            objective=objective,
            latency_ms=latency_ms,
            backends=_names(backends),
            batches=_numbers(batch),
            scaled_decode=scaled_decode,
        )
    if model is None:
        raise InputError("name the model to build from, or a bundle with --from")
    with load(
        model,
        preset=preset,
        contract=contract,
        size_hw=read_size(size) if size else None,
        labels=read_labels(labels) if labels else (),
    ) as detector:
        read, made = detector.model, detector.contract
    say = _say_nothing if quiet else _say
    built = build_bundle(read, made, output, options, say)
    if json:
        _print_json(built)
    else:
        _print(built)
    return 3 if any(built.record.engines.values()) else 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _only_one(backends: str) -> str:
    from saccade.errors import InputError

    names = _names(backends)
    if len(names) > 1:
        raise InputError(
            f"--backends must name one with --from, the one to run the bundle's network in, got "
            f"{', '.join(names)}"
        )
    return names[0] if names else ""


def _refuse_fixed(given: list[str]) -> None:
    from saccade.errors import InputError

    if given:
        raise InputError(
            f"{', '.join(given)} must be left out with --from, which builds as the bundle was "
            "built; leave out --from to decide anew"
        )


def _numbers(text: str) -> tuple[int, ...]:
    from saccade.errors import InputError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--batch must be whole numbers separated by commas such as 1,4,8, got {text!r}"
        ) from None


def _say(text: str) -> None:
    print(f"saccade: {text}", file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    pass


def _print_json(built: Any) -> None:
    from saccade.builder.report import as_dict
    from saccade.cli._show import print_json

    print_json({"bundle": str(built.bundle.path), **as_dict(built.record)})


def _print(built: Any) -> None:
    from saccade.builder.wording import figure_of, rate_of
    from saccade.cli._show import print_table

    record = built.record
    unit = "pictures/s" if record.objective == "throughput" else "1/s, single"
    rows: list[tuple[object, ...]] = []
    for index, row in enumerate(record.rows):
        rate, is_chosen = rate_of(row), index == record.chosen
        status = "chosen" if is_chosen else row.status
        rows.append(
            (
                row.candidate.label,
                figure_of(row.verdict),
                "-" if rate is None else f"{rate:.1f}",
                status if index != record.reference else f"{status}, reference",
                row.error,
            )
        )
    print_table("", ("candidate", "judged", unit, "status", "why"), rows)
    limits = ", ".join(f"{name}={value:g}" for name, value in record.limits.max_drop.items())
    verdict = record.rows[record.chosen].verdict
    judged_by = verdict.judged_by if verdict else ""
    told = limits if judged_by == "AP" else f"agreement of at least {record.limits.agreement:g}"
    print(f"\nlargest drops allowed: {told}")
    for note in record.notes:
        print(f"note: {note}")
    print(f"\n{record.verdict}\nwritten to {built.bundle.path}")
