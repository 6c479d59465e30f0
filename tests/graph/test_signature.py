from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from saccade.errors import InputError, ModelError
from saccade.graph.reading import load_proto, read_model
from saccade.graph.signature import MAX_TAIL, feed_shapes, picture_input, signature_of, size_of
from saccade.types import Model

Write = Callable[..., Path]
Shape = list[int | str]


@pytest.fixture
def relu(write_onnx: Write) -> Callable[..., Model]:
    """A model that hands its first input through."""

    def make(inputs: dict[str, Shape], **kwargs: object) -> Model:
        first = next(iter(inputs))
        node = helper.make_node("Relu", [first], ["out"])
        return read_model(write_onnx([node], inputs, {"out": inputs[first]}, **kwargs))

    return make


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ([1, 3, 32, 64], "nchw"),
        ([1, 32, 64, 3], "nhwc"),
        ([1, 1, 32, 64], "nchw"),
        (["b", "h", "w", 1], "nhwc"),
        (["b", 3, "h", 3], "nchw"),
        (["b", 1, "w", 3], "nhwc"),
        (["b", "c", "h", "w"], "nchw"),
    ],
)
def test_layout(relu: Callable[..., Model], shape: Shape, layout: str) -> None:
    spec, found = picture_input(relu({"x": shape, "sizes": ["b", 2]}))
    assert (spec.name, found) == ("x", layout)


@pytest.mark.parametrize("shape", [[3, 8, 8], [1, 4, 8, 8], [1, 3, 8, 8, 8], [10], []])
def test_no_picture_input(relu: Callable[..., Model], shape: Shape) -> None:
    with pytest.raises(ModelError, match=r"must have one input.*x float32"):
        picture_input(relu({"x": shape}))


def test_several_picture_inputs(relu: Callable[..., Model]) -> None:
    with pytest.raises(ModelError, match="left, right all look like pictures"):
        picture_input(relu({"left": [1, 3, 8, 8], "right": [1, 3, 8, 8]}))


def test_integers_are_not_pictures(write_onnx: Write) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.INT64, [1, 3, 8, 8])
    model = read_model(write_onnx([helper.make_node("Abs", ["x"], ["y"])], [value], {"y": [1]}))
    with pytest.raises(ModelError, match="x int64"):
        picture_input(model)


def test_sizes_in_order_of_trust(relu: Callable[..., Model], write_onnx: Write) -> None:
    assert size_of(relu({"x": ["b", 3, 96, 64]})) == ((96, 64), False)
    free = relu({"x": ["b", 3, "h", "w"]})
    assert size_of(free) == ((640, 640), True)
    assert size_of(free, (32, 64)) == ((32, 64), True)
    assert size_of(relu({"x": ["b", 3, 96, "w"]}), (96, 64)) == ((96, 64), True)


@pytest.mark.parametrize(
    ("imgsz", "size"),
    [("[320, 416]", (320, 416)), ("512", (512, 512)), ("none", (640, 640)), ("[0]", (640, 640)),
     ("[1, 2, 3]", (640, 640))],
)  # fmt: skip
def test_size_in_metadata(relu: Callable[..., Model], imgsz: str, size: tuple[int, int]) -> None:
    model = relu({"x": ["b", 3, "h", "w"]})
    proto = load_proto(model)
    helper.set_model_props(proto, {"imgsz": imgsz})
    model.path.write_bytes(proto.SerializeToString())
    assert size_of(read_model(model.path))[0] == size


@pytest.mark.parametrize("size_hw", [(0, 8), (8, -1), (10**6, 8)])
def test_impossible_size(relu: Callable[..., Model], size_hw: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="from 1 to"):
        size_of(relu({"x": ["b", 3, "h", "w"]}), size_hw)


def test_size_against_the_graph(relu: Callable[..., Model]) -> None:
    with pytest.raises(InputError, match=r"must be 64x96 .*got 96x64"):
        signature_of(relu({"x": ["b", 3, 96, 64]}), (64, 96))


def test_other_inputs_share_batch_and_named_axes(relu: Callable[..., Model]) -> None:
    model = relu({"x": ["b", "h", "w", 3], "mask": ["b", "h", "q"], "sizes": ["n", 2]})
    assert feed_shapes(model, (8, 16), 4) == {
        "x": (4, 8, 16, 3),
        "mask": (4, 8, "q"),
        "sizes": (4, 2),
    }


