"""saccade bench"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from saccade.cli._options import JobOptions, ModelOptions

_MAX_PICTURES = 1000


def bench(
    model: Path,
    /,
    *inputs: str,
    how: ModelOptions | None = None,
    job: JobOptions | None = None,
    seconds: float = 30.0,
    rounds: int = 5,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Speed, stage by stage, against the bare engine and the bound.

    Serial and overlapped answers are compared before anything is timed. Rounds of serial,
    overlapped and bare engine are interleaved; figures are medians.

    Args:
        model: An ONNX file, or a bundle.
        inputs: Pictures, as in `saccade detect`; at most 1000 are used. Without any, pictures of
            640x480 are rendered.
        seconds: About how long all rounds take.
        rounds: How many rounds.
        json: Print JSON, with the machine and all versions.
    """
    from saccade.cli._show import print_json
    from saccade.pipeline.benchmark import BenchOptions, benchmark
    from saccade.pipeline.sources import expand

    how, job = how or ModelOptions(), job or JobOptions()
    with how.load(model) as detector:
        source = expand(inputs) if inputs else iter(rendered())
        items = list(itertools.islice(source, _MAX_PICTURES))
        report = benchmark(
            detector,
            items,
            options=job.options(how),
            how=BenchOptions(seconds=seconds, rounds=rounds),
        )
    if json:
        print_json(report.as_dict())
    else:
        print_report(report)
    return 0


def rendered(num: int = 16) -> list[Any]:
    """JPEG pictures of 640x480 in memory, drawn from a fixed seed."""
    import numpy as np

    from saccade.demo.render import render
    from saccade.pipeline.sources import SourceItem
    from saccade.vision.draw import encode_jpeg

    rng = np.random.default_rng(0)
    return [
        SourceItem(i, f"<rendered {i}>", "bytes", encode_jpeg(render(rng)[0])) for i in range(num)
    ]


def print_report(report: Any) -> None:
    """Print a BenchReport as tables."""
    from saccade.cli._show import human_bytes, print_device, print_table

    total = sum(cost.cpu_s for cost in report.stages.values())
    rows: list[tuple[object, ...]] = [
        (name, f"{cost.wall_s * 1e3:.2f}", f"{cost.cpu_s * 1e3:.2f}", f"{cost.cpu_s / total:.0%}")
        for name, cost in report.stages.items()
    ]
    rows.append(("sum", "", f"{total * 1e3:.2f}", ""))
    print_table("", ("stage, serial, per picture", "wall ms", "CPU ms", "share"), rows)
    print()
    cores = report.machine.num_cores
    at_once = 1 if report.devices else report.plan.streams
    rows = [
        ("serial", *_rates(report.serial_per_s)),
        ("overlapped", *_rates(report.overlapped_per_s)),
        (f"bare engine, {at_once} at a time", *_rates(report.engine_per_s)),
    ]
    if not report.devices:
        told = f"bound: {cores} cores / CPU seconds per picture"
        rows.append((told, f"{report.bound_per_s:.1f}", ""))
    print_table("", ("pictures/s", "median", "rounds"), rows)
    of_bound = "" if report.devices else f"{report.of_bound:.1%} of the bound and "
    print(
        f"\noverlapped reaches {of_bound}{report.of_engine:.1%} of "
        f"the bare engine; {report.overlapped_cpu_s * 1e3:.2f} CPU ms per picture, "
        f"peak memory {human_bytes(report.peak_memory_bytes)}"
    )
    plan = report.plan
    print(
        f"{report.model}: {plan.backend} {plan.precision}, batch {plan.batch}, "
        f"{plan.streams} streams, {plan.threads} threads each; {report.machine.cpu}; "
        f"answers of {report.num_checked} pictures checked"
    )
    for one in report.devices:
        print_device(one)
    for fallback in report.fallbacks:
        print(f"fallback: {fallback.what} is {fallback.got}, not {fallback.wanted}")


def _rates(rates_per_s: tuple[float, ...]) -> tuple[str, str]:
    low, high = min(rates_per_s), max(rates_per_s)
    return f"{statistics.median(rates_per_s):.1f}", f"{low:.1f} to {high:.1f}"
