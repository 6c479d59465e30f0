"""Contracts: recognised, named or given, written down and read back; never a silent guess."""

from __future__ import annotations

import dataclasses

import pytest

import saccade
from nets import mean_color_detector
from saccade import contracts
from saccade.contracts.files import read_preset
from saccade.errors import ContractError, InputError
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of

REAL = {
    "cells_640": "yolov8",
    "yolox_nano_416": "yolox",
    "light_person_192": "yolox",
    "nanodet_m_320": "nanodet",
    "fastestdet_352": "fastestdet",
    "fastestdet_352_qdq_int8": "fastestdet",
    "deimv2_atto_320": "detr",
    "ultraface_rfb_320": "ssd",
    "yunet_n_320": "yunet",
}


def signature(shared, name):
    return signature_of(read_model(shared / f"models/{name}.onnx"))


@pytest.fixture
def toy(tmp_path):
    return signature_of(read_model(mean_color_detector(tmp_path / "net.onnx")))


@pytest.mark.shared
@pytest.mark.parametrize(("name", "family"), REAL.items())
def test_real_models_are_recognised_with_reasons(shared, name, family):
    made = contracts.resolve(signature(shared, name))
    assert made.head.family == family
    assert made.source == "recognised"
    assert any(reason.startswith("seen: ") for reason in made.reasons)
    assert any(reason.startswith("assumed by convention: ") for reason in made.reasons)


@pytest.mark.shared
def test_an_input_that_cannot_be_seen_is_asked_for(shared):
    with pytest.raises(ContractError, match=r"cannot be seen in the graph.*fastestdet_nms"):
        contracts.resolve(signature(shared, "fastestdet_352_nms"))
    made = contracts.resolve(signature(shared, "fastestdet_352_nms"), preset="fastestdet_nms")
    assert (made.input.color, made.input.resize) == ("bgr", "stretch")
    assert made.source == "preset fastestdet_nms"


@pytest.mark.shared
def test_what_fits_nothing_names_what_was_seen_and_the_nearest_presets(shared):
    model = read_model(shared / "odd/onnx_classifier_not_detector.onnx")
    with pytest.raises(ContractError) as caught:
        contracts.resolve(signature_of(model))
    text = str(caught.value)
    for spec in (*model.inputs, *model.outputs):
        assert spec.name in text
    assert "Nearest presets: " in text


@pytest.mark.shared
@pytest.mark.parametrize("name", [*REAL, "fastestdet_352_nms"])
def test_a_written_contract_reads_back_the_same(shared, tmp_path, name):
    preset = "fastestdet_nms" if name == "fastestdet_352_nms" else None
    sign = signature(shared, name)
    made = contracts.resolve(sign, preset=preset)
    path = tmp_path / "contract.toml"
    path.write_text(contracts.to_toml(made))
    back = contracts.resolve(sign, contract=path)
    for part in ("input", "head", "detect", "evaluate", "labels"):
        assert getattr(back, part) == getattr(made, part), part
    assert back.source == "file contract.toml"


@pytest.mark.parametrize("name", contracts.preset_names())
def test_every_preset_reads_and_says_what_it_is_for(name):
    overlay = read_preset(name)
    assert overlay.about
    assert overlay.head.family


def test_a_file_changes_only_what_it_says(toy, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'labels = ["red", "blue"]\n[input]\ncolor = "bgr"\nmean = [1, 2, 3]\n[detect]\nscore = 0.4'
    )
    made, plain = contracts.resolve(toy, contract=path), contracts.resolve(toy)
    assert made.labels == ("red", "blue")
    assert made.input == dataclasses.replace(plain.input, color="bgr", mean=(1.0, 2.0, 3.0))
    assert made.detect == dataclasses.replace(plain.detect, score=0.4)
    assert made.head == plain.head
    assert "from file mine.toml: color, mean, score" in made.reasons


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[input]\ncolour = 'rgb'", "colour"),
        ("[input]\ncolor = 'hsv'", "hsv"),
        ("[input]\nmean = [1, 2]", "mean must have 3 values"),
        ("[input]\nstd = [1, 0, 1]", "std must not be zero"),
        ("[input]\nsize_hw = [64, 64]", r"must be \[32, 32\]"),
        ("[input]\nname = 'picture'", "input must be one of images"),
        ("[input]\nsize_input = 'sizes'", "size_input must be one of images"),
        ("[input]\ncolor = 'gray'\nmean = [0]\nstd = [1]", "has 3 channels"),
        ("[head]\nfamily = 'yolov5'", "do not look like it"),
        ("[head]\nfamily = 'yolo'", "did you mean"),
        ("[head]\noutputs = {rows = 'other'}", "must be among output0"),
        ("[detect]\nscore = 40", "score threshold"),
        ("[evaluate]\nmax_detections = 0", "max_detections"),
        ("labels = ['one']", "labels must name 2 classes"),
        ("schema = 9", "schema = 1"),
        ("this is not TOML", "is wrong"),
        ("[input\n", "is wrong"),
    ],
)
def test_wrong_files_are_told(toy, tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises((ContractError, InputError), match=message):
        contracts.resolve(toy, contract=path)


def test_missing_files_and_double_calls_are_told(toy, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        contracts.resolve(toy, contract=tmp_path / "none.toml")
    with pytest.raises(InputError, match="not both"):
        contracts.resolve(toy, contract="a.toml", preset="yolov8")


def test_free_sizes_are_said(tmp_path):
    pytest.importorskip("onnx")
    import onnx

    path = mean_color_detector(tmp_path / "net.onnx")
    model = onnx.load(path)
    shape = model.graph.input[0].type.tensor_type.shape
    for axis, name in ((2, "height"), (3, "width")):
        shape.dim[axis].ClearField("dim_value")
        shape.dim[axis].dim_param = name
    onnx.save(model, path)
    with saccade.load(path, preset=None, size_hw=(32, 32)) as detector:
        assert detector.contract.input.size_hw == (32, 32)
        assert any("32x32 is used" in reason for reason in detector.contract.reasons)
