"""The answers that every contender is held to: plain NumPy, one picture at a time.

Shares no code with saccade or with a contender. Three things are not NumPy: the JPEG decoder
(Pillow), the network itself (ONNX Runtime, one thread) and the resize, because the models' rule is
"linear as OpenCV does it" and fastestdet notices its rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cases import Case

LABEL = "plain NumPy reference"
NOTE = ""
CASES = None
VENV = None
CHECK = "agreement"


def setup(case: Case) -> tuple[Case, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        case.model_path, options, providers=["CPUExecutionProvider"]
    )
    return case, session


def run(state: tuple[Case, Any], paths: list[str]) -> list[tuple]:
    from PIL import Image

    case, session = state
    answers = []
    for path in paths:
        picture_rgb = np.asarray(Image.open(path).convert("RGB"))
        tensor, scale_xy, offset_xy = prepare(case, picture_rgb)
        output = session.run(None, {session.get_inputs()[0].name: tensor})[0]
        boxes_xyxy, scores, classes = READ[case.family](output[0].astype(np.float64), case.size_hw)
        keep = scores > case.score
        boxes_xyxy, scores, classes = boxes_xyxy[keep], scores[keep], classes[keep]
        kept = suppress(boxes_xyxy, scores, classes, case.iou)
        boxes_xyxy = (boxes_xyxy[kept] - [*offset_xy, *offset_xy]) / [*scale_xy, *scale_xy]
        height, width = picture_rgb.shape[:2]
        boxes_xyxy = np.clip(boxes_xyxy, 0, [width, height, width, height])
        answers.append((path, boxes_xyxy, scores[kept], classes[kept]))
    return answers


def prepare(case: Case, picture_rgb: np.ndarray) -> tuple[np.ndarray, tuple, tuple]:
    """The network's input, its scale and its offset."""
    import cv2

    (height, width), (in_h, in_w) = picture_rgb.shape[:2], case.size_hw
    if case.family == "fastestdet":
        new_h, new_w, top, left = in_h, in_w, 0, 0
        scale_xy = (in_w / width, in_h / height)
    else:
        scale = min(in_h / height, in_w / width)
        new_h, new_w = round(height * scale), round(width * scale)
        scale_xy = (new_w / width, new_h / height)
        centered = case.family == "yolov8"
        top, left = ((in_h - new_h) // 2, (in_w - new_w) // 2) if centered else (0, 0)
    canvas = np.full((in_h, in_w, 3), 114.0)
    canvas[top : top + new_h, left : left + new_w] = cv2.resize(picture_rgb, (new_w, new_h))
    if case.family != "yolov8":
        canvas = canvas[:, :, ::-1]
    if case.family != "yolox":
        canvas = canvas / 255.0
    tensor = np.ascontiguousarray(canvas.transpose(2, 0, 1)[None], dtype=np.float32)
    return tensor, scale_xy, (left, top)


def read_yolov8(output: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    del size_hw
    x, y, w, h = output[:4]
    boxes_xyxy = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    return boxes_xyxy, output[4:].max(axis=0), output[4:].argmax(axis=0)


def read_yolox(output: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    cells = []
    for stride in (8, 16, 32):
        cells += [
            (column, row, stride)
            for row in range(size_hw[0] // stride)
            for column in range(size_hw[1] // stride)
        ]
    grid = np.array(cells, dtype=np.float64)
    xy = (output[:, :2] + grid[:, :2]) * grid[:, 2:]
    wh = np.exp(output[:, 2:4]) * grid[:, 2:]
    scores = output[:, 5:] * output[:, 4:5]
    return np.hstack([xy - wh / 2, xy + wh / 2]), scores.max(axis=1), scores.argmax(axis=1)


def read_fastestdet(output: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, ...]:
    rows, columns = output.shape[1:]
    row, column = np.mgrid[:rows, :columns]
    x = (np.tanh(output[1]) + column) / columns * size_hw[1]
    y = (np.tanh(output[2]) + row) / rows * size_hw[0]
    w = size_hw[1] / (1 + np.exp(-output[3]))
    h = size_hw[0] / (1 + np.exp(-output[4]))
    boxes_xyxy = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1).reshape(-1, 4)
    scores = (output[0] ** 0.6 * output[5:] ** 0.4).reshape(len(output) - 5, -1)
    return boxes_xyxy, scores.max(axis=0), scores.argmax(axis=0)


READ = {"yolov8": read_yolov8, "yolox": read_yolox, "fastestdet": read_fastestdet}


def suppress(
    boxes_xyxy: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou: float
) -> list[int]:
    """Greedy suppression per class, one pair at a time; indices, best first."""
    kept: list[int] = []
    for candidate in np.argsort(-scores, kind="stable").tolist():
        rivals = [other for other in kept if classes[other] == classes[candidate]]
        if all(overlap(boxes_xyxy[other], boxes_xyxy[candidate]) <= iou for other in rivals):
            kept.append(candidate)
    return kept


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        name: version(name) for name in ("numpy", "onnxruntime", "opencv-python-headless", "pillow")
    }
