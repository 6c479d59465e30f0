"""Blood smears as a microscope camera sees them, drawn, so that every box is known.

Light passes through the smear: each cell takes away a share of it per colour (its optical
density), so where cells overlap their densities add (Beer-Lambert), as they do on the slide. What
the lens and the camera do comes after: blur, noise, JPEG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from saccade.errors import InputError

__all__ = ["NAMES", "Picture", "render"]

NAMES = ("Platelets", "RBC", "WBC")
_PLATELET, _RBC, _WBC = range(3)
_MIN_SIDE_PX = 64
# A cell of which less than this share lies in the picture is left out, not drawn as a sliver.
_MIN_INSIDE = (0.8, 0.5, 0.5)

# Colours are medians over the pictures of the BCCD data set, as light that is left of the ground's.
_GROUND_RGB = np.array([201.0, 203.0, 199.0], np.float32)
# Red cells differ from slide to slide: pinkish to brownish.
_RBC_PINK_RGB = np.array([178.0, 146.0, 160.0], np.float32)
_RBC_BROWN_RGB = np.array([186.0, 148.0, 143.0], np.float32)
_RIM_RGB = np.array([180.0, 152.0, 174.0], np.float32)
_CYTOPLASM_RGB = np.array([188.0, 166.0, 198.0], np.float32)
_NUCLEUS_RGB = np.array([134.0, 88.0, 206.0], np.float32)
_PLATELET_RGB = np.array([146.0, 136.0, 200.0], np.float32)


class Picture(NamedTuple):
    """A drawn picture and the truth about it.

    Attributes:
        picture_rgb: (h, w, 3) uint8.
        boxes_xyxy: (k, 4) float32, source pixels, cut at the picture's border.
        classes: (k,) int32, an index into names.
        names: Class names.
    """

    picture_rgb: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]


class _Cell(NamedTuple):
    """Outline of a cell: an ellipse whose radius waves a little with the angle."""

    kind: int
    center_xy: tuple[float, float]
    radii_px: tuple[float, float]
    angle: float
    waves: np.ndarray  # (m, 2): height and phase of the second, third, ... harmonic

    @property
    def reach_px(self) -> float:
        return max(self.radii_px) * (1.0 + float(np.abs(self.waves[:, 0]).sum()))


class _Patch(NamedTuple):
    """The pixels round a cell that lie in the picture.

    Attributes:
        rows, columns: Where the patch lies in the picture.
        rho: (ph, pw) float32 distance from the centre; 1 on the outline.
        theta: (ph, pw) float32 angle in the cell's own frame.
        edge: How far one pixel reaches in units of rho.
    """

    rows: slice
    columns: slice
    rho: np.ndarray
    theta: np.ndarray
    edge: float


class _Look(NamedTuple):
    """What all cells of a picture share: pixels per pixel of 640 x 480, and the red cells' hue."""

    scale: float
    stain: float


def render(rng: np.random.Generator, size_wh: tuple[int, int] = (640, 480)) -> Picture:
    """Draw one blood smear.

    The same state of rng and the same versions of NumPy and OpenCV give the same picture. The
    field of view stays the same at any size: a larger picture shows as many cells, drawn larger.

    Args:
        rng: Where every choice comes from.
        size_wh: Width and height in pixels, at least 64 each.

    Raises:
        InputError: The size is too small.
    """
    width, height = size_wh
    if min(width, height) < _MIN_SIDE_PX:
        raise InputError(
            f"size_wh must be at least {_MIN_SIDE_PX} pixels each way, got {width} x {height}; "
            "ask for a larger picture"
        )
    scale = float(np.sqrt(width * height / (640 * 480)))
    density = np.zeros((height, width, 3), np.float32)
    stain = float(rng.uniform(0.0, 1.0))
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    for cell in _scatter(rng, size_wh, scale):
        patch = _patch(cell, size_wh)
        _DRAW[cell.kind](rng, density[patch.rows, patch.columns], patch, _Look(scale, stain))
        boxes.append(_box(patch))
        classes.append(cell.kind)
    picture_rgb = _expose(rng, density, scale)
    truth = np.array(boxes, np.float32).reshape(-1, 4)
    return Picture(picture_rgb, truth, np.array(classes, np.int32), NAMES)


def _scatter(rng: np.random.Generator, size_wh: tuple[int, int], scale: float) -> list[_Cell]:
    """Choose cells that leave each other visible: large ones first."""
    wanted = [
        (_WBC, int(rng.choice([0, 1, 2], p=[0.08, 0.84, 0.08]))),
        (_RBC, int(rng.integers(9, 19))),
        (_PLATELET, int(rng.choice(5, p=[0.2, 0.3, 0.25, 0.15, 0.1]))),
    ]
    cells: list[_Cell] = []
    for kind, number in wanted:
        for _ in range(number):
            for _ in range(40):
                cell = _outline(rng, kind, size_wh, scale)
                if _inside(cell, size_wh) >= _MIN_INSIDE[kind] and _is_clear(rng, cell, cells):
                    cells.append(cell)
                    break
    return cells


