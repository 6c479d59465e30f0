"""Networks from public definitions with random weights, for speed: what a layer computes is real,
what the network knows is not.

    resnet50       He et al., Deep Residual Learning, 2015 (stride in the 3x3, as in torchvision)
    yolov8n/s/m    the layout of YOLOv8: Redmon and Farhadi 2018, Wang et al. CSPNet 2020, Li et al.
                   GFL 2020; depth and width multiples as published for each size
    retinanet      Lin et al., Focal Loss for Dense Object Detection, 2017: ResNet-50, FPN P3-P7
    faster_rcnn    Ren et al. 2015 with Lin et al. FPN 2017: backbone, RPN head, RoIAlign of given
                   regions on P2-P5, box head; the choice of regions (suppression) is not in it

    python -m bench.networks resnet50 224 32 out.onnx
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["NETWORKS", "write"]


class Net:
    """A graph in the making; tensors are (name, channels)."""

    def __init__(self, batch: int, size: int) -> None:
        self.batch, self.size = batch, size
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs = [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, (batch, 3, size, size))
        ]
        self.outputs: list[str] = []
        self._rng = np.random.default_rng(0)

    def store(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, num: int = 1, **attributes: object) -> str:
        made = [f"t{len(self.nodes)}_{i}" for i in range(num)]
        self.nodes.append(helper.make_node(op, inputs, made, **attributes))
        return made[0]

    def conv(self, x: tuple[str, int], k: int, size: int = 1, stride: int = 1, **more: object
             ) -> tuple[str, int]:  # fmt: skip
        """With a bias, as a folded batch norm leaves one; values keep their size."""
        name, c = x
        depth = c * size * size
        gain = float(more.pop("gain", 1.4))  # type: ignore[arg-type]
        weight = self._rng.normal(0, gain / np.sqrt(depth), (k, c, size, size))
        bias = self._rng.normal(0, 0.1, k)
        made = self.add(
            "Conv", name, self.store(weight.astype(np.float32)),
            self.store(bias.astype(np.float32)), kernel_shape=[size, size],
            strides=[stride, stride], pads=[size // 2] * 4,
        )  # fmt: skip
        return made, k

    def relu(self, x: tuple[str, int]) -> tuple[str, int]:
        return self.add("Relu", x[0]), x[1]

    def silu(self, x: tuple[str, int]) -> tuple[str, int]:
        return self.add("Mul", x[0], self.add("Sigmoid", x[0])), x[1]

    def sum(self, x: tuple[str, int], y: tuple[str, int]) -> tuple[str, int]:
        return self.add("Add", x[0], y[0]), x[1]

    def cat(self, *xs: tuple[str, int]) -> tuple[str, int]:
        return self.add("Concat", *(x[0] for x in xs), axis=1), sum(x[1] for x in xs)

    def double(self, x: tuple[str, int]) -> tuple[str, int]:
        scales = self.store(np.array([1, 1, 2, 2], np.float32))
        made = self.add("Resize", x[0], "", scales, mode="nearest", nearest_mode="floor",
                        coordinate_transformation_mode="asymmetric")  # fmt: skip
        return made, x[1]

    def shaped(self, name: str, *shape: int) -> str:
        return self.add("Reshape", name, self.store(np.array(shape, np.int64)))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "net", self.inputs,
            [onnx.ValueInfoProto(name=name) for name in self.outputs], self.weights,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(made)
        for mine, found in zip(made.graph.output, inferred.graph.output, strict=True):
            mine.CopyFrom(found)
        return made


def _residual(net: Net, x: tuple[str, int], width: int, stride: int) -> tuple[str, int]:
    y = net.relu(net.conv(x, width))
    y = net.relu(net.conv(y, width, 3, stride))
    y = net.conv(y, 4 * width, gain=0.7)
    same = x if x[1] == 4 * width and stride == 1 else net.conv(x, 4 * width, 1, stride, gain=0.7)
    return net.relu(net.sum(y, same))


def _resnet50(net: Net) -> list[tuple[str, int]]:
    """C2 to C5."""
    x = net.relu(net.conv(("images", 3), 64, 7, 2))
    x = (
        net.add("MaxPool", x[0], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        64,
    )
    levels = []
    for i, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for j in range(depth):
            x = _residual(net, x, width, 2 if i and not j else 1)
        levels.append(x)
    return levels


def resnet50(net: Net) -> None:
    x = _resnet50(net)[-1]
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x[0]))
    weight = np.random.default_rng(1).normal(0, 0.02, (2048, 1000)).astype(np.float32)
    bias = net.store(np.zeros(1000, np.float32))
    net.outputs.append(net.add("Gemm", pooled, net.store(weight), bias))


def _pyramid(net: Net, levels: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """FPN: each level summed with the doubled next one, then smoothed."""
    inner = [net.conv(level, 256, gain=1.0) for level in levels]
    for i in range(len(inner) - 2, -1, -1):
        inner[i] = net.sum(inner[i], net.double(inner[i + 1]))
    return [net.conv(level, 256, 3, gain=0.7) for level in inner]


def retinanet(net: Net) -> None:
    levels = _pyramid(net, _resnet50(net)[1:])
    levels.append(net.conv(levels[-1], 256, 3, 2))
    levels.append(net.conv(net.relu(levels[-1]), 256, 3, 2))
    for last in (9 * 91, 9 * 4):
        rows = []
        for level in levels:
            x = level
            for _ in range(4):
                x = net.relu(net.conv(x, 256, 3))
            y = net.conv(x, last, 3, gain=1.0)
            planes = net.add("Transpose", y[0], perm=[0, 2, 3, 1])
            rows.append(net.shaped(planes, net.batch, -1, last // 9))
        made = net.add("Concat", *rows, axis=1)
        net.outputs.append(net.add("Sigmoid", made) if last == 9 * 91 else made)


def faster_rcnn(net: Net) -> None:
    """250 given regions per picture on each of P2 to P5."""
    levels = _pyramid(net, _resnet50(net))
    count = 250 * net.batch
    cells = []
    for i, level in enumerate(levels):
        x = net.relu(net.conv(level, 256, 3))
        net.outputs += [net.conv(x, 3, gain=1.0)[0], net.conv(x, 12, gain=1.0)[0]]
        rois = f"rois{i}"
        net.inputs.append(helper.make_tensor_value_info(rois, TensorProto.FLOAT, (count, 4)))
        of = net.store(np.repeat(np.arange(net.batch), 250))
        cells.append(
            net.add("RoiAlign", level[0], rois, of, output_height=7, output_width=7,
                    sampling_ratio=2, spatial_scale=1 / (4 << i))
        )  # fmt: skip
    x = (net.add("Concat", *cells, axis=0), 256)
    name = net.add("Flatten", x[0])
    rng = np.random.default_rng(1)
    for i, (c, k) in enumerate(((256 * 49, 1024), (1024, 1024))):
        weight = net.store(rng.normal(0, 1.4 / np.sqrt(c), (c, k)).astype(np.float32))
        name = net.add("Relu", net.add("Gemm", name, weight, net.store(np.zeros(k, np.float32))))
        del i
    for k in (91, 4 * 91):
        weight = net.store(rng.normal(0, 0.03, (1024, k)).astype(np.float32))
        net.outputs.append(net.add("Gemm", name, weight, net.store(np.zeros(k, np.float32))))


def _c2f(net: Net, x: tuple[str, int], k: int, depth: int, *, adds: bool) -> tuple[str, int]:
    x = net.silu(net.conv(x, k))
    half = k // 2
    name = net.add("Split", x[0], axis=1, num=2)
    other = net.nodes[-1].output[1]
    parts = [(name, half), (other, half)]
    for _ in range(depth):
        y = net.silu(net.conv(parts[-1], half, 3))
        y = net.silu(net.conv(y, half, 3))
        parts.append(net.sum(parts[-1], y) if adds else y)
    return net.silu(net.conv(net.cat(*parts), k))


def _sppf(net: Net, x: tuple[str, int]) -> tuple[str, int]:
    y = net.silu(net.conv(x, x[1] // 2))
    parts = [y]
    for _ in range(3):
        pooled = net.add("MaxPool", parts[-1][0], kernel_shape=[5, 5], pads=[2, 2, 2, 2])
        parts.append((pooled, y[1]))
    return net.silu(net.conv(net.cat(*parts), x[1]))


def _yolov8(depth: float, width: float, most: int, classes: int = 80) -> Callable[[Net], None]:
    def build(net: Net) -> None:
        def ch(c: int) -> int:
            return -(-int(min(c, most) * width) // 8) * 8

        def n(count: int) -> int:
            return max(round(count * depth), 1)

        x = net.silu(net.conv(("images", 3), ch(64), 3, 2))
        x = net.silu(net.conv(x, ch(128), 3, 2))
        x = _c2f(net, x, ch(128), n(3), adds=True)
        x = net.silu(net.conv(x, ch(256), 3, 2))
        p3 = _c2f(net, x, ch(256), n(6), adds=True)
        x = net.silu(net.conv(p3, ch(512), 3, 2))
        p4 = _c2f(net, x, ch(512), n(6), adds=True)
        x = net.silu(net.conv(p4, ch(1024), 3, 2))
        p5 = _sppf(net, _c2f(net, x, ch(1024), n(3), adds=True))
        up4 = _c2f(net, net.cat(net.double(p5), p4), ch(512), n(3), adds=False)
        out3 = _c2f(net, net.cat(net.double(up4), p3), ch(256), n(3), adds=False)
        down = net.silu(net.conv(out3, ch(256), 3, 2))
        out4 = _c2f(net, net.cat(down, up4), ch(512), n(3), adds=False)
        down = net.silu(net.conv(out4, ch(512), 3, 2))
        out5 = _c2f(net, net.cat(down, p5), ch(1024), n(3), adds=False)
        _dfl_head(net, [out3, out4, out5], classes)

    return build


def _dfl_head(net: Net, levels: list[tuple[str, int]], classes: int) -> None:
    box_width = max(16, levels[0][1] // 4, 64)
    class_width = max(levels[0][1], min(classes, 100))
    rows, anchors, strides = [], [], []
    for i, level in enumerate(levels):
        box = net.silu(net.conv(net.silu(net.conv(level, box_width, 3)), box_width, 3))
        kind = net.silu(net.conv(net.silu(net.conv(level, class_width, 3)), class_width, 3))
        both = net.cat(net.conv(box, 64, gain=1.0), net.conv(kind, classes, gain=1.0))
        rows.append(net.shaped(both[0], net.batch, 64 + classes, -1))
        side = net.size // (8 << i)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side))).reshape(2, -1) + 0.5
        anchors.append(grid)
        strides.append(np.full(side * side, 8 << i))
    all_rows = net.add("Concat", *rows, axis=2)
    sizes = net.store(np.array([64, classes]))
    boxes = net.add("Split", all_rows, sizes, axis=1, num=2)
    scores = net.nodes[-1].output[1]
    bins = net.add("Transpose", net.shaped(boxes, net.batch, 4, 16, -1), perm=[0, 2, 1, 3])
    weight = net.store(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    mean = net.add("Conv", net.add("Softmax", bins, axis=1), weight)
    near = net.add("Split", net.shaped(mean, net.batch, 4, -1), axis=1, num=2)
    far = net.nodes[-1].output[1]
    centre = net.store(np.concatenate(anchors, 1)[None].astype(np.float32))
    low, high = net.add("Sub", centre, near), net.add("Add", centre, far)
    middle = net.add("Div", net.add("Add", low, high), net.store(np.float32(2)))
    box_rows = net.add("Concat", middle, net.add("Sub", high, low), axis=1)
    stride = net.store(np.concatenate(strides)[None].astype(np.float32))
    final = net.add("Mul", box_rows, stride)
    net.outputs.append(net.add("Concat", final, net.add("Sigmoid", scores), axis=1))


NETWORKS: dict[str, Callable[[Net], None]] = {
    "resnet50": resnet50,
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
    "yolov8n": _yolov8(1 / 3, 0.25, 1024),
    "yolov8s": _yolov8(1 / 3, 0.5, 1024),
    "yolov8m": _yolov8(2 / 3, 0.75, 768),
}


def write(name: str, size: int, batch: int, path: Path) -> Path:
    """Write a network for pictures of size x size."""
    net = Net(batch, size)
    NETWORKS[name](net)
    onnx.save(net.model(), path)
    return path


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
