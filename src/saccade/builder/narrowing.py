"""Plans of the families that passed, timed in interleaved rounds until few are left."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saccade.builder.candidates import key_of, variants
from saccade.builder.process import WorkerFailed
from saccade.builder.records import Candidate
from saccade.builder.rounds import disturbed, ranking, survivors
from saccade.builder.trials import Trials
from saccade.errors import SaccadeError

__all__ = ["NUM_FINALISTS", "Narrowing"]

NUM_FINALISTS = 3
_MAX_RUNGS = 6
_FINAL_ROUNDS = 5
_START_S = 1.5  # until a process has imported its runtime
_FIRST_ROUND_SHARE = 0.4
_MAX_DISTURBED = 3  # a machine that is always like that has to be lived with
_MIN_TO_CHECK = 4  # shorter rounds are over before much can happen


@dataclass(slots=True)
class Narrowing:
    """A field of plans that is halved round by round; every round also has the reference.

    Attributes:
        trials: Candidates.
        num_untried: Plans for which there is no time.
    """

    trials: Trials
    num_untried: int = 0
    _num_disturbed: int = 0

    def contenders(self, passed: Sequence[Candidate]) -> list[Candidate]:
        """Families that passed and their other plans, the likeliest first."""
        trials, base = self.trials, self.trials.reference
        if trials.settings.only:
            return list(dict.fromkeys([*passed, base]))
        found = [*passed]
        space = trials.settings.space
        by_family = [variants(one, trials.subject.model, space) for one in passed]
        for position in range(max(map(len, by_family), default=0)):
            found += [plans[position] for plans in by_family if position < len(plans)]
        fresh = [c for c in dict.fromkeys([*found, base]) if not trials.is_over(c)]
        room = max(self._room(), len(passed) + 1)
        self.num_untried = len(set(fresh[room:]) - {base})
        return list(dict.fromkeys([*fresh[:room], base]))

    def _room(self) -> int:
        """How many plans the first round may hold: it opens a process for each."""
        trials = self.trials
        speeds = [row.speed for row in trials.state.rows.values() if row.speed is not None]
        load_s = statistics.mean(speed.load_s for speed in speeds) if speeds else 0.0
        turn_s = 1.2 * trials.settings.round_s + _START_S + load_s
        return int(_FIRST_ROUND_SHARE * trials.budget.left_s / turn_s)

    def ranked(self, contenders: Sequence[Candidate]) -> list[Candidate]:
        """Time contenders in rounds.

        Returns:
            All of them, the fastest first; those that dropped out on the way come last: wanted if
            every finalist fails the gate or the limit.
        """
        trials, base = self.trials, self.trials.reference
        by_key = {key_of(c): c for c in contenders}
        field = list(by_key)
        for rung in range(_MAX_RUNGS):
            is_final = len(field) <= NUM_FINALISTS
            wanted = _FINAL_ROUNDS if is_final else 1 + rung // 2
            for _ in range(wanted + _MAX_DISTURBED):
                if self._num_rounds(field) >= _rounds_before(rung) + wanted:
                    break
                if self._is_short_of_time(len(field)) and rung:
                    break
                field = self._round(by_key, field)
            if is_final or not field:
                break
            kept = survivors(trials.state.rounds, field)
            for key in set(field) - set(kept) - {key_of(base)}:
                trials.drop(by_key[key], trials.slower(key, kept[0]))
            field = kept
        rounds = trials.state.rounds
        others = [key for key in by_key if key not in field]
        return [by_key[key] for key in ranking(rounds, field) + ranking(rounds, others)]

    def _num_rounds(self, keys: Sequence[str]) -> int:
        rounds = self.trials.state.rounds
        return min((sum(key in r for r in rounds) for key in keys), default=0)

    def _is_short_of_time(self, num_turns: int) -> bool:
        """Whether a round would take the time that judging the finalist needs."""
        turns_s = num_turns * 1.5 * self.trials.settings.round_s
        return self.trials.budget.left_s < turns_s + 3 * self.trials.observe_s

    def _round(self, by_key: dict[str, Candidate], field: Sequence[str]) -> list[str]:
        """One turn each; who fails or finds no time leaves the field.

        The reference has a second turn at the end. If it differs from the first, something else
        ran for a part of the round, and hit some candidates but not others: the round is not
        counted, and its rates are not kept.
        """
        trials, base = self.trials, self.trials.reference
        kept: list[str] = []
        reached: dict[str, float] = {}
        before = dict(trials.state.rows)
        for key in dict.fromkeys([key_of(base), *field]):
            candidate = by_key.get(key, base)
            if reached and trials.budget.left_s <= 3 * trials.observe_s:
                if key in field and not self._num_rounds([key]):
                    trials.drop(candidate, "time was up before it was timed")
                elif key in field:
                    kept.append(key)
                continue
            try:
                reached[key] = trials.turn(candidate)
            except (WorkerFailed, SaccadeError) as exc:
                trials.fail(candidate, exc)
                continue
            if key in field:
                kept.append(key)
        if self._is_disturbed(reached):
            trials.restore_speeds(before)
            trials.say(f"round of {len(reached)}: disturbed by something else, not counted")
            return kept
        trials.state.rounds.append(reached)
        trials.state.save()
        best = max(reached.values(), default=1)
        trials.say(f"round of {len(reached)}: best {trials.told(best)}")
        return kept

    def _is_disturbed(self, reached: Mapping[str, float]) -> bool:
        trials, base = self.trials, self.trials.reference
        is_left_alone = len(reached) < _MIN_TO_CHECK or self._num_disturbed >= _MAX_DISTURBED
        if is_left_alone or self._is_short_of_time(len(reached)) or key_of(base) not in reached:
            return False
        found = disturbed(reached[key_of(base)], trials.turn(base))
        self._num_disturbed += found
        return found


def _rounds_before(rung: int) -> int:
    return sum(1 + earlier // 2 for earlier in range(rung))
