"""The gate against back ends that are wrong on purpose, and against real losses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import saccade.backends
from builder import colours, wrong_worker
from nets import mean_color_detector
from saccade import registry
from saccade.builder.answers import Answers, Pass, observe, open_detector, read, write
from saccade.builder.bootstrap import draw, draw_weights, figures, score_pictures
from saccade.builder.evidence import from_labels, score
from saccade.builder.gate import judge, make_gate, parse_max_drop
from saccade.builder.records import Candidate, GateLimits, Recipe
from saccade.builder.worker import items_of
from saccade.errors import InputError
from saccade.evaluation.annotations import read_annotations
from saccade.evaluation.metrics import evaluate
from saccade.pipeline.detector import load
from saccade.types import Detections, Plan
from saccade.vision.ap import accumulate

REFERENCE = Candidate(Recipe(), Plan("onnxruntime", streams=2), 2)


@pytest.fixture(scope="module", autouse=True)
def wrong_backends():
    before = list(saccade.backends.__path__)
    wrong_worker.install()
    registry.names.cache_clear()
    yield
    saccade.backends.__path__[:] = before
    registry.names.cache_clear()


class Judged:
    """A small model with labelled pictures, and its reference."""

    def __init__(self, folder) -> None:
        self.path = mean_color_detector(folder / "net.onnx")
        self.annotations = read_annotations(colours.draw(folder / "pictures"))
        self.items = items_of(
            [folder / "pictures" / image.file_name for image in self.annotations.images]
        )
        with load(self.path, labels=colours.NAMES) as detector:
            self.contract = detector.contract
        self.reference = self.answers(REFERENCE, [1])

    def answers(self, candidate: Candidate, batches) -> Answers:
        with open_detector(self.path, self.contract, candidate) as detector:
            return observe(detector, candidate, self.items, batches)

    def verdict(self, backend: str, batch: int = 1, *, labels: bool = True, limits=None):
        gate = make_gate(
            self.reference,
            self.contract,
            limits or GateLimits(),
            annotations=self.annotations if labels else None,
            num_draws=100,
        )
        candidate = Candidate(Recipe(), Plan(backend, batch=batch, streams=2), 2)
        return judge(gate, self.answers(candidate, sorted({1, batch})))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return Judged(tmp_path_factory.mktemp("judged"))


@pytest.mark.parametrize("batch", [1, 4])
def test_an_honest_back_end_passes(judged, batch):
    verdict = judged.verdict("wrong_honest", batch)
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.metrics["AP"] == pytest.approx(1.0)
    assert verdict.num_pictures == colours.NUM_PICTURES
    assert verdict.checked == tuple(f"batch {b} at 32x32" for b in sorted({1, batch}))


@pytest.mark.parametrize(
    ("backend", "batch", "kinds"),
    [
        ("wrong_shifted", 1, {"drop"}),
        ("wrong_lost_class", 1, {"drop"}),
        ("wrong_batch_4", 4, {"drop", "batch_dependent"}),
        ("wrong_nan", 1, {"not_finite"}),
        ("wrong_infinite_box", 1, {"not_finite"}),
        ("wrong_neighbours", 4, {"batch_dependent"}),
        ("wrong_drifting", 1, {"not_repeatable"}),
        ("wrong_drifting", 4, {"not_repeatable"}),
        ("wrong_fallback", 1, {"fallback"}),
    ],
)
def test_each_wrong_back_end_is_refused_by_its_reason(judged, backend, batch, kinds):
    verdict = judged.verdict(backend, batch)
    assert not verdict.passed
    told = {reason.kind for reason in verdict.reasons}
    assert kinds <= told
    # NaN scores are dropped as low, so an AP drop may come on top, but nothing else.
    assert told <= kinds | {"drop", "not_repeatable"}


def test_what_is_wrong_only_at_batch_4_passes_at_batch_1(judged):
    assert judged.verdict("wrong_batch_4", 1).passed
    verdict = judged.verdict("wrong_batch_4", 4)
    assert {r.where for r in verdict.reasons if r.kind == "drop"} == {"batch 4 at 32x32"}


def test_a_lost_class_is_named_if_asked_for(judged):
    limits = GateLimits({"class:blue": 0.1, "class:red": 0.1})
    reasons = judged.verdict("wrong_lost_class", limits=limits).reasons
    assert [reason.text.split()[0] for reason in reasons] == ["class:blue"]
    assert "fell by 1.0000" in reasons[0].text


def test_without_labels_it_is_agreement_and_never_ap(judged):
    good = judged.verdict("wrong_honest", 4, labels=False)
    assert good.passed
    assert good.judged_by == "agreement"
    assert good.metrics["agreement"] == pytest.approx(1.0)
    bad = judged.verdict("wrong_shifted", labels=False)
    assert [reason.kind for reason in bad.reasons] == ["drop"]
    for names in (bad.metrics, bad.drops, bad.reference):
        assert not any("AP" in name for name in names)
    assert "agreement fell by" in bad.reasons[0].text


def changed(answers: Answers, **fields) -> Answers:
    return dataclasses.replace(answers, **fields)


def gate_of(judged, **keys):
    return make_gate(
        judged.reference,
        judged.contract,
        GateLimits(),
        annotations=judged.annotations,
        num_draws=50,
        **keys,
    )


def test_classes_that_nobody_counted_are_judged_all_the_same(judged):
    """Detectors that end in boxes do not tell how many classes they have."""
    contract = dataclasses.replace(
        judged.contract, labels=(), head=dataclasses.replace(judged.contract.head, num_classes=0)
    )
    (one,) = judged.reference.passes
    weak = Detections(
        np.float32([[0, 0, 9, 9]]), np.float32([contract.detect.score / 2]), np.int32([79])
    )
    low = dataclasses.replace(one, detections=(*one.detections[:-1], weak))
    gate = make_gate(
        dataclasses.replace(judged.reference, passes=(low,)), contract, GateLimits(), num_draws=20
    )
    new = dataclasses.replace(weak, classes=np.int32([205]))
    other = dataclasses.replace(one, detections=(*one.detections[:-1], new))
    verdict = judge(gate, dataclasses.replace(judged.reference, passes=(other,)))
    assert verdict.metrics["agreement"] == pytest.approx(1.0)


def test_a_changed_contract_is_refused(judged):
    gate, answers = gate_of(judged), judged.reference
    for fields, text in (
        ({"inputs": ("images float16 [batch, 3, 32, 32]",)}, "inputs must stay images float32"),
        ({"outputs": ("output1 float32 [batch, 6, 21]",)}, "outputs must stay output0"),
        ({"families": ()}, "recognised as yolov8"),
    ):
        reasons = judge(gate, changed(answers, **fields)).reasons
        assert [reason.kind for reason in reasons] == ["contract_changed"]
        assert text in reasons[0].text


def test_pictures_that_fail_only_in_the_candidate_are_refused(judged):
    one = judged.reference.passes[0]
    errors = ("cannot be read", *one.errors[1:])
    broken = dataclasses.replace(one, detections=(None, *one.detections[1:]), errors=errors)
    verdict = judge(gate_of(judged), changed(judged.reference, passes=(broken,)))
    assert verdict.reasons[0].kind == "picture_errors"
    assert "1 of 24 pictures" in verdict.reasons[0].text
    # A picture that the reference cannot use either is nobody's fault.
    both = changed(judged.reference, passes=(broken,))
    gate = make_gate(
        both, judged.contract, GateLimits(), annotations=judged.annotations, num_draws=50
    )
    assert judge(gate, both).passed


def test_nan_in_boxes_is_refused_even_if_the_outputs_were_not_seen(judged):
    one = judged.reference.passes[0]
    first = one.detections[0]
    boxes = first.boxes_xyxy.copy()
    boxes[0, 0] = np.nan
    spoilt = Detections(boxes, first.scores, first.classes)
    broken = dataclasses.replace(one, detections=(spoilt, *one.detections[1:]))
    kinds = [
        r.kind for r in judge(gate_of(judged), changed(judged.reference, passes=(broken,))).reasons
    ]
    assert kinds[0] == "not_finite"


def test_reasons_come_in_a_fixed_order(judged):
    one = judged.reference.passes[0]
    nothing = Detections(np.zeros((0, 4), "f4"), np.zeros(0, "f4"), np.zeros(0, "i4"))
    empty = dataclasses.replace(
        one,
        detections=(None, *(nothing for _ in one.detections[1:])),
        errors=("broken", *one.errors[1:]),
        not_finite={"output0": 3},
    )
    from saccade.builder.records import Reason
    from saccade.types import Fallback

    verdict = judge(
        gate_of(judged),
        changed(
            judged.reference,
            passes=(empty,),
            inputs=(),
            fallbacks=(Fallback("device", "a", "b"),),
            findings=(Reason("not_repeatable", "x"), Reason("batch_dependent", "y")),
        ),
    )
    kinds = list(dict.fromkeys(reason.kind for reason in verdict.reasons))
    assert kinds == [
        "contract_changed",
        "fallback",
        "picture_errors",
        "not_finite",
        "batch_dependent",
        "not_repeatable",
        "drop",
    ]


def test_a_drop_too_small_for_the_pictures_is_called_so(judged):
    one = judged.reference.passes[0]
    nothing = Detections(np.zeros((0, 4), "f4"), np.zeros(0, "f4"), np.zeros(0, "i4"))
    lost = dataclasses.replace(one, detections=(nothing, *one.detections[1:]))
    gate = make_gate(
        judged.reference,
        judged.contract,
        GateLimits({"AP": 0.06, "AP_large": 0.01}),
        annotations=judged.annotations,
    )
    verdict = judge(gate, changed(judged.reference, passes=(lost,)))
    assert verdict.passed
    told = [warning.text for warning in verdict.warnings]
    assert [warning.kind for warning in verdict.warnings] == ["too_few_pictures"] * 2
    assert "would be needed" in told[0]
    assert "AP_large cannot be judged" in told[1]
    assert verdict.drops["AP"].low <= verdict.drops["AP"].value <= verdict.drops["AP"].high


def test_answers_survive_a_file(judged, tmp_path):
    path = tmp_path / "answers.npz"
    one = judged.reference.passes[0]
    some = dataclasses.replace(one, detections=(None, *one.detections[1:]))
    write(changed(judged.reference, passes=(some,)), path)
    back = read(path)
    assert back.inputs == judged.reference.inputs
    assert back.passes[0].errors == one.errors
    assert back.passes[0].detections[0] is None
    for a, b in zip(back.passes[0].detections[1:], one.detections[1:], strict=True):
        np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
        np.testing.assert_array_equal(a.scores, b.scores)
        np.testing.assert_array_equal(a.classes, b.classes)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="must hold a candidate's answers"):
        read(path)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("AP=0.005", {"AP": 0.005}),
        (" AP = .01 , class:a=b=0.5,AR100=0", {"AP": 0.01, "class:a=b": 0.5, "AR100": 0.0}),
    ],
)
def test_limits_are_read(text, limits):
    assert parse_max_drop(text) == limits


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("AP", "must be NAME=NUMBER"),
        ("", "must name at least one metric"),
        ("AP=0.1,", "none may be empty"),
        ("mAP=0.1", "did you mean 'AP'"),
        ("AP_smal=0.1", "did you mean 'AP_small'"),
        ("AP=half", "must be a number from 0 to below 1"),
        ("AP=0.5%", "for 0.5% write 0.005"),
        ("AP=-0.1", "must be a number from 0"),
        ("AP=1", "must be a number from 0 to below 1"),
        ("AP=nan", "must be a number from 0"),
        ("AP=0.1,AP=0.2", "named twice"),
        ("class:wbc=0.1", "did you mean 'WBC'"),
        ("=0.1", "must be NAME=NUMBER"),
    ],
)
def test_wrong_limits_are_told(text, told):
    with pytest.raises(InputError, match=told):
        parse_max_drop(text, ["RBC", "WBC"])


def random_evidence(judged, rng):
    """Answers with jittered boxes, several per picture, so that figures lie between 0 and 1."""
    found = []
    for _ in judged.annotations.images:
        k = int(rng.integers(0, 6))
        corner = rng.uniform(4, 12, (k, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, 20, (k, 2))], axis=1)
        scores = np.sort(rng.uniform(0, 1, k))[::-1].round(2)
        found.append(
            Detections(boxes.astype("f4"), scores.astype("f4"), rng.integers(0, 2, k).astype("i4"))
        )
    return from_labels(judged.annotations, judged.contract), found


def test_figures_are_those_of_saccade_eval(judged, rng):
    evidence, found = random_evidence(judged, rng)
    got = figures(score(evidence, found))
    ids = [image.id for image in judged.annotations.images]
    results = [
        (i, d.boxes_xyxy, d.scores, evidence.numbers[d.classes])
        for i, d in zip(ids, found, strict=True)
    ]
    wanted = evaluate(judged.annotations, ids, results)
    for name in ("AP", "AP50", "AP75", "AP_small", "AR100"):
        value = getattr(wanted, name)
        if value is not None:
            assert got[name] == pytest.approx(value, abs=1e-9), name
    assert got["class:red"] == pytest.approx(wanted.per_class["red"].AP, abs=1e-9)


def test_draws_are_weighted_ap(judged, rng):
    evidence, found = random_evidence(judged, rng)
    scored = score(evidence, found)
    weights = draw_weights(scored.num_pictures, 20)
    drawn = draw(scored, weights)["AP"]
    for one, row in zip(drawn, weights, strict=True):
        assert one == pytest.approx(accumulate(scored.pools["AP"], row), abs=1e-12)


def test_a_set_without_boxes_has_no_figures():
    scored = score_pictures([], [], {})
    assert figures(scored) == {}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "plan", "fall"),
    [
        ("fastestdet_352_qdq_int8.onnx", Plan("onnxruntime", streams=2), 0.03),
        ("fastestdet_352.onnx", Plan("openvino", "bf16", streams=2), 0.02),
    ],
)
def test_known_losses_of_fastestdet_are_refused(shared, file, plan, fall):
    models, data = shared / "models", shared / "datasets" / "coco_ccby"
    annotations = read_annotations(data / "annotations" / "instances_80.json")
    images = sorted(annotations.images, key=lambda image: image.id)
    items = items_of([data / "images" / image.file_name for image in images])
    with load(models / "fastestdet_352.onnx") as detector:
        contract = detector.contract
        if plan.precision == "bf16":
            skip_without_bf16(detector.model, plan)

    def answers(name: str, candidate: Candidate) -> Answers:
        with open_detector(models / name, contract, candidate) as detector:
            return observe(detector, candidate, items, [1])

    reference = answers("fastestdet_352.onnx", REFERENCE)
    gate = make_gate(
        reference, contract, GateLimits({"AP": 0.005}), annotations=annotations, num_draws=200
    )
    honest = answers("fastestdet_352.onnx", dataclasses.replace(REFERENCE, plan=Plan("openvino")))
    assert judge(gate, honest).passed
    verdict = judge(gate, answers(file, Candidate(Recipe(), plan, 2)))
    assert [reason.kind for reason in verdict.reasons] == ["drop"]
    assert verdict.drops["AP"].value == pytest.approx(fall, abs=0.006)


def skip_without_bf16(model, plan) -> None:
    from saccade import backends
    from saccade.errors import BuildError

    try:
        backends.get(plan.backend).load(model, plan).close()
    except BuildError as exc:
        # Only a processor that cannot is a reason to skip; any other refusal is a failure.
        if "needs a processor with BF16 instructions" not in str(exc):
            raise
        pytest.skip(str(exc))


def test_pass_is_plain_data(judged):
    one = judged.reference.passes[0]
    assert isinstance(one, Pass)
    assert one.where == "batch 1 at 32x32"
    assert one.num_inferences == colours.NUM_PICTURES
