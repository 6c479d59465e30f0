"""Small ONNX graphs that end as detectors end, and checks that every head family must pass.

Each builder writes the last layers from their public definition, on top of one strided convolution
per grid with seeded weights, so that shapes follow from the picture and outputs are lively:

    yolov8   Ultralytics' detection layer: expectation over 16 bins, distances to boxes
    yolov5   ultralytics/yolov5 models/yolo.py: (2 s(xy) - 0.5 + g) * stride, (2 s(wh))^2 * anchor
    yolov6   meituan/YOLOv6 models/effidehead.py: distances to boxes, an objectness of ones
    yolox    Megvii-BaseDetection/YOLOX models/yolo_head.py, with and without decode_outputs
    final    the outputs of NVIDIA's EfficientNMS, MMDeploy, YOLOv10, YOLOv7 end to end
    detr     facebookresearch/detr models/detr.py; lyuwenyu/RT-DETR's post-processor
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, shape_inference

from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.types import Candidates, Head, HeadRule, Signature, TensorSpec, Thresholds

SIZE_HW = (64, 96)
STRIDES = (8, 16, 32)


class Graph:
    """A graph under construction on one picture input of (b, 3, h, w)."""

    def __init__(self, size_hw: tuple[int, int] = SIZE_HW, seed: int = 7) -> None:
        self.size_hw = size_hw
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 3, *size_hw])
        ]

    def const(self, value: object, dtype: str = "float32") -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, num: int = 1, name: str = "", **attributes: object):
        """Add a node; returns its output's name, or their names if num is above 1."""
        outputs = [name or f"t{len(self.nodes)}_{i}" for i in range(num)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0] if num == 1 else outputs

    def conv(self, channels: int, stride: int, *, spread: float = 3.0, mean: float = 0.0) -> str:
        weights = self.rng.normal(0, spread, (channels, 3, 1, 1))
        bias = self.rng.normal(mean, 1, channels)
        return self.op(
            "Conv", "images", self.const(weights), self.const(bias), strides=[stride, stride]
        )

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.const(shape, "int64"))

    def split(self, x: str, axis: int, *sizes: int) -> list[str]:
        return self.op("Split", x, self.const(sizes, "int64"), num=len(sizes), axis=axis)

    def cells(self, stride: int) -> tuple[int, int]:
        return self.size_hw[0] // stride, self.size_hw[1] // stride

    def grid(self, stride: int) -> np.ndarray:
        """Column and row of each cell, (h * w, 2)."""
        h, w = self.cells(stride)
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)

    def finish(
        self, outputs: Mapping[str, str], metadata: Mapping[str, str] | None = None
    ) -> onnx.ModelProto:
        """Close the graph; outputs maps each output's public name to a tensor."""
        for public, tensor in outputs.items():
            self.op("Identity", tensor, name=public)
        ends = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "tail", self.inputs, ends, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, dict(metadata or {}))
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
        return inferred


def yolov8(
    num_classes: int = 5, *, strides=STRIDES, rows_first=False, metadata=None
) -> onnx.ModelProto:
    g, bins = Graph(), 16
    maps, points, steps = [], [], []
    for stride in strides:
        h, w = g.cells(stride)
        maps.append(g.reshape(g.conv(4 * bins + num_classes, stride), 0, -1, h * w))
        points.append(g.grid(stride).T + 0.5)
        steps.append(np.full(h * w, stride))
    n = sum(map(len, steps))
    box, cls = g.split(g.op("Concat", *maps, axis=2), 1, 4 * bins, num_classes)
    box = g.op("Transpose", g.reshape(box, 0, 4, bins, n), perm=[0, 2, 1, 3])
    expectation = g.const(np.arange(bins).reshape(1, bins, 1, 1))
    box = g.reshape(g.op("Conv", g.op("Softmax", box, axis=1), expectation), 0, 4, n)
    left_top, right_bottom = g.split(box, 1, 2, 2)
    points = g.const(np.concatenate(points, axis=1)[None])
    upper, lower = g.op("Sub", points, left_top), g.op("Add", points, right_bottom)
    centre = g.op("Div", g.op("Add", upper, lower), g.const(2.0))
    box = g.op("Concat", centre, g.op("Sub", lower, upper), axis=1)
    box = g.op("Mul", box, g.const(np.concatenate(steps)))
    rows = g.op("Concat", box, g.op("Sigmoid", cls), axis=1)
    if rows_first:
        rows = g.op("Transpose", rows, perm=[0, 2, 1])
    return g.finish({"output0": rows}, metadata)


