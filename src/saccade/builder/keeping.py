"""Where INT8 is the fastest but loses too much: the few blocks that have to stay in FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from saccade.builder.candidates import kind_of
from saccade.builder.gate import shortfall
from saccade.builder.islands import search_islands
from saccade.builder.judging import Judging
from saccade.builder.records import Candidate, Islands, KeptBlock

__all__ = ["explain_islands", "keep_islands"]

_MIN_TRIALS, _MAX_TRIALS = 4, 24
_SHARE = 0.4  # of the time left
_START_S = 1.5  # until a process has imported its runtime
_STEP = "a step in the search for what stays in FP32"


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
        told = _known_elsewhere(judging, lossy) or _search(judging, lossy)
    if told is None or _is_everything(told):
        return []
    winner = _with_kept(lossy, _nodes(told.blocks))
    if trials.row(winner).speed is None:
        trials.probe(winner)
    return [winner] if trials.row(winner).speed is not None else []


def _known_elsewhere(judging: Judging, lossy: Candidate) -> Islands | None:
    """What another back end or precision had to keep, if it does here as well: one trial."""
    for told in list(judging.trials.state.islands.values()):
        if _is_everything(told):
            continue
        winner = _with_kept(lossy, _nodes(told.blocks))
        if _score(judging, winner) == 0.0:
            blocks = tuple(replace(block, short=None) for block in told.blocks)
            return _keep(judging, lossy, blocks, told.num_blocks, 1, is_minimal=False)
    return None


def _search(judging: Judging, lossy: Candidate) -> Islands | None:
    """Look for islands; None if there is no time."""
    trials = judging.trials
    blocks = trials.subject.blocks()
    num_trials = min(_MAX_TRIALS, int(_SHARE * trials.budget.left_s / _trial_s(judging, lossy)))
    if num_trials < _MIN_TRIALS or len(blocks) < 2:
        trials.say(f"islands: no time to look for what {lossy.label} should keep in FP32")
        return None
    # With everything kept nothing is quantised: that is the reference, short of nothing.
    found = search_islands(
        lambda nodes: _score(judging, _with_kept(lossy, nodes)),
        blocks,
        target_drop=0.0,
        max_trials=num_trials,
        reference=0.0,
    )
    kept = tuple(KeptBlock(one.nodes, one.drop) for one in found.contributions)
    return _keep(judging, lossy, kept, len(blocks), found.trials, is_minimal=found.is_minimal)


def explain_islands(judging: Judging) -> None:
    """With time left, measure what kept blocks are worth one by one: for the report."""
    trials = judging.trials
    by_label = {row.candidate.label: row.candidate for row in trials.state.rows.values()}
    for label, told in list(trials.state.islands.items()):
        lossy = by_label[label]
        for position, block in enumerate(told.blocks):
            is_short_of_time = trials.budget.left_s < 2 * _trial_s(judging, lossy)
            if block.short is not None or is_short_of_time or _is_everything(told):
                continue
            rest = _with_kept(lossy, _nodes(told.blocks) - frozenset(block.nodes))
            short = -_score(judging, rest)
            if trials.row(rest).status == "waiting":
                trials.drop(rest, _STEP)
            known = replace(block, short=short)
            blocks = (*told.blocks[:position], known, *told.blocks[position + 1 :])
            told = replace(told, blocks=blocks)
            trials.state.islands[label] = told
            trials.state.save()


def _trial_s(judging: Judging, lossy: Candidate) -> float:
    """What a trial takes: a file, a process, a pass over the pictures."""
    trials = judging.trials
    return trials.observe_s * max(1.0, trials.cost(lossy)) + 2 * _START_S


def _score(judging: Judging, trial: Candidate) -> float:
    """0 if it passes, else how far it falls beyond a limit, negative."""
    judging.judge(trial, [trial.plan.batch])
    verdict = judging.trials.row(trial).verdict
    return -1.0 if verdict is None else min(0.0, shortfall(judging.gate, verdict))


def _keep(
    judging: Judging,
    lossy: Candidate,
    blocks: tuple[KeptBlock, ...],
    num_blocks: int,
    num_trials: int,
    *,
    is_minimal: bool,
) -> Islands:
    """Write down what was found; the steps on the way are done with."""
    trials = judging.trials
    winner = _with_kept(lossy, _nodes(blocks))
    for row in list(trials.state.rows.values()):
        step = row.candidate
        is_step = step.recipe.kept and step.plan == lossy.plan and step != winner
        if is_step and row.status == "waiting":
            trials.drop(step, _STEP)
    told = Islands(lossy.label, winner.label, blocks, num_blocks, num_trials, is_minimal)
    trials.state.islands[lossy.label] = told
    trials.state.save()
    trials.say(f"islands: {lossy.label} passes with {len(winner.recipe.kept)} nodes in FP32")
    return told


def _is_everything(told: Islands) -> bool:
    return len(told.blocks) == told.num_blocks


def _nodes(blocks: Sequence[KeptBlock]) -> frozenset[str]:
    return frozenset(node for block in blocks for node in block.nodes)


def _with_kept(lossy: Candidate, nodes: frozenset[str]) -> Candidate:
    return replace(lossy, recipe=replace(lossy.recipe, kept=tuple(sorted(nodes))))
