"""Who serves: the first of the ranking that keeps the limits on its exact plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.builder.candidates import key_of
from saccade.builder.judging import Judging
from saccade.builder.narrowing import NUM_FINALISTS
from saccade.builder.process import WorkerFailed
from saccade.builder.records import Candidate
from saccade.builder.trials import Trials
from saccade.errors import SaccadeError

__all__ = ["Choosing"]

# A deployment must beat the reference by more than rounds scatter to be worth having.
WORTH_IT = 1.02
_MIN_LATENCY_S = 0.5


@dataclass(slots=True)
class Choosing:
    """The last step.

    Attributes:
        trials: Candidates.
        judging: The gate.
    """

    trials: Trials
    judging: Judging

    def choose(self, ranked: Sequence[Candidate]) -> Candidate:
        """The first that keeps the latency limit and passes; the reference if none does."""
        trials, base = self.trials, self.trials.reference
        is_base_quick = self._is_quick_enough(base)
        num_tried = 0
        for candidate in ranked:
            if candidate == base and is_base_quick:
                break
            if candidate == base or trials.is_over(candidate):
                continue
            if is_base_quick and trials.ratio(candidate, base) < WORTH_IT:
                self._drop_unworthy(candidate)
                continue
            if num_tried >= NUM_FINALISTS and trials.budget.left_s <= 0:
                break
            num_tried += 1
            if self._is_quick_enough(candidate) and self.judging.judge(
                candidate, self._batches(candidate)
            ):
                trials.update(candidate, status="passed", error="")
                return candidate
        return base

    def _drop_unworthy(self, candidate: Candidate) -> None:
        if self.trials.row(candidate).status == "waiting":
            ratio = self.trials.ratio(candidate, self.trials.reference)
            self.trials.drop(candidate, f"not worth it: {ratio:.2f} times the FP32 reference")

    def _batches(self, candidate: Candidate) -> list[int]:
        """Batch sizes that will be asked of a deployment: its own, and single pictures."""
        inputs = self.trials.subject.model.inputs
        is_fixed = any(isinstance(s.shape[0], int) for s in inputs if s.shape)
        return [candidate.plan.batch] if is_fixed else sorted({1, candidate.plan.batch})

    def _is_quick_enough(self, candidate: Candidate) -> bool:
        """Take the latency of single pictures, and hold it against the limit if there is one."""
        trials = self.trials
        try:
            speed = trials.take_latency(candidate, max(2 * trials.settings.round_s, _MIN_LATENCY_S))
        except (WorkerFailed, SaccadeError) as exc:
            trials.fail(candidate, exc)
            return False
        limit_ms, p99_ms = trials.settings.latency_ms, speed.latency_p99_ms
        if limit_ms is None or (p99_ms is not None and p99_ms <= limit_ms):
            return True
        if candidate != trials.reference:  # which stays as what is left when nothing keeps it
            trials.drop(
                candidate, f"too slow for single pictures: p99 {p99_ms:.1f} ms, limit {limit_ms:g}"
            )
        return False

    def close_rows(self, chosen: Candidate) -> None:
        """Give every row that is still waiting its end."""
        trials = self.trials
        for row in list(trials.state.rows.values()):
            if row.status == "waiting" and row.candidate != chosen:
                if row.verdict is not None and row.verdict.passed and not row.error:
                    trials.update(row.candidate, status="passed")
                else:
                    key = key_of(row.candidate)
                    has_turns = any(key in r for r in trials.state.rounds)
                    told = trials.slower(key, key_of(chosen)) if has_turns else "time was up"
                    trials.drop(row.candidate, told)
