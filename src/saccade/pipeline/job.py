"""A job on disk: pictures in, files out, nothing lost when it is interrupted."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.contracts import to_toml
from saccade.errors import PictureError, SinkError
from saccade.pipeline.detector import Detector
from saccade.pipeline.run import Run, RunOptions
from saccade.pipeline.sinks import ResultSink, Summary, draw_one
from saccade.pipeline.sources import SourceItem, expand
from saccade.pipeline.stages import StageTimes
from saccade.profiler.machine import num_cores
from saccade.types import Fallback, Plan, Result, Thresholds

if TYPE_CHECKING:
    from saccade.pipeline.device_run import DeviceReport

__all__ = ["JobReport", "OutputOptions", "detect_to_folder"]

CONTRACT_FILE = "contract.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What a job writes.

    Attributes:
        formats: Names of files in `saccade.formats`.
        is_drawn: Also write each picture with its boxes drawn in.
        resume: Go on with an interrupted job.
        overwrite: Replace what is there.
    """

    formats: tuple[str, ...] = ("coco",)
    is_drawn: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a finished job did.

    Attributes:
        summary: Counts and files.
        wall_s: Seconds from the first picture to the last file.
        num_run: Pictures of this run (those that an earlier run had done left out).
        times: Seconds per stage, summed over the pictures of this run.
        plan: How it ran.
        fallbacks: What ran otherwise than the plan says.
        devices: What was done on each GPU.
    """

    summary: Summary
    wall_s: float
    num_run: int
    times: StageTimes
    plan: Plan
    fallbacks: tuple[Fallback, ...]
    devices: tuple[DeviceReport, ...] = ()


def detect_to_folder(
    detector: Detector,
    inputs: Sequence[Any],
    folder: str | Path,
    *,
    outputs: OutputOptions,
    thresholds: Thresholds | None = None,
    options: RunOptions | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
) -> JobReport:
    """Find objects in pictures and write the results.

    Args:
        detector: From `saccade.load`.
        inputs: As in `saccade.run`.
        folder: Where the files go; made if it is not there.
        outputs: What is written.
        thresholds: In place of the contract's.
        options: How to run.
        on_result: Called for each picture of this run, in order, once it is safe.

    Raises:
        InputError: The call is wrong, or the folder holds other results.
        SinkError: Results could not be written; what was written before is safe.
        PictureError: With options.is_strict, the first picture that cannot be used.
    """
    options = (options or RunOptions()).settled(detector.suggested)
    thresholds = thresholds or detector.contract.detect
    began_s = time.perf_counter()
    source = expand(inputs)
    folder = Path(folder)
    sink = ResultSink(
        folder,
        _identity(detector, thresholds, options),
        labels=detector.contract.labels,
        output_formats=outputs.formats,
        resume=outputs.resume,
        overwrite=outputs.overwrite,
    )
    with sink:
        todo = _not_done(source, sink)
        with Run(detector, todo, thresholds, options) as run:
            labels = detector.contract.labels
            results = _drawn(run, folder, labels) if outputs.is_drawn else run
            num_run = 0
            for result in results:
                sink.send(result)
                num_run += 1
                on_result(result)
            times, plan, fallbacks, devices = run.times, run.plan, run.fallbacks, run.reports
        _write_contract(folder, detector)
        summary = sink.finish()
    wall_s = time.perf_counter() - began_s
    return JobReport(summary, wall_s, num_run, times, plan, fallbacks, devices)


def _identity(detector: Detector, thresholds: Thresholds, options: RunOptions) -> dict[str, Any]:
    """All that decides the answers. How fast they come is not part of it."""
    contract = dataclasses.asdict(detector.contract)
    kept = {key: contract[key] for key in ("input", "head", "labels")}
    where = options.devices or (detector.device,)
    # Which card of several is no matter, but a GPU rounds otherwise than a CPU.
    kinds = sorted({device.partition(":")[0] for device in where})
    on_gpu: dict[str, Any] = {} if kinds == ["cpu"] else {"devices": "+".join(kinds)}
    if detector.engine_options:
        on_gpu["engine_options"] = dict(detector.engine_options)
    return {
        **on_gpu,
        "model": detector.model.digest,
        "contract": kept,
        "thresholds": dataclasses.asdict(thresholds),
        "backend": detector.backend,
        "precision": detector.precision,
        "scaled_decode": options.scaled_decode,
    }


def _not_done(source: Iterator[SourceItem], sink: ResultSink) -> Iterator[SourceItem]:
    return (item for item in source if not sink.take(item.name))


def _drawn(run: Iterator[Result], folder: Path, labels: Sequence[str]) -> Iterator[Result]:
    """Pass results on, in order, once their drawings are written. A picture counts as done only
    then, so that an interrupted job draws it when it is resumed."""
    pending: deque[tuple[Result, Future[Any]]] = deque()
    with ThreadPoolExecutor(num_cores(), thread_name_prefix="saccade-draw") as pool:
        try:
            for result in run:
                future = pool.submit(draw_one, result, Path(result.path), folder, labels)
                pending.append((result, future))
                if len(pending) > 2 * num_cores():
                    yield _when_drawn(*pending.popleft())
            while pending:
                yield _when_drawn(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()


def _when_drawn(result: Result, future: Future[Any]) -> Result:
    try:
        future.result()
    except PictureError as exc:
        # It could be read a moment ago: it was changed or removed in between.
        return dataclasses.replace(result, detections=None, error=exc)
    return result


def _write_contract(folder: Path, detector: Detector) -> None:
    path = folder / CONTRACT_FILE
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(to_toml(detector.contract), "utf-8")
        os.replace(aside, path)
    except OSError as exc:
        raise SinkError(
            f"{path} must be writable, it is not: {exc.strerror}; free space or choose another "
            "folder, then go on with --resume"
        ) from exc
