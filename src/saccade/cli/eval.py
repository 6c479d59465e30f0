"""saccade eval"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from saccade.cli._options import JobOptions, ModelOptions, ThresholdOptions

SOME_PICTURES_FAILED = 3


def evaluate(
    model: Path,
    /,
    *,
    data: Path,
    images: Path,
    how: ModelOptions | None = None,
    keep: ThresholdOptions | None = None,
    job: JobOptions | None = None,
    per_picture: int = 100,
    results: Path | None = None,
    quiet: Annotated[bool, Parameter(negative="", name=["--quiet", "-q"])] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure AP on labelled pictures, through the same pipeline that detects.

    Pictures that cannot be used count as pictures in which nothing was found; they are listed,
    and the exit code is 3.

    Args:
        model: An ONNX file, or a bundle.
        data: COCO instances JSON.
        images: Folder that the file names in it are relative to.
        per_picture: Best detections over all classes that count in each picture.
        results: Also write the detections to this file, in the form that COCO tools read.
        quiet: No progress bar.
        json: Print JSON.
    """
    from saccade.cli._show import print_json, progress
    from saccade.evaluation.annotations import read_annotations
    from saccade.evaluation.results import write_results
    from saccade.evaluation.run import evaluate_detector

    how, keep, job = how or ModelOptions(), keep or ThresholdOptions(), job or JobOptions()
    is_shown = sys.stderr.isatty() and not quiet
    total = len(read_annotations(data).images) if is_shown else None
    with how.load(model) as detector, progress("eval", total, not is_shown) as advance:
        report = evaluate_detector(
            detector,
            data,
            images,
            thresholds=keep.over(detector.contract.evaluate),
            options=job.options(how),
            per_picture=per_picture,
            on_result=lambda result: advance(0),
        )
    if results is not None:
        write_results(report.detections, results)
    if json:
        print_json(report.as_dict())
    else:
        _print(report)
    return SOME_PICTURES_FAILED if report.num_errors else 0


def _print(report: Any) -> None:
    from saccade.cli._show import print_device, print_table

    metrics = report.metrics
    names = "AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100 AR_small AR_medium AR_large"
    print_table("", ("", ""), [(name, _number(getattr(metrics, name))) for name in names.split()])
    print()
    rows: list[tuple[object, ...]] = [
        (name, one.num_boxes, _number(one.AP), _number(one.AP50), _number(one.AR100))
        for name, one in metrics.per_class.items()
        if one.num_boxes
    ]
    print_table("", ("class", "boxes", "AP", "AP50", "AR100"), rows)
    kept, plan = report.thresholds, report.plan
    print(
        f"\n{metrics.num_images} pictures, {metrics.num_boxes} boxes, {metrics.num_detections} "
        f"detections in {report.wall_s:.1f} s; {plan.backend} {plan.precision} batch {plan.batch}; "
        f"score > {kept.score:g}, IoU {kept.iou:g}, best {report.per_picture} per picture"
    )
    for note in report.notes:
        print(f"note: {note}")
    for fallback in report.fallbacks:
        print(f"fallback: {fallback.what} is {fallback.got}, not {fallback.wanted}")
    for one in report.devices:
        print_device(one)
    for error in report.errors:
        print(f"saccade: {error}", file=sys.stderr)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
