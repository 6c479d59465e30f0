"""The command line takes a bundle wherever it takes a model."""

from __future__ import annotations

import json

import numpy as np
import pytest

import saccade
from bundles import made
from nets import mean_color_detector
from saccade.bundles import write_bundle
from saccade.cli._options import JobOptions, ModelOptions
from saccade.cli.bench import bench
from saccade.cli.detect import detect
from saccade.cli.eval import evaluate
from saccade.errors import InputError
from saccade.types import Plan
from saccade.vision.draw import encode_jpeg

PLAN = Plan("onnxruntime", batch=2, streams=1)


@pytest.fixture
def bundle(tmp_path):
    net = mean_color_detector(tmp_path / "net.onnx")
    with saccade.load(net, labels=["red", "blue"]) as detector:
        contract = detector.contract
    record = made.record(PLAN)
    return write_bundle(tmp_path / "b", model_path=net, contract=contract, record=record).path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[..., 0] = 200 + index
        (folder / f"{index}.jpg").write_bytes(encode_jpeg(picture, 95))
    return folder


def test_detect(bundle, pictures, tmp_path, capsys):
    assert detect(bundle, str(pictures), output=tmp_path / "out", json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"] == {
        "backend": "onnxruntime",
        "precision": "fp32",
        "batch": 2,
        "streams": 1,
        "threads": 1,
        "device": "cpu",
        "options": [],
    }
    assert told["summary"]["num_detections"] == 5
    assert (
        'labels = ["red","blue"]'.replace(",", ", ")
        in (tmp_path / "out" / "contract.toml").read_text()
    )


def test_what_is_given_wins(bundle, pictures, tmp_path, capsys):
    job = JobOptions(batch=1, streams=2)
    assert detect(bundle, str(pictures), output=tmp_path / "out", job=job, json=True) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["batch"], plan["streams"]) == (1, 2)


def test_eval(bundle, pictures, tmp_path, capsys):
    names = sorted(path.name for path in pictures.iterdir())
    images = [{"id": i, "file_name": n, "width": 32, "height": 32} for i, n in enumerate(names)]
    boxes = [
        {
            "id": i + 1,
            "image_id": i,
            "category_id": 1,
            "bbox": [8, 8, 16, 16],
            "area": 256,
            "iscrowd": 0,
        }
        for i in range(len(names))
    ]
    classes = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    data = tmp_path / "truth.json"
    data.write_text(json.dumps({"images": images, "annotations": boxes, "categories": classes}))
    assert evaluate(bundle, data=data, images=pictures, json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"]["AP"] == pytest.approx(1.0)
    assert told["plan"]["batch"] == 2


def test_bench(bundle, pictures, capsys):
    assert bench(bundle, str(pictures), seconds=0.3, rounds=1, json=True) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["batch"] == 2


def test_options_of_the_model_are_refused(bundle, pictures, tmp_path):
    how = ModelOptions(backend="openvino")
    with pytest.raises(InputError, match="backend must be left out for a bundle"):
        detect(bundle, str(pictures), output=tmp_path / "out", how=how)
