"""The report: right figures, no text that acts, and a look at it in a real browser."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from browser import chromium
from bundles import made
from saccade.builder.records import (
    Candidate,
    GateLimits,
    Interval,
    Islands,
    KeptBlock,
    Reason,
    Recipe,
    Row,
)
from saccade.builder.report import Difference, score_of, write_report
from saccade.builder.report_html import text
from saccade.builder.report_pictures import draw_both, is_matched
from saccade.builder.report_plot import _ticks, plot, whisker
from saccade.errors import SinkError
from saccade.types import Detections, Fallback, Plan

PLAN = Plan("openvino", batch=4, streams=2)
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&'\x00\u202e\udce4"
MAX_BYTES = 500_000
LATER = (
    made.refused(
        Candidate(Recipe("int8", "minmax", everything=True), PLAN), "no box is left", ap=0.0
    ),
    made.refused(Candidate(Recipe("int8", "entropy"), PLAN), "AP fell by 0.0090", ap=0.57),
    Row(Candidate(Recipe("fp16"), PLAN), "failed", error="killed after 120 s: it hung"),
    Row(
        Candidate(Recipe(), PLAN),
        "dropped",
        fallbacks=(Fallback("precision", "bf16", "f32"),),
    ),
)


def detections(boxes, classes=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    classes = np.zeros(len(boxes), np.int32) if classes is None else np.array(classes, np.int32)
    return Detections(boxes, np.linspace(0.9, 0.5, len(boxes), dtype=np.float32), classes)


@pytest.fixture
def differing(rng):
    pictures = [rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(30)]
    both = detections([[10, 10, 100, 100], [200, 50, 400, 300]])
    one = detections([[10, 10, 100, 100]])
    return [Difference(f"{i}{HOSTILE}.jpg", p, one, both) for i, p in enumerate(pictures)]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    return reader


def test_the_verdict_comes_first_and_every_candidate_is_told(tmp_path):
    page, data = write_report(made.record(PLAN, rows=LATER), tmp_path / "new" / "folder")
    reader = read(page)
    whole = " ".join(reader.texts)
    assert whole.index("2.1 times as fast as FP32") < whole.index("pictures per second")
    for told in (
        "52.8",
        "2.11 times FP32",
        "no box is left",
        "killed after 120 s",
        "fallback: precision is f32, not bf16",
        "FP16 in ONNX Runtime ran at half the speed",
        "RBC",
        "AP_small",
        "test processor",
    ):
        assert told in whole
    told = json.loads(data.read_text())
    assert [row["number"] for row in told["candidates"]] == [1, 2, 3, 4, 5, 6]
    assert [row["status"] for row in told["candidates"]].count("refused") == 2
    assert told["candidates"][1]["pictures_per_s"] == 52.8
    assert told["candidates"][2]["why"] == "no box is left (batch 1 at 640x640)"
    assert told["rows"][1]["verdict"]["drops"]["AP"]["value"] == pytest.approx(-0.001)
    assert not list(page.parent.glob("*.partial"))


def test_nothing_is_fetched_and_nothing_runs(tmp_path):
    page, _ = write_report(made.record(PLAN, rows=LATER), tmp_path)
    reader = read(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "action"):
            assert value.startswith("data:image/jpeg;base64,")
    assert "http" not in re.sub(r"http-equiv", "", page.read_text())


def test_texts_of_strangers_stay_texts(tmp_path, differing):
    record = made.record(PLAN, name=HOSTILE)
    verdict = made.verdict(0.57, classes={HOSTILE: 0.0})
    verdict = dataclasses.replace(verdict, warnings=(Reason("drop", HOSTILE),))
    rows = (
        record.rows[0],
        dataclasses.replace(record.rows[1], verdict=verdict),
        made.refused(Candidate(Recipe("int8", HOSTILE, (HOSTILE,)), PLAN), HOSTILE),
    )
    record = dataclasses.replace(
        record, rows=rows, verdict=HOSTILE, notes=(HOSTILE,), machine={HOSTILE: [HOSTILE]}
    )
    page, data = write_report(record, tmp_path, differing[:2], labels=(HOSTILE,))
    reader = read(page)
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert any("<script>alert(1)</script>" in part for part in reader.texts)
    assert "\x00" not in page.read_text()
    assert "\u202e" not in page.read_text()
    assert json.loads(data.read_text())["model"].startswith('"><script>')


def test_escaping():
    assert text("<&>\"'") == "&lt;&amp;&gt;&quot;&#x27;"
    assert text("a\x1b\udc80b") == "a\N{REPLACEMENT CHARACTER}?b"
    assert text("Blutkörperchen 血") == "Blutkörperchen 血"


def test_pictures_never_make_the_page_too_large(tmp_path, differing):
    """Noise is the worst there is for JPEG."""
    page, data = write_report(made.record(PLAN), tmp_path, differing, labels=["cell"])
    assert page.stat().st_size < MAX_BYTES
    assert 1 <= read(page).tags.count("img") < 30
    assert len(json.loads(data.read_text())["differing"]) == 30


def test_many_classes_and_candidates_stay_readable(tmp_path):
    record = made.record(PLAN)
    verdict = made.verdict(0.57, classes={f"class {i}": i / 1000 for i in range(80)})
    more = tuple(
        made.refused(Candidate(Recipe("int8", f"percentile-{i}"), PLAN), "too much lost", ap=0.5)
        for i in range(150)
    )
    rows = (record.rows[0], dataclasses.replace(record.rows[1], verdict=verdict), *more)
    page, _ = write_report(dataclasses.replace(record, rows=rows), tmp_path)
    assert page.stat().st_size < MAX_BYTES
    assert "65 more classes" in page.read_text()


def test_what_stays_in_fp32_is_listed_with_what_it_is_worth(tmp_path):
    islands = Islands(
        without="openvino fp32, int8 minmax",
        winner="openvino fp32, int8 minmax, 3 kept",
        blocks=(KeptBlock(("/stem/a", "/stem/b"), 0.0421), KeptBlock((HOSTILE,), None)),
        num_blocks=9,
        num_trials=7,
        is_minimal=False,
    )
    record = dataclasses.replace(made.record(PLAN), islands=(islands,))
    page, data = write_report(record, tmp_path)
    texts = " ".join(read(page).texts)
    assert "What stays in FP32" in texts
    for part in ("2 of 9 blocks", "7 trials", "/stem/a", "0.0421", "not measured", "Time ran out"):
        assert part in texts, part
    assert "What stays in FP32" not in " ".join(
        read(write_report(made.record(PLAN), tmp_path)[0]).texts
    )
    assert json.loads(data.read_text())["islands"] == []
    (found,) = json.loads(write_report(record, tmp_path)[1].read_text())["islands"]
    assert found["blocks"][0] == {"nodes": ["/stem/a", "/stem/b"], "short": 0.0421}


def test_islands_that_are_everything_are_said_to_be_none(tmp_path):
    islands = Islands("int8 of it all", "x", (KeptBlock(("a",), None),), 1, 6, False)
    record = dataclasses.replace(made.record(PLAN), islands=(islands,))
    texts = " ".join(read(write_report(record, tmp_path)[0]).texts)
    assert "int8 of it all was refused, and in 6 trials nothing less" in texts
    assert "block, in graph order" not in texts


def test_fp32_is_an_honest_answer(tmp_path):
    record = dataclasses.replace(made.record(PLAN, rows=LATER), chosen=0, verdict="FP32 stays.")
    page, _ = write_report(record, tmp_path)
    assert "1.00 times" in page.read_text()
    assert "chosen<br>reference" in page.read_text()


def test_agreement_is_never_called_ap(tmp_path):
    def agreed(row):
        verdict = row.verdict
        keys = {"metrics": verdict.metrics, "reference": verdict.reference, "drops": verdict.drops}
        renamed = {
            part: {
                name.replace("AP", "agreement").replace("AR", "recall_"): v for name, v in d.items()
            }
            for part, d in keys.items()
        }
        return dataclasses.replace(
            row, verdict=dataclasses.replace(verdict, judged_by="agreement", **renamed)
        )

    record = made.record(PLAN)
    rows = tuple(agreed(row) for row in record.rows)
    record = dataclasses.replace(record, rows=rows, verdict="It agrees.", notes=())
    page, data = write_report(record, tmp_path)
    whole = re.sub(r"<style>.*</style>", "", page.read_text(), flags=re.S)
    assert not re.search(r"\bAP\b|\bAP\d|AP_", whole)
    assert "no labels were given" in whole
    assert json.loads(data.read_text())["candidates"][1]["agreement"] == 0.58


def test_a_reference_that_was_not_judged_has_the_score_in_the_verdicts():
    record = made.record(PLAN)
    rows = (dataclasses.replace(record.rows[0], verdict=None), *record.rows[1:])
    record = dataclasses.replace(record, rows=rows)
    assert score_of(record, 0) == 0.579
    assert plot(record, width=720) is not None


@pytest.mark.parametrize("bare", ["speed", "verdict"])
def test_nothing_to_plot_is_said(tmp_path, bare):
    record = made.record(PLAN)
    rows = tuple(dataclasses.replace(row, **{bare: None}) for row in record.rows)
    page, _ = write_report(dataclasses.replace(record, rows=rows), tmp_path)
    assert "No candidate was both judged and timed" in page.read_text()


def test_figures_that_are_no_numbers(tmp_path):
    record = made.record(PLAN)
    nan = float("nan")
    verdict = dataclasses.replace(
        record.rows[1].verdict,
        metrics={"AP": nan, "AP50": 0.5},
        drops={"AP": Interval(nan, nan, nan), "AP50": Interval(0.1, -9.0, 9.0)},
    )
    rows = (record.rows[0], dataclasses.replace(record.rows[1], verdict=verdict))
    record = dataclasses.replace(record, rows=rows, limits=GateLimits({}))
    page, data = write_report(record, tmp_path)
    assert not re.search(r"\bnan\b|\binf\b", page.read_text())
    assert json.loads(data.read_text())["rows"][1]["verdict"]["metrics"]["AP"] is None


def test_ticks_are_round_and_inside():
    for least, most in ((0, 57.2), (0.53, 0.585), (0.5, 0.5001), (0, 12345), (-0.2, 1.1)):
        ticks = _ticks(least, most, 6)
        assert 2 <= len(ticks) <= 13
        assert least <= ticks[0]
        assert ticks[-1] <= most + 1e-9


def test_what_lies_below_the_plot_is_counted():
    found = plot(made.record(PLAN, rows=LATER), width=720)
    assert (found.num_below, found.num_untimed) == (1, 0)
    assert found.svg.count('<g class="mark">') == 4


def test_a_loss_beyond_its_limit_is_marked():
    assert 'class="refused"' in whisker(Interval(0.02, 0.01, 0.03), 0.01, 0.05)
    assert 'class="passed"' in whisker(Interval(0.005, -0.01, 0.03), 0.01, 0.05)


def test_only_what_one_side_has_is_drawn_thick():
    here = detections([[10, 10, 60, 60], [100, 100, 150, 150]])
    there = detections([[12, 10, 62, 60], [100, 100, 150, 150]], [0, 1])
    assert is_matched(here, there).tolist() == [True, False]
    assert is_matched(here, detections([])).tolist() == [False, False]
    assert is_matched(detections([]), here).shape == (0,)
    picture = np.zeros((200, 200, 3), np.uint8)
    drawn = draw_both(picture, here, detections([]))
    assert (drawn[30, 9:12] == (30, 144, 255)).all()
    drawn = draw_both(picture, here, here)
    assert (drawn[30, 12:15] == 0).all()
    assert not picture.any()
    tall = draw_both(np.zeros((4000, 24, 3), np.uint8), here, there)
    assert tall.shape == (460, 3, 3)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="report"):
        write_report(made.record(PLAN), tmp_path / "file")


@pytest.mark.slow
def test_in_a_real_browser(tmp_path, differing):
    """No complaint, nothing fetched, the plot is not empty, no sideways scrolling on a phone."""
    block = KeptBlock(("/stem/" + "a" * 200, HOSTILE), 0.01)
    record = dataclasses.replace(
        made.record(PLAN, rows=LATER, name="a" * 300 + HOSTILE),
        islands=(Islands(HOSTILE, HOSTILE, (block,), 9, 7, True),),
    )
    page, _ = write_report(record, tmp_path, differing, labels=[HOSTILE])
    with chromium() as tab:
        for width, is_dark in (
            (1100, False),
            (1100, True),
            (1000, False),
            (700, False),
            (360, False),
        ):
            tab.open(page, width=width, is_dark=is_dark)
            assert tab.problems() == []
            assert [url for url in tab.requests() if not url.startswith(("file:", "data:"))] == []
            sideways = tab.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert sideways == 0
            assert tab.evaluate(
                "[...document.querySelectorAll('.card')].every(c => c.scrollWidth <= c.clientWidth)"
            ), width
            marks = tab.evaluate(
                "[...document.querySelectorAll('g.mark')].filter(m => {"
                "  const b = m.getBoundingClientRect(); return b.width > 4 && b.height > 4})"
                ".map(m => m.querySelector('title').textContent)"
            )
            assert len(marks) == 4
            assert any("no box is left" in title for title in marks)
            ink, ground = (
                sum(map(int, re.findall(r"\d+", tab.evaluate(expression))[:3]))
                for expression in (
                    "getComputedStyle(document.body).color",
                    "getComputedStyle(document.body).backgroundColor",
                )
            )
            assert (ink - ground > 400) if is_dark else (ground - ink > 400)
            assert tab.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
            assert tab.evaluate("document.scripts.length") == 0


def test_what_was_only_slower_is_not_drawn_as_refused():
    record = made.record(PLAN, rows=LATER)
    crosses = [str(plot(with_status(record, status), width=720)).count('class="refused"')
               for status in ("refused", "dropped")]  # fmt: skip
    assert crosses[0] > 0
    assert crosses[1] < crosses[0]


def with_status(record, status):
    """The record with all refused candidates of another status."""
    rows = [dataclasses.replace(r, status=status) if r.status == "refused" else r
            for r in record.rows]  # fmt: skip
    return dataclasses.replace(record, rows=type(record.rows)(rows))
