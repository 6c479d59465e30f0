"""The search: right answers first, then speed, then right answers again of what will serve.

1. The FP32 reference answers and is timed.
2. One plan of each family (file, back end, precision) is timed in one short round.
3. Families are judged, the fastest first. One whose probe, times HEADROOM, is below that of a
   family that passed cannot become the fastest by another plan: it is dropped. Where INT8 is the
   fastest but loses too much, a few blocks that have to stay in FP32 are looked for.
4. Other plans of the families that passed run in interleaved rounds; the slower half is dropped
   after each, as far as noise lets one tell.
5. The finalists are judged on their exact plans, the fastest first. The first that passes wins; if
   none does, or none is faster than the reference, the reference is the answer.

Whatever fails in its own process is a row with the reason.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from saccade.builder import answers as answers_file
from saccade.builder.answers import Answers
from saccade.builder.budget import Budget
from saccade.builder.candidates import Space, families, key_of, kind_of, reference, variants
from saccade.builder.fleet import Fleet
from saccade.builder.gate import Gate, judge, make_gate, shortfall
from saccade.builder.islands import find_islands
from saccade.builder.process import WorkerFailed
from saccade.builder.records import Candidate, GateLimits, Recipe, Row, Speed, Status
from saccade.builder.rounds import paired_ratios, ranking, survivors
from saccade.builder.state import State
from saccade.builder.worker import Request
from saccade.errors import BuildError, SaccadeError
from saccade.evaluation.annotations import Annotations
from saccade.types import Contract, Model, Precision

__all__ = ["Outcome", "Search", "Settings", "Subject"]

# Plans of one family differ by less than this on one machine, so a family this far behind is out.
HEADROOM = 1.5
# A deployment must beat the reference by more than rounds scatter to be worth having.
WORTH_IT = 1.02
_MAX_RUNGS = 6
_NUM_FINALISTS = 3
_FINAL_ROUNDS = 5
_OBSERVE_SLACK = 20.0
_MIN_TRIALS, _MAX_TRIALS = 4, 24
_ISLANDS_SHARE = 0.4  # of the time left
_START_S = 1.5  # until a process has imported its runtime
_FIRST_ROUND_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to search.

    Attributes:
        objective: What counts.
        latency_ms: Limit on p99 end to end of single pictures, or None.
        space: What plans may be made of.
        usable: Back ends and their precisions.
        round_s: Seconds of one candidate's turn in a round.
        patience_s: Longest that a candidate may take to load or to do what it is asked, beyond
            what is known to take time.
        only: The one candidate to try besides the reference, or None to search.
    """

    objective: Literal["throughput", "latency"] = "throughput"
    latency_ms: float | None = None
    space: Space
    usable: dict[str, tuple[Precision, ...]]
    round_s: float = 1.0
    patience_s: float = 120.0
    only: Candidate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is deployed, and what it is judged by.

    Attributes:
        model: The FP32 network.
        contract: How it is fed and read.
        num_pictures: Pictures to judge on.
        limits: Of the gate.
        annotations: Labels, or None to judge by agreement.
        recipes: Files to try.
        make: Makes a file by its recipe; may raise SaccadeError.
        blocks: Nodes that INT8 touches, in blocks that may be kept in FP32 together.
    """

    model: Model
    contract: Contract
    num_pictures: int
    limits: GateLimits
    annotations: Annotations | None
    recipes: Sequence[Recipe]
    make: Callable[[Recipe], Path]
    blocks: Callable[[], Sequence[frozenset[str]]] = tuple


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found.

    Attributes:
        rows: All candidates.
        reference: Index of the FP32 reference.
        chosen: Index of the winner.
        ratio: How often as fast the winner is, median of paired rounds.
    """

    rows: tuple[Row, ...]
    reference: int
    chosen: int
    ratio: float