def _outline(rng: np.random.Generator, kind: int, size_wh: tuple[int, int], scale: float) -> _Cell:
    mean_px, spread_px, flat, wave = {
        _PLATELET: (19.5, 2.5, 0.75, 0.06),
        _RBC: (50.0, 5.0, 0.80, 0.018),
        _WBC: (100.0, 13.0, 0.85, 0.025),
    }[kind]
    radius_px = scale * float(np.clip(rng.normal(mean_px, spread_px), mean_px * 0.7, mean_px * 1.4))
    squeeze = float(np.sqrt(1.0 - (1.0 - flat) * rng.random() ** 1.5))
    heights = wave * rng.standard_normal(4) / np.array([1.0, 1.0, 1.5, 2.0])
    return _Cell(
        kind,
        (float(rng.uniform(0, size_wh[0])), float(rng.uniform(0, size_wh[1]))),
        (radius_px / squeeze, radius_px * squeeze),
        float(rng.uniform(0, np.pi)),
        np.stack([np.clip(heights, -2 * wave, 2 * wave), rng.uniform(0, 2 * np.pi, 4)], axis=1),
    )


def _inside(cell: _Cell, size_wh: tuple[int, int]) -> float:
    """Share of the cell's bounding square that lies in the picture."""
    share = 1.0
    for center, size in zip(cell.center_xy, size_wh, strict=True):
        low, high = max(center - cell.reach_px, 0.0), min(center + cell.reach_px, float(size))
        share *= max(high - low, 0.0) / (2 * cell.reach_px)
    return share


def _is_clear(rng: np.random.Generator, cell: _Cell, others: Sequence[_Cell]) -> bool:
    """Whether enough of every cell stays visible; red cells may lean on each other a little."""
    closest = 0.72 if rng.random() < 0.5 else 0.95
    for other in others:
        near = closest if cell.kind == other.kind == _RBC else 1.0
        if math.dist(cell.center_xy, other.center_xy) < near * (cell.reach_px + other.reach_px):
            return False
    return True


def _patch(cell: _Cell, size_wh: tuple[int, int]) -> _Patch:
    reach = cell.reach_px * 1.25 + 3.0  # haloes reach beyond the outline
    low = [max(int(c - reach), 0) for c in cell.center_xy]
    high = [min(int(c + reach) + 1, s) for c, s in zip(cell.center_xy, size_wh, strict=True)]
    x = np.arange(low[0], high[0], dtype=np.float32)[None, :] + 0.5 - cell.center_xy[0]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] + 0.5 - cell.center_xy[1]
    cos, sin = np.float32(np.cos(cell.angle)), np.float32(np.sin(cell.angle))
    u, v = (x * cos + y * sin) / cell.radii_px[0], (y * cos - x * sin) / cell.radii_px[1]
    theta = np.arctan2(v, u)
    radius = np.ones_like(theta)
    for order, (height, phase) in enumerate(cell.waves.astype(np.float32), start=2):
        radius += height * np.cos(order * theta + phase)
    rho = np.hypot(u, v) / radius
    edge = 1.0 / min(cell.radii_px)
    return _Patch(slice(low[1], high[1]), slice(low[0], high[0]), rho, theta, edge)


def _box(patch: _Patch) -> tuple[float, float, float, float]:
    """Corners of what lies within the outline, in pixels of the picture."""
    within = patch.rho <= 1.0
    rows, columns = np.flatnonzero(within.any(axis=1)), np.flatnonzero(within.any(axis=0))
    left, top = patch.columns.start, patch.rows.start
    return (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)


def _density(color_rgb: np.ndarray) -> np.ndarray:
    """Optical density per channel that turns the empty ground into color_rgb."""
    density: np.ndarray = np.log(_GROUND_RGB / color_rgb)
    return density


def _step(distance: np.ndarray, soft: float) -> np.ndarray:
    """1 where distance is well below 0, 0 where well above, with a slope `soft` wide."""
    return np.clip(0.5 - distance / soft, 0.0, 1.0)


