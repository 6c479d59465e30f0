"""Small ONNX networks whose last layers are those of a detection head, built from its definition.

The convolutions take a random picture and have seeded random weights; what counts is what follows
them. Every network has a free batch axis. Sources of the definitions are named at each builder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from saccade.types import Candidates, Signature, TensorSpec

LAST = {"Conv", "MatMul", "Gemm"}


class Net:
    """A graph under construction; methods add a node and return the name of its output."""

    def __init__(self, size_hw: tuple[int, int], seed: int) -> None:
        self.size_hw = size_hw
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def const(self, values: np.ndarray) -> str:
        name = f"const{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        return self.split(op, *inputs, outputs=1, **attributes)[0]

    def split(self, op: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names

    def conv(self, channels: int, stride: int, *, scale: float = 2.0, bias: float = 0.0) -> str:
        """One value per channel and cell; a cell that the picture fills in part counts."""
        weights = self.rng.normal(0, scale, (channels, 3, 1, 1)).astype(np.float32)
        offsets = np.full(channels, bias, np.float32)
        pair = (self.const(weights), self.const(offsets))
        return self.add("Conv", "image", *pair, strides=[stride, stride])

    def reshape(self, value: str, *shape: int) -> str:
        return self.add("Reshape", value, self.const(np.int64(shape)))

    def slice(self, value: str, start: int, end: int, axis: int) -> str:
        ends = [self.const(np.int64([x])) for x in (start, end, axis)]
        return self.add("Slice", value, *ends)

    def save(self, path: Path, outputs: Mapping[str, str], *, num_axes: int = 3) -> Path:
        """Write the network; outputs maps a name to the value it takes."""
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        axes = ["b", *(None,) * (num_axes - 1)]
        free = [helper.make_tensor_value_info(n, TensorProto.FLOAT, axes) for n in outputs]
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, *self.size_hw])
        graph = helper.make_graph(self.nodes, "tail", [image], free, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def nanodet(
    path: Path,
    size_hw: tuple[int, int] = (96, 128),
    *,
    num_classes: int = 5,
    reg_max: int = 7,
    numeric_names: bool = False,
) -> Path:
    """RangiLyu/nanodet, nanodet_head.py (shared branch) with the ONNX export of gfl_head.py."""
    net, outputs = Net(size_hw, seed=1), {}
    logits = 4 * (reg_max + 1)
    for place, stride in enumerate((8, 16, 32)):
        joint = net.conv(num_classes + logits, stride)
        cls, dis = net.split(
            "Split", joint, net.const(np.int64([num_classes, logits])), outputs=2, axis=1
        )
        cls = net.reshape(net.add("Sigmoid", cls), 0, num_classes, -1)
        dis = net.reshape(dis, 0, logits, -1)
        names = (f"cls_pred_stride_{stride}", f"dis_pred_stride_{stride}")
        if numeric_names:
            names = (str(700 + 3 * place), str(701 + 3 * place))
        outputs[names[0]] = net.add("Transpose", cls, perm=[0, 2, 1])
        outputs[names[1]] = net.add("Transpose", dis, perm=[0, 2, 1])
    return net.save(path, outputs)


def nanodet_plus(path: Path, size_hw: tuple[int, int] = (96, 128), *, num_classes: int = 5) -> Path:
    """RangiLyu/nanodet, nanodet_plus_head.py, _forward_onnx."""
    net, levels = Net(size_hw, seed=2), []
    for stride in (8, 16, 32, 64):
        joint = net.conv(num_classes + 32, stride)
        cls, dis = net.split(
            "Split", joint, net.const(np.int64([num_classes, 32])), outputs=2, axis=1
        )
        both = net.add("Concat", net.add("Sigmoid", cls), dis, axis=1)
        levels.append(net.reshape(both, 0, num_classes + 32, -1))
    rows = net.add("Transpose", net.add("Concat", *levels, axis=2), perm=[0, 2, 1])
    return net.save(path, {"output": rows})


def fastestdet(path: Path, size_hw: tuple[int, int] = (96, 128), *, num_classes: int = 5) -> Path:
    """dog-qiuqiu/FastestDet, module/detector.py: three branches, joined along the channels."""
    net = Net(size_hw, seed=3)
    obj = net.add("Sigmoid", net.conv(1, 16))
    reg = net.conv(4, 16)
    cls = net.add("Transpose", net.conv(num_classes, 16), perm=[0, 2, 3, 1])
    cls = net.add("Transpose", net.add("Softmax", cls, axis=3), perm=[0, 3, 1, 2])
    return net.save(path, {"758": net.add("Concat", obj, reg, cls, axis=1)}, num_axes=4)


def ssd_rows(net: Net, stride: int, num_priors: int, columns: int) -> str:
    """One branch of an SSD on one feature map: (b, cells * priors, columns)."""
    value = net.add("Transpose", net.conv(num_priors * columns, stride), perm=[0, 2, 3, 1])
    return net.reshape(value, 0, -1, columns)


def ssd_in_graph(
    path: Path,
    priors: np.ndarray,
    size_hw: tuple[int, int],
    *,
    columns: int,
    cells: Mapping[int, int],
) -> Path:
    """qfgaohao/pytorch-ssd, vision/ssd/ssd.py in test mode; priors (n, 4) in centre form."""
    net = Net(size_hw, seed=4)
    pairs = [(ssd_rows(net, s, k, columns), ssd_rows(net, s, k, 4)) for s, k in cells.items()]
    scores = net.add("Concat", *(p[0] for p in pairs), axis=1)
    scores = net.add("Softmax", scores, axis=2)
    loc = net.add("Concat", *(p[1] for p in pairs), axis=1)
    sizes_of_priors = net.const(np.float32(priors[None, :, 2:]))
    shift = net.add("Mul", net.slice(loc, 0, 2, 2), net.const(np.float32(0.1)))
    shift = net.add("Mul", shift, sizes_of_priors)
    centre = net.add("Add", shift, net.const(np.float32(priors[None, :, :2])))
    grow = net.add("Exp", net.add("Mul", net.slice(loc, 2, 4, 2), net.const(np.float32(0.2))))
    half = net.add("Div", net.add("Mul", grow, sizes_of_priors), net.const(np.float32(2)))
    corners = (net.add("Sub", centre, half), net.add("Add", centre, half))
    return net.save(path, {"scores": scores, "boxes": net.add("Concat", *corners, axis=2)})


def ssd300(path: Path, *, columns: int = 21, softmax: bool = False) -> Path:
    """amdegroot/ssd.pytorch, ssd.py: raw branches on six feature maps of a 300 x 300 picture."""
    net = Net((300, 300), seed=5)
    cells = {8: 4, 16: 6, 32: 6, 64: 6, 100: 4, 300: 4}
    conf = net.add("Concat", *(ssd_rows(net, s, k, columns) for s, k in cells.items()), axis=1)
    loc = net.add("Concat", *(ssd_rows(net, s, k, 4) for s, k in cells.items()), axis=1)
    conf = net.add("Softmax", conf, axis=2) if softmax else conf
    return net.save(path, {"loc": loc, "conf": conf})


def yunet(path: Path, size_hw: tuple[int, int] = (96, 128)) -> Path:
    """ShiqiYu/libfacedetection.train, mmdet/models/dense_heads/yunet_head.py, ONNX export."""
    net, outputs = Net(size_hw, seed=6), {}
    widths = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
    for role, width in widths.items():
        for stride in (8, 16, 32):
            value = net.add("Transpose", net.conv(width, stride), perm=[0, 2, 3, 1])
            value = net.reshape(value, 0, -1, width)
            is_score = role in ("cls", "obj")
            outputs[f"{role}_{stride}"] = net.add("Sigmoid", value) if is_score else value
    return net.save(path, outputs)


def damo_yolo(
    path: Path,
    size_hw: tuple[int, int] = (96, 128),
    *,
    num_classes: int = 5,
    extra_column: bool = True,
    integral: str = "MatMul",
) -> Path:
    """tinyvision/DAMO-YOLO, damo/base_models/heads/zero_head.py, forward_eval without NMS."""
    net, reg_max = Net(size_hw, seed=7), 16
    columns = num_classes + extra_column
    all_cls, all_reg = [], []
    for stride in (8, 16, 32):
        cls = net.reshape(net.add("Sigmoid", net.conv(columns, stride)), 0, columns, -1)
        all_cls.append(net.add("Transpose", cls, perm=[0, 2, 1]))
        reg = net.reshape(net.conv(4 * (reg_max + 1), stride), 0, 4, reg_max + 1, -1)
        reg = net.add("Softmax", reg, axis=2)
        all_reg.append(net.add("Transpose", reg, perm=[0, 3, 1, 2]))
    scores = net.add("Concat", *all_cls, axis=1)
    scores = net.slice(scores, 0, num_classes, 2) if extra_column else scores
    points, strides = damo_points(size_hw)
    weights = net.add("Concat", *all_reg, axis=1)
    steps = np.arange(reg_max + 1, dtype=np.float32)
    if integral == "MatMul":
        mean = net.reshape(net.add("MatMul", weights, net.const(steps[:, None])), 0, -1, 4)
    else:
        product = net.add("Mul", weights, net.const(steps))
        mean = net.add("ReduceSum", product, net.const(np.int64([3])), keepdims=0)
    mean = net.add("Mul", mean, net.const(np.float32(strides[None, :, None])))
    where = net.const(np.float32(points[None]))
    corners = (
        net.add("Sub", where, net.slice(mean, 0, 2, 2)),
        net.add("Add", where, net.slice(mean, 2, 4, 2)),
    )
    return net.save(path, {"scores": scores, "boxes": net.add("Concat", *corners, axis=2)})


def damo_points(size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    cells = [
        (x * s, y * s, s)
        for s in (8, 16, 32)
        for y in range(-(-size_hw[0] // s))
        for x in range(-(-size_hw[1] // s))
    ]
    array = np.array(cells, np.float64)
    return array[:, :2], array[:, 2]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    network = session(path)
    names = [o.name for o in network.get_outputs()]
    return dict(zip(names, network.run(names, {network.get_inputs()[0].name: images}), strict=True))


def signature(path: Path) -> Signature:
    """What heads are shown of a file: specs from a trial run, and the tails of its outputs."""
    network = session(path)
    feeds = {}
    for i in network.get_inputs():
        shape = [1 if isinstance(side, str) else side for side in i.shape]
        feeds[i.name] = np.zeros(shape, np.int64 if "int64" in i.type else np.float32)
    if "orig_target_sizes" in feeds:
        feeds["orig_target_sizes"] = np.int64([[320, 320]])
    names = [o.name for o in network.get_outputs()]
    arrays = network.run(names, feeds)
    inputs = tuple(TensorSpec(n, str(a.dtype), ("b", *a.shape[1:])) for n, a in feeds.items())
    outputs = tuple(
        TensorSpec(n, str(a.dtype), ("b", *a.shape[1:])) for n, a in zip(names, arrays, strict=True)
    )
    graph = onnx.load(path).graph
    tails = {n: _tail(graph, n) for n in names}
    return Signature(inputs, outputs, next(iter(feeds.values())).shape[2:], False, tails)


def _tail(graph: onnx.GraphProto, output: str) -> tuple[str, ...]:
    makers = {name: node for node in graph.node for name in node.output}
    waiting, seen, operators = [output], set(), []
    while waiting:
        name = waiting.pop(0)
        if name in seen or name not in makers:
            continue
        seen.add(name)
        node = makers[name]
        operators.append(node.op_type)
        if node.op_type not in LAST:
            waiting.extend(node.input)
    return tuple(operators)


def images(size_hw: tuple[int, int], num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (num, 3, *size_hw)).astype(np.float32)


def one(outputs: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """The outputs of one picture of a batch, as a batch of one."""
    return {name: array[index : index + 1] for name, array in outputs.items()}


def assert_same(got: Candidates, want: Candidates) -> None:
    """Bit for bit the same."""
    np.testing.assert_array_equal(got.boxes_xyxy, want.boxes_xyxy)
    np.testing.assert_array_equal(got.scores, want.scores)
    np.testing.assert_array_equal(got.classes, want.classes)
    assert (got.keypoints_xy is None) == (want.keypoints_xy is None)
    if want.keypoints_xy is not None:
        np.testing.assert_array_equal(got.keypoints_xy, want.keypoints_xy)


def assert_empty(got: Candidates, num_keypoints: int | None = None) -> None:
    assert (got.boxes_xyxy.shape, got.boxes_xyxy.dtype) == ((0, 4), np.float32)
    assert (got.scores.shape, got.scores.dtype) == ((0,), np.float32)
    assert (got.classes.shape, got.classes.dtype) == ((0,), np.int32)
    if num_keypoints is None:
        assert got.keypoints_xy is None
    else:
        assert got.keypoints_xy is not None
        assert got.keypoints_xy.shape == (0, num_keypoints, 2)
        assert got.keypoints_xy.dtype == np.float32


def assert_close(
    got: Candidates,
    plain: Sequence[tuple[np.ndarray, int, float]],
    *,
    box_px: float = 0.01,
    score: float = 1e-4,
) -> None:
    """Compare with a plain decode: a list of (box, class, score) in the order of rows."""
    assert len(plain) > 0, "nothing to compare"
    assert got.boxes_xyxy.dtype == np.float32
    assert got.scores.dtype == np.float32
    assert got.classes.dtype == np.int32
    assert got.classes.tolist() == [c for _, c, _ in plain]
    np.testing.assert_allclose(got.scores, [s for _, _, s in plain], atol=score, rtol=0)
    np.testing.assert_allclose(
        got.boxes_xyxy, np.array([b for b, _, _ in plain]), atol=box_px, rtol=0
    )


def real_input(shared: Path, name: str, size_hw: tuple[int, int]) -> np.ndarray:
    """A shared picture stretched to (h, w, 3) uint8, red green blue."""
    import cv2

    picture = cv2.imread(str(shared / "images" / name), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.ascontiguousarray(cv2.resize(picture, size_hw[::-1])[..., ::-1])


def as_batch(picture: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    values = (picture.astype(np.float32) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])