def yolov5(
    num_classes: int = 5, *, strides=STRIDES, with_maps=False, metadata=None
) -> onnx.ModelProto:
    g, width = Graph(), 5 + num_classes
    parts, outputs = [], {}
    for stride in strides:
        h, w = g.cells(stride)
        raw = g.reshape(g.conv(3 * width, stride), 0, 3, width, h, w)
        raw = g.op("Transpose", raw, perm=[0, 1, 3, 4, 2])
        outputs[f"map{stride}"] = raw
        xy, wh, rest = g.split(g.op("Sigmoid", raw), 4, 2, 2, 1 + num_classes)
        shift = g.const(g.grid(stride).reshape(1, 1, h, w, 2) - 0.5)
        xy = g.op("Add", g.op("Mul", xy, g.const(2.0)), shift)
        xy = g.op("Mul", xy, g.const(float(stride)))
        wh = g.op("Pow", g.op("Mul", wh, g.const(2.0)), g.const(2.0))
        anchors = stride * np.array([[1, 2], [2, 1], [2, 2]]).reshape(1, 3, 1, 1, 2)
        wh = g.op("Mul", wh, g.const(anchors))
        parts.append(g.reshape(g.op("Concat", xy, wh, rest, axis=4), 0, 3 * h * w, width))
    rows = {"output": g.op("Concat", *parts, axis=1)}
    return g.finish(rows | outputs if with_maps else rows, metadata)


def yolov6(num_classes: int = 5, *, strides=STRIDES) -> onnx.ModelProto:
    g = Graph()
    boxes, scores, points, steps = [], [], [], []
    for stride in strides:
        h, w = g.cells(stride)
        boxes.append(g.reshape(g.conv(4, stride, spread=0.5, mean=1.5), 0, 4, h * w))
        scores.append(g.reshape(g.op("Sigmoid", g.conv(num_classes, stride)), 0, -1, h * w))
        points.append(g.grid(stride) + 0.5)
        steps.append(np.full((h * w, 1), stride))
    box = g.op("Transpose", g.op("Concat", *boxes, axis=2), perm=[0, 2, 1])
    cls = g.op("Transpose", g.op("Concat", *scores, axis=2), perm=[0, 2, 1])
    left_top, right_bottom = g.split(box, 2, 2, 2)
    points = g.const(np.concatenate(points))
    upper, lower = g.op("Sub", points, left_top), g.op("Add", points, right_bottom)
    centre = g.op("Div", g.op("Add", upper, lower), g.const(2.0))
    box = g.op("Concat", centre, g.op("Sub", lower, upper), axis=2)
    box = g.op("Mul", box, g.const(np.concatenate(steps)))
    first, _ = g.split(cls, 2, 1, num_classes - 1)
    one = g.const(1.0)
    ones = g.op("Min", g.op("Max", first, one), one)
    return g.finish({"outputs": g.op("Concat", box, ones, cls, axis=2)})


def yolox(num_classes: int = 5, *, decoded=False, strides=STRIDES, metadata=None):
    g, width = Graph(), 5 + num_classes
    maps, points, steps = [], [], []
    for stride in strides:
        h, w = g.cells(stride)
        parts = [
            g.conv(4, stride, spread=0.7),
            g.op("Sigmoid", g.conv(1, stride)),
            g.op("Sigmoid", g.conv(num_classes, stride)),
        ]
        maps.append(g.reshape(g.op("Concat", *parts, axis=1), 0, width, h * w))
        points.append(g.grid(stride))
        steps.append(np.full((h * w, 1), stride))
    rows = g.op("Transpose", g.op("Concat", *maps, axis=2), perm=[0, 2, 1])
    if decoded:
        xy, wh, rest = g.split(rows, 2, 2, 2, 1 + num_classes)
        stride = g.const(np.concatenate(steps))
        xy = g.op("Mul", g.op("Add", xy, g.const(np.concatenate(points))), stride)
        rows = g.op("Concat", xy, g.op("Mul", g.op("Exp", wh), stride), rest, axis=2)
    return g.finish({"output": rows}, metadata)


