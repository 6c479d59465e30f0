"""The cases: which model, which pictures, which thresholds, how many pictures a round takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CASES", "ROOT", "SHARED", "WORK", "Case"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SACCADE_SHARED", ROOT.parent / "shared" / "data"))
WORK = ROOT / "bench" / ".work"
SEED = 20261120
NOISE = 2.0
JPEG_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Case:
    """One question: files on disk to final boxes, with this model on these pictures.

    Attributes:
        name: What the command line calls it.
        title: What the table calls it.
        family: "yolov8", "yolox" or "fastestdet": how pictures go in and how rows are read.
        model: File in the folder of shared models.
        size_hw: Height and width of the model's input in pixels.
        num_pictures: Pictures in one timed round; the list below is repeated up to that.
        list_pictures: Makes the pictures if need be and lists their paths.
        annotations: COCO file with the boxes of (some of) the pictures, or None.
        score: Boxes at or below this score are dropped, by every contender alike.
        iou: Boxes of one class that overlap a better one by more than this are dropped.
    """

    name: str
    title: str
    family: str
    model: str
    size_hw: tuple[int, int]
    num_pictures: int
    list_pictures: Callable[[], list[Path]]
    annotations: str | None = None
    score: float = 0.25
    iou: float = 0.45

    @property
    def model_path(self) -> str:
        return str(SHARED / "models" / self.model)

    def round_paths(self, num: int | None = None) -> list[str]:
        """Paths of one round: every picture in turn, from the first again after the last."""
        pictures = [str(path) for path in self.list_pictures()]
        wanted = self.num_pictures if num is None else num
        return [pictures[i % len(pictures)] for i in range(wanted)]


def list_bccd_test() -> list[Path]:
    folder = SHARED / "datasets" / "bccd"
    images = json.loads((folder / "annotations" / "test.json").read_text())["images"]
    return [folder / "images" / name for name in sorted(image["file_name"] for image in images)]


def list_coco() -> list[Path]:
    return sorted((SHARED / "datasets" / "coco_ccby" / "images").glob("*.jpg"))


def list_1080p() -> list[Path]:
    """The 4K mosaic at half its size, and eleven windows cut out of it at full size."""
    return _make("1080p", 12, _cut_1080p)


def list_4k() -> list[Path]:
    """The 4K mosaic, and seven windows of it enlarged four times in area, with a sensor's noise.

    The network sees the mosaic at a ninth of its size and finds next to nothing; the windows hold
    objects as large as a 4K camera's. The noise gives them the bytes of a photograph.
    """
    return _make("4k", 8, _enlarge_window)


def _cut_1080p(mosaic: np.ndarray, index: int) -> np.ndarray:
    import cv2
    import numpy as np

    if index == 0:
        return cv2.resize(mosaic, (1920, 1080), interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng([SEED, index])
    top, left = int(rng.integers(0, 1081)), int(rng.integers(0, 1921))
    return mosaic[top : top + 1080, left : left + 1920]


def _enlarge_window(mosaic: np.ndarray, index: int) -> np.ndarray:
    import cv2
    import numpy as np

    if index == 0:
        return mosaic
    window = _cut_1080p(mosaic, 100 + index)
    large = cv2.resize(window, (3840, 2160), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noise = np.random.default_rng([SEED, 200 + index]).normal(0, NOISE, large.shape)
    return np.clip(large + noise, 0, 255).round().astype(np.uint8)


def _make(kind: str, num: int, cut: Callable[[np.ndarray, int], np.ndarray]) -> list[Path]:
    folder = WORK / "pictures" / kind
    paths = [folder / f"{index:02}.jpg" for index in range(num)]
    if not all(path.is_file() for path in paths):
        import cv2
        import numpy as np

        folder.mkdir(parents=True, exist_ok=True)
        mosaic = cv2.imread(str(SHARED / "images" / "made_mosaic_3840x2160.jpg"))
        for index, path in enumerate(paths):
            picture = np.ascontiguousarray(cut(mosaic, index))
            cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return paths


CASES = {
    case.name: case
    for case in (
        Case(
            name="cells_640",
            title="cells_640, 640x480",
            family="yolov8",
            model="cells_640.onnx",
            size_hw=(640, 640),
            num_pictures=120,
            list_pictures=list_bccd_test,
            annotations="datasets/bccd/annotations/test.json",
        ),
        Case(
            name="yolox_nano",
            title="yolox_nano, COCO pictures",
            family="yolox",
            model="yolox_nano_416.onnx",
            size_hw=(416, 416),
            num_pictures=560,
            list_pictures=list_coco,
            annotations="datasets/coco_ccby/annotations/instances_80.json",
        ),
        Case(
            name="fastestdet",
            title="fastestdet, COCO pictures",
            family="fastestdet",
            model="fastestdet_352.onnx",
            size_hw=(352, 352),
            num_pictures=1200,
            list_pictures=list_coco,
            annotations="datasets/coco_ccby/annotations/instances_80.json",
        ),
        Case(
            name="yolox_nano_1080p",
            title="yolox_nano, 1080p",
            family="yolox",
            model="yolox_nano_416.onnx",
            size_hw=(416, 416),
            num_pictures=360,
            list_pictures=list_1080p,
        ),
        Case(
            name="yolox_nano_4k",
            title="yolox_nano, 4K",
            family="yolox",
            model="yolox_nano_416.onnx",
            size_hw=(416, 416),
            num_pictures=180,
            list_pictures=list_4k,
        ),
    )
}
