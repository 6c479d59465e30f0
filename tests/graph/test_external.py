from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.errors import ModelError
from saccade.graph.cost import cost_of
from saccade.graph.external import element_bits
from saccade.graph.reading import load_proto, read_model
from saccade.graph.signature import signature_of

Write = Callable[..., Path]
VALUES = np.arange(12, dtype=np.float32)


def external(name: str = "w", **entries: object) -> TensorProto:
    """A (3, 4) float32 tensor whose 48 bytes are elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def write(write_onnx: Write) -> Callable[..., Path]:
    node = helper.make_node("MatMul", ["images", "w"], ["out"])

    def _write(**entries: object) -> Path:
        picture, out = {"images": [1, 3, 8, 3]}, {"out": [1, 3, 8, 4]}
        return write_onnx([node], picture, out, [external(**entries)])

    return _write


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path)
    assert "'w'" in str(caught.value)
    return str(caught.value)


def test_good_file_is_named_digested_and_not_loaded(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    content = bytes(4) + VALUES.tobytes()
    (tmp_path / "sub" / "w.bin").write_bytes(content)
    path = write(location="sub/w.bin", offset=4, length=48)
    model = read_model(path)
    assert model.external_files == ("sub/w.bin",)
    first = model.digest
    assert first != hashlib.sha256(path.read_bytes()).hexdigest()
    assert not load_proto(model).graph.initializer[0].raw_data
    assert cost_of(model).weight_bytes == 48
    (tmp_path / "sub" / "w.bin").write_bytes(b"\1" + content[1:])
    assert read_model(path).digest != first


def test_offset_and_length_may_be_left_out(write: Write, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    assert read_model(write(location="w.bin")).external_files == ("w.bin",)


@pytest.mark.parametrize(
    "location",
    ["/etc/hostname", "../w.bin", "sub/../../w.bin", "sub/../w.bin", "", "a\0b", "C:\\w.bin",
     "..\\w.bin"],
)  # fmt: skip
def test_place_outside_the_folder(write: Write, tmp_path: Path, location: str) -> None:
    (tmp_path.parent / "w.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "sub").mkdir()
    message = refusal(write(location=location))
    assert "must lie in the model's folder" in message


def test_nothing_is_opened_outside(write: Write, tmp_path: Path) -> None:
    """A pipe blocks whoever opens it: the place is refused before."""
    outside = tmp_path.parent / f"{tmp_path.name}-pipe"
    os.mkfifo(outside)
    assert "must lie in" in refusal(write(location=f"../{outside.name}"))
    (tmp_path / "link.bin").symlink_to(outside)
    assert "it is a link to" in refusal(write(location="link.bin"))


def test_linked_file_and_linked_folder_outside(write: Write, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "w.bin").symlink_to(outside / "w.bin")
    assert "it is a link to" in refusal(write(location="w.bin"))
    (tmp_path / "sub").symlink_to(outside)
    assert "it is a link to" in refusal(write(location="sub/w.bin"))


def test_link_inside_the_folder(write: Write, tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(VALUES.tobytes())
    (tmp_path / "w.bin").symlink_to("real.bin")
    assert read_model(write(location="w.bin")).external_files == ("w.bin",)


def test_circular_link(write: Write, tmp_path: Path) -> None:
    (tmp_path / "w.bin").symlink_to("w.bin")
    refusal(write(location="w.bin"))


def test_download_cache_links_model_and_weights(write: Write, tmp_path: Path) -> None:
    """Both are links into one folder of blobs, as download caches lay them out."""
    path = write(location="w.bin")
    blobs = tmp_path / "blobs"
    snapshot = tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    path.rename(blobs / "0a")
    (blobs / "0b").write_bytes(VALUES.tobytes())
    (snapshot / "model.onnx").symlink_to(blobs / "0a")
    (snapshot / "w.bin").symlink_to(blobs / "0b")
    assert read_model(snapshot / "model.onnx").external_files == ("w.bin",)


def test_missing_file(write: Write) -> None:
    assert "'gone.bin'" in refusal(write(location="gone.bin"))


def test_folder_and_pipe_in_place_of_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "w.bin").mkdir()
    assert "a folder or a device" in refusal(write(location="w.bin"))
    os.mkfifo(tmp_path / "pipe.bin")
    assert "a folder or a device" in refusal(write(location="pipe.bin"))


def test_short_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(51))
    message = refusal(write(location="w.bin", offset=4))
    assert "at least 52 bytes" in message
    assert "it has 51" in message


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-4"}, {"offset": "four"}, {"length": "4.5"}, {"length": "9" * 30},
     {"offset": "٣"}, {"length": 44}, {"length": 0}],
)  # fmt: skip
def test_impossible_offset_or_length(
    write: Write, tmp_path: Path, entries: dict[str, object]
) -> None:
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes())
    refusal(write(location="w.bin", **entries))


def test_tensor_in_a_constant_node_of_a_body(write_onnx: Write) -> None:
    inner = helper.make_node("Constant", [], ["y"], value=external("deep", location="/etc/passwd"))
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])
    body = helper.make_graph([inner], "body", [], [value])
    node = helper.make_node("If", ["flag"], ["out"], then_branch=body, else_branch=body)
    flag = numpy_helper.from_array(np.array(True), "flag")
    path = write_onnx([node], {"images": [1, 3, 8, 8]}, {"out": [3, 4]}, [flag])
    with pytest.raises(ModelError, match=r"'deep'.*must lie in the model's folder"):
        read_model(path)


def test_small_tensor_outside_still_serves_shape_inference(
    write_onnx: Write, tmp_path: Path
) -> None:
    (tmp_path / "shape.bin").write_bytes(np.array([0, 12, -1], np.int64).tobytes())
    shape = TensorProto(name="shape", data_type=TensorProto.INT64, dims=[3])
    shape.data_location = TensorProto.EXTERNAL
    shape.external_data.add(key="location", value="shape.bin")
    node = helper.make_node("Reshape", ["images", "shape"], ["out"])
    path = write_onnx([node], {"images": ["b", 3, 8, 8]}, {"out": ["b", "x", "y"]}, [shape])
    assert signature_of(read_model(path)).outputs[0].shape == ("b", 12, 16)


def test_large_weights_are_described_and_not_loaded(write_onnx: Write, tmp_path: Path) -> None:
    weight = external("w", location="big.bin")
    weight.dims[:] = [2, 1 << 21]
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(16 << 20)
    product = helper.make_node("MatMul", ["flat", "w"], ["out"])
    flat = helper.make_node("Reshape", ["images", "two"], ["flat"])
    two = numpy_helper.from_array(np.array([-1, 2]), "two")
    picture, out = {"images": [1, 3, 8, 8]}, {"out": [96, "?"]}
    model = read_model(write_onnx([flat, product], picture, out, [weight, two]))
    assert load_proto(model).ByteSize() < 1000
    assert cost_of(model).multiply_adds == 96 * 2 << 21


@pytest.mark.parametrize(
    ("elem_type", "bits"),
    [(TensorProto.FLOAT, 32), (TensorProto.BFLOAT16, 16), (TensorProto.FLOAT8E4M3FN, 8),
     (TensorProto.BOOL, 8), (TensorProto.INT4, 4), (TensorProto.COMPLEX128, 128),
     (TensorProto.STRING, 0), (TensorProto.UNDEFINED, 0), (999, 0)],
)  # fmt: skip
def test_element_bits(elem_type: int, bits: int) -> None:
    assert element_bits(elem_type) == bits


@pytest.mark.shared
def test_shared_model_has_the_signature_of_its_whole_twin(shared: Path) -> None:
    split = signature_of(read_model(shared / "odd" / "onnx_external_ok" / "model.onnx"))
    whole = signature_of(read_model(shared / "models" / "yunet_n_320.onnx"))
    assert split.outputs == whole.outputs
    assert split.tails == whole.tails
