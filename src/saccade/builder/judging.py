"""Families before the gate: the fastest first, and the most accurate of those that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.builder.candidates import kind_of
from saccade.builder.gate import Gate, judge
from saccade.builder.process import WorkerFailed
from saccade.builder.records import Candidate, Status
from saccade.builder.trials import Trials
from saccade.errors import SaccadeError

__all__ = ["Judging"]

# Plans of one family differ by less than this on one machine, so a family this far behind is out.
HEADROOM = 1.5


@dataclass(slots=True)
class Judging:
    """The gate, and the candidates that are led before it.

    Attributes:
        trials: Candidates.
        gate: From the reference's answers.
    """

    trials: Trials
    gate: Gate

    def judge(self, candidate: Candidate, batches: Sequence[int]) -> bool:
        """Judge a candidate on all these batch sizes unless that is done already."""
        row = self.trials.row(candidate)
        if row.verdict is None or len(row.verdict.checked) < len(set(batches)):
            try:
                found = self.trials.observe(candidate, sorted(set(batches)))
                verdict = judge(self.gate, found)
            except (WorkerFailed, SaccadeError) as exc:
                self.trials.fail(candidate, exc)
                return False
            status: Status = row.status if verdict.passed else "refused"
            row = self.trials.update(
                candidate,
                verdict=verdict,
                status=status,
                error="; ".join(reason.text for reason in verdict.reasons),
            )
            told = "passed" if verdict.passed else f"refused: {row.error}"
            self.trials.say(f"gate: {candidate.label}: {told}")
        return row.verdict is not None and row.verdict.passed

    def families(self, probed: Sequence[Candidate]) -> list[Candidate]:
        """Judge families, the fastest first; those that cannot win are dropped.

        Returns:
            Those that passed.
        """
        trials = self.trials
        passed: list[Candidate] = []
        for candidate in sorted(probed, key=lambda c: -trials.probed(c)):
            best = max(map(trials.probed, passed), default=0.0)
            mine = trials.probed(candidate)
            if trials.is_over(candidate):
                continue
            if mine * HEADROOM < best and candidate == trials.reference:
                continue  # it stays to be compared with, but its other plans are not tried
            if mine * HEADROOM < best:
                trials.drop(
                    candidate,
                    f"cannot become the fastest: {trials.told(mine)} in the probe, and even "
                    f"{HEADROOM:g} times that is below {trials.told(best)}",
                )
            elif trials.budget.left_s <= 0 and trials.row(candidate).verdict is None:
                trials.drop(candidate, "time was up before it was judged")
            elif self.judge(candidate, [candidate.plan.batch]):
                passed.append(candidate)
        return passed

    def best_of_kind(self, passed: Sequence[Candidate]) -> list[Candidate]:
        """Of families that do the same arithmetic with other numbers in it, the most accurate."""
        best: dict[tuple[object, ...], Candidate] = {}
        for candidate in sorted(passed, key=lambda c: -self.accuracy(c)):
            winner = best.setdefault(kind_of(candidate), candidate)
            if winner != candidate:
                self.trials.drop(
                    candidate,
                    f"does the same arithmetic as {winner.recipe.label}, which is as accurate or "
                    "more so",
                )
        return [candidate for candidate in passed if candidate in best.values()]

    def accuracy(self, candidate: Candidate) -> float:
        """AP or agreement; 0 if it was not judged."""
        verdict = self.trials.row(candidate).verdict
        return verdict.metrics.get(verdict.judged_by, 0.0) if verdict else 0.0

    def dropped(self, probed: Sequence[Candidate]) -> None:
        """With time left, judge the families that were too slow: for the table, not the choice."""
        trials = self.trials
        for candidate in probed:
            row = trials.row(candidate)
            cost_s = trials.observe_s * max(1.0, trials.cost(candidate))
            if (
                row.verdict is None
                and row.status == "dropped"
                and trials.budget.left_s > 2 * cost_s
                and self.judge(candidate, [candidate.plan.batch])
            ):
                trials.drop(candidate, row.error)
