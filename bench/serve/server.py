"""One server under test: its processes, what they cost, and how to hold them still."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.cases import ROOT, WORK
from bench.child import PEERS, QUIET

__all__ = ["Launch", "Server", "ServerError", "exchange", "free_port", "peer"]

START_S = 120.0
STOP_S = 20.0
MARK = "SACCADE_BENCH_SERVER"


class ServerError(Exception):
    """A server did not start, ended or answered wrongly."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started.

    Attributes:
        argv: The command.
        environment: Added to ours.
        extra: Other ports by name ("grpc").
    """

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)


def peer(venv: str, program: str = "python") -> str:
    """A program in an environment that bench/serve/peers.sh made.

    Raises:
        ServerError: It is not there.
    """
    path = PEERS / f"serve_{venv}" / "bin" / program
    if not path.is_file():
        raise ServerError(f"{venv} is not installed; run bench/serve/peers.sh {venv}")
    return str(path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def exchange(port: int, request: bytes, *, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """Send one whole HTTP request on its own connection; its status and body."""
    from http.client import HTTPResponse

    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(request)
        response = HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


class Server:
    """A server with everything it started. Its output goes to a log in the work folder."""

    def __init__(self, name: str, launch: Launch, port: int) -> None:
        WORK.mkdir(exist_ok=True)
        self.name, self.port, self.extra = name, port, launch.extra
        # Whatever it starts inherits this, and is found by it.
        self._mark = f"{os.getpid()}-{name}-{time.monotonic_ns()}".encode()
        self._log_path = WORK / f"serve_{name}.log"
        self._log = self._log_path.open("w")
        self._process = subprocess.Popen(
            launch.argv,
            cwd=ROOT,
            env={
                **os.environ,
                **QUIET,
                "PYTHONPATH": str(ROOT),
                **launch.environment,
                MARK: self._mark.decode(),
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._known: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    def log_tail(self) -> str:
        return self._log_path.read_text(errors="replace")[-3000:]

    def wait_ready(self, request: bytes, *, limit_s: float = START_S) -> float:
        """Return when the request is answered with 200; the seconds that took.

        Raises:
            ServerError: It ended, or the time is up.
        """
        began_s = time.monotonic()
        last = "no connection"
        while time.monotonic() - began_s < limit_s:
            if self._process.poll() is not None:
                raise ServerError(f"{self.name} ended:\n{self.log_tail()}")
            try:
                status, body = exchange(self.port, request, timeout_s=10.0)
                if status == 200:
                    return time.monotonic() - began_s
                last = f"{status}: {body[:300]!r}"
            except OSError as exc:
                last = str(exc)
            except Exception as exc:  # half an answer of a server that is about to start
                last = repr(exc)
            time.sleep(0.05)
        raise ServerError(f"{self.name} was not ready: {last}\n{self.log_tail()}")

    def tree(self) -> list[psutil.Process]:
        """The server and everything it started, even what has left the family (Ray's daemons)."""
        # By the mark; and by the parent, as one that names itself writes over its environment.
        parents = {pid: _parent(pid) for pid in psutil.pids()}
        own = {pid for pid in parents if pid in self._known or self._mark in _environment(pid)}
        while more := {pid for pid, up in parents.items() if up in own and pid not in own}:
            own |= more
        for pid in own - self._known.keys():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._known[pid] = psutil.Process(pid)
        self._known = {pid: process for pid, process in self._known.items() if _lives(process)}
        return list(self._known.values())

    def cpu_s(self) -> float:
        """CPU seconds of the living tree so far, to the nanosecond."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(OSError):
                total += time.clock_gettime(_cpu_clock(process.pid))
        return total

    def pss_bytes(self) -> int:
        """Memory of the tree; pages shared with others are counted in shares."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                line = next((row for row in text.splitlines() if row.startswith("Pss:")), "Pss: 0")
                total += int(line.split()[1]) * 1024
        return total

    def hold(self) -> None:
        """Stop the whole tree where it stands: nothing of it may take a core from a rival."""
        self._signal(signal.SIGSTOP)

    def release(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        """End it: by SIGTERM, and by force whatever is left after STOP_S."""
        self.release()
        tree = self.tree()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                print(f"{self.name} did not end within {STOP_S:.0f} s", file=sys.stderr)
                self._process.kill()
                self._process.wait()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):  # what lost its parent before that
            os.killpg(self._process.pid, signal.SIGKILL)
        self._log.close()


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or is not ours
        return b""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time, all threads; see clock_getcpuclockid(3)."""
    return (~pid << 3) | 2


def _lives(process: psutil.Process) -> bool:
    return process.is_running()