def _draw_rbc(rng: np.random.Generator, density: np.ndarray, patch: _Patch, look: _Look) -> None:
    """Draw a disc that is thin in the middle, with a dark rim and a bright halo."""
    rho, pixel = patch.rho, patch.edge * look.scale
    body = _step(rho - 1.0 + 1.5 * pixel, 5.0 * pixel)
    width, depth = rng.uniform(0.4, 0.72), rng.uniform(0.1, 0.9)
    # The dent sits off the middle and is rarely round.
    angle, shift, oval = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.15), rng.uniform(0.6, 1.0)
    u = rho * np.cos(patch.theta - angle) - shift
    v = rho * np.sin(patch.theta - angle) / oval
    dent = np.exp(-((np.hypot(u, v) / width) ** 4))
    tilt = rng.uniform(0.0, 0.2) * u
    body *= (1.0 - depth * dent) * (1.0 + tilt)
    rim = np.exp(-(((rho - 0.92) / 0.06) ** 2)) * rng.uniform(0.1, 0.6)
    halo = np.exp(-(((rho - 1.07) / 0.05) ** 2)) * rng.uniform(0.0, 0.025)
    hue = float(np.clip(look.stain + rng.normal(0, 0.2), 0, 1))
    color = _density(_RBC_PINK_RGB) * (1 - hue) + _density(_RBC_BROWN_RGB) * hue
    density += (body * rng.uniform(0.7, 1.4))[..., None] * color
    density += (0.5 * rim)[..., None] * _density(_RIM_RGB)
    density -= halo[..., None]


def _draw_wbc(rng: np.random.Generator, density: np.ndarray, patch: _Patch, look: _Look) -> None:
    """Draw pale grainy cytoplasm and a dark nucleus of one to five lobes."""
    rho, pixel = patch.rho, patch.edge * look.scale
    grain = _grain(rng, rho.shape, 1.6 * look.scale)
    body = _step(rho - 0.97, 12.0 * pixel) * (1.0 + 0.25 * grain)
    density += (body * rng.uniform(0.7, 1.2))[..., None] * _density(_CYTOPLASM_RGB)
    u, v = rho * np.cos(patch.theta), rho * np.sin(patch.theta)
    number = int(rng.integers(1, 6))
    field = np.zeros_like(rho)
    start, arc = rng.uniform(0, 2 * np.pi), rng.uniform(0.95, 1.5)
    orbit = (0.05, 0.3, 0.42, 0.46, 0.48)[number - 1]
    for i in range(number):
        angle = start + arc * i + rng.normal(0, 0.1)
        size = rng.uniform(0.29, 0.38) * (1.8 if number == 1 else 1.0)
        x, y = orbit * float(np.cos(angle)), orbit * float(np.sin(angle))
        field += np.exp(((u - x) ** 2 + (v - y) ** 2) * (-1.2 / size**2))
    # Metaballs: lobes flow into each other where their fields add up. Chromatin is coarser.
    clumps = _grain(rng, rho.shape, 5.0 * look.scale)
    nucleus = _step(0.45 - field, 0.25) * _step(rho - 0.95, 0.1) * (1.0 + 0.12 * clumps)
    density += (nucleus * rng.uniform(0.7, 1.15))[..., None] * _density(_NUCLEUS_RGB)


def _draw_platelet(
    rng: np.random.Generator, density: np.ndarray, patch: _Patch, look: _Look
) -> None:
    """Draw a small soft speck, darker in the middle."""
    grain = _grain(rng, patch.rho.shape, 2.0 * look.scale)
    body = np.exp(-((patch.rho / 0.8) ** 3)) * (1.0 + 0.2 * grain)
    density += (body * rng.uniform(0.75, 1.4))[..., None] * _density(_PLATELET_RGB)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], size_px: float) -> np.ndarray:
    """(ph, pw) float32 noise of mean 0 and deviation about 1 with specks of that size."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    cv2.GaussianBlur(noise, (0, 0), size_px, dst=noise)
    # Blurring white noise by s pixels divides its deviation by 2 s sqrt(pi).
    noise *= 2.0 * size_px * math.sqrt(math.pi)
    return noise


_DRAW = {_PLATELET: _draw_platelet, _RBC: _draw_rbc, _WBC: _draw_wbc}


def _expose(rng: np.random.Generator, density: np.ndarray, scale: float) -> np.ndarray:
    """Light the smear unevenly, then blur, noise, and a JPEG as a cheap camera makes it."""
    height, width = density.shape[:2]
    # A 4 x 3 grid of lamp levels, blown up: bright and dim corners without any edge.
    lamp = 1.0 + 0.007 * rng.standard_normal((3, 4, 3))
    lamp += 0.015 * rng.standard_normal((3, 4, 1))
    light = cv2.resize(lamp.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    tint = 1.0 + 0.012 * rng.standard_normal(3)
    picture = light * (_GROUND_RGB * tint).astype(np.float32) * np.exp(-density)
    picture = cv2.GaussianBlur(picture, (0, 0), scale * float(rng.uniform(0.8, 1.6)))
    picture += rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(1.6)
    frame = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    _, coded = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])