def final(layout: str, *, num_classes: int = 5, k: int = 20, metadata=None, names=None):
    """Boxes around the cells of one grid, the best k selected, laid out as `layout` says."""
    g, stride = Graph(), 8
    h, w = g.cells(stride)
    corners = np.concatenate([g.grid(stride) - 1, g.grid(stride) + 2], axis=1) * stride
    jitter = g.reshape(g.conv(4, stride, spread=1.0), 0, 4, h * w)
    boxes = g.op("Add", g.op("Transpose", jitter, perm=[0, 2, 1]), g.const(corners))
    scores_cn = g.op("Sigmoid", g.reshape(g.conv(num_classes, stride), 0, -1, h * w))
    if layout == "nms7":
        return g.finish({"output": _suppressed(g, boxes, scores_cn)}, metadata)
    best = g.op("ReduceMax", scores_cn, axes=[1], keepdims=0)
    scores, where = g.op("TopK", best, g.const([k], "int64"), num=2, axis=1)
    classes = g.op("GatherElements", g.op("ArgMax", scores_cn, axis=1, keepdims=0), where, axis=1)
    where = g.op("Expand", g.reshape(where, 0, k, 1), g.const([1, k, 4], "int64"))
    boxes = g.op("GatherElements", boxes, where, axis=1)
    column = g.reshape(scores, 0, k, 1)
    if layout == "nms6":
        as_float = g.reshape(g.op("Cast", classes, to=TensorProto.FLOAT), 0, k, 1)
        return g.finish({"output0": g.op("Concat", boxes, column, as_float, axis=2)}, metadata)
    if layout == "dets_labels":
        return g.finish({"dets": g.op("Concat", boxes, column, axis=2), "labels": classes})
    used = g.op("Cast", g.op("Greater", scores, g.const(0.5)), to=TensorProto.INT64)
    count = g.op("ReduceSum", used, g.const([1], "int64"), keepdims=1)
    public = names or ("num_dets", "det_boxes", "det_scores", "det_classes")
    return g.finish(dict(zip(public, (count, boxes, scores, classes), strict=True)), metadata)


def _suppressed(g: Graph, boxes: str, scores_cn: str) -> str:
    limits = g.const(30, "int64"), g.const(0.45), g.const(0.3)
    chosen = g.op("NonMaxSuppression", boxes, scores_cn, *limits)
    picture, cls, box = g.split(chosen, 1, 1, 1, 1)
    corners = g.op("GatherND", boxes, g.op("Concat", picture, box, axis=1))
    score = g.reshape(g.op("GatherND", scores_cn, chosen), -1, 1)
    picture, cls = (g.op("Cast", x, to=TensorProto.FLOAT) for x in (picture, cls))
    return g.op("Concat", picture, corners, cls, score, axis=1)


def detr(
    layout: str, *, num_queries: int = 40, width: int = 7, names=("pred_logits", "pred_boxes")
) -> onnx.ModelProto:
    g, stride, depth = Graph(), 16, 8
    h, w = g.cells(stride)
    memory = g.op(
        "Transpose", g.reshape(g.conv(depth, stride, spread=1.0), 0, depth, h * w), perm=[0, 2, 1]
    )
    queries = g.op("MatMul", g.const(g.rng.normal(0, 0.3, (num_queries, h * w))), memory)

    def linear(num: int) -> str:
        product = g.op("MatMul", queries, g.const(g.rng.normal(0, 0.3, (depth, num))))
        return g.op("Add", product, g.const(g.rng.normal(-1, 1, num)))

    logits, boxes = linear(width), g.op("Sigmoid", linear(4))
    if layout == "raw":
        return g.finish({names[0]: logits, names[1]: boxes})
    sizes = helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, ["b", 2])
    g.inputs.append(sizes)
    scale = g.op("Cast", "orig_target_sizes", to=TensorProto.FLOAT)
    scale = g.op("Unsqueeze", g.op("Concat", scale, scale, axis=1), g.const([1], "int64"))
    centre, extent = g.split(boxes, 2, 2, 2)
    half = g.op("Mul", extent, g.const(0.5))
    boxes = g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=2)
    boxes = g.op("Mul", boxes, scale)
    flat = g.reshape(g.op("Sigmoid", logits), 0, num_queries * width)
    scores, where = g.op("TopK", flat, g.const([num_queries], "int64"), num=2, axis=1)
    labels = g.op("Mod", where, g.const(width, "int64"))
    query = g.reshape(g.op("Div", where, g.const(width, "int64")), 0, num_queries, 1)
    query = g.op("Expand", query, g.const([1, 1, 4], "int64"))
    boxes = g.op("GatherElements", boxes, query, axis=1)
    return g.finish({"labels": labels, "boxes": boxes, "scores": scores})


NAMES = {"names": "{0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}", "stride": "32", "task": "detect"}
ALTERNATIVE = ("num_dets", "boxes", "scores", "labels")

