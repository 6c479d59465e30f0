"""How long saccade takes to be there: importing it, and answering --help.

    python -m bench.startup -o bench/results/cpu/startup.json

Each figure is the wall time of a whole fresh process, less that of `python -c pass` for the import.
The answer is checked before it is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.environment import describe

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import saccade": ["-c", "import saccade"],
    "import saccade; saccade.load": ["-c", "import saccade; saccade.load"],
    "saccade --help": ["-m", "saccade", "--help"],
    "saccade detect --help": ["-m", "saccade", "detect", "--help"],
    "saccade doctor": ["-m", "saccade", "doctor"],
}


def check(name: str, stdout: str) -> None:
    """A wrong answer has no speed."""
    if name.endswith("--help"):
        assert "Usage: saccade" in stdout, stdout
    if name == "saccade doctor":
        assert "onnxruntime" in stdout, stdout


def wall_s(name: str, arguments: list[str]) -> float:
    began_s = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began_s
    check(name, done.stdout)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=Path("bench/results/cpu/startup.json"))
    args = parser.parse_args()
    times = {name: [] for name in COMMANDS}
    for turn in range(args.rounds + 1):  # the first fills the page cache
        for name, arguments in COMMANDS.items():
            seconds = wall_s(name, arguments)
            if turn:
                times[name].append(seconds)
    result = {
        name: {"median_ms": 1e3 * statistics.median(t), "min_ms": 1e3 * min(t), "n": len(t)}
        for name, t in times.items()
    }
    bare_ms = result["python -c pass"]["median_ms"]
    result["import saccade"]["median_less_python_ms"] = (
        result["import saccade"]["median_ms"] - bare_ms
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"commands": result, "environment": describe()}, indent=2)
    args.output.write_text(text + "\n")
    for name, one in result.items():
        print(f"{name:32} median {one['median_ms']:7.1f} ms, least {one['min_ms']:7.1f} ms")


if __name__ == "__main__":
    main()
