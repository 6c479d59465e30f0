"""The bare script in processes of its own, one per core: what a picture costs on full cores.

python -m bench.serve.bare CASE SECONDS      one process; prints CPU milliseconds per picture
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

from bench.cases import ROOT
from bench.serve.cases import CASES

__all__ = ["bare_on_all_cores"]


def bare_on_all_cores(case_name: str, seconds: float) -> float:
    """CPU milliseconds per picture while every core does the same."""
    command = [sys.executable, "-m", "bench.serve.bare", case_name, str(seconds)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in os.sched_getaffinity(0)
    ]
    told = [process.communicate()[0] for process in started]
    return mean(map(float, told))


def main(case_name: str, seconds: float) -> None:
    from bench.serve.apps.pipeline import Pipeline

    case = CASES[case_name]
    jpegs = [Path(path).read_bytes() for path in dict.fromkeys(case.round_paths())]
    pipeline = Pipeline(case)
    pipeline(jpegs[0])
    end_s, num, cpu_s = time.monotonic() + seconds, 0, time.process_time()
    while time.monotonic() < end_s:
        pipeline(jpegs[num % len(jpegs)])
        num += 1
    print(1e3 * (time.process_time() - cpu_s) / num)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
