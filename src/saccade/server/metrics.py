"""The statistics in the text format that Prometheus reads.

Written here rather than by a client library: the figures exist already, and one pass over them
costs less than keeping a second set.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saccade.server.models import ModelEntry
from saccade.server.stats import BATCH_BOUNDS, STAGES, Histogram, ModelStats, Stats

__all__ = ["CONTENT_TYPE", "METRICS", "OUTCOMES", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# How a request can end; each is exported from the start, so that a rate has a first value.
OUTCOMES = (
    "ok",
    *("picture", "input", "engine", "overloaded", "timeout", "cancelled", "unavailable"),
)
_MODEL = ("model", "version")
# Name: type, labels, what it is.
METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "saccade_build_info": ("gauge", ("saccade",), "Always 1; the label is saccade's version."),
    "saccade_requests_total": (
        "counter",
        (*_MODEL, "outcome"),
        "Requests by how they ended: ok, or why they failed.",
    ),
    "saccade_items_total": (
        "counter",
        _MODEL,
        "Pictures or batch items of requests that ended ok.",
    ),
    "saccade_executions_total": ("counter", _MODEL, "Runs of the engine."),
    "saccade_queue_length": ("gauge", _MODEL, "Requests that wait for an engine process."),
    "saccade_running": ("gauge", _MODEL, "Requests that an engine process holds."),
    "saccade_model_ready": ("gauge", _MODEL, "1 if the version takes requests, else 0."),
    "saccade_model_info": (
        "gauge",
        (*_MODEL, "backend", "precision", "device", "digest"),
        "Always 1; the labels say how the version runs.",
    ),
    "saccade_stage_seconds": (
        "histogram",
        (*_MODEL, "stage"),
        "Seconds of a request by stage: queue, decode, prepare, infer, suppress, and total.",
    ),
    "saccade_batch_size": ("histogram", _MODEL, "Items per run of the engine."),
    "saccade_responses_total": (
        "counter",
        ("protocol", "status"),
        "Answers by protocol and status code.",
    ),
    "saccade_received_bytes_total": ("counter", (), "Bytes of request bodies."),
    "saccade_sent_bytes_total": ("counter", (), "Bytes of answers."),
    "saccade_connections": ("gauge", ("protocol",), "Connections open now."),
    "saccade_engine_restarts_total": ("counter", (), "Engine processes that were started again."),
    "saccade_engine_resident_memory_bytes": (
        "gauge",
        ("engine", "device"),
        "Resident memory of an engine process.",
    ),
    "saccade_engine_cpu_seconds_total": (
        "counter",
        ("engine", "device"),
        "Processor seconds of an engine process.",
    ),
    "saccade_engine_decoded_pictures_total": (
        "counter",
        ("engine", "device", "decoder"),
        "Pictures for the batches of a GPU, by whether it or the CPU decoded them.",
    ),
    "saccade_gpu_memory_used_bytes": ("gauge", ("gpu", "name"), "Device memory in use."),
    "saccade_gpu_memory_total_bytes": ("gauge", ("gpu", "name"), "Device memory of the card."),
    "saccade_gpu_busy_ratio": (
        "gauge",
        ("gpu", "name"),
        "Share of the driver's last sample period in which a kernel ran.",
    ),
    "saccade_fronts": ("gauge", (), "Front processes that take clients."),
    "saccade_front_restarts_total": ("counter", (), "Front processes that were started again."),
    "process_start_time_seconds": ("gauge", (), "Unix time of the start."),
    "process_resident_memory_bytes": ("gauge", (), "Resident memory of the front processes."),
    "process_cpu_seconds_total": ("counter", (), "Processor seconds of the front processes."),
    "process_open_fds": ("gauge", (), "Open files of the front processes."),
}
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(slots=True)
class _Family:
    """Samples of one metric: suffix of the name, label values and the value."""

    samples: list[tuple[str, tuple[tuple[str, str], ...], float]] = field(default_factory=list)


def exposition(
    stats: Stats,
    entries: Iterable[ModelEntry] = (),
    *,
    version: str,
    own: Mapping[str, Any],
    gpus: Sequence[Mapping[str, Any]] = (),
    num_front_restarts: int = 0,
) -> bytes:
    """All metrics as text.

    Args:
        stats: What the server counted.
        entries: The models it knows.
        version: Of saccade.
        own: From `saccade.server.usage.own_usage`, summed over the fronts.
        gpus: From `saccade.server.usage.GpuWatch`.
        num_front_restarts: Front processes that were started again.
    """
    families = {name: _Family() for name in METRICS}
    _server(families, stats, version, own)
    _add(families, "saccade_front_restarts_total", (), num_front_restarts)
    for model in stats.models.values():
        _model(families, model)
    for entry in entries:
        _entry(families, entry)
    for number, told in stats.engines.items():
        labels = (str(number), str(told.get("device", "cpu")))
        _add(families, "saccade_engine_resident_memory_bytes", labels, told.get("rss_bytes", 0))
        _add(families, "saccade_engine_cpu_seconds_total", labels, told.get("cpu_s", 0.0))
        for decoder in ("gpu", "cpu") if labels[1] != "cpu" else ():
            num = told.get(f"decoded_on_{decoder}", 0)
            _add(families, "saccade_engine_decoded_pictures_total", (*labels, decoder), num)
    for gpu in gpus:
        labels = (str(gpu["index"]), str(gpu["name"]))
        _add(families, "saccade_gpu_memory_used_bytes", labels, gpu["memory_used_bytes"])
        _add(families, "saccade_gpu_memory_total_bytes", labels, gpu["memory_total_bytes"])
        if "busy" in gpu:
            _add(families, "saccade_gpu_busy_ratio", labels, gpu["busy"])
    return "".join(_lines(families)).encode()


def _server(
    families: dict[str, _Family], stats: Stats, version: str, own: Mapping[str, Any]
) -> None:
    _add(families, "saccade_build_info", (version,), 1)
    _add(families, "saccade_received_bytes_total", (), stats.bytes_in)
    _add(families, "saccade_sent_bytes_total", (), stats.bytes_out)
    _add(families, "saccade_engine_restarts_total", (), stats.num_restarts)
    for (protocol, status), count in sorted(stats.responses.items()):
        _add(families, "saccade_responses_total", (protocol, str(status)), count)
    for protocol, count in stats.num_connections.items():
        _add(families, "saccade_connections", (protocol,), count)
    _add(families, "saccade_fronts", (), own.get("num_fronts", 1))
    _add(families, "process_start_time_seconds", (), stats.started_s)
    _add(families, "process_resident_memory_bytes", (), own["rss_bytes"])
    _add(families, "process_cpu_seconds_total", (), own["cpu_s"])
    _add(families, "process_open_fds", (), own["num_files"])


def _model(families: dict[str, _Family], model: ModelStats) -> None:
    labels = (model.name, model.version)
    _add(families, "saccade_requests_total", (*labels, "ok"), model.num_ok)
    for outcome in dict.fromkeys((*OUTCOMES[1:], *model.errors)):
        count = model.errors.get(outcome, 0)
        _add(families, "saccade_requests_total", (*labels, outcome), count)
    _add(families, "saccade_items_total", labels, model.num_items)
    _add(families, "saccade_executions_total", labels, model.num_executions)
    _add(families, "saccade_queue_length", labels, model.num_queued)
    _add(families, "saccade_running", labels, model.num_running)
    for stage in STAGES:
        _histogram(families, "saccade_stage_seconds", (*labels, stage), model.stages[stage])
    _batches(families, labels, model)


def _batches(families: dict[str, _Family], labels: tuple[str, str], model: ModelStats) -> None:
    """Runs by batch size. A request counts as its share of the run it was in, so that the sums
    are whole when all requests of a run are answered."""
    bounds = BATCH_BOUNDS
    counts = [0.0] * (len(bounds) + 1)
    total = 0.0
    for size, (runs, *_) in model.batches.items():
        counts[bisect_left(bounds, size)] += runs
        total += size * runs
    _samples(families, "saccade_batch_size", labels, (bounds, counts, total))


def _entry(families: dict[str, _Family], entry: ModelEntry) -> None:
    labels = (entry.name, entry.version)
    _add(families, "saccade_model_ready", labels, int(entry.state == "READY"))
    plan = entry.details.get("plan")
    if plan:
        how = (plan["backend"], plan["precision"], plan["device"], entry.details["digest"][:12])
        _add(families, "saccade_model_info", (*labels, *how), 1)


def _add(
    families: dict[str, _Family], name: str, values: tuple[str, ...], value: float, suffix: str = ""
) -> None:
    labels = tuple(zip(METRICS[name][1], values, strict=True))
    families[name].samples.append((suffix, labels, value))


def _histogram(
    families: dict[str, _Family], name: str, values: tuple[str, ...], histogram: Histogram
) -> None:
    _samples(families, name, values, (histogram.bounds, histogram.counts, histogram.total))


def _samples(
    families: dict[str, _Family],
    name: str,
    values: tuple[str, ...],
    histogram: tuple[Sequence[float], Sequence[float], float],
) -> None:
    """Add a histogram: bounds, counts by bucket and the sum of the values."""
    labels = tuple(zip(METRICS[name][1], values, strict=True))
    samples = families[name].samples
    bounds, counts, total = histogram
    seen: float = 0
    for bound, count in zip((*bounds, None), counts, strict=True):
        seen += count
        edge = "+Inf" if bound is None else repr(float(bound))
        samples.append(("_bucket", (*labels, ("le", edge)), seen))
    samples.append(("_sum", labels, total))
    samples.append(("_count", labels, seen))


def _lines(families: Mapping[str, _Family]) -> Iterator[str]:
    for name, family in families.items():
        if not family.samples:
            continue
        kind, _, what = METRICS[name]
        yield f"# HELP {name} {what}\n# TYPE {name} {kind}\n"
        for suffix, labels, value in family.samples:
            told = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels)
            yield (
                f"{name}{suffix}{{{told}}} {_number(value)}\n"
                if told
                else (f"{name}{suffix} {_number(value)}\n")
            )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
