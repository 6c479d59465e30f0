"""Where INT8 is the fastest but loses too much: the few blocks that have to stay in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saccade.builder.candidates import kind_of
from saccade.builder.gate import shortfall
from saccade.builder.islands import search_islands
from saccade.builder.judging import Judging
from saccade.builder.records import Candidate, Islands, KeptBlock

__all__ = ["keep_islands"]

_MIN_TRIALS, _MAX_TRIALS = 4, 24
_SHARE = 0.4  # of the time left
_START_S = 1.5  # until a process has imported its runtime


def keep_islands(
    judging: Judging, probed: Sequence[Candidate], passed: Sequence[Candidate]
) -> list[Candidate]:
    """Find islands for each kind of INT8 that is the fastest and fails for its drop alone,
    whatever the calibrator.

    Returns:
        Candidates with islands that pass.
    """
    trials = judging.trials
    by_kind: dict[tuple[object, ...], list[Candidate]] = {}
    for candidate in probed:
        if candidate.recipe.precision == "int8" and not candidate.recipe.everything:
            by_kind.setdefault(kind_of(candidate), []).append(candidate)
    found = []
    for group in by_kind.values():
        best = max(group, key=judging.accuracy)
        is_fast = trials.probed(best) > max(map(trials.probed, passed), default=0.0)
        if is_fast and all(_lost_too_much(judging, candidate) for candidate in group):
            found += _islands_of(judging, best)
    return found


def _lost_too_much(judging: Judging, candidate: Candidate) -> bool:
    verdict = judging.trials.row(candidate).verdict
    return verdict is not None and {r.kind for r in verdict.reasons} == {"drop"}


def _islands_of(judging: Judging, lossy: Candidate) -> list[Candidate]:
    trials = judging.trials
    told = trials.state.islands.get(lossy.label)
    if told is None:
        told = _search(judging, lossy)
    if told is None or len(told.blocks) == told.num_blocks:
        return []
    winner = _with_kept(lossy, frozenset(node for block in told.blocks for node in block.nodes))
    if trials.row(winner).speed is None:
        trials.probe(winner)
    return [winner] if trials.row(winner).speed is not None else []


def _search(judging: Judging, lossy: Candidate) -> Islands | None:
    """Look for islands; None if there is no time."""
    trials = judging.trials
    blocks = trials.subject.blocks()
    trial_s = trials.observe_s * max(1.0, trials.cost(lossy)) + 2 * _START_S
    num_trials = min(_MAX_TRIALS, int(_SHARE * trials.budget.left_s / trial_s))
    if num_trials < _MIN_TRIALS or len(blocks) < 2:
        trials.say(f"islands: no time to look for what {lossy.label} should keep in FP32")
        return None

    def score(nodes: frozenset[str]) -> float:
        trial = _with_kept(lossy, nodes)
        judging.judge(trial, [trial.plan.batch])
        verdict = trials.row(trial).verdict
        return -1.0 if verdict is None else min(0.0, shortfall(judging.gate, verdict))

    # With everything kept nothing is quantised: that is the reference, short of nothing.
    found = search_islands(score, blocks, target_drop=0.0, max_trials=num_trials, reference=0.0)
    winner = _with_kept(lossy, found.kept)
    for row in list(trials.state.rows.values()):
        is_step = row.candidate.recipe.kept and row.candidate.recipe != winner.recipe
        if is_step and row.status == "waiting":
            trials.drop(row.candidate, "a step in the search for what stays in FP32")
    told = Islands(
        without=lossy.label,
        winner=winner.label,
        blocks=tuple(KeptBlock(one.nodes, one.drop) for one in found.contributions),
        num_blocks=len(blocks),
        num_trials=found.trials,
        is_minimal=found.is_minimal,
    )
    trials.state.islands[lossy.label] = told
    trials.state.save()
    trials.say(f"islands: {lossy.label} passes with {len(found.kept)} nodes in FP32")
    return told


def _with_kept(lossy: Candidate, nodes: frozenset[str]) -> Candidate:
    return replace(lossy, recipe=replace(lossy.recipe, kept=tuple(sorted(nodes))))
