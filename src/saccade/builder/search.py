"""The search: right answers first, then speed, then right answers again of what will serve.

1. The FP32 reference answers and is timed.
2. One plan of each family (file, back end, precision) is timed in one short round.
3. Families are judged, the fastest first. One whose probe, times a headroom, is below that of a
   family that passed cannot become the fastest by another plan: it is dropped (`judging`). Where
   INT8 is the fastest but loses too much, a few blocks that have to stay in FP32 are looked for
   (`keeping`).
4. Other plans of the families that passed run in interleaved rounds; the slower half is dropped
   after each, as far as noise lets one tell (`narrowing`).
5. The finalists are judged on their exact plans, the fastest first. The first that passes wins; if
   none does, or none is faster than the reference, the reference is the answer (`choosing`).

Whatever fails in its own process is a row with the reason.
"""

from __future__ import annotations

from saccade.builder import answers as answers_file
from saccade.builder.candidates import families, key_of
from saccade.builder.choosing import Choosing
from saccade.builder.gate import Gate, judge, make_gate
from saccade.builder.judging import Judging
from saccade.builder.keeping import explain_islands, keep_islands
from saccade.builder.narrowing import Narrowing
from saccade.builder.process import WorkerFailed
from saccade.builder.records import Candidate
from saccade.builder.task import Outcome
from saccade.builder.trials import Trials
from saccade.errors import BuildError

__all__ = ["find_fastest"]

# Probing must leave time to judge what it found, and to compare it.
_SHARE_LEFT = 0.4


def find_fastest(trials: Trials) -> Outcome:
    """Find the fastest deployment that passes. What is found goes to the trials' state at once.

    Raises:
        BuildError: The reference itself cannot run or contradicts itself.
    """
    base = trials.reference
    judging = Judging(trials, _measure_reference(trials))
    probed = _probe_all(trials)
    passed = judging.families(probed)
    passed += keep_islands(judging, probed, passed)
    passed = judging.best_of_kind(passed)
    narrowing, choosing = Narrowing(trials), Choosing(trials, judging)
    ranked = narrowing.ranked(narrowing.contenders(passed))
    chosen = choosing.choose(ranked)
    choosing.close_rows(chosen)
    explain_islands(judging)
    judging.dropped(probed)
    state = trials.state
    keys = list(state.rows)
    return Outcome(
        tuple(state.rows.values()),
        keys.index(key_of(base)),
        keys.index(key_of(chosen)),
        trials.ratio(chosen, base),
        tuple(state.islands.values()),
        narrowing.num_untried,
    )


def _measure_reference(trials: Trials) -> Gate:
    """Ask the reference, and make the gate of its answers."""
    base, subject = trials.reference, trials.subject
    row = trials.row(base)
    path = trials.answers_path(base)
    try:
        began_s = trials.budget.spent_s
        if row.verdict is None or not path.exists():
            trials.say(f"reference: {base.label}")
            found = trials.observe(base, [base.plan.batch])
        else:
            found = answers_file.read(path)
        trials.observe_s = trials.budget.spent_s - began_s
        gate = make_gate(found, subject.contract, subject.limits, annotations=subject.annotations)
        verdict = judge(gate, found)
        if not verdict.passed:
            told = "; ".join(reason.text for reason in verdict.reasons)
            raise BuildError(
                "the FP32 reference must answer the same every time, it does not, so nothing "
                f"can be held against it: {told}; check the model"
            )
        trials.update(base, verdict=verdict, status="passed")
        if row.speed is None:
            trials.turn(base)
    except WorkerFailed as exc:
        raise BuildError(
            f"the FP32 reference ({base.label}) must run, it failed: {exc}; check the model "
            "with 'saccade inspect'"
        ) from exc
    return gate


def _probe_all(trials: Trials) -> list[Candidate]:
    """One short turn of each family."""
    subject, settings = trials.subject, trials.settings
    if settings.only:
        found = [settings.only]
    else:
        found = families(subject.model, subject.recipes, settings.usable, settings.space)
    for candidate in found:
        row = trials.row(candidate)
        if row.speed is not None or row.status != "waiting" or candidate == trials.reference:
            continue
        if trials.budget.left_s <= _SHARE_LEFT * trials.budget.total_s:
            trials.drop(candidate, "time was up before it was tried")
            continue
        trials.probe(candidate)
    return [candidate for candidate in found if trials.row(candidate).speed is not None]
