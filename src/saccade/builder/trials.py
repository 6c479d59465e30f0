"""Candidates asked in their own processes; what they answer is written down at once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from saccade.builder import answers as answers_file
from saccade.builder.answers import Answers
from saccade.builder.budget import Budget
from saccade.builder.candidates import key_of, reference
from saccade.builder.fleet import Fleet
from saccade.builder.process import WorkerFailed
from saccade.builder.records import Candidate, Recipe, Row, Speed
from saccade.builder.rounds import paired_ratios
from saccade.builder.state import State
from saccade.builder.task import Settings, Subject
from saccade.builder.worker import Request
from saccade.errors import SaccadeError

__all__ = ["Trials"]

# A pass over the pictures may take so many times what it takes the reference.
_OBSERVE_SLACK = 20.0


@dataclass(slots=True)
class Trials:
    """The rows of one search, and the processes behind them.

    Attributes:
        subject: What is deployed.
        settings: How to search.
        state: Rows and rounds, on disk after every finding.
        fleet: Processes.
        budget: Time.
        say: Told what happens, line by line.
        reference: The FP32 deployment that everything is held against.
        observe_s: What a pass over the pictures took the reference.
    """

    subject: Subject
    settings: Settings
    state: State
    fleet: Fleet
    budget: Budget
    say: Callable[[str], None] = lambda text: None
    observe_s: float = 0.0
    reference: Candidate = field(init=False)
    _paths: dict[Recipe, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reference = reference(self.subject.model, self.settings.space.num_cores)

    # Rows

    def row(self, candidate: Candidate) -> Row:
        """What is known of a candidate."""
        return self.state.row(candidate)

    def update(self, candidate: Candidate, **fields: Any) -> Row:
        """Change a candidate's row, and save."""
        row = replace(self.state.row(candidate), **fields)
        self.state.spent_s = self.budget.by_activity()
        self.state.put(row)
        return row

    def fail(self, candidate: Candidate, exc: Exception) -> None:
        """It could not be made, loaded or run."""
        self.say(f"failed: {candidate.label}: {exc}")
        self.update(candidate, status="failed", error=str(exc))

    def drop(self, candidate: Candidate, why: str) -> None:
        """It is not pursued; its process ends."""
        self.update(candidate, status="dropped", error=why)
        self.fleet.forget(candidate)

    def restore_speeds(self, before: Mapping[str, Row]) -> None:
        """Forget what was timed since: the rates of a round that does not count."""
        for key, row in self.state.rows.items():
            speed = before[key].speed if key in before else None
            self.state.rows[key] = replace(row, speed=speed)
        self.state.save()

    def is_over(self, candidate: Candidate) -> bool:
        """Whether nothing can come of it any more."""
        row = self.state.rows.get(key_of(candidate))
        return row is not None and row.status in ("failed", "refused")

    # Asking

    def path(self, recipe: Recipe) -> Path:
        """The file of a recipe, made when it is first wanted."""
        if recipe not in self._paths:
            with self.budget.book("making files"):
                self._paths[recipe] = self.subject.make(recipe)
        return self._paths[recipe]

    def _limit_s(self, known_s: float = 0.0) -> float:
        """A candidate that hangs must not take the time of all others."""
        share_s = max(self.budget.left_s / 4, 10.0)
        return known_s + min(self.settings.patience_s, share_s)

    def _ask(self, candidate: Candidate, request: Request, known_s: float) -> Any:
        path = self.path(candidate.recipe)
        return self.fleet.ask(candidate, path, request, self._limit_s(known_s))

    def observe(self, candidate: Candidate, batches: Sequence[int]) -> Answers:
        """Its answers to every picture at these batch sizes."""
        path = self.answers_path(candidate)
        known_s = _OBSERVE_SLACK * self.observe_s
        with self.budget.book("judging answers"):
            self._ask(candidate, Request("observe", str(path), batches=tuple(batches)), known_s)
        return answers_file.read(path)

    def answers_path(self, candidate: Candidate) -> Path:
        """Where its answers are kept."""
        return self.state.folder / f"{key_of(candidate)}.npz"

    def turn(self, candidate: Candidate) -> float:
        """One turn in a round: pictures per second, or 1000 / ms for the latency objective."""
        seconds = self.settings.round_s
        if self.settings.objective == "latency":
            speed = self.take_latency(candidate, seconds)
            assert speed.latency_p50_ms is not None
            rates = (*speed.pictures_per_s, 1000.0 / speed.latency_p50_ms)
            self.update(candidate, speed=replace(speed, pictures_per_s=rates))
            return rates[-1]
        with self.budget.book("timing"):
            rate = self._ask(candidate, Request("rate", seconds=seconds), 4 * seconds)
        speed = self._speed(candidate)
        rates = (*speed.pictures_per_s, float(rate["pictures_per_s"]))
        made = replace(speed, pictures_per_s=rates, cpu_ms=float(rate["cpu_ms"]))
        self.update(candidate, speed=made)
        return rates[-1]

    def take_latency(self, candidate: Candidate, seconds: float) -> Speed:
        """Time single pictures, end to end."""
        with self.budget.book("timing"):
            taken = self._ask(candidate, Request("latency", seconds=seconds), 4 * seconds)
        p50_ms, p99_ms = float(taken["p50_ms"]), float(taken["p99_ms"])
        speed = replace(self._speed(candidate), latency_p50_ms=p50_ms, latency_p99_ms=p99_ms)
        self.update(candidate, speed=speed)
        return speed

    def _speed(self, candidate: Candidate) -> Speed:
        loaded = self.fleet.open(candidate, self.path(candidate.recipe), self._limit_s())
        known = self.state.row(candidate).speed or Speed((), None, None, 0.0, 0.0, 0)
        peak = max(known.peak_memory_bytes, self.fleet.peak_memory_bytes(candidate))
        return replace(known, load_s=known.load_s or loaded.load_s, peak_memory_bytes=peak)

    def probe(self, candidate: Candidate) -> None:
        """One short turn, to know about how fast it is."""
        try:
            self.path(candidate.recipe)
            rate = self.turn(candidate)
        except (WorkerFailed, SaccadeError) as exc:
            self.fail(candidate, exc)
        else:
            self.say(f"probe: {candidate.label}: {self.told(rate)}")

    # What is known of speed

    def told(self, value: float) -> str:
        """A rate in the words of the objective."""
        if self.settings.objective == "latency":
            return f"{1000 / value:.2f} ms a picture"
        return f"{value:.1f} pictures/s"

    def probed(self, candidate: Candidate) -> float:
        """What the probe gave; 0 if there was none."""
        speed = self.state.row(candidate).speed
        return speed.pictures_per_s[0] if speed and speed.pictures_per_s else 0.0

    def cost(self, candidate: Candidate) -> float:
        """How many times as long as the reference's a pass of this candidate takes."""
        mine = self.probed(candidate)
        return self.probed(self.reference) / mine if mine else math.inf

    def ratio(self, one: Candidate, other: Candidate) -> float:
        """How often as fast one is, median of paired rounds."""
        ratios = paired_ratios(self.state.rounds, key_of(one), key_of(other))
        return statistics.median(ratios) if ratios else 1.0

    def slower(self, key: str, best: str) -> str:
        """In words, for the table."""
        ratios = paired_ratios(self.state.rounds, key, best)
        return f"slower: {statistics.median(ratios):.2f} times the fastest in {len(ratios)} rounds"
