"""The tables of docs/performance/native-path.md, from what stands in bench/results/h200.

`native_path.json` is from `python -m bench.native_path`, with what `python -m bench.native_bundle`
wrote under "bundle".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown

FILE = ROOT / "bench" / "results" / "h200" / "native_path.json"

Row = dict[str, Any]


def native_path_tables() -> dict[str, str]:
    """Each mark's name and its table."""
    if not FILE.is_file():
        return {}
    report = json.loads(FILE.read_text())
    makers: dict[str, Callable[[Row], str]] = {
        "rates": rates,
        "where": where,
        "loads": loads,
        "bundle": bundle,
        "refused": refused,
    }
    return {f"native-path-{name}": f"\n{make(report)}\n" for name, make in makers.items()}


def rates(report: Row) -> str:
    """Answers, the bare engine and the path with it."""
    head = ["network", "batch", "in flight", "agreement", "AP", "bare engine", "nvJPEG alone"]
    lines = [[*head, "JPEG to boxes", "least to most", "of the engine", "card busy"]]
    for row in report["rows"]:
        bare = row["batch"] / row["engine_us"] * 1e6
        said = [row["model"], str(row["batch"])]
        answers = [f"{row['agreement']:.3f}", f"{row['ap']:.4f}" if "ap" in row else NO_RESULT]
        for path in row["paths"]:
            middle = path["sustained"]["median"]
            all_rates = sorted(r["pictures_per_s"] for r in path["sustained"]["rounds"])
            alone = row.get("nvjpeg_pictures_per_s")
            lines.append(
                [
                    *said,
                    str(path["slots"]),
                    *answers,
                    f"{bare:,.0f}",
                    NO_RESULT if alone is None else f"{alone:,.0f}",
                    f"**{middle['pictures_per_s']:,.0f}**",
                    f"{all_rates[0]:,.0f} to {all_rates[-1]:,.0f}",
                    f"**{middle['pictures_per_s'] / bare:.3f}**",
                    f"{middle['gpu_busy']:.1%}",
                ]
            )
        if not row["paths"]:
            lines.append([*said, NO_RESULT, *answers, f"{bare:,.0f}", *[NO_RESULT] * 5])
    return markdown(lines)


def where(report: Row) -> str:
    """Microseconds per batch, by who spends them."""
    head = ["network", "batch", "in flight", "engine alone", "graph in the path", "nvJPEG's call"]
    lines = [[*head, "launching thread", "both feeding threads", "reading"]]
    for row in report["rows"]:
        for path in row["paths"]:
            middle = path["sustained"]["median"]
            names = ("gpu_busy_us", "decoding_us", "launching_us", "feeding_us", "reading_us")
            lines.append(
                [
                    row["model"],
                    str(row["batch"]),
                    str(path["slots"]),
                    f"{row['engine_us']:,.0f}",
                    *(f"{middle[name]:,.0f}" for name in names),
                ]
            )
    return markdown(lines)


def loads(report: Row) -> str:
    """Seconds of each engine's first load, and of the next."""
    lines = [["network", "batch", "card", "kernels measured and built, s", "from its bytes, s"]]
    lines += [
        [row["model"], str(row["batch"]), row["card"], f"{row['load_s']:.1f}", NO_RESULT]
        for row in report["from_nothing"]
    ]
    lines += [
        [row["model"], str(row["batch"]), "idle", f"{row['load_s']:.1f}", f"{row['stored_s']:.2f}"]
        for row in report["rows"]
    ]
    return markdown(lines)


def bundle(report: Row) -> str:
    """Seconds and bytes of the engines in a bundle."""
    found = report["bundle"]
    again = {one["batch"]: one for one in found["again"].values()}
    lines = [["batch", "MB in the bundle", "ready after, s", "built again with known times, s"]]
    lines[0].append("same bytes")
    for engine in found["engines"].values():
        batch = engine["batch"]
        lines.append(
            [
                str(batch),
                f"{engine['bytes'] / 1e6:.1f}",
                f"{found['load'][f'batch_{batch}_s']:.2f}",
                f"{again[batch]['again_s']:.1f}",
                "yes" if again[batch]["is_same"] else "**no**",
            ]
        )
    return (
        f"{markdown(lines)}\nReading the bundle and comparing all digests took "
        f"{found['load']['bundle_read_s']:.2f} s. The gate: AP {found['ap']:.4f} against "
        f"{found['reference_ap']:.4f} in FP32, on {', '.join(found['checked'])}; the whole build "
        f"took {found['build_s']:.0f} s.\n"
    )


def refused(report: Row) -> str:
    """What is said where an engine does not fit."""
    lines = [["what is wrong", "what is said"]]
    lines += [
        [name, told.replace("|", "\\|")] for name, told in report["bundle"]["refused"].items()
    ]
    return markdown(lines)
