"""saccade detect"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from saccade.cli._options import JobOptions, ModelOptions, ThresholdOptions

SOME_PICTURES_FAILED = 3
_MAX_ERRORS_SHOWN = 20


def detect(
    model: Path,
    /,
    *inputs: str,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    how: ModelOptions | None = None,
    keep: ThresholdOptions | None = None,
    job: JobOptions | None = None,
    format: str = "coco",
    draw: Annotated[bool, Parameter(negative="")] = False,
    resume: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="", name=["--quiet", "-q"])] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find objects in pictures and write them to a folder.

    A picture that cannot be used is reported in its place; the others are unaffected, and the
    exit code is 3. An interrupted job goes on with --resume.

    Args:
        model: An ONNX file, or a bundle.
        inputs: Files, folders (with all below them), patterns such as 'a/**/*.jpg', text lists
            (FILE.txt or @FILE), or - for a list on standard input.
        output: Folder for the results.
        format: Output formats, with commas between: coco, jsonl, npz, parquet (which needs
            saccade[interop]).
        draw: Also write each picture with its boxes drawn in.
        resume: Go on with an interrupted job.
        overwrite: Replace earlier results in the folder.
        quiet: No progress bar and no summary.
        json: Print the summary as JSON.
    """
    from saccade.cli._show import progress
    from saccade.pipeline.job import OutputOptions, detect_to_folder
    from saccade.pipeline.sources import count

    how, keep, job = how or ModelOptions(), keep or ThresholdOptions(), job or JobOptions()
    outputs = OutputOptions(
        formats=tuple(format.split(",")), is_drawn=draw, resume=resume, overwrite=overwrite
    )
    is_shown = sys.stderr.isatty() and not quiet
    total = count(inputs) if is_shown else None
    errors: list[str] = []
    with how.load(model) as detector, progress("detect", total, not is_shown) as advance:

        def on_result(result: Any) -> None:
            if result.error is not None:
                errors.append(f"{result.path}: {result.error}")
                if len(errors) <= _MAX_ERRORS_SHOWN:
                    print(f"saccade: {result.error}", file=sys.stderr)
            advance(len(errors))

        report = detect_to_folder(
            detector,
            inputs,
            output,
            outputs=outputs,
            thresholds=keep.over(detector.contract.detect),
            options=job.options(how),
            on_result=on_result,
        )
        _tell(report, detector, output, json=json, quiet=quiet)
    return SOME_PICTURES_FAILED if report.summary.num_errors else 0


def _tell(report: Any, detector: Any, output: Path, *, json: bool, quiet: bool) -> None:
    from dataclasses import asdict

    from saccade.cli._show import print_device, print_json

    summary = report.summary
    rate_per_s = report.num_run / report.wall_s if report.wall_s else 0.0
    if json:
        print_json({**asdict(report), "pictures_per_s": rate_per_s})
        return
    if quiet:
        return
    hidden = summary.num_errors - _MAX_ERRORS_SHOWN
    if hidden > 0:
        print(f"saccade: and {hidden} more pictures that cannot be used", file=sys.stderr)
    print(f"{detector!r}, contract {detector.contract.source}")
    print(
        f"{summary.num_pictures} pictures, {summary.num_detections} detections, "
        f"{summary.num_errors} errors; {report.wall_s:.1f} s, {rate_per_s:.1f} pictures/s"
    )
    if summary.num_resumed:
        print(f"{summary.num_resumed} pictures were done by an earlier run")
    for fallback in report.fallbacks:
        print(f"fallback: {fallback.what} is {fallback.got}, not {fallback.wanted}")
    for one in report.devices:
        print_device(one)
    for file in summary.files:
        print(f"  {file}")
    print(f"  {output / 'contract.toml'}")
