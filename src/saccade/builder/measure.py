"""Speed of one deployment, end to end: from the picture's file to final boxes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saccade.builder.answers import options_of
from saccade.builder.records import Candidate
from saccade.pipeline.detector import Detector
from saccade.pipeline.run import Run
from saccade.pipeline.sources import SourceItem
from saccade.pipeline.stages import Lane
from saccade.vision.place import single_threaded_cv2

__all__ = ["Latency", "Rate", "measure_latency", "measure_rate"]

_WARM_SHARE = 0.2
_MIN_WAVES = 3  # of as many pictures as are computed at once
_WARM_LATENCIES = 3


@dataclass(frozen=True, slots=True)
class Rate:
    """One round.

    Attributes:
        pictures_per_s: After warming up.
        cpu_ms: CPU milliseconds of the process per picture.
        num_pictures: How many it went through.
    """

    pictures_per_s: float
    cpu_ms: float
    num_pictures: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Single pictures, one after the other, each from file to boxes.

    Attributes:
        p50_ms: Half were faster.
        p99_ms: 99 of 100 were faster.
        num_pictures: How many were timed.
    """

    p50_ms: float
    p99_ms: float
    num_pictures: int


def measure_rate(
    detector: Detector, candidate: Candidate, items: Sequence[SourceItem], seconds: float
) -> Rate:
    """Run the pipeline for about so many seconds, over the pictures again and again."""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    at_once = candidate.plan.batch * candidate.plan.streams
    source = _cycle(items, began_s + seconds, _MIN_WAVES * at_once, step=at_once)
    with Run(detector, source, detector.contract.detect, options_of(candidate)) as run:
        done_s = [time.perf_counter() for _ in run]
    cpu_s = time.process_time() - began_cpu_s
    num = len(done_s)
    return Rate(_rate(done_s, began_s, at_once), 1e3 * cpu_s / num, num)


def _cycle(
    items: Sequence[SourceItem], stop_s: float, at_least: int, step: int = 1
) -> Iterator[SourceItem]:
    """Pictures until the time is over; then no stream is left with less to do than others."""
    index = 0
    while index < at_least or index % step or time.perf_counter() < stop_s:
        item = items[index % len(items)]
        yield SourceItem(index, item.name, item.kind, item.value, item.error)
        index += 1


def _rate(done_s: Sequence[float], began_s: float, at_once: int) -> float:
    """Pictures per second after warming up.

    Results of a batch come at once, and those of all streams nearly so. Counting from the end of
    such a wave to the end of the last one keeps the clock fair.
    """
    warm_s = began_s + _WARM_SHARE * (done_s[-1] - began_s)
    for index in range(at_once - 1, len(done_s) - at_once, at_once):
        if done_s[index] >= warm_s and done_s[-1] > done_s[index]:
            return (len(done_s) - 1 - index) / (done_s[-1] - done_s[index])
    return len(done_s) / (done_s[-1] - began_s)


def measure_latency(
    detector: Detector, candidate: Candidate, items: Sequence[SourceItem], seconds: float
) -> Latency:
    """Time single pictures through the engine that also serves batches."""
    if detector.is_on_gpu:
        return _latency_on_gpu(detector, candidate, items, seconds)
    contract, plan = detector.contract, candidate.plan
    stages = detector.stages(
        contract.detect, batch=plan.batch, scaled_decode=candidate.scaled_decode
    )
    engine = detector.engine(
        detector.plan(batch=plan.batch, streams=plan.streams, threads=plan.threads)
    )
    slot, lane = engine.open_slot(contract.input.size_hw), Lane(stages)
    taken_ms: list[float] = []
    stop_s = time.perf_counter() + seconds
    with single_threaded_cv2():
        for item in _cycle(items, stop_s, 2 * _WARM_LATENCIES):
            began_s = time.perf_counter()
            placement = stages.prepare(lane, stages.decode(lane, item), slot, 0)
            stages.suppress(lane, stages.infer(lane, slot, 1), [placement])
            taken_ms.append(1e3 * (time.perf_counter() - began_s))
    return _latency(taken_ms)


def _latency(taken_ms: list[float]) -> Latency:
    warm = taken_ms[_WARM_LATENCIES:]
    return Latency(statistics.median(warm), float(np.percentile(warm, 99)), len(warm))


def _latency_on_gpu(
    detector: Detector, candidate: Candidate, items: Sequence[SourceItem], seconds: float
) -> Latency:
    from saccade.pipeline.device import detect_one

    taken_ms: list[float] = []
    stop_s = time.perf_counter() + seconds
    with detector.session(detector.plan(batch=candidate.plan.batch)) as session:
        for item in _cycle(items, stop_s, 2 * _WARM_LATENCIES):
            began_s = time.perf_counter()
            detect_one(session, item, detector.contract.detect)
            taken_ms.append(1e3 * (time.perf_counter() - began_s))
    return _latency(taken_ms)
