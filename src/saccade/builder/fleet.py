"""Processes of the candidates that are being compared: loaded once, idle between their turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from saccade.builder.candidates import key_of
from saccade.builder.process import COMMAND, Limits, WorkerFailed, WorkerProcess
from saccade.builder.records import Candidate
from saccade.builder.worker import Request
from saccade.types import Contract, Fallback

__all__ = ["Fleet", "Loaded"]


@dataclass(slots=True)
class Loaded:
    """One candidate, ready to be asked.

    Attributes:
        process: Its process.
        load_s: Seconds that loading took.
        fallbacks: What runs otherwise than the plan says.
    """

    process: WorkerProcess
    load_s: float
    fallbacks: tuple[Fallback, ...]


class Fleet:
    """Opens a process for a candidate when it is first asked, and closes the longest unused.

    A process whose candidate failed is gone; asking again starts a new one.

    Args:
        folder: For logs.
        contract: How all candidates are fed and read.
        pictures: File that lists the pictures.
        limits: Of each process.
        max_alive: Processes at the same time.
        command: What to start.
    """

    def __init__(
        self,
        folder: Path,
        contract: Contract,
        pictures: Path,
        *,
        limits: Limits,
        max_alive: int,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._folder = folder
        self._contract = contract
        self._pictures = pictures
        self._limits = limits
        self._max_alive = max_alive
        self._command = command
        self._alive: dict[str, Loaded] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, candidate: Candidate, path: Path, limit_s: float) -> Loaded:
        """The candidate's process, loaded.

        Raises:
            WorkerFailed: It could not be loaded.
        """
        key = key_of(candidate)
        loaded = self._alive.pop(key, None)
        if loaded is None:
            while len(self._alive) >= self._max_alive:
                self._close(next(iter(self._alive)))
            loaded = self._load(key, candidate, path, limit_s)
        self._alive[key] = loaded  # now the one used last
        return loaded

    def _load(self, key: str, candidate: Candidate, path: Path, limit_s: float) -> Loaded:
        process = WorkerProcess(self._folder / f"{key}.log", self._limits, self._command)
        request = Request("load", str(path), self._contract, candidate, str(self._pictures))
        try:
            told = process.ask(request, limit_s)
        except BaseException:
            process.close()
            raise
        fallbacks = msgspec.convert(told["fallbacks"], tuple[Fallback, ...])
        return Loaded(process, float(told["load_s"]), fallbacks)

    def ask(self, candidate: Candidate, path: Path, request: Request, limit_s: float) -> Any:
        """Ask a candidate, opening its process if need be.

        Raises:
            WorkerFailed: The candidate failed.
        """
        loaded = self.open(candidate, path, limit_s)
        try:
            return loaded.process.ask(request, limit_s)
        except WorkerFailed:
            self._close(key_of(candidate))
            raise

    def peak_memory_bytes(self, candidate: Candidate) -> int:
        """Of the candidate's process, if it is alive."""
        loaded = self._alive.get(key_of(candidate))
        return loaded.process.peak_memory_bytes if loaded else 0

    def forget(self, candidate: Candidate) -> None:
        """End a candidate's process, if it has one: its memory is wanted for others."""
        self._close(key_of(candidate))

    def _close(self, key: str) -> None:
        loaded = self._alive.pop(key, None)
        if loaded is not None:
            loaded.process.close()

    def close(self) -> None:
        """End all processes."""
        for key in list(self._alive):
            self._close(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
