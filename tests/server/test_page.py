"""The page in a real browser, at a real server."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

import saccade
from browser import chromium
from bundles import made
from nets import mean_color_detector, score_of
from saccade.bundles import write_bundle
from saccade.types import Plan
from server import live

pytestmark = pytest.mark.slow

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server with a bundle and a network that takes no pictures."""
    folder = tmp_path_factory.mktemp("served")
    path = mean_color_detector(folder / "net.onnx")
    with saccade.load(path, labels=["red", "blue"]) as detector:
        contract = detector.contract
    record = made.record(Plan("onnxruntime"), name="colours.onnx")
    bundle = write_bundle(folder / "colours", model_path=path, contract=contract, record=record)
    with live.server(bundle.path, "--threads", "1") as server:
        yield server


@pytest.fixture
def page(served):
    """The page, opened; afterwards it must have had nothing to complain of but what a test took."""
    with chromium(*CAMERA) as page:
        page.open(served.address, width=1200)
        page.until("document.querySelector('.model')")
        yield page
        asked = {url.split("/")[2] for url in page.requests() if url.startswith("http")}
        assert asked == {served.address.split("/")[2]}
        assert page.problems() == []


def red(folder, name="red.png", size_wh=(400, 200)):
    """A red picture, in which the network sees one box in the middle, half as large."""
    picture = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    picture[..., 2] = 255
    cv2.imwrite(str(folder / name), picture)
    return folder / name


def text(page, selector):
    return page.evaluate(f"document.querySelector('{selector}').textContent")


def boxes(page):
    """Left, top, right and bottom of each box as shares of the picture on show."""
    return page.evaluate(
        """(() => {
            const all = document.getElementById('boxes').getBoundingClientRect();
            return [...document.querySelectorAll('.box')].map((box) => {
                const r = box.getBoundingClientRect();
                return [(r.left - all.left) / all.width, (r.top - all.top) / all.height,
                        (r.right - all.left) / all.width, (r.bottom - all.top) / all.height];
            });
        })()"""
    )


def test_a_dropped_picture_gets_its_boxes_and_times(page, tmp_path):
    page.drop(red(tmp_path), "#stage")
    page.until("document.querySelector('.box')")
    (box,) = boxes(page)
    # The network's box is half of its square input; letterboxing leaves 400x200 half the height.
    np.testing.assert_allclose(box, [0.25, 0, 0.75, 1], atol=0.01)
    half_padded = (1 + 114 / 255) / 2
    assert text(page, ".box b") == f"red {float(score_of(half_padded)):.2f}"
    assert text(page, "#summary") == "1 box in red.png (400 x 200)"
    for stage in ("waiting", "decode", "prepare", "infer", "suppress", "round trip"):
        assert stage in text(page, "#timing-list")
    assert page.evaluate("document.querySelectorAll('#rows tr').length") == 1


def test_controls_ask_again(page, tmp_path):
    page.drop(red(tmp_path), "#stage")
    page.until("document.querySelector('.box')")
    page.evaluate(
        """(() => { const score = document.getElementById('score'); score.value = '0.999';
            score.dispatchEvent(new Event('change', {bubbles: true})); })()"""
    )
    page.until("document.getElementById('summary').textContent.startsWith('Nothing found')")
    assert boxes(page) == []


def test_the_file_chooser_works_too(page, tmp_path):
    page.call("DOM.enable")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(red(tmp_path, "other.png"))])
    page.until(
        "document.getElementById('summary').textContent === '1 box in other.png (400 x 200)'"
    )


def test_keys_reach_everything_and_mark_a_box(page, tmp_path):
    page.drop(red(tmp_path), "#stage")
    page.until("document.querySelector('.box')")
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(20):
        page.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "TR":
            break
    assert [name for name in seen if name != "A"] == [
        *("model", "score", "iou", "choose", "camera"),
        *(["found"] if "found" in seen else []),
        "TR",
    ]
    assert page.evaluate("document.querySelector('.box').classList.contains('is-marked')")


def test_the_camera_is_looked_at_until_it_is_stopped(page):
    page.evaluate("document.getElementById('camera').focus()")
    page.press("Enter")
    page.until("document.getElementById('summary').textContent.includes('camera')")
    assert page.evaluate("document.getElementById('frame').width") > 300
    assert page.evaluate("document.getElementById('camera').getAttribute('aria-pressed')") == "true"
    page.press("Enter")
    page.until("document.getElementById('camera').getAttribute('aria-pressed') === 'false'")


def test_errors_are_told_in_words_and_go_away(page, tmp_path):
    (tmp_path / "not.png").write_text("this is no picture")
    page.drop(tmp_path / "not.png", "#stage")
    page.until("!document.getElementById('told').hidden")
    told = text(page, "#told")
    assert "The picture cannot be used: " in told
    assert "What to do: " in told
    page.drop(red(tmp_path), "#stage")
    page.until("document.querySelector('.box')")
    assert page.evaluate("document.getElementById('told').hidden")
    # The browser's own log of the answer 400 is no fault of the page.
    page.events[:] = [e for e in page.events if e.get("method") != "Log.entryAdded"]


