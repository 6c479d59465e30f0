"""Labelled pictures for `nets.mean_color_detector`: it finds every box in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from saccade.vision.draw import encode_jpeg

NUM_PICTURES = 24
NAMES = ("red", "blue")


def draw(folder: Path, num: int = NUM_PICTURES, seed: int = 0, side: int = 32) -> Path:
    """Write pictures and annotations.json; each picture is red or blue of its own shade."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, boxes = [], []
    for i in range(num):
        picture = np.zeros((side, side, 3), np.uint8)
        picture[..., 2 * (i % 2)] = 160 + rng.integers(0, 90)
        picture[..., 1] = rng.integers(0, 255)
        (folder / f"{i:02}.jpg").write_bytes(encode_jpeg(picture, 100))
        images.append({"id": i + 1, "file_name": f"{i:02}.jpg", "width": side, "height": side})
        boxes.append(
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": 1 + i % 2,
                "bbox": [side // 4, side // 4, side // 2, side // 2],
                "area": side * side // 4,
                "iscrowd": 0,
            }
        )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return path