# Every graph above, under the one family that may recognise it.
ALL: dict[str, dict[str, onnx.ModelProto]] = {
    "yolov8": {
        "plain": yolov8(),
        "one class": yolov8(1),
        "coco": yolov8(80),
        "p2": yolov8(strides=(4, 8, 16, 32)),
        "named": yolov8(metadata=NAMES),
        "rows first": yolov8(rows_first=True, metadata=NAMES),
    },
    "yolov5": {
        "v5": yolov5(),
        "one class": yolov5(1),
        "with maps": yolov5(with_maps=True),
        "named": yolov5(metadata={"names": "['a', 'b', 'c', 'd', 'e']", "stride": "32"}),
        "v6": yolov6(),
    },
    "yolox": {
        "plain": yolox(),
        "one class": yolox(1),
        "decoded": yolox(decoded=True),
        "decoded, one class": yolox(1, decoded=True),
    },
    "final": {
        "num_dets": final("num_dets"),
        "num_dets, other names": final("num_dets", names=ALTERNATIVE),
        "dets_labels": final("dets_labels"),
        "nms6": final("nms6"),
        "nms6, named": final("nms6", metadata=NAMES),
        "nms7": final("nms7"),
    },
    "detr": {
        "post": detr("post"),
        "sigmoid": detr("raw"),
        "softmax": detr("raw", num_queries=100, width=92),
        "rf": detr("raw", num_queries=300, width=91, names=("labels", "dets")),
        "rf, three classes": detr("raw", width=4, names=("labels", "dets")),
    },
}

# The families of this file among the shared models; the others belong to none of them.
SHARED = {
    "cells_640": "yolov8",
    "yolox_nano_416": "yolox",
    "light_person_192": "yolox",
    "fastestdet_352_nms": "final",
    "deimv2_atto_320": "detr",
}


def sign(model: onnx.ModelProto, size_hw: tuple[int, int] = SIZE_HW) -> Signature:
    """Write a Signature by hand: declared shapes, and tails by a walk back to the weights."""
    graph = model.graph
    weights = {w.name for w in graph.initializer}
    return Signature(
        inputs=tuple(_spec(i) for i in graph.input if i.name not in weights),
        outputs=tuple(map(_spec, graph.output)),
        size_hw=size_hw,
        size_is_free=False,
        tails={o.name: _tail(graph, o.name) for o in graph.output},
        metadata={p.key: p.value for p in model.metadata_props},
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim
    )
    return TensorSpec(value.name, helper.tensor_dtype_to_np_dtype(kind.elem_type).name, shape)


def _tail(graph: onnx.GraphProto, output: str) -> tuple[str, ...]:
    makers = {name: node for node in graph.node for name in node.output}
    waiting, seen, kinds = deque([output]), set(), []
    while waiting:
        node = makers.get(waiting.popleft())
        if node is None or node.output[0] in seen or node.op_type in ("Constant", "Shape"):
            continue
        seen.add(node.output[0])
        kinds.append(node.op_type)
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            waiting.extend(node.input)
    return tuple(kinds)


def run(model: onnx.ModelProto, num: int = 1, *, seed: int = 3, **feeds: np.ndarray):
    """Run a graph of this file on num random pictures."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    pictures = np.random.default_rng(seed).random((num, 3, *SIZE_HW), np.float32)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": pictures, **feeds}), strict=True))


def check_recognises(head: Head) -> None:
    """The head recognises its own graphs of this file, and none of another family's."""
    for family, graphs in ALL.items():
        for title, model in graphs.items():
            found = head.recognise(sign(model))
            assert (found is not None) == (family == head.family), (family, title)
            if found is not None:
                assert found.head.family == family
                assert found.seen
                assert set(found.head.outputs.values()) <= {o.name for o in model.graph.output}
                assert found.input is None or "size_hw" not in found.input


def check_recognises_shared(head: Head, shared) -> None:
    """The same among the real models."""
    paths = sorted((shared / "models").glob("*.onnx"))
    assert {p.stem for p in paths} >= set(SHARED)
    for path in paths:
        found = head.recognise(signature_of(read_model(path)))
        assert (found is not None) == (SHARED.get(path.stem) == head.family), path.stem


def check_same(one: Candidates, other: Candidates, atol: float = 0.0) -> None:
    """Two Candidates are equal up to atol, in order."""
    assert one.frame == other.frame
    assert one.is_final == other.is_final
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_allclose(one.scores, other.scores, atol=atol, rtol=0)
    np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=atol, rtol=0)