def test_what_the_browser_cannot_show_the_server_draws(page, tmp_path):
    page.drop(red(tmp_path, "red.tiff"), "#stage")
    page.until("document.getElementById('picture').naturalWidth === 400")
    told = text(page, "#summary")
    assert told.startswith("1 box in red.tiff (400 x 200)")
    assert "drawn by the server" in told
    assert page.evaluate("document.querySelectorAll('#rows tr').length") == 1


def test_models_show_the_figures_of_their_gates(page):
    told = text(page, ".model")
    assert "colours" in told
    assert "passed on 72 pictures, AP 0.5800, reference 0.5790" in told
    assert "2 classes (red, blue) at 32 x 32" in told
    rows = page.evaluate(
        "[...document.querySelectorAll('.model tbody tr')].map((r) => r.cells[0].textContent)"
    )
    assert {"AP", "AP50", "RBC"} <= set(rows)


def test_charts_follow_the_load(page, served, tmp_path):
    picture = red(tmp_path).read_bytes()
    name = page.evaluate("document.getElementById('model').value")
    shown = "document.querySelector('.chart .legend').textContent"
    page.until(f"/answered \\d/.test({shown})")
    for _ in range(50):
        served.detect(name, picture)
    page.until(f"/answered [1-9]/.test({shown})")
    legends = page.evaluate(
        "[...document.querySelectorAll('.chart .legend')].map((one) => one.textContent)"
    )
    _, latency, stages, queue, batch, memory = legends
    assert "p99" in latency
    assert "infer" in stages
    assert "waiting" in queue
    assert "batch" in batch
    assert float(memory.split("engines ")[1].split("GPU")[0]) > 10
    assert page.evaluate("document.querySelectorAll('.chart canvas').length") == 6


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_fits_every_width_and_both_schemes(page, served, tmp_path, width, is_dark):
    page.open(served.address, width=width, is_dark=is_dark)
    page.until("document.querySelector('.model')")
    page.drop(red(tmp_path), "#stage")
    page.until("document.querySelector('.box')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, paper = page.evaluate(
        "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
    )
    light = [sum(map(int, c[4:-1].split(","))) / 765 for c in (ink, paper)]
    assert (light[0] > light[1]) is is_dark
    assert abs(light[0] - light[1]) > 0.6


def test_a_server_that_goes_is_told(tmp_path):
    path = mean_color_detector(tmp_path / "net.onnx")
    with chromium() as page:
        with live.server(path, "--threads", "1") as server:
            page.open(server.address)
            page.until("document.querySelector('.model')")
            assert text(page, "#connection") == "ready"
            assert "nobody compared its answers" in text(page, ".model")
        page.until("document.getElementById('connection').textContent === 'not answering'")
        page.drop(red(tmp_path), "#stage")
        page.until("!document.getElementById('told').hidden")
        assert "The server does not answer." in text(page, "#told")
        thrown = [e for e in page.problems() if e["method"] == "Runtime.exceptionThrown"]
        assert thrown == []


def test_a_token_is_asked_for_and_kept_in_the_tab(tmp_path):
    path = mean_color_detector(tmp_path / "net.onnx")
    (tmp_path / "token").write_text("open-sesame-42")
    keys = ("--threads", "1", "--token-file", tmp_path / "token")
    with live.server(path, *keys) as server, chromium() as page:
        assert server.get("/page/live")[0] == server.get("/metrics")[0] == 401
        page.open(server.address)
        page.until("!document.getElementById('token-form').hidden")
        assert text(page, "#connection") == "needs a token"
        page.evaluate("document.getElementById('token').value = 'open-sesame-42'")
        page.evaluate("document.getElementById('token').focus()")
        page.press("Enter")
        page.until("document.querySelector('.model')")
        page.drop(red(tmp_path), "#stage")
        page.until("document.querySelector('.box')")
        page.open(server.address)
        page.until("document.querySelector('.model')")
        assert page.evaluate("document.getElementById('token-form').hidden")


@pytest.mark.shared
def test_a_real_picture_gets_the_boxes_that_the_library_finds(shared, tmp_path):
    model = shared / "models" / "light_person_192.onnx"
    picture = shared / "images" / "people_group_1200x800.jpeg"
    with saccade.load(model) as detector:
        wanted = detector(picture)
    with live.server(model, "--threads", "1") as server, chromium() as page:
        page.open(server.address, width=1300)
        page.until("document.querySelector('.model')")
        page.drop(picture, "#stage")
        page.until("document.querySelector('.box')")
        found = np.array(boxes(page)) * [1200, 800, 1200, 800]
        np.testing.assert_allclose(found, wanted.boxes_xyxy, atol=3)
        assert page.problems() == []
