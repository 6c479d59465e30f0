"""Measure a detector on labelled pictures, through the pipeline that will serve."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import AnnotationError, InputError
from saccade.evaluation.annotations import Annotations, read_annotations
from saccade.evaluation.matching import CategoryMap, match_categories
from saccade.evaluation.metrics import ImageDetections, Metrics, evaluate
from saccade.pipeline.run import Run, RunOptions
from saccade.pipeline.sources import SourceItem
from saccade.types import Fallback, Plan, Result, Thresholds

if TYPE_CHECKING:
    from saccade.pipeline.detector import Detector
    from saccade.pipeline.device_run import DeviceReport

__all__ = ["EvalReport", "evaluate_detector"]

PER_PICTURE = 100
_MAX_MISSING_SHOWN = 5


@dataclass(frozen=True, slots=True)
class EvalReport:
    """AP and what it was measured on.

    Attributes:
        metrics: COCO's numbers.
        plan: How the detector ran.
        thresholds: What was kept of its candidates.
        per_picture: Best detections over all classes that were kept of each picture.
        num_errors: Pictures that could not be used; they count as pictures without detections.
        errors: What was wrong with them.
        notes: Warnings about the annotation file and how classes were matched.
        fallbacks: What ran otherwise than the plan says.
        wall_s: Seconds for all pictures.
        detections: Everything that was measured, in the form that COCO tools read as results;
            left out of `as_dict`.
        devices: What was done on each GPU.
    """

    metrics: Metrics
    plan: Plan
    thresholds: Thresholds
    per_picture: int
    num_errors: int
    errors: tuple[str, ...]
    notes: tuple[str, ...]
    fallbacks: tuple[Fallback, ...]
    wall_s: float
    detections: tuple[ImageDetections, ...]
    devices: tuple[DeviceReport, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, without the detections."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["detections"]
        metrics = dataclasses.asdict(self.metrics)
        metrics["per_class"] = {k: v._asdict() for k, v in self.metrics.per_class.items()}
        fields["metrics"] = metrics
        return fields


def evaluate_detector(
    detector: Detector,
    data: str | Path,
    images: str | Path,
    *,
    thresholds: Thresholds | None = None,
    options: RunOptions | None = None,
    per_picture: int = PER_PICTURE,
    on_result: Callable[[Result], None] = lambda result: None,
) -> EvalReport:
    """Run a detector over the pictures of an annotation file and measure AP.

    Args:
        detector: From `saccade.load`.
        data: COCO instances JSON.
        images: Folder that the file names in it are relative to.
        thresholds: In place of the contract's thresholds for AP.
        options: How to run.
        per_picture: Only the best so many detections of a picture, over all classes, count.
        on_result: Called for each picture, in order.

    Raises:
        AnnotationError: The file, or its classes, cannot be used.
        InputError: The call is wrong, or pictures are missing.
    """
    annotations = read_annotations(data)
    contract = detector.contract
    thresholds = thresholds or contract.evaluate
    classes = contract.head.num_classes or len(contract.labels)
    if not classes:
        raise AnnotationError(
            "the number of classes cannot be seen in this model; give their names with --labels "
            "FILE, one a line"
        )
    matched = match_categories(contract.labels, classes, annotations)
    source = _sources(annotations, Path(images))
    began_s = time.perf_counter()
    with Run(detector, source, thresholds, options or RunOptions()) as run:
        found, errors = _collect(run, annotations, matched, per_picture, on_result)
        plan, fallbacks, devices = run.plan, run.fallbacks, run.reports
    wall_s = time.perf_counter() - began_s
    ids = [image.id for image in annotations.images]
    return EvalReport(
        metrics=evaluate(annotations, ids, found),
        plan=plan,
        thresholds=thresholds,
        per_picture=per_picture,
        num_errors=len(errors),
        errors=tuple(errors),
        notes=(*annotations.warnings, *matched.notes),
        fallbacks=fallbacks,
        wall_s=wall_s,
        detections=tuple(found),
        devices=devices,
    )


def _sources(annotations: Annotations, folder: Path) -> Iterator[SourceItem]:
    paths = [folder / image.file_name for image in annotations.images]
    missing = [os.fspath(path) for path in paths if not path.exists()]
    if missing:
        shown = ", ".join(missing[:_MAX_MISSING_SHOWN])
        raise InputError(
            f"all {len(paths)} pictures of the annotation file must be in {folder}, {len(missing)} "
            f"are not: {shown}{', ...' if len(missing) > _MAX_MISSING_SHOWN else ''}; "
            "check --images"
        )
    return (SourceItem(i, os.fspath(path), "path", path) for i, path in enumerate(paths))


def _collect(
    run: Run,
    annotations: Annotations,
    matched: CategoryMap,
    per_picture: int,
    on_result: Callable[[Result], None],
) -> tuple[list[ImageDetections], list[str]]:
    found: list[ImageDetections] = []
    errors: list[str] = []
    for image, result in zip(annotations.images, run, strict=True):
        on_result(result)
        if result.detections is None:
            errors.append(str(result.error))
            continue
        best = slice(per_picture)
        classes = result.detections.classes[best]
        is_known, category_ids = matched.apply(classes)
        found.append(
            ImageDetections(
                image.id,
                result.detections.boxes_xyxy[best][is_known],
                result.detections.scores[best][is_known],
                category_ids,
            )
        )
    return found, errors