def check_types(found: Candidates) -> None:
    k = len(found.scores)
    assert (found.boxes_xyxy.shape, found.boxes_xyxy.dtype) == ((k, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((k,), np.float32)
    assert (found.classes.shape, found.classes.dtype) == ((k,), np.int32)
    assert np.isfinite(found.boxes_xyxy).all()


def check_decoding(
    head: Head,
    rule: HeadRule,
    outputs: Mapping[str, np.ndarray],
    thresholds: Thresholds,
    size_hw: tuple[int, int] = SIZE_HW,
) -> None:
    """Promises that hold for every head whose outputs have the batch as first axis."""
    batch = head.decode(outputs, rule, size_hw, thresholds)
    assert sum(len(found.scores) for found in batch) > 0
    for i, found in enumerate(batch):
        check_types(found)
        assert (found.scores > thresholds.score).all()
        single = {name: array[i : i + 1] for name, array in outputs.items()}
        check_same(head.decode(single, rule, size_hw, thresholds)[0], found)

    nothing = head.decode(outputs, rule, size_hw, dataclasses.replace(thresholds, score=1.0))
    assert [len(found.scores) for found in nothing] == [0] * len(batch)
    for found in nothing:
        check_types(found)

    broken = {
        name: np.full_like(a, np.nan) if a.dtype.kind == "f" else a for name, a in outputs.items()
    }
    for score in (thresholds.score, 0.0, -1.0):
        replaced = dataclasses.replace(thresholds, score=score)
        for found in head.decode(broken, rule, size_hw, replaced):
            check_types(found)
            assert len(found.scores) == 0

    halves = {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in outputs.items()}
    floats = {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in halves.items()}
    for half, full in zip(
        head.decode(halves, rule, size_hw, thresholds),
        head.decode(floats, rule, size_hw, thresholds),
        strict=True,
    ):
        check_types(half)
        check_same(half, full, atol=1e-6)


def by_class(rows: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (k, 4), classes, scores of a plain decode's list of (box, class, score)."""
    boxes = np.array([r[0] for r in rows], np.float64).reshape(-1, 4)
    return boxes, np.array([r[1] for r in rows], int), np.array([r[2] for r in rows], np.float64)


def check_equals_plain(found: Candidates, rows: list[tuple], atol_px: float = 2e-4) -> None:
    """Candidates are those of a plain float64 decode, in the same order."""
    boxes, classes, scores = by_class(rows)
    assert len(found.scores) == len(rows)
    np.testing.assert_array_equal(found.classes, classes)
    np.testing.assert_allclose(found.scores, scores, atol=2e-6, rtol=0)
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=atol_px, rtol=1e-5)


def corners(cx: float, cy: float, w: float, h: float) -> tuple[float, float, float, float]:
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def plain_rows(rows, num_classes: int, score: float, *, objectness: bool, multi_label=False):
    """(row, class, score) of a plain loop over rows (n, 4 + [1] + c), float64."""
    picked = []
    for i, row in enumerate(np.asarray(rows, np.float64)):
        scores = row[-num_classes:] * (row[4] if objectness else 1.0)
        chosen = range(num_classes) if multi_label else [int(scores.argmax())]
        picked += [(i, j, scores[j]) for j in chosen if scores[j] > score]
    return picked


def run_shared(path, *, color: str, resize: str, mean=0.0, std=1.0, **feeds: np.ndarray):
    """Run a real model on one real picture; returns outputs and the input's height and width.

    Pictures are prepared plainly with Pillow: the outputs are only compared with each other.
    """
    from PIL import Image

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
    h, w = shape[2:]
    picture = Image.open(path.parents[1] / "images" / "people_group_1200x800.jpeg").convert("RGB")
    canvas = Image.new("RGB", (w, h), (114, 114, 114))
    if resize == "stretch":
        canvas = picture.resize((w, h))
    else:
        scale = min(w / picture.width, h / picture.height)
        small = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        corner = (
            (0, 0) if resize == "top_left" else ((w - small.width) // 2, (h - small.height) // 2)
        )
        canvas.paste(small, corner)
    pixels = np.asarray(canvas, np.float32)
    pixels = pixels[..., ::-1] if color == "bgr" else pixels
    x = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None]
    outputs = session.run(None, {name: np.ascontiguousarray(x), **feeds})
    return dict(zip([o.name for o in session.get_outputs()], outputs, strict=True)), (h, w)
