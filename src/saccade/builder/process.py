"""The build's end of a candidate's process: limits on time and memory, and what killed it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from saccade.builder.worker import Request

__all__ = ["COMMAND", "Limits", "WorkerFailed", "WorkerProcess"]

COMMAND = (sys.executable, "-m", "saccade.builder.worker")
_LOOK_EVERY_S = 0.05
_STDERR_TAIL = 600
_GRACE_S = 5.0
_SIGNALS = {
    signal.SIGKILL: "killed by the system (signal 9), most likely because memory ran out",
    signal.SIGSEGV: "crashed with an invalid memory access (signal 11)",
    signal.SIGABRT: "aborted itself (signal 6)",
    signal.SIGILL: "crashed on an instruction that this processor lacks (signal 4)",
    signal.SIGFPE: "crashed on a division by zero (signal 8)",
    signal.SIGBUS: "crashed on a memory error (signal 7)",
}


class WorkerFailed(Exception):
    """A candidate's process failed: the text is what its row says."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate's process may take.

    Attributes:
        memory_bytes: Resident memory of the process and its children.
        load_s: Seconds to start and load.
    """

    memory_bytes: int
    load_s: float = 180.0


class WorkerProcess:
    """One candidate's process. A context manager; leaving it kills the process group.

    Args:
        errors: File that takes what the process writes to standard error.
        limits: Time and memory.
        command: What to start.
    """

    def __init__(self, errors: Path, limits: Limits, command: Sequence[str] = COMMAND) -> None:
        self.peak_memory_bytes = 0
        self._errors = errors
        self._limits = limits
        self._buffer = b""
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    def ask(self, request: Request, limit_s: float) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            WorkerFailed: The candidate failed, hung, crashed, or took too much memory.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise WorkerFailed(self._exit_words()) from exc
        reply = self._wait(request.do, limit_s)
        if "error" in reply:
            raise WorkerFailed(str(reply["error"]))
        self.peak_memory_bytes = max(self.peak_memory_bytes, int(reply["peak_memory_bytes"]))
        return reply

    def _wait(self, doing: str, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        stop_s = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([handle], [], [], _LOOK_EVERY_S)
            if readable:
                data = os.read(handle, 1 << 16)
                if not data:
                    raise WorkerFailed(self._exit_words())
                self._buffer += data
                continue
            self._check_memory()
            if time.monotonic() > stop_s:
                self.kill()
                raise WorkerFailed(
                    f"hung: no answer to {doing!r} within {limit_s:.0f} s{self._tail()}"
                )
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as exc:
            self.kill()
            text = line[:80].decode("utf-8", "replace")
            raise WorkerFailed(f"answered with something else than a reply: {text!r}") from exc

    def _check_memory(self) -> None:
        import psutil

        try:
            process = psutil.Process(self._process.pid)
            used = process.memory_info().rss
            used += sum(child.memory_info().rss for child in process.children(recursive=True))
        except psutil.Error:
            return  # it has just ended; the pipe will say so
        self.peak_memory_bytes = max(self.peak_memory_bytes, used)
        if used > self._limits.memory_bytes:
            self.kill()
            raise WorkerFailed(
                f"out of memory: {used / 2**30:.2f} GiB used, "
                f"{self._limits.memory_bytes / 2**30:.2f} GiB allowed"
            )

    def _exit_words(self) -> str:
        """What ended the process, with the last it said."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"closed its output without an answer{self._tail()}"
        if code < 0:
            number = signal.Signals(-code)
            return _SIGNALS.get(number, f"ended by signal {-code} ({number.name})") + self._tail()
        return f"ended by itself with exit code {code}{self._tail()}"

    def _tail(self) -> str:
        text = self._errors.read_bytes()[-_STDERR_TAIL:].decode("utf-8", "replace").strip()
        return f"; its last words: {text}" if text else ""

    def kill(self) -> None:
        """End the process and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process and release its pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
