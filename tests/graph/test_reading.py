from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.errors import InputError, ModelError
from saccade.graph.cost import cost_of
from saccade.graph.reading import load_proto, read_model
from saccade.graph.signature import signature_of

Write = Callable[..., Path]
PICTURE = {"images": [1, 3, 8, 8]}
NODE = helper.make_node("Relu", ["images"], ["out"], name="act")


def refusal(path: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "must" in message
    return message


# What is not an ONNX file at all.


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere.onnx")


def test_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    assert "pipe" in refusal(pipe)


def test_null_byte_in_path() -> None:
    with pytest.raises(ModelError, match="must be"):
        read_model("a\0b.onnx")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"hello, this is no network\n" * 3, "text starting with 'hello"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04" + bytes(40), "PyTorch"),
        (b"\xff" * 100, "damaged"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "must have a graph"),
    ],
)
def test_not_a_model(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "wrong.onnx"
    path.write_bytes(content)
    assert says in refusal(path)


def test_file_beyond_the_limit_of_protocol_buffers_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    assert "smaller than 2 GiB" in refusal(path)


def test_truncated_file_says_how_much_is_missing(write_onnx: Write) -> None:
    path = write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cut short" in refusal(path)


# What is wrong inside.


@pytest.mark.parametrize("version", [0, -1, onnx.IR_VERSION + 1, 99])
def test_ir_version(write_onnx: Write, version: int) -> None:
    path = write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]}, ir_version=version)
    assert f"it is {version}" in refusal(path)


def test_no_default_opset(write_onnx: Write) -> None:
    other = [helper.make_opsetid("com.acme", 1)]
    path = write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]}, opset_imports=other)
    assert "com.acme" in refusal(path)


def test_dangling_input_names_node_and_tensor(write_onnx: Write) -> None:
    node = helper.make_node("Add", ["images", "ghost"], ["out"], name="plus")
    message = refusal(write_onnx([node], PICTURE, {"out": [1, 3, 8, 8]}))
    assert "'plus'" in message
    assert "'ghost'" in message


def test_output_that_nothing_makes(write_onnx: Write) -> None:
    assert "'other'" in refusal(write_onnx([NODE], PICTURE, {"other": [1]}))


def test_no_output(write_onnx: Write) -> None:
    assert "must have an output" in refusal(write_onnx([NODE], PICTURE, {}))


def test_tensor_made_twice_names_both_nodes(write_onnx: Write) -> None:
    nodes = [NODE, helper.make_node("Neg", ["images"], ["out"], name="flip")]
    message = refusal(write_onnx(nodes, PICTURE, {"out": [1, 3, 8, 8]}))
    assert "'act'" in message
    assert "'flip'" in message


def test_tensor_that_is_also_an_input(write_onnx: Write) -> None:
    node = helper.make_node("Relu", ["images"], ["images"], name="self")
    assert "'images'" in refusal(write_onnx([node], PICTURE, {"images": [1, 3, 8, 8]}))


def test_output_listed_twice(write_onnx: Write) -> None:
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    assert "2 times" in refusal(write_onnx([NODE], PICTURE, [value, value]))


def test_circle_names_its_nodes(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Add", ["images", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
    ]
    message = refusal(write_onnx(nodes, PICTURE, {"b": [1, 3, 8, 8]}))
    assert "'first'" in message
    assert "'second'" in message


def test_circle_through_a_body(write_onnx: Write) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["late"], ["y"])],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["flag"], ["a"], name="branch", then_branch=body, else_branch=body),
        helper.make_node("Relu", ["a"], ["late"], name="after"),
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    message = refusal(write_onnx(nodes, PICTURE, {"late": [1]}, [flag]))
    assert "'branch'" in message


def test_dangling_input_in_a_body(write_onnx: Write) -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["ghost"], ["y"], name="inner")],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["a"], then_branch=body, else_branch=body)
    flag = numpy_helper.from_array(np.array(True), "flag")
    assert "'inner'" in refusal(write_onnx([node], PICTURE, {"a": [1]}, [flag]))


def test_nodes_may_be_stored_in_any_order(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Relu", ["mid"], ["out"]),
        helper.make_node("Neg", ["images"], ["mid"]),
    ]
    model = read_model(write_onnx(nodes, {"images": ["b", 3, 8, 8]}, {"out": ["b", "?", "x", 8]}))
    assert signature_of(model).outputs[0].shape == ("b", 3, 8, 8)


def test_weight_with_too_few_bytes(write_onnx: Write) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(15))
    path = write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]}, [weight])
    assert "must have 16 bytes, it has 15" in refusal(path)


@pytest.mark.parametrize("bad", [{"dims": [-1]}, {"data_type": 99}, {"data_type": 0}])
def test_weight_of_impossible_kind(write_onnx: Write, bad: dict[str, object]) -> None:
    weight = TensorProto(**{"name": "w", "data_type": 1, "dims": [0], **bad})
    assert "'w'" in refusal(write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]}, [weight]))


@pytest.mark.parametrize("where", [b"Relu", b"images", b"act", b"out"])
def test_names_that_are_not_text(write_onnx: Write, where: bytes) -> None:
    path = write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]})
    path.write_bytes(path.read_bytes().replace(where, b"\xff" * len(where)))
    assert "UTF-8" in refusal(path)