def test_batch_stays_free_and_computed_axes_are_filled_in(write_onnx: Write) -> None:
    """An exporter's flatten: the shape is computed in the graph from the picture's own."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["f"], strides=[8, 8]),
        helper.make_node("Shape", ["f"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["b1"]),
        helper.make_node("Unsqueeze", ["b1", "zeros"], ["b2"]),
        helper.make_node("Concat", ["b2", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["f", "target"], ["out"]),
    ]
    weights = [
        numpy_helper.from_array(np.zeros((7, 3, 1, 1), np.float32), "w"),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array([0]), "zeros"),
        numpy_helper.from_array(np.array([7, -1]), "rest"),
    ]
    picture = {"x": ["batch", 3, "h", "w"]}
    path = write_onnx(nodes, picture, {"out": ["batch", "a", "n"]}, weights)
    signature = signature_of(read_model(path), (64, 128))
    assert signature.outputs[0].shape == ("batch", 7, 128)
    assert signature.size_hw == (64, 128)
    assert signature.size_is_free
    assert signature.tails == {"out": ("Reshape", "Conv")}


def test_axis_that_depends_on_the_picture_keeps_its_name(write_onnx: Write) -> None:
    node = helper.make_node("NonZero", ["x"], ["found"])
    value = helper.make_tensor_value_info("found", TensorProto.INT64, [4, "hits"])
    model = read_model(write_onnx([node], {"x": ["b", 3, 8, 8]}, [value]))
    assert signature_of(model).outputs[0].shape == (4, "hits")


def test_graph_that_cannot_be_inferred_keeps_its_declared_shapes(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "five"], ["y"]),
        helper.make_node("MatMul", ["y", "w"], ["out"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([5, 5]), "five"),
        numpy_helper.from_array(np.zeros((3, 3), np.float32), "w"),
    ]
    model = read_model(write_onnx(nodes, {"x": [1, 3, 8, 8]}, {"out": ["a", 3]}, weights))
    assert signature_of(model).outputs[0].shape == ("a", 3)


def test_tail_is_breadth_first_and_stops_at_weights(write_onnx: Write) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Tanh", ["b"], ["e"]),
        helper.make_node("Concat", ["d", "e"], ["out"], axis=1),
    ]
    weights = [numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), "w")]
    picture, out = {"x": [1, 3, 8, 8]}, {"out": [1, 6, 8, 8]}
    signature = signature_of(read_model(write_onnx(nodes, picture, out, weights)))
    assert signature.tails["out"] == ("Concat", "Sigmoid", "Tanh", "Conv", "Relu", "Conv")


def test_tail_has_an_end(write_onnx: Write) -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(MAX_TAIL + 50)]
    path = write_onnx(nodes, {"t0": [1, 3, 8, 8]}, {nodes[-1].output[0]: [1, 3, 8, 8]})
    (tail,) = signature_of(read_model(path)).tails.values()
    assert tail == ("Relu",) * MAX_TAIL


# The shared models.

SHARED = {
    "cells_640": ["output0 float32 [batch, 7, 8400]"],
    "deimv2_atto_320": [
        "labels int64 [Sublabels_dim_0, 300]",
        "boxes float32 [GatherElementsboxes_dim_0, 300, 4]",
        "scores float32 [GatherElementsboxes_dim_0, 300]",
    ],
    "fastestdet_352": ["758 float32 [1, 85, 22, 22]"],
    "fastestdet_352_nms": [
        "num_dets int64 [1, 1]",
        "boxes float32 [1, 100, 4]",
        "scores float32 [1, 100]",
        "classes int64 [1, 100]",
    ],
    "fastestdet_352_qdq_int8": ["758 float32 [1, 85, 22, 22]"],
    "ultraface_rfb_320": ["scores float32 [1, 4420, 2]", "boxes float32 [1, 4420, 4]"],
    "yolox_nano_416": ["output float32 [1, 3549, 85]"],
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SHARED)
def test_shared_outputs(shared: Path, name: str) -> None:
    signature = signature_of(read_model(shared / "models" / f"{name}.onnx"))
    assert [str(spec) for spec in signature.outputs] == SHARED[name]
    assert not signature.size_is_free


@pytest.mark.shared
def test_shared_tails(shared: Path) -> None:
    def tails(name: str) -> dict[str, tuple[str, ...]]:
        return dict(signature_of(read_model(shared / "models" / f"{name}.onnx")).tails)

    assert tails("yunet_n_320")["cls_8"] == ("Sigmoid", "Reshape", "Transpose", "Conv")
    assert tails("yunet_n_320")["bbox_8"] == ("Reshape", "Transpose", "Conv")
    assert "Softmax" in tails("fastestdet_352")["758"]
    assert "NonMaxSuppression" in tails("fastestdet_352_nms")["num_dets"]
    assert "Shape" not in tails("cells_640")["output0"]


@pytest.mark.shared
def test_free_size_of_a_channels_last_model(shared: Path) -> None:
    model = read_model(shared / "odd" / "onnx_uint8_nhwc_input.onnx")
    assert picture_input(model)[1] == "nhwc"
    assert signature_of(model, (96, 64)).outputs[0].shape == ("batch", 8, 96, 64)
