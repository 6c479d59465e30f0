"""The parent's side of one contender: start it, order it, hold it still, weigh it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.cases import ROOT, WORK

__all__ = ["Child", "ContenderError", "python_of", "watch_cpu", "watch_memory"]

PEERS = Path(os.environ.get("SACCADE_PEERS", Path(tempfile.gettempdir()) / "peers"))
SAMPLE_S = 0.05
TREE_SAMPLES = 20
QUIT_S = 30
# Nothing here may call home, whatever a library's default is.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "YOLO_OFFLINE": "true",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


class ContenderError(Exception):
    """A contender failed; the message holds its own words."""


def python_of(venv: str | None) -> Path:
    """The interpreter of a contender's environment.

    Raises:
        ContenderError: The environment is not there.
    """
    if venv is None:
        return Path(sys.executable)
    python = PEERS / venv / "bin" / "python"
    if not python.is_file():
        raise ContenderError(f"environment {venv!r} is missing; run bench/peers.sh {venv}")
    return python


class Child:
    """A contender in its own process.

    Attributes:
        name: File in bench/contenders, or "reference".
    """

    def __init__(self, name: str, module: str, case_name: str) -> None:
        contender = importlib.import_module(module)
        python = python_of(contender.VENV)
        WORK.mkdir(exist_ok=True)
        self.name = name
        self._may_hold = getattr(contender, "HOLD", True)
        self._log = (WORK / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            [python, "-m", "bench.worker", module, case_name],
            cwd=ROOT,
            env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._root = psutil.Process(self._process.pid)

    def wait_ready(self) -> None:
        """Return when setup is done."""
        self._read()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the reply.

        Raises:
            ContenderError: The contender failed or ended.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise ContenderError(f"{self.name} has ended") from exc
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = (WORK / f"{self.name}.log").read_text()[-2000:]
            raise ContenderError(f"{self.name} ended without a reply:\n{tail}")
        message = json.loads(line)
        if not message.pop("ok"):
            raise ContenderError(f"{self.name}: {message['error']}")
        return message

    def tree(self) -> list[psutil.Process]:
        """The child and everything it started, the child first."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pss_bytes(self) -> int:
        """Memory of the tree; pages shared with others are counted in shares."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                line = next((row for row in text.splitlines() if row.startswith("Pss:")), "Pss: 0")
                total += int(line.split()[1]) * 1024
        return total

    def rest(self) -> bool:
        """Stop the whole tree where it stands: no spinning pool may take a core from a rival.

        Returns:
            False, and nothing is stopped, if the contender cannot bear it; then it must be closed.
        """
        if self._may_hold:
            self._signal(signal.SIGSTOP)
        return self._may_hold

    def release(self) -> None:
        """Let a stopped tree go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        """End the tree: by the end of its input, or by force if that does not do."""
        self.release()
        tree = self.tree()
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in tree[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        # Gone before anyone else is timed, memory and all.
        psutil.wait_procs(tree[1:], QUIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def watch_memory(child: Child) -> Iterator[dict[str, int]]:
    """Sample the tree's memory until the block ends; "peak_bytes" is then the most seen."""
    seen = {"peak_bytes": 0}
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            seen["peak_bytes"] = max(seen["peak_bytes"], child.pss_bytes())

    thread = threading.Thread(target=sample, name="memory")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def watch_cpu(child: Child) -> Iterator[dict[str, float]]:
    """Count user and system seconds of the tree until the block ends; "cpu_s" then holds them.

    One process is read twice. A tree is sampled, because what ends in it may take its count along
    (Ray ends its actors with every job): at most SAMPLE_S of each ended process is missed.
    """
    first = {process: _own_cpu_s(process) for process in child.tree()}
    last = dict(first)
    stop = threading.Event()

    def read() -> None:
        for process in last:
            with contextlib.suppress(psutil.NoSuchProcess):
                last[process] = max(last[process], _own_cpu_s(process))

    def sample() -> None:
        ticks = 0
        while not stop.wait(SAMPLE_S):
            ticks += 1
            if ticks % TREE_SAMPLES == 0:
                last.update({p: 0.0 for p in child.tree() if p not in last})
            read()

    seen: dict[str, float] = {}
    thread = threading.Thread(target=sample, name="cpu") if len(first) > 1 else None
    if thread:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        if thread:
            thread.join()
            last.update({p: 0.0 for p in child.tree() if p not in last})
        read()
        seen["cpu_s"] = sum(last[process] - first.get(process, 0.0) for process in last)


def _own_cpu_s(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0