def test_input_that_is_no_tensor(write_onnx: Write) -> None:
    value = helper.make_tensor_sequence_value_info("images", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceAt", ["images", "zero"], ["out"])
    zero = numpy_helper.from_array(np.array(0), "zero")
    assert "sequence" in refusal(write_onnx([node], [value], {"out": [1]}, [zero]))


# What is read.


def test_fields(write_onnx: Write) -> None:
    weight = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    values = [
        helper.make_tensor_value_info("images", TensorProto.BFLOAT16, ["b", 3, None, "w px"]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, [-1, 2]),
    ]
    path = write_onnx([NODE], values, {"out": ["b"]}, [weight])
    model = read_model(str(path))
    assert [str(spec) for spec in model.inputs] == [
        "images bfloat16 [b, 3, ?, w px]",
        "sizes int64 [?, 2]",
    ]
    assert model.opset == 17
    assert model.path == path
    assert model.external_files == ()
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(load_proto(model).graph.node) == 1


def test_output_without_shape_is_inferred(write_onnx: Write) -> None:
    bare = onnx.ValueInfoProto(name="out")
    assert str(read_model(write_onnx([NODE], PICTURE, [bare])).outputs[0]) == (
        "out float32 [1, 3, 8, 8]"
    )


def test_output_of_unknown_rank(write_onnx: Write) -> None:
    node = helper.make_node("Mystery", ["images"], ["out"], domain="com.acme")
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    model = read_model(write_onnx([node], PICTURE, [value], opset_imports=imports))
    assert model.outputs[0].shape == ("...",)
    assert signature_of(model).outputs[0].shape == ("...",)


def test_file_that_goes_away(write_onnx: Write) -> None:
    model = read_model(write_onnx([NODE], PICTURE, {"out": [1, 3, 8, 8]}))
    model.path.unlink()
    with pytest.raises(ModelError, match="no such file"):
        load_proto(model)


# The shared files.

GOOD_ODD = (
    "onnx_classifier_not_detector.onnx",
    "onnx_custom_op_unknown_domain.onnx",
    "onnx_external_ok/model.onnx",
    "onnx_trt_plugin_efficientnms.onnx",
    "onnx_uint8_nhwc_input.onnx",
    "onnx_unknown_op_default_domain.onnx",
)
BAD_ODD = {
    "onnx_corrupted_400_random_bytes.onnx": "damaged",
    "onnx_cyclic_graph.onnx": "'g1' <- nameless Relu node that makes 'g2'",
    "onnx_dangling_input.onnx": "'missing_tensor'",
    "onnx_empty_model.onnx": "must have a graph",
    "onnx_external_absolute_path.onnx": "'/etc/hostname'",
    "onnx_external_missing.onnx": "'weights_that_are_not_there.bin'",
    "onnx_external_truncated.onnx": "at least 114240 bytes",
    "onnx_ir_version_99.onnx": "it is 99",
    "onnx_text.onnx": "is text",
    "onnx_truncated_70pct.onnx": "95225 bytes are missing",
    "onnx_zero_byte.onnx": "empty",
}


@pytest.mark.shared
@pytest.mark.parametrize("name", GOOD_ODD)
def test_odd_but_readable(shared: Path, name: str) -> None:
    assert read_model(shared / "odd" / name).outputs


@pytest.mark.shared
@pytest.mark.parametrize("name", BAD_ODD)
def test_broken(shared: Path, name: str) -> None:
    assert BAD_ODD[name] in refusal(shared / "odd" / name)


@pytest.mark.shared
def test_every_odd_file_is_covered(shared: Path) -> None:
    names = {path.name for path in (shared / "odd").glob("*.onnx")}
    assert names | {"onnx_external_ok/model.onnx"} == {*GOOD_ODD, *BAD_ODD}


@pytest.mark.shared
def test_weights_listed_as_inputs_are_not_inputs(shared: Path) -> None:
    model = read_model(shared / "models" / "ultraface_rfb_320.onnx")
    assert [str(spec) for spec in model.inputs] == ["input float32 [1, 3, 240, 320]"]


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut", "both"])
def test_damaged_bytes_give_a_model_or_a_model_error(
    shared: Path, tmp_path: Path, kind: str, rng: np.random.Generator
) -> None:
    """50 damaged copies each: cut anywhere, or a few bytes changed, half of them near the names."""
    whole = np.frombuffer((shared / "models" / "yunet_n_320.onnx").read_bytes(), np.uint8)
    path = tmp_path / "damaged.onnx"
    for attempt in range(50):
        damaged = whole.copy()
        if kind != "cut":
            start = 0 if attempt % 2 else len(whole) - 12_000
            where = start + rng.integers(0, 12_000, size=int(rng.integers(1, 6)))
            damaged[where] = rng.integers(0, 256, size=len(where))
        if kind != "flip":
            damaged = damaged[: int(rng.integers(0, len(whole)))]
        path.write_bytes(damaged.tobytes())
        with contextlib.suppress(ModelError):
            model = read_model(path)
            with contextlib.suppress(InputError):  # a batch that the damage fixed at another size
                signature_of(model)
                cost_of(model)
