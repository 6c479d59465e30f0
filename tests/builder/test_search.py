"""Who is tried, who stays in the field, what time it takes; and a search among real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import saccade.backends
from builder import colours, wrong_worker
from builder.slow_net import slow_detector
from nets import mean_color_detector
from saccade import registry
from saccade.builder.budget import Budget, parse_seconds
from saccade.builder.candidates import Space, available_backends, families, key_of, variants
from saccade.builder.fleet import Fleet
from saccade.builder.narrowing import Narrowing
from saccade.builder.process import Limits
from saccade.builder.records import Candidate, GateLimits, Recipe, Speed
from saccade.builder.rounds import disturbed, paired_ratios, ranking, survivors
from saccade.builder.search import find_fastest
from saccade.builder.state import open_state
from saccade.builder.task import Settings, Subject
from saccade.builder.trials import Trials
from saccade.builder.wording import sentence
from saccade.errors import InputError
from saccade.evaluation.annotations import read_annotations
from saccade.pipeline.detector import load
from saccade.types import Plan

NO_SPEED = Speed((), None, None, 0.0, 0.0, 0)
WRONG = (sys.executable, str(Path(__file__).parent / "wrong_worker.py"))


@pytest.fixture(scope="module", autouse=True)
def wrong_backends():
    before = list(saccade.backends.__path__)
    wrong_worker.install()
    registry.names.cache_clear()
    yield
    saccade.backends.__path__[:] = before
    registry.names.cache_clear()


@pytest.mark.parametrize(
    ("text", "seconds"), [("300s", 300), ("10min", 600), ("1h", 3600), ("2.5", 2.5), (" 3m ", 180)]
)
def test_times_are_read(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "0s", "-3s", "3 parsecs", "s"])
def test_wrong_times_are_told(text):
    with pytest.raises(InputError, match="--budget must be a time above 0"):
        parse_seconds(text)


def test_a_budget_is_honest_over_interruptions():
    now = [100.0]
    budget = Budget(60.0, {"timing": 20.0}, clock=lambda: now[0])
    with budget.book("timing"):
        now[0] += 5
    with contextlib.suppress(ZeroDivisionError), budget.book("judging"):
        now[0] += 3
        1 / 0  # time counts however it ends
    now[0] += 2
    assert budget.by_activity() == {"timing": 25.0, "judging": 3.0, "other": 2.0}
    assert budget.spent_s == 30.0
    assert budget.left_s == 30.0


def test_a_noisy_machine_does_not_choose():
    # The machine gets slower all the time; b is 10 % faster than a in every single round.
    rounds = [{"a": 100 / k, "b": 110 / k, "c": 50 / k} for k in range(1, 6)]
    assert ranking(rounds, ["a", "b", "c"]) == ["b", "a", "c"]
    assert paired_ratios(rounds, "b", "a") == pytest.approx([1.1] * 5)
    # By medians over rounds that not everybody ran in, d would look best; by pairs it is not.
    uneven = [*rounds, {"a": 1000.0, "b": 1100.0, "d": 900.0}]
    assert ranking(uneven, ["a", "b", "d"])[0] == "b"


def test_half_of_the_field_goes_but_not_what_noise_hides():
    rounds = [{"a": 100, "b": 98, "c": 99, "d": 50, "e": 40, "f": 99.5}]
    assert survivors(rounds, list("abcdef")) == ["a", "f", "c", "b"]
    assert survivors(rounds, ["a"]) == ["a"]
    assert survivors(rounds, ["never measured"]) == []


def test_the_ends_of_a_round_tell_whether_it_was_disturbed():
    assert not disturbed(100, 100)
    assert not disturbed(100, 88)
    assert not disturbed(100, 113)
    assert disturbed(100, 80)
    assert disturbed(100, 130)


def test_families_and_variants(tmp_path):
    space = Space(num_cores=4, batches=(8, 1))
    usable = {"onnxruntime": ("fp32",), "openvino": ("fp32", "bf16")}
    with load(mean_color_detector(tmp_path / "free.onnx")) as detector:
        model = detector.model
    found = families(model, [Recipe("int8", "minmax"), Recipe()], usable, space)
    assert [(c.recipe.precision, c.plan.precision) for c in found] == [
        ("fp32", "fp32"),
        ("fp32", "fp32"),
        ("fp32", "bf16"),
        ("int8", "fp32"),
        ("int8", "fp32"),
        ("int8", "bf16"),
    ]
    assert all(c.plan.streams * c.plan.threads == 4 for c in found)
    assert not any(c.scaled_decode for c in found)
    asked = families(model, [Recipe()], usable, dataclasses.replace(space, scaled_decode=True))
    assert [c.scaled_decode for c in asked] == [False] * 3 + [True] * 3
    plans = variants(found[0], model, space)
    assert found[0] not in plans
    assert len(set(map(key_of, plans))) == len(plans) == 2 * 3 * 2 - 1
    assert {c.plan.batch for c in plans} == {1, 8}
    assert all(c.plan.streams * c.plan.threads == 4 for c in plans)


def test_a_fixed_batch_stays(tmp_path):
    with load(mean_color_detector(tmp_path / "fixed.onnx", batch=2)) as detector:
        model = detector.model
    space = Space(num_cores=2, batches=(1, 4))
    (base,) = families(model, [Recipe()], {"onnxruntime": ("fp32",)}, space)
    assert base.plan.batch == 2
    assert {c.plan.batch for c in variants(base, model, space)} == {2}


def test_latency_wants_all_cores_for_one_picture(tmp_path):
    with load(mean_color_detector(tmp_path / "free.onnx")) as detector:
        model = detector.model
    space = Space(4, (1, 8), "latency")
    (base,) = families(model, [Recipe()], {"onnxruntime": ("fp32",)}, space)
    assert (base.plan.batch, base.plan.streams, base.plan.threads) == (1, 1, 4)
    assert [c.plan.threads for c in variants(base, model, space)] == [1, 2]


def test_keys_tell_kept_nodes_apart():
    one, two = (Candidate(Recipe("int8", "minmax", (n,)), Plan("onnxruntime"), 1) for n in "ab")
    assert one.label == two.label
    assert key_of(one) != key_of(two)


def test_back_ends_that_do_not_work_are_told():
    usable, notes = available_backends()
    assert "null" not in usable
    assert "onnxruntime" in usable
    for note in notes:
        assert "was not tried" in note
    with pytest.raises(InputError, match="backend must be one of"):
        available_backends(["onnxrumtime"])


class Task:
    """A search over a small network."""

    def __init__(self, folder: Path, make_net) -> None:
        self.folder = folder
        annotations = read_annotations(colours.draw(folder / "pictures"))
        paths = [folder / "pictures" / image.file_name for image in annotations.images]
        self.listed = folder / "pictures.json"
        self.listed.write_bytes(msgspec.json.encode(list(map(str, paths))))
        with load(make_net(folder / "net.onnx"), labels=colours.NAMES) as detector:
            self.model, self.contract = detector.model, detector.contract
        self.subject = Subject(
            model=self.model,
            contract=self.contract,
            num_pictures=len(paths),
            limits=GateLimits(),
            annotations=annotations,
            recipes=[Recipe()],
            make=lambda recipe: self.model.path,
        )
        self.lines: list[str] = []

    def search(self, *names: str, budget_s: float = 30.0, memory_bytes=1 << 30, **settings):
        (self.folder / "aside").mkdir(exist_ok=True)
        state = open_state(self.folder / "aside", {}, resume=True)
        with Fleet(
            self.folder / "logs",
            self.contract,
            self.listed,
            limits=Limits(memory_bytes),
            max_alive=8,
            command=WRONG,
        ) as fleet:
            made = Settings(
                space=settings.pop("space", Space(1, (4,))),
                usable={name: ("fp32",) for name in ("onnxruntime", *names)},
                round_s=0.1,
                patience_s=settings.pop("patience_s", 20.0),
                **settings,
            )
            budget = Budget(budget_s, state.spent_s)
            say = self.lines.append
            return find_fastest(Trials(self.subject, made, state, fleet, budget, say))


class Scripted(Trials):
    """Rates by a script in place of processes: what the machine would have given."""

    __slots__ = ("script",)

    def turn(self, candidate):
        rate = next(self.script[candidate.plan.batch])
        speed = (self.row(candidate).speed or NO_SPEED).pictures_per_s
        self.update(candidate, speed=dataclasses.replace(NO_SPEED, pictures_per_s=(*speed, rate)))
        return rate


def test_a_round_that_was_disturbed_is_not_counted(tmp_path):
    """While something else runs, from the second turn on, everybody seems half as fast."""
    task = Task(tmp_path, mean_color_detector)
    (tmp_path / "aside").mkdir()
    state = open_state(tmp_path / "aside", {}, resume=False)
    made = Settings(space=Space(1, (1,)), usable={"onnxruntime": ("fp32",)})
    logs, limits = tmp_path / "logs", Limits(1 << 30)
    with Fleet(logs, task.contract, task.listed, limits=limits, max_alive=1) as fleet:
        trials = Scripted(task.subject, made, state, fleet, Budget(1e6), task.lines.append)
        base = trials.reference
        others = [
            dataclasses.replace(base, plan=dataclasses.replace(base.plan, batch=batch))
            for batch in (2, 4, 8)
        ]
        # Two turns of the reference in each round; the first round is disturbed until its end.
        trials.script = {
            1: iter([100.0, 50.0] + [100.0] * 50),
            2: iter([60.0] + [120.0] * 50),
            4: iter([70.0] + [140.0] * 50),
            8: iter([45.0] + [90.0] * 50),
        }
        ranked = Narrowing(trials).ranked([base, *others])
    assert [candidate.plan.batch for candidate in ranked][:3] == [4, 2, 1]
    assert "round of 4: disturbed by something else, not counted" in task.lines
    assert all(r[key_of(others[1])] == 140.0 for r in state.rounds)
    assert set(state.row(others[1]).speed.pictures_per_s) == {140.0}


def by_backend(outcome, name):
    return [row for row in outcome.rows if row.candidate.plan.backend == name]


def test_the_fastest_right_answer_wins(tmp_path):
    task = Task(tmp_path, slow_detector)
    outcome = task.search("right_quick", "wrong_lost_class", "wrong_crash")
    chosen = outcome.rows[outcome.chosen]
    assert chosen.candidate.plan.backend == "right_quick"
    assert chosen.status == "passed"
    assert chosen.verdict.checked[-1] == f"batch {chosen.candidate.plan.batch} at 32x32"
    assert chosen.speed.latency_p99_ms > 0
    assert outcome.ratio > 1.5
    (refused,) = by_backend(outcome, "wrong_lost_class")
    # Either it was seen to be wrong, or it was too slow to matter; it never wins.
    assert refused.status in ("refused", "dropped")
    (crashed,) = by_backend(outcome, "wrong_crash")
    assert crashed.status == "failed"
    assert "signal 11" in crashed.error
    assert all(row.status != "waiting" for row in outcome.rows)


def test_hangs_and_memory_eaters_are_rows_and_fp32_is_the_honest_answer(tmp_path):
    task = Task(tmp_path, mean_color_detector)
    names = ("wrong_hang", "wrong_eater", "wrong_shifted", "wrong_slow")
    outcome = task.search(*names, patience_s=5, budget_s=90.0)
    errors = {row.candidate.plan.backend: row.error for row in outcome.rows if row.error}
    assert errors["wrong_hang"].startswith("hung: no answer to 'load'")
    assert errors["wrong_eater"].startswith("out of memory")
    assert [row.status for row in by_backend(outcome, "wrong_shifted")] == ["refused"]
    assert {row.status for row in by_backend(outcome, "wrong_slow")} == {"dropped"}
    assert "cannot become the fastest" in errors["wrong_slow"]
    assert outcome.rows[outcome.chosen].candidate.plan.backend == "onnxruntime"


def test_int8_keeps_in_fp32_what_it_must(tmp_path):
    task = Task(tmp_path, slow_detector)
    quick = mean_color_detector(tmp_path / "quick.onnx")
    model = onnx.load(quick)
    (box,) = [one for one in model.graph.initializer if one.name == "box"]
    moved = numpy_helper.to_array(box) + np.float32([3, 0, 0, 0]).reshape(1, 4, 1)
    box.CopyFrom(numpy_helper.from_array(moved, "box"))
    spoilt = tmp_path / "spoilt.onnx"
    onnx.save(model, spoilt)

    def make(recipe: Recipe) -> Path:
        """As if quantising the node called fragile moved every box."""
        if recipe.precision == "fp32":
            return task.model.path
        return quick if "fragile" in recipe.kept else spoilt

    task.subject = dataclasses.replace(
        task.subject,
        recipes=[Recipe(), Recipe("int8", "minmax")],
        make=make,
        blocks=lambda: [frozenset({name}) for name in ("a", "fragile", "c", "d")],
    )
    outcome = task.search("wrong_honest", budget_s=200.0)
    chosen = outcome.rows[outcome.chosen]
    assert chosen.candidate.recipe == Recipe("int8", "minmax", ("fragile",))
    assert chosen.verdict.passed
    assert outcome.ratio > 1.5
    plain = [row for row in outcome.rows if row.candidate.recipe == Recipe("int8", "minmax")]
    assert {row.status for row in plain} == {"refused"}
    assert all(row.status != "waiting" for row in outcome.rows)
    found, other = outcome.islands
    for one in (found, other):
        assert "1 kept" in one.winner
        assert [block.nodes for block in one.blocks] == [("fragile",)]
        assert one.blocks[0].short > 0.1, "measured with the time left, if not on the way"
    assert (found.num_blocks, found.is_minimal) == (4, True)
    assert (other.num_trials, other.is_minimal) == (1, False), "what one keeps is tried in another"
    again = task.search("wrong_honest", budget_s=200.0)
    assert again.islands == outcome.islands, "resumed, nothing is lost"


def test_a_latency_limit_that_nothing_keeps_leaves_the_reference(tmp_path):
    task = Task(tmp_path, mean_color_detector)
    outcome = task.search("wrong_honest", latency_ms=1e-6)
    assert outcome.chosen == outcome.reference
    assert outcome.rows[outcome.chosen].speed.latency_p99_ms > 0
    assert outcome.rows[outcome.reference].status == "passed"
    told = sentence(outcome, "throughput", 1e-6)
    assert "FP32 in ONNX Runtime is the answer" in told
    assert "does NOT keep the limit of 1e-06 ms" in told


def test_a_latency_limit_decides_among_plans(tmp_path):
    task = Task(tmp_path, mean_color_detector)
    # Waiting 20 ms is too long; whatever else is slow about this machine, 2 s are not.
    slow = task.search("wrong_slow", latency_ms=2000.0)
    assert slow.rows[slow.chosen].candidate.plan.backend == "onnxruntime"
    assert slow.rows[slow.chosen].speed.latency_p99_ms <= 2000.0


def test_latency_can_be_the_objective(tmp_path):
    task = Task(tmp_path, slow_detector)
    outcome = task.search("right_quick", objective="latency", space=Space(2, (1,), "latency"))
    chosen = outcome.rows[outcome.chosen]
    assert chosen.candidate.plan.backend == "right_quick"
    assert chosen.candidate.plan.batch == 1


def test_without_time_the_reference_is_the_answer(tmp_path):
    task = Task(tmp_path, mean_color_detector)
    outcome = task.search("wrong_honest", budget_s=1e-3)
    assert outcome.chosen == outcome.reference
    assert {row.error for row in by_backend(outcome, "wrong_honest")} == {
        "time was up before it was tried"
    }
