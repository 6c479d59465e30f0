"""Pictures in, boxes out over plain HTTP."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import saccade
from server.conftest import jpeg

pytestmark = pytest.mark.slow
PATH = "/v2/models/colours/detect"


def form(*pictures):
    """A multipart body."""
    parts = [
        b'--cut\r\ncontent-disposition: form-data; name="file"; filename="%d.jpg"\r\n'
        b"content-type: image/jpeg\r\n\r\n%b\r\n" % (number, picture)
        for number, picture in enumerate(pictures)
    ]
    return b"".join(parts) + b"--cut--\r\n", {"content-type": "multipart/form-data; boundary=cut"}


def ask(served, body, query="", **headers):
    status, got, answer = served.ask("POST", PATH + query, body, **headers)
    return status, got, answer


def test_boxes_are_those_of_the_library(served, networks, shared):
    pictures = sorted((shared / "datasets" / "coco_ccby" / "images").glob("*.jpg"))
    with saccade.load(networks["colours"]) as detector:
        for path in [*pictures, *sorted((shared / "images").glob("*.png"))]:
            wanted = detector(path)
            found = served.detect("colours", path.read_bytes())
            boxes = np.array([one["box_xyxy"] for one in found["detections"]], np.float32)
            assert (boxes.reshape(-1, 4) == wanted.boxes_xyxy).all(), path
            scores = np.array([one["score"] for one in found["detections"]], np.float32)
            assert (scores == wanted.scores).all()


def test_broken_pictures_are_refused_in_words(served, shared):
    paths = [path for path in sorted((shared / "odd").rglob("*")) if path.is_file()]
    assert paths
    for path in paths:
        if path.stat().st_size > 4 << 20:
            continue
        status, _, answer = ask(served, path.read_bytes())
        assert status in (200, 400), (path, answer)
        if status == 400:
            assert json.loads(answer)["detail"]
    assert served.detect("colours", jpeg())["detections"]


def test_thresholds(served):
    picture = jpeg()
    (found,) = json.loads(ask(served, picture)[2])["detections"]
    above, below = found["score"] + 0.001, found["score"] - 0.001
    assert json.loads(ask(served, picture, f"?score={above}")[2])["detections"] == []
    assert json.loads(ask(served, picture, f"?score={below}")[2])["detections"] == [found]
    assert json.loads(ask(served, picture, "?max_detections=1")[2])["detections"] == [found]


@pytest.mark.parametrize(
    "query", ["?score=2", "?score=nan", "?iou=x", "?scor=.5", "?format=bmp", "?max_detections=0"]
)
def test_wrong_queries(served, query):
    status, _, answer = ask(served, jpeg(), query)
    told = json.loads(answer)
    assert status == 400
    assert told["must_be"]
    assert told["fix"]


def test_several_pictures_fail_alone(served):
    good, bad = jpeg(), b"no picture"
    body, headers = form(good, bad, jpeg(90))
    status, _, answer = ask(served, body, **headers)
    assert status == 200
    first, second, third = json.loads(answer)["pictures"]
    assert first["detections"] == served.detect("colours", good)["detections"]
    assert "must be JPEG" in second["error"]["detail"]
    assert (first["name"], third["name"]) == ("0.jpg", "2.jpg")


@pytest.mark.parametrize("cut", [3, 60, -3, -20])
def test_broken_forms(served, cut):
    body, headers = form(jpeg())
    assert ask(served, body[:cut], **headers)[0] == 400
    assert ask(served, body, **{"content-type": "multipart/form-data"})[0] == 400


@pytest.mark.parametrize(("kind", "sign"), [("jpeg", b"\xff\xd8"), ("png", b"\x89PNG")])
def test_the_drawn_picture(served, kind, sign):
    picture = jpeg(200, size_wh=(120, 90))
    for query, headers in ((f"?format={kind}", {}), ("", {"accept": f"image/{kind}"})):
        status, got, answer = ask(served, picture, query, **headers)
        assert (status, got["content-type"]) == (200, f"image/{kind}")
        assert answer.startswith(sign)
        drawn = cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_COLOR)
        assert drawn.shape == (90, 120, 3)
        assert (drawn != drawn[0, 0]).any()


def test_a_network_that_is_no_detector(served):
    status, _, answer = served.ask("POST", "/v2/models/identity/detect", jpeg())
    assert status == 400
    assert "must be a detector" in json.loads(answer)["detail"]


def test_an_empty_body(served):
    assert ask(served, b"")[0] == 400
