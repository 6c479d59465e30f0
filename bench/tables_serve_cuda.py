"""The tables of serving on a GPU, from bench/results/serve/cuda.json."""

from __future__ import annotations

from typing import Any

from bench.markdown import markdown

__all__ = ["cuda_tables"]


def cuda_tables(report: dict[str, Any] | None) -> dict[str, str]:
    """By name of the mark: serve-cuda, -cuda-open, -cuda-cores, -cuda-bar."""
    if report is None:
        return dict.fromkeys(("serve-cuda", "serve-cuda-open", "serve-cuda-cores"), "")
    return {
        "serve-cuda": closed(report),
        "serve-cuda-open": opened(report),
        "serve-cuda-cores": cores(report),
    }


def closed(report: dict[str, Any]) -> str:
    offline, server = report["offline"], report["server"]
    rate = offline["rate_per_s"]
    rows: list[list[str]] = [
        ["", "pictures/s", "of the job", "mean batch", "card busy", "p50, p99 ms"]
    ]
    rows.append([f"job without a server, batch {report['batch']}", f"{rate:,.0f}", "1", "", "", ""])
    rows += [
        [f"{row['connections']} connections", *_figures(row, rate)] for row in server["closed"]
    ]
    for one in report.get("variants", ()):
        rows += [
            [f"`{one['variant']}`, {row['connections']} connections", *_figures(row, rate)]
            for row in one["closed"]
        ]
    most = max(row["rate_per_s"] for row in server["closed"])
    check = server["check"]
    told = " ".join(server["arguments"])
    note = (
        f"{report['environment']['gpu'] or report['device']}, "
        f"{report['environment']['cores']} cores for clients and server; `{told}`. "
        f"All of {check['num_answers']:,} answers are right (agreement of boxes with the CPU's "
        f"{check['agreement']:.3f}); of each picture there was "
        f"{'one answer' if check['most_distinct_of_one_picture'] == 1 else 'more than one answer'}."
        f" Most: {most / rate:.2f} of the job's rate; the bar is {report['bar']}."
    )
    return f"{markdown(rows)}\n\n{note}"


def _figures(row: dict[str, Any], offline: float) -> list[str]:
    return [
        f"{row['rate_per_s']:,.0f}",
        f"{row['rate_per_s'] / offline:.2f}",
        f"{row['mean_batch']:.0f}",
        f"{row['gpu_busy']:.0%}",
        f"{row['p50_ms']:.1f}, {row['p99_ms']:.1f}",
    ]


def opened(report: dict[str, Any]) -> str:
    rows = [
        ["offered/s", "answered/s", "refused (503)", "mean batch", "p50 ms", "p90 ms", "p99 ms"]
    ]
    rows += [
        [
            f"{row['offered_per_s']:,.0f}",
            f"{row['rate_per_s']:,.0f}",
            f"{row['num_other'] / (row['num'] + row['num_other']):.1%}",
            f"{row['mean_batch']:.0f}",
            *(f"{row[f'p{p}_ms']:.1f}" for p in (50, 90, 99)),
        ]
        for row in report["server"]["open"]
    ]
    return markdown(rows)


def cores(report: dict[str, Any]) -> str:
    best = max(report["server"]["closed"], key=lambda row: row["rate_per_s"])
    rows = [["at the most", "cores", "us per picture"]]
    for name, key in (
        ("front processes", "fronts_cores"),
        ("engine process", "engine_cores"),
        ("load generator", "load_cores"),
        ("idle", "idle_cores"),
    ):
        each = "" if key == "idle_cores" else f"{1e6 * best[key] / best['rate_per_s']:.0f}"
        rows.append([name, f"{best[key]:.2f}", each])
    return markdown(rows)
