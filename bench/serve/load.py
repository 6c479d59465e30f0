"""The caller of load.c: compiles it, gives it requests, reads its log back."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import WORK

__all__ = ["Answer", "Load", "Requests", "compile_load", "run_load"]

SOURCE = Path(__file__).with_name("load.c")
RECORD = struct.Struct("<IiQQQII")
LOST, UNANSWERED = -1, -2


def compile_load() -> Path:
    """The program, made anew where the source is newer, or what SACCADE_LOAD names."""
    if "SACCADE_LOAD" in os.environ:
        return Path(os.environ["SACCADE_LOAD"])
    program = WORK / "load"
    if not program.is_file() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        WORK.mkdir(exist_ok=True)
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE, "-lm"]
        subprocess.run(command, check=True)
    return program


@dataclass(frozen=True, slots=True)
class Answer:
    """One request of a run.

    Attributes:
        index: Which of the requests it was.
        status: Of HTTP; LOST where the connection broke, UNANSWERED where nothing came.
        due_s, sent_s, done_s: Seconds since the start of the run.
        body: As it came.
    """

    index: int
    status: int
    due_s: float
    sent_s: float
    done_s: float
    body: bytes


@dataclass(slots=True)
class Load:
    """What one run of the load generator saw.

    Attributes:
        cpu_s: CPU seconds of the load generator itself.
        wall_s: From the first request to the last answer.
        seconds: For how long requests were begun.
        answers: Every request, in the order in which they ended.
        extra: The generator's other counts.
    """

    cpu_s: float
    wall_s: float
    seconds: float
    answers: list[Answer]
    extra: dict[str, Any] = field(default_factory=dict)

    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    def rate(self) -> float:
        """Good answers per second, to the end of the last one."""
        good = self.good()
        return len(good) / max((answer.done_s for answer in good), default=1.0)

    def latency_ms(self, percent: float) -> float:
        """Percentile of the time from when a request fell due to its answer."""
        times = [answer.done_s - answer.due_s for answer in self.good()]
        return float(np.percentile(times, percent)) * 1e3 if times else float("nan")


class Requests:
    """HTTP requests as a file that the load generator sends in turn."""

    def __init__(self, name: str, requests: Sequence[bytes]) -> None:
        WORK.mkdir(exist_ok=True)
        self.path = WORK / f"{name}.requests"
        parts = [struct.pack("<I", len(requests))]
        for request in requests:
            parts += [struct.pack("<I", len(request)), request]
        self.path.write_bytes(b"".join(parts))


def run_load(
    requests: Requests,
    port: int,
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
    seed: int = 1,
    during: Callable[[], None] | None = None,
) -> Load:
    """One run: a closed loop, or an open one where a rate is given."""
    log = requests.path.with_suffix(".answers")
    command = [str(compile_load()), str(requests.path), str(log), str(port)]
    command += [str(connections), str(seconds)]
    command += [] if rate is None else [str(rate), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if during is not None:
        during()
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator ended with {process.returncode}")
    counts = json.loads(out)
    answers = read_log(log)
    log.unlink()
    return Load(counts.pop("cpu_s"), counts.pop("wall_s"), seconds, answers, counts)


def read_log(path: Path) -> list[Answer]:
    data = path.read_bytes()
    answers, at = [], 0
    while at < len(data):
        index, status, due, sent, done, size, _ = RECORD.unpack_from(data, at)
        at += RECORD.size
        body = data[at : at + size]
        answers.append(Answer(index, status, due / 1e9, sent / 1e9, done / 1e9, body))
        at += size
    return answers
