"""Models that are fed otherwise: NHWC bytes, gray, 16 bits, free sizes, faces with key points."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import saccade
from nets import NUM_ROWS, SIZE_HW, mean_color_detector, save, score_of
from saccade.vision.place import place_reference
from saccade.vision.suppress import suppress_reference


def bytes_detector(path):
    """Like mean_color_detector, but takes uint8 NHWC pictures and divides by 255 itself."""
    inner = onnx.load(mean_color_detector(path))
    height, width = SIZE_HW
    nodes = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "white"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["images"], perm=[0, 3, 1, 2]),
        *inner.graph.node,
    ]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in inner.graph.initializer}
    picture = helper.make_tensor_value_info(
        "pixels", TensorProto.UINT8, ["batch", height, width, 3]
    )
    return save(path, nodes, [picture], inner.graph.output, weights | {"white": np.float32([255])})


def gray_detector(path, dtype=TensorProto.FLOAT):
    """One channel; the score of class 0 is `score_of` its mean."""
    height, width = SIZE_HW
    first = np.zeros((1, 1, NUM_ROWS), np.float32)
    first[..., 0] = 1
    box = np.array([width / 2, height / 2, width / 2, height / 2], np.float32).reshape(1, 4, 1)
    weights = {
        "first": first,
        "boxes": box * first,
        "flat": np.array([0, 1, 1], np.int64),
        "slope": np.float32([8]),
        "shift": np.float32([-4]),
        "zero": np.float32([0]),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Reshape", ["mean", "flat"], ["channel"]),
        helper.make_node("Mul", ["channel", "slope"], ["steep"]),
        helper.make_node("Add", ["steep", "shift"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
        helper.make_node("Mul", ["score", "first"], ["rows"]),
        helper.make_node("Mul", ["score", "zero"], ["nothing"]),
        helper.make_node("Add", ["boxes", "nothing"], ["batched"]),
        helper.make_node("Concat", ["batched", "rows"], ["output0"], axis=1),
    ]
    return save(
        path,
        nodes,
        [helper.make_tensor_value_info("images", dtype, ["batch", 1, height, width])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 5, NUM_ROWS])],
        weights,
    )


def contract_file(tmp_path, text):
    path = tmp_path / "contract.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_uint8_nhwc(tmp_path, backend):
    contract = contract_file(tmp_path, "[input]\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n")
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[..., 2] = 200
    model = bytes_detector(tmp_path / "net.onnx")
    with saccade.load(model, contract=contract, backend=backend) as detector:
        assert detector.contract.input.layout == "nhwc"
        assert detector.contract.input.dtype == "uint8"
        found = detector(picture)
        assert found.classes.tolist() == [1]
        assert found.scores[0] == pytest.approx(float(score_of(200 / 255)), abs=1e-4)
        batched = [r.detections for r in saccade.run(detector, [picture] * 5, batch=3)]
        assert [d.scores.tolist() for d in batched] == [found.scores.tolist()] * 5


def test_gray_and_16_bits(tmp_path):
    """A 12-bit scan in a 16-bit file is nearly black in 8 bits; with bits = 16 it is not."""
    scan = np.full((32, 32), 3500, np.uint16)
    path = tmp_path / "scan.png"
    cv2.imwrite(str(path), scan)
    gray = 'color = "gray"\nmean = [0]\n'
    model = gray_detector(tmp_path / "net.onnx")
    in_8 = contract_file(tmp_path, f"[input]\n{gray}std = [255]\n[detect]\nscore = 0.0\n")
    with saccade.load(model, contract=in_8) as detector:
        level = round(3500 / 257) / 255
        assert detector(path).scores[0] == pytest.approx(float(score_of(level)), abs=1e-4)
    in_16 = contract_file(tmp_path, f"[input]\n{gray}bits = 16\nstd = [4095]\n")
    with saccade.load(model, contract=in_16) as detector:
        assert detector(path).scores[0] == pytest.approx(float(score_of(3500 / 4095)), abs=1e-4)
        color = np.full((32, 32, 3), 10, np.uint8)
        wide = 10 * 257 / 4095
        found = detector.timed(color, thresholds=saccade.Thresholds(score=0.0))
        assert found.detections.scores[0] == pytest.approx(float(score_of(wide)), abs=1e-3)
        assert set(found.wall_s) == {"decode", "prepare", "infer", "suppress"}
        assert all(seconds > 0 for seconds in found.wall_s.values())


def test_free_height_and_width(tmp_path):
    path = mean_color_detector(tmp_path / "net.onnx")
    model = onnx.load(path)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for axis, name in ((2, "height"), (3, "width")):
        dims[axis].ClearField("dim_value")
        dims[axis].dim_param = name
    onnx.save(model, path)
    with saccade.load(path, size_hw=(32, 32)) as detector:
        found = detector(np.full((64, 64, 3), (255, 0, 0), np.uint8))
        np.testing.assert_allclose(found.boxes_xyxy, [[16, 16, 48, 48]], atol=0.01)


def faces_plainly(outputs, name):
    """Boxes (n, 4) in input pixels and scores (n,) by the published recipes, in float64."""
    if name == "ultraface_rfb_320":
        boxes = outputs["boxes"][0].astype(np.float64) * [320, 240, 320, 240]
        return boxes, outputs["scores"][0, :, 1].astype(np.float64), None
    boxes, scores, points = [], [], []
    for stride in (8, 16, 32):
        side = 320 // stride
        cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
        get = {k: outputs[f"{k}_{stride}"][0].astype(np.float64) for k in ("cls", "obj", "bbox")}
        centre = (cells + get["bbox"][:, :2]) * stride
        half = np.exp(get["bbox"][:, 2:]) * stride / 2
        boxes.append(np.concatenate([centre - half, centre + half], 1))
        scores.append(np.sqrt(get["cls"][:, 0] * get["obj"][:, 0]))
        raw = outputs[f"kps_{stride}"][0].astype(np.float64).reshape(-1, 5, 2)
        points.append((raw + cells[:, None]) * stride)
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(points)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ultraface_rfb_320", "yunet_n_320"])
def test_faces_agree_with_a_plain_decode(shared, name):
    import onnxruntime
    from PIL import Image

    path = shared / "images/people_group_1200x800.jpeg"
    with saccade.load(shared / f"models/{name}.onnx") as detector:
        found, rule, kept = detector(path), detector.contract.input, detector.contract.detect
    picture = np.asarray(Image.open(path))
    if rule.color == "bgr":
        picture = picture[..., ::-1]
    data, placement = place_reference(np.ascontiguousarray(picture), rule)
    session = onnxruntime.InferenceSession(
        str(shared / f"models/{name}.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {rule.name: data[None]}), strict=True))
    boxes, scores, points = faces_plainly(outputs, name)
    likely = np.flatnonzero(scores > kept.score)
    classes = np.zeros(len(likely), np.int32)
    best = suppress_reference(
        boxes[likely], scores[likely], classes, kept.iou, class_agnostic=False
    )
    rows = likely[best]
    shift, scale = np.array(placement.offset_xy), np.array(placement.scale_xy)
    wanted = (boxes[rows].reshape(-1, 2, 2) - shift) / scale
    wanted = np.clip(wanted, 0, placement.source_wh).reshape(-1, 4)
    assert len(found) == len(wanted) >= 8
    np.testing.assert_allclose(found.boxes_xyxy, wanted, atol=0.5)
    np.testing.assert_allclose(found.scores, scores[rows], atol=0.01)
    if points is not None:
        assert found.keypoints_xy.shape == (len(found), 5, 2)
        np.testing.assert_allclose(found.keypoints_xy, (points[rows] - shift) / scale, atol=0.5)
