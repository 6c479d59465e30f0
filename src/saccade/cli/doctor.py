"""saccade doctor"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter


def doctor(*, json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """What this machine has; each back end: ok, or the reason and the fix.

    Exit code 0 if at least one back end that runs networks works, else 1.

    Args:
        json: Print JSON.
    """
    from saccade import backends
    from saccade.cli._show import human_bytes, print_json, print_table
    from saccade.profiler.machine import machine

    found = machine()
    probed = {name: backends.get(name).probe() for name in backends.names()}
    works = any(a.ok for name, a in probed.items() if name != "null")
    if json:
        told = {name: asdict(a) for name, a in probed.items()}
        print_json({"ok": works, "machine": asdict(found), "backends": told})
        return 0 if works else 1
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
    rows = [(n, "ok" if a.ok else "no", a.reason) for n, a in probed.items()]
    print_table("", ("back end", "", "version, or the reason and the fix"), rows)
    if not works:
        print("\nno back end that runs networks works here; install one as told above")
    return 0 if works else 1
