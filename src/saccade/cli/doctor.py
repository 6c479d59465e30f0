"""saccade doctor"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter


def doctor(
    *,
    measure: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """What this machine has; each back end and GPU library: ok, or the reason and the fix.

    Exit code 0 if at least one back end that runs networks works, else 1.

    Args:
        measure: Also measure each GPU for about two seconds: copies and decoding.
        json: Print JSON.
    """
    from saccade import backends
    from saccade.cli._show import print_json, print_table
    from saccade.profiler.gpus import look_at_gpus
    from saccade.profiler.machine import machine

    found, gpus = machine(), look_at_gpus()
    probed = {name: backends.get(name).probe() for name in backends.names()}
    works = any(a.ok for name, a in probed.items() if name != "null")
    rates = _measured(gpus) if measure else []
    if json:
        told = {name: asdict(a) for name, a in probed.items()}
        print_json(
            {
                "ok": works,
                "machine": asdict(found),
                "backends": told,
                "gpu": {**asdict(gpus), "rates": rates},
            }
        )
        return 0 if works else 1
    _print_machine(found)
    rows = [(n, "ok" if a.ok else "no", a.reason) for n, a in probed.items()]
    print_table("", ("back end", "", "version, or the reason and the fix"), rows)
    _print_gpus(gpus)
    if measure:
        _print_rates(rates)
    if not works:
        print("\nno back end that runs networks works here; install one as told above")
    return 0 if works else 1


def _print_machine(found: Any) -> None:
    from saccade.cli._show import human_bytes, print_table

    rows: list[tuple[object, ...]] = [
        ("processor", found.cpu),
        ("cores", found.num_cores),
        ("instruction sets", " ".join(found.instruction_sets) or "none of note"),
        ("memory", human_bytes(found.memory_bytes)),
        ("system", found.system),
        ("python", found.python),
        ("packages", ", ".join(f"{k} {v}" for k, v in found.versions.items())),
    ]
    print_table("", ("this machine", ""), rows)
    print()


def _print_gpus(gpus: Any) -> None:
    from saccade.cli._show import human_bytes, print_table

    print()
    if gpus.driver:
        print(f"NVIDIA driver {gpus.driver}")
    if gpus.problem:
        print(f"no GPU that can be used: {gpus.problem}")
    rows: list[tuple[object, ...]] = [
        (
            f"cuda:{card.index}",
            card.name,
            ".".join(map(str, card.capability)),
            human_bytes(card.memory_bytes),
            "?" if card.used_bytes is None else human_bytes(card.used_bytes),
            card.link or "?",
            card.problem or "ok",
        )
        for card in gpus.gpus
    ]
    if rows:
        columns = ("GPU", "name", "capability", "memory", "in use", "link", "")
        print_table("", columns, rows)
    print()
    rows = [(name, "ok" if a.ok else "no", a.reason) for name, a in gpus.libraries.items()]
    print_table("", ("GPU library", "", "version, or the reason and the fix"), rows)


def _measured(gpus: Any) -> list[dict[str, Any]]:
    """One row per card: its rates, or why they could not be measured."""
    from saccade.cli.bench import rendered
    from saccade.errors import SaccadeError
    from saccade.profiler.gpu_rates import measure_gpu

    if not gpus.gpus:
        return []
    jpeg = rendered(1)[0].value
    rows = []
    for card in gpus.gpus:
        try:
            rows.append(asdict(measure_gpu(card.index, jpeg, (640, 480))))
        except SaccadeError as exc:
            rows.append({"index": card.index, "error": str(exc)})
    return rows


def _print_rates(rates: list[dict[str, Any]]) -> None:
    from saccade.cli._show import print_table

    print()
    if not rates:
        print("nothing was measured: there is no GPU")
        return
    rows: list[tuple[object, ...]] = []
    for one in rates:
        card = f"cuda:{one['index']}"
        if "error" in one:
            rows.append((card, one["error"], ""))
            continue
        for name, key in (
            ("pinned memory to device", "to_device_gb_s"),
            ("ordinary memory to device", "to_device_pageable_gb_s"),
            ("device to pinned memory", "from_device_gb_s"),
            ("device to device, read and written", "on_device_gb_s"),
        ):
            rows.append((card, name, f"{one[key]:.1f} GB/s"))
        per_s = one["decodes_per_s"]
        told = "-" if per_s is None else f"{per_s:.0f} JPEGs/s of 640x480"
        rows.append((card, f"decoding: {one['decoder']}", told))
    print_table("", ("GPU", "measured", ""), rows)