@dataclass(slots=True)
class Search:
    """One build's search. What it finds goes to `state` at once."""

    subject: Subject
    settings: Settings
    state: State
    fleet: Fleet
    budget: Budget
    say: Callable[[str], None] = lambda text: None
    _paths: dict[Recipe, Path] = field(default_factory=dict)
    _observe_s: float = 0.0

    def run(self) -> Outcome:
        """Find the fastest deployment that passes.

        Raises:
            BuildError: The reference itself cannot run or contradicts itself.
        """
        base = reference(self.subject.model, self.settings.space.num_cores)
        gate = self._measure_reference(base)
        probed = self._probe_all(base)
        passed = self._judge_families(gate, probed)
        passed += self._keep_islands(gate, probed, passed)
        passed = self._best_of_kind(passed)
        contenders = self._contenders(base, passed)
        finalists = self._narrow(base, contenders)
        chosen = self._choose(gate, base, finalists)
        self._close_rows(chosen)
        self._judge_dropped(gate, probed)
        keys = list(self.state.rows)
        return Outcome(
            tuple(self.state.rows.values()),
            keys.index(key_of(base)),
            keys.index(key_of(chosen)),
            self._ratio(chosen, base),
        )

    # Rows

    def _update(self, candidate: Candidate, **fields: Any) -> Row:
        row = replace(self.state.row(candidate), **fields)
        self.state.spent_s = self.budget.by_activity()
        self.state.put(row)
        return row

    def _fail(self, candidate: Candidate, exc: Exception) -> None:
        self.say(f"failed: {candidate.label}: {exc}")
        self._update(candidate, status="failed", error=str(exc))

    def _drop(self, candidate: Candidate, why: str) -> None:
        self._update(candidate, status="dropped", error=why)
        self.fleet.forget(candidate)

    def _is_over(self, candidate: Candidate) -> bool:
        return self.state.row(candidate).status in ("failed", "refused")

    def _is_reference(self, candidate: Candidate) -> bool:
        return candidate == reference(self.subject.model, self.settings.space.num_cores)

    # Asking

    def _path(self, recipe: Recipe) -> Path:
        if recipe not in self._paths:
            with self.budget.book("making files"):
                self._paths[recipe] = self.subject.make(recipe)
        return self._paths[recipe]

    def _limit_s(self, known_s: float = 0.0) -> float:
        """A candidate that hangs must not take the time of all others."""
        share_s = max(self.budget.left_s / 4, 10.0)
        return known_s + min(self.settings.patience_s, share_s)

    def _ask(self, candidate: Candidate, request: Request, known_s: float) -> Any:
        path = self._path(candidate.recipe)
        return self.fleet.ask(candidate, path, request, self._limit_s(known_s))

    def _observe(self, candidate: Candidate, batches: Sequence[int]) -> Answers:
        path = self.state.folder / f"{key_of(candidate)}.npz"
        known_s = _OBSERVE_SLACK * self._observe_s
        with self.budget.book("judging answers"):
            self._ask(candidate, Request("observe", str(path), batches=tuple(batches)), known_s)
        return answers_file.read(path)

    def _turn(self, candidate: Candidate) -> float:
        """One turn in a round: pictures per second, or 1000 / ms for the latency objective."""
        seconds = self.settings.round_s
        with self.budget.book("timing"):
            if self.settings.objective == "latency":
                taken = self._ask(candidate, Request("latency", seconds=seconds), 4 * seconds)
                self._note_latency(candidate, taken)
                return 1000.0 / float(taken["p50_ms"])
            rate = self._ask(candidate, Request("rate", seconds=seconds), 4 * seconds)
        self._note_rate(candidate, rate)
        return float(rate["pictures_per_s"])

    def _speed(self, candidate: Candidate) -> Speed:
        loaded = self.fleet.open(candidate, self._path(candidate.recipe), self._limit_s())
        known = self.state.row(candidate).speed or Speed((), None, None, 0.0, 0.0, 0)
        peak = max(known.peak_memory_bytes, self.fleet.peak_memory_bytes(candidate))
        return replace(known, load_s=known.load_s or loaded.load_s, peak_memory_bytes=peak)

    def _note_rate(self, candidate: Candidate, rate: Any) -> None:
        speed = self._speed(candidate)
        rates = (*speed.pictures_per_s, float(rate["pictures_per_s"]))
        made = replace(speed, pictures_per_s=rates, cpu_ms=float(rate["cpu_ms"]))
        self._update(candidate, speed=made)

    def _note_latency(self, candidate: Candidate, taken: Any) -> None:
        p50_ms, p99_ms = float(taken["p50_ms"]), float(taken["p99_ms"])
        speed = replace(self._speed(candidate), latency_p50_ms=p50_ms, latency_p99_ms=p99_ms)
        if self.settings.objective == "latency":
            speed = replace(speed, pictures_per_s=(*speed.pictures_per_s, 1000.0 / p50_ms))
        self._update(candidate, speed=speed)

    # The steps

    def _measure_reference(self, base: Candidate) -> Gate:
        path = self.state.folder / f"{key_of(base)}.npz"
        row = self.state.row(base)
        try:
            began_s = self.budget.spent_s
            if row.verdict is None or not path.exists():
                self.say(f"reference: {base.label}")
                found = self._observe(base, [base.plan.batch])
            else:
                found = answers_file.read(path)
            self._observe_s = self.budget.spent_s - began_s
            gate = make_gate(
                found,
                self.subject.contract,
                self.subject.limits,
                annotations=self.subject.annotations,
            )
            verdict = judge(gate, found)
            if not verdict.passed:
                told = "; ".join(reason.text for reason in verdict.reasons)
                raise BuildError(
                    "the FP32 reference must answer the same every time, it does not, so nothing "
                    f"can be held against it: {told}; check the model"
                )
            self._update(base, verdict=verdict, status="passed")
            if row.speed is None:
                self._turn(base)
        except WorkerFailed as exc:
            raise BuildError(
                f"the FP32 reference ({base.label}) must run, it failed: {exc}; check the model "
                "with 'saccade inspect'"
            ) from exc
        return gate

    def _probe_all(self, base: Candidate) -> list[Candidate]:
        settings = self.settings
        found = [settings.only] if settings.only else self._families()
        for candidate in found:
            row = self.state.row(candidate)
            if row.speed is not None or row.status != "waiting" or candidate == base:
                continue
            if self.budget.left_s <= 0:
                self._drop(candidate, "time was up before it was tried")
                continue
            self._probe(candidate)
        return [c for c in found if self.state.row(c).speed is not None]

    def _families(self) -> list[Candidate]:
        subject, settings = self.subject, self.settings
        return families(subject.model, subject.recipes, settings.usable, settings.space)

    def _probe(self, candidate: Candidate) -> None:
        try:
            self._path(candidate.recipe)
            rate = self._turn(candidate)
        except (WorkerFailed, SaccadeError) as exc:
            self._fail(candidate, exc)
        else:
            self.say(f"probe: {candidate.label}: {self._told(rate)}")

    def _told(self, value: float) -> str:
        if self.settings.objective == "latency":
            return f"{1000 / value:.2f} ms a picture"
        return f"{value:.1f} pictures/s"

    def _probed(self, candidate: Candidate) -> float:
        speed = self.state.row(candidate).speed
        return speed.pictures_per_s[0] if speed and speed.pictures_per_s else 0.0

    def _judge_families(self, gate: Gate, probed: list[Candidate]) -> list[Candidate]:
        passed: list[Candidate] = []
        for candidate in sorted(probed, key=lambda c: -self._probed(c)):
            best = max(map(self._probed, passed), default=0.0)
            mine = self._probed(candidate)
            if self._is_over(candidate):
                continue
            if mine * HEADROOM < best and self._is_reference(candidate):
                continue  # it stays to be compared with, but its other plans are not tried
            if mine * HEADROOM < best:
                self._drop(
                    candidate,
                    f"cannot become the fastest: {self._told(mine)} in the probe, and even "
                    f"{HEADROOM:g} times that is below {self._told(best)}",
                )
            elif self.budget.left_s <= 0 and self.state.row(candidate).verdict is None:
                self._drop(candidate, "time was up before it was judged")
            elif self._judge(gate, candidate, [candidate.plan.batch]):
                passed.append(candidate)
        return passed

    def _keep_islands(
        self, gate: Gate, probed: list[Candidate], passed: list[Candidate]
    ) -> list[Candidate]:
        """Where INT8 is the fastest but loses too much whatever the calibrator, find the few
        blocks that have to stay in FP32."""
        found = []
        by_kind: dict[tuple[object, ...], list[Candidate]] = {}
        for candidate in probed:
            if candidate.recipe.precision == "int8":
                by_kind.setdefault(kind_of(candidate), []).append(candidate)
        for group in by_kind.values():
            best = max(group, key=self._accuracy)
            is_fast = self._probed(best) > max(map(self._probed, passed), default=0.0)
            if is_fast and all(map(self._lost_too_much, group)):
                found += self._islands_of(gate, best)
        return found

    def _lost_too_much(self, candidate: Candidate) -> bool:
        verdict = self.state.row(candidate).verdict
        return verdict is not None and {r.kind for r in verdict.reasons} == {"drop"}

    def _islands_of(self, gate: Gate, lossy: Candidate) -> list[Candidate]:
        blocks = self.subject.blocks()
        trial_s = self._observe_s * max(1.0, self._cost(lossy)) + 2 * _START_S
        num_trials = min(_MAX_TRIALS, int(_ISLANDS_SHARE * self.budget.left_s / trial_s))
        if num_trials < _MIN_TRIALS or len(blocks) < 2:
            self.say(f"islands: no time to look for what {lossy.label} should keep in FP32")
            return []
        everything = frozenset().union(*blocks)

        def with_kept(nodes: frozenset[str]) -> Candidate:
            return replace(lossy, recipe=replace(lossy.recipe, kept=tuple(sorted(nodes))))

        def score(nodes: frozenset[str]) -> float:
            trial = with_kept(nodes)
            self._judge(gate, trial, [trial.plan.batch])
            verdict = self.state.row(trial).verdict
            return -1.0 if verdict is None else min(0.0, shortfall(gate, verdict))

        # With everything kept nothing is quantised: that is the reference, short of nothing.
        kept = find_islands(score, blocks, target_drop=0.0, max_trials=num_trials, reference=0.0)
        winner = with_kept(kept)
        for row in list(self.state.rows.values()):
            is_step = row.candidate.recipe.kept and row.candidate.recipe != winner.recipe
            if is_step and row.status == "waiting":
                self._drop(row.candidate, "a step in the search for what stays in FP32")
        if kept == everything:
            return []
        self.say(f"islands: {lossy.label} passes with {len(kept)} nodes in FP32")
        self._probe(winner)
        return [winner] if self.state.row(winner).speed is not None else []

    def _best_of_kind(self, passed: list[Candidate]) -> list[Candidate]:
        """Of families that do the same arithmetic with other numbers in it, the most accurate."""
        best: dict[tuple[object, ...], Candidate] = {}
        for candidate in sorted(passed, key=lambda c: -self._accuracy(c)):
            winner = best.setdefault(kind_of(candidate), candidate)
            if winner != candidate:
                self._drop(
                    candidate,
                    f"does the same arithmetic as {winner.recipe.label}, which is as accurate or "
                    "more so",
                )
        return [candidate for candidate in passed if candidate in best.values()]

    def _accuracy(self, candidate: Candidate) -> float:
        verdict = self.state.row(candidate).verdict
        return verdict.metrics.get(verdict.judged_by, 0.0) if verdict else 0.0

    def _judge(self, gate: Gate, candidate: Candidate, batches: Sequence[int]) -> bool:
        """Judge a candidate on all these batch sizes unless that is done already."""
        row = self.state.row(candidate)
        if row.verdict is None or len(row.verdict.checked) < len(set(batches)):
            try:
                verdict = judge(gate, self._observe(candidate, sorted(set(batches))))
            except (WorkerFailed, SaccadeError) as exc:
                self._fail(candidate, exc)
                return False
            status: Status = row.status if verdict.passed else "refused"
            row = self._update(
                candidate,
                verdict=verdict,
                status=status,
                error="; ".join(reason.text for reason in verdict.reasons),
            )
            told = "passed" if verdict.passed else f"refused: {row.error}"
            self.say(f"gate: {candidate.label}: {told}")
        return row.verdict is not None and row.verdict.passed

    def _contenders(self, base: Candidate, passed: list[Candidate]) -> list[Candidate]:
        """Families that passed and their other plans, the likeliest first."""
        space = self.settings.space
        if self.settings.only:
            return list(dict.fromkeys([*passed, base]))
        found = [*passed]
        by_family = [variants(one, self.subject.model, space) for one in passed]
        for position in range(max(map(len, by_family), default=0)):
            found += [plans[position] for plans in by_family if position < len(plans)]
        fresh = [c for c in dict.fromkeys([*found, base]) if not self._is_over(c)]
        room = max(self._room(), len(passed) + 1)
        for candidate in fresh[room:]:
            if candidate != base:
                self._drop(candidate, "there was no time to try it")
        return list(dict.fromkeys([*fresh[:room], base]))

    def _room(self) -> int:
        """How many plans the first round may hold: it opens a process for each."""
        speeds = [row.speed for row in self.state.rows.values() if row.speed is not None]
        load_s = statistics.mean(speed.load_s for speed in speeds) if speeds else 0.0
        turn_s = 1.2 * self.settings.round_s + _START_S + load_s
        return int(_FIRST_ROUND_SHARE * self.budget.left_s / turn_s)

    def _narrow(self, base: Candidate, contenders: list[Candidate]) -> list[Candidate]:
        """Halve the field round by round; every round also has the reference."""
        by_key = {key_of(c): c for c in contenders}
        field_ = list(by_key)
        for rung in range(_MAX_RUNGS):
            is_final = len(field_) <= _NUM_FINALISTS
            wanted = _FINAL_ROUNDS if is_final else 1 + rung // 2
            for _ in range(wanted):
                if self._num_rounds(field_) >= self._wanted_rounds(rung, wanted):
                    break
                if self._is_short_of_time(len(field_)) and rung:
                    break
                field_ = self._round(base, by_key, field_)
            if is_final or not field_:
                break
            kept = survivors(self.state.rounds, field_)
            for key in set(field_) - set(kept) - {key_of(base)}:
                self._drop(by_key[key], self._slower(key, kept[0]))
            field_ = kept
        # Those that dropped out come last: wanted if every finalist fails the gate or the limit.
        others = [key for key in by_key if key not in field_]
        ranked = ranking(self.state.rounds, field_) + ranking(self.state.rounds, others)
        return [by_key[key] for key in ranked]

    def _num_rounds(self, keys: Sequence[str]) -> int:
        return min((sum(key in r for r in self.state.rounds) for key in keys), default=0)

    def _wanted_rounds(self, rung: int, wanted: int) -> int:
        return sum(1 + earlier // 2 for earlier in range(rung)) + wanted

    def _is_short_of_time(self, num_turns: int) -> bool:
        """Whether a round would take the time that judging the finalist needs."""
        needed_s = num_turns * 1.5 * self.settings.round_s + 3 * self._observe_s
        return self.budget.left_s < needed_s

    def _slower(self, key: str, best: str) -> str:
        ratios = paired_ratios(self.state.rounds, key, best)
        return f"slower: {statistics.median(ratios):.2f} times the fastest in {len(ratios)} rounds"

    def _round(
        self, base: Candidate, by_key: dict[str, Candidate], field_: Sequence[str]
    ) -> list[str]:
        """One turn each; who fails or finds no time leaves the field."""
        kept: list[str] = []
        reached: dict[str, float] = {}
        order = dict.fromkeys([key_of(base), *field_])
        for key in order:
            candidate = by_key.get(key, base)
            if reached and self.budget.left_s <= 3 * self._observe_s:
                if key in field_ and not self._num_rounds([key]):
                    self._drop(candidate, "time was up before it was timed")
                elif key in field_:
                    kept.append(key)
                continue
            try:
                reached[key] = self._turn(candidate)
            except (WorkerFailed, SaccadeError) as exc:
                self._fail(candidate, exc)
                continue
            if key in field_:
                kept.append(key)
        self.state.rounds.append(reached)
        self.state.save()
        self.say(f"round of {len(reached)}: best {self._told(max(reached.values(), default=1))}")
        return kept

    def _ratio(self, one: Candidate, other: Candidate) -> float:
        ratios = paired_ratios(self.state.rounds, key_of(one), key_of(other))
        return statistics.median(ratios) if ratios else 1.0

    def _choose(self, gate: Gate, base: Candidate, ranked: list[Candidate]) -> Candidate:
        """The first of the ranking that keeps the latency limit and passes on its exact plan."""
        is_base_quick = self._is_quick_enough(base)
        num_tried = 0
        for candidate in ranked:
            if candidate == base and is_base_quick:
                break
            if candidate == base or self._is_over(candidate):
                continue
            if is_base_quick and self._ratio(candidate, base) < WORTH_IT:
                self._say_unworthy(candidate, base)
                continue
            if num_tried >= _NUM_FINALISTS and self.budget.left_s <= 0:
                break
            num_tried += 1
            if self._is_quick_enough(candidate) and self._judge(
                gate, candidate, self._batches(candidate)
            ):
                self._update(candidate, status="passed", error="")
                return candidate
        return base

    def _say_unworthy(self, candidate: Candidate, base: Candidate) -> None:
        if self.state.row(candidate).status == "waiting":
            ratio = self._ratio(candidate, base)
            self._drop(candidate, f"not worth it: {ratio:.2f} times the FP32 reference")

    def _batches(self, candidate: Candidate) -> list[int]:
        """Batch sizes that will be asked of a deployment: its own, and single pictures."""
        is_fixed = any(isinstance(s.shape[0], int) for s in self.subject.model.inputs if s.shape)
        return [candidate.plan.batch] if is_fixed else sorted({1, candidate.plan.batch})

    def _is_quick_enough(self, candidate: Candidate) -> bool:
        """Take the latency of single pictures, and hold it against the limit if there is one."""
        seconds = max(2 * self.settings.round_s, 0.5)
        try:
            with self.budget.book("timing"):
                taken = self._ask(candidate, Request("latency", seconds=seconds), 4 * seconds)
        except (WorkerFailed, SaccadeError) as exc:
            self._fail(candidate, exc)
            return False
        limit_ms = self.settings.latency_ms
        p99_ms = float(taken["p99_ms"])
        speed = replace(
            self._speed(candidate), latency_p50_ms=float(taken["p50_ms"]), latency_p99_ms=p99_ms
        )
        self._update(candidate, speed=speed)
        if limit_ms is not None and not p99_ms <= limit_ms:
            if self._is_reference(candidate):
                return False  # it stays as what is left when nothing keeps the limit
            self._drop(
                candidate, f"too slow for single pictures: p99 {p99_ms:.1f} ms, limit {limit_ms:g}"
            )
            return False
        return True

    def _close_rows(self, chosen: Candidate) -> None:
        """Give every row that is still waiting its end."""
        for row in list(self.state.rows.values()):
            if row.status == "waiting" and row.candidate != chosen:
                if row.verdict is not None and row.verdict.passed and not row.error:
                    self._update(row.candidate, status="passed")
                else:
                    key = key_of(row.candidate)
                    has_turns = any(key in r for r in self.state.rounds)
                    told = self._slower(key, key_of(chosen)) if has_turns else "time was up"
                    self._drop(row.candidate, told)

    def _judge_dropped(self, gate: Gate, probed: list[Candidate]) -> None:
        """With time left, judge the families that were too slow: for the table, not the choice."""
        for candidate in probed:
            row = self.state.row(candidate)
            cost_s = self._observe_s * max(1.0, self._cost(candidate))
            if row.verdict is None and row.status == "dropped" and self.budget.left_s > 2 * cost_s:
                why = row.error
                if self._judge(gate, candidate, [candidate.plan.batch]):
                    self._drop(candidate, why)

    def _cost(self, candidate: Candidate) -> float:
        """How many times as long as the reference's a pass of this candidate takes."""
        mine = self._probed(candidate)
        base = reference(self.subject.model, self.settings.space.num_cores)
        return self._probed(base) / mine if mine else math.inf
