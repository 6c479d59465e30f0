"""Exported programs: read, recognised, run on the CPU as ONNX Runtime runs the same network."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import saccade
from conftest import skip_or_fail
from saccade import backends
from saccade.errors import InputError, ModelError
from saccade.vision.draw import encode_jpeg


@pytest.fixture
def torch():
    found = backends.get("torch").probe()
    if not found.ok:
        skip_or_fail("torch", found.reason)
    return importlib.import_module("torch")


@pytest.fixture
def cuda(torch):
    if not torch.cuda.is_available():
        skip_or_fail("gpu", "torch sees no CUDA device")
    return torch


def write_program(torch, path, *, batch=None):
    """A YOLOv8-like head whose first row is a box with scores from the mean colour."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 1, bias=True)
            with torch.no_grad():
                self.conv.weight.zero_()
                self.conv.weight[0, 0] = 8.0
                self.conv.weight[1, 2] = 8.0
                self.conv.bias.fill_(-4.0)
            box = torch.tensor([16.0, 16.0, 16.0, 16.0]).reshape(1, 4, 1)
            self.register_buffer("box", box)
            first = torch.zeros(1, 1, 21)
            first[..., 0] = 1
            self.register_buffer("first", first)

        def forward(self, images):
            scores = torch.sigmoid(self.conv(images).mean((2, 3)))[:, :, None] * self.first
            boxes = (self.box * self.first).expand(images.shape[0], 4, 21)
            return torch.cat((boxes, scores), 1)

    example = torch.zeros(batch or 2, 3, 32, 32)
    shapes = None if batch else {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(Net().eval(), (example,), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def score_of(mean):
    return 1 / (1 + np.exp(-(8 * mean - 4)))


def pictures(rng):
    colors = [rng.integers(0, 255, 3, dtype=np.uint8) for _ in range(7)]
    flat = [np.ascontiguousarray(np.broadcast_to(c, (32, 32, 3))) for c in colors]
    return colors, flat


def assert_right(found, color):
    best = max(score_of(color[0] / 255), score_of(color[2] / 255))  # a row has one class
    if abs(best - 0.25) > 0.02:
        np.testing.assert_allclose(found.scores, [best] if best > 0.25 else [], atol=1e-2)
    for box in found.boxes_xyxy:
        np.testing.assert_allclose(box, [8, 8, 24, 24], atol=0.1)


@pytest.mark.parametrize("batch", [None, 2])
def test_an_exported_program_detects(torch, tmp_path, rng, batch):
    path = write_program(torch, tmp_path / "net.pt2", batch=batch)
    colors, flat = pictures(rng)
    with saccade.load(path) as detector:
        assert detector.backend == "torch"
        assert detector.contract.head.family == "yolov8"
        assert detector.contract.head.num_classes == 2
        for result, color in zip(saccade.run(detector, flat), colors, strict=True):
            assert_right(result.detections, color)
        assert_right(detector(encode_jpeg(flat[0])), colors[0])


def test_the_contract_may_be_named(torch, tmp_path, rng):
    path = write_program(torch, tmp_path / "net.pt2")
    colors, flat = pictures(rng)
    with saccade.load(path, preset="yolov8", labels=("warm", "cold")) as detector:
        assert detector.contract.labels == ("warm", "cold")
        assert_right(detector(flat[1]), colors[1])


def test_what_is_no_program(torch, tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"torch.export.save"):
        saccade.load(path)
    with pytest.raises(ModelError, match="readable"):
        saccade.load(tmp_path / "none.pt2")
    with pytest.raises(InputError, match="must be torch"):
        saccade.load(path, backend="openvino")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_exported_program_on_a_gpu(cuda, tmp_path, rng, precision):
    path = write_program(cuda, tmp_path / "net.pt2")
    colors, flat = pictures(rng)
    with saccade.load(path, device="cuda:0", precision=precision) as detector:
        for result, color in zip(saccade.run(detector, flat, batch=4), colors, strict=True):
            assert_right(result.detections, color)
