"""What the machine could do at best: from saccade's own serial measurement, stage by stage.

    bound = cores / sum of the CPU seconds that decode, prepare, infer (one thread) and suppress
            cost per picture

The sum is measured by `saccade bench MODEL PICTURES --json`, which this file calls before and
after the rounds, so that a machine that slowed down in between shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bench.cases import ROOT, Case

__all__ = ["measure"]

MAX_PICTURES = 24
LIMIT_S = 300


def measure(case: Case) -> dict[str, Any]:
    """What `saccade bench` says, or why it said nothing."""
    pictures = list(dict.fromkeys(case.round_paths()))[:MAX_PICTURES]
    command = [sys.executable, "-m", "saccade", "bench", case.model_path, *pictures, "--json"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"available": False, "reason": f"no answer within {LIMIT_S} s"}
    if done.returncode:
        return {"available": False, "reason": done.stderr.strip()[-500:]}
    try:
        return {"available": True, "report": json.loads(done.stdout)}
    except json.JSONDecodeError:
        return {"available": False, "reason": f"not JSON: {done.stdout[:200]!r}"}
