"""YuNet: faces with five key points, twelve outputs.

Per stride there are four outputs with a row per cell: class score, objectness (both with a
sigmoid in the graph), box (b, n, 4) and key points (b, n, 2 p). With the upper left corner of a
cell at (i * stride, j * stride):

    score  = sqrt(class score * objectness)
    centre = box[0:2] * stride + corner        size = exp(box[2:4]) * stride
    key point = kps * stride + corner

Source: github.com/ShiqiYu/libfacedetection.train, mmdet/models/dense_heads/yunet_head.py (head)
and configs/yunet_n.py (pictures, thresholds for AP); OpenCV's FaceDetectorYN reads the same
outputs (modules/objdetect/src/face_detect.cpp; thresholds for looking).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saccade.errors import ContractError
from saccade.heads._rows import above, cxcywh_to_xyxy, grid_centres, num_cells, read
from saccade.types import Candidates, HeadRule, Recognition, Signature, TensorSpec, Thresholds

__all__ = ["HEAD", "YuNet"]

_STRIDES = (8, 16, 32)
_ROLES = ("cls", "obj", "bbox", "kps")
_MAX_EXPONENT = 20.0
_INPUT = {
    "color": "bgr",
    "resize": "letterbox",
    "anchor": "top_left",
    "pad_value": 0.0,
    "mean": (0.0,) * 3,
    "std": (1.0,) * 3,
}


class YuNet:
    family = "yunet"

    def recognise(self, signature: Signature) -> Recognition | None:
        if len(signature.outputs) != len(_STRIDES) * len(_ROLES):
            return None
        roles: dict[str, str] = {}
        widths = set()
        for stride in _STRIDES:
            found = _level(signature, num_cells(signature.size_hw, (stride,)))
            if found is None:
                return None
            roles |= {f"{role}_{stride}": o.name for role, o in found.items()}
            widths.add(found["kps"].shape[2])
        if len(widths) != 1:
            return None
        num_keypoints = int(widths.pop()) // 2
        return Recognition(
            head=HeadRule(self.family, roles, 1, {"strides": list(_STRIDES)}),
            input=_INPUT,
            detect=Thresholds(score=0.6, iou=0.3),
            evaluate=Thresholds(score=0.02, iou=0.45),
            seen=(
                f"twelve outputs, four for each of the strides 8, 16 and 32: two scores per cell "
                f"(a sigmoid is in the graph), a box and {num_keypoints} key points",
            ),
            assumed=(
                "values 0 to 255 as they are, in the channel order blue, green, red",
                "the picture is scaled to fit, stays in the upper left corner and is filled up "
                "with black to the right and below: the test pipeline of YuNet's public "
                "configuration",
                "the only class is a face",
            ),
            labels=("face",),
        )

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        strides = tuple(rule.options["strides"])
        points_xy, cell_strides = grid_centres(size_hw, strides, 0.0)
        levels = [[read(outputs, rule, f"{role}_{s}", 3) for role in _ROLES] for s in strides]
        for role, arrays in zip(_ROLES, zip(*levels, strict=True), strict=True):
            got = sum(a.shape[1] for a in arrays)
            if got != len(points_xy):
                raise ContractError(
                    f"yunet with strides {list(strides)} on {size_hw[0]} x {size_hw[1]} pixels "
                    f"must have {len(points_xy)} cells, its {role} outputs have {got}; correct "
                    f"the strides or the input size in the contract"
                )
        return [
            _read_picture(
                [[a[i] for a in four] for four in levels], points_xy, cell_strides, thresholds
            )
            for i in range(len(levels[0][0]))
        ]


# Infinite outputs become NaN here, and NaN is dropped later; nobody needs a warning.
@np.errstate(invalid="ignore")
def _read_picture(
    levels: list[list[np.ndarray]],
    points_xy: np.ndarray,
    cell_strides: np.ndarray,
    thresholds: Thresholds,
) -> Candidates:
    """Candidates of one picture; per level cls and obj (n, 1), bbox (n, 4), kps (n, 2 p)."""
    found: list[tuple[np.ndarray, ...]] = []
    start = 0
    for cls, obj, bbox, kps in levels:
        # float32 before the product: in float16 the square root would be of a rounded product
        product = cls[:, 0].astype(np.float32, copy=False) * obj[:, 0]
        scores = np.sqrt(np.clip(product, 0, 1))
        rows = above(scores, thresholds.score)
        if len(rows) or not found:
            found.append((rows + start, scores[rows], bbox[rows], kps[rows]))
        start += len(product)
    rows, scores, bbox, kps = (np.concatenate(part) for part in zip(*found, strict=True))
    corner_xy, stride = points_xy[rows], cell_strides[rows, None]
    bbox = bbox.astype(np.float32, copy=False)
    # Nothing in a picture is exp(20) cells wide; without the limit, garbage would overflow.
    sizes = np.exp(np.minimum(bbox[:, 2:], _MAX_EXPONENT)) * stride
    boxes = cxcywh_to_xyxy(np.concatenate([bbox[:, :2] * stride + corner_xy, sizes], axis=1))
    kps = kps.astype(np.float32, copy=False).reshape(len(rows), kps.shape[1] // 2, 2)
    keypoints = kps * stride[:, :, None] + corner_xy[:, None]
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(keypoints).all(axis=(1, 2))
    return Candidates(
        boxes[finite],
        scores[finite],
        np.zeros(int(finite.sum()), np.int32),
        keypoints_xy=keypoints[finite],
    )


def _level(signature: Signature, num: int) -> dict[str, TensorSpec] | None:
    """The four outputs with num cells by role, or None if there are not just these four."""
    of_level = [o for o in signature.outputs if len(o.shape) == 3 and o.shape[1] == num]
    scores = [o for o in of_level if o.shape[2] == 1]
    boxes = [o for o in of_level if o.shape[2] == 4]
    points = [
        o for o in of_level if isinstance(o.shape[2], int) and o.shape[2] > 4 and not o.shape[2] % 2
    ]
    if len(of_level) != 4 or (len(scores), len(boxes), len(points)) != (2, 1, 1):
        return None
    if any("Sigmoid" not in signature.tails.get(o.name, ()) for o in scores):
        return None
    # The score is their product, so it does not matter if the two change places.
    scores.sort(key=lambda o: "obj" in o.name)
    return dict(zip(_ROLES, (*scores, *boxes, *points), strict=True))


HEAD = YuNet()
