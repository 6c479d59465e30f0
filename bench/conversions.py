"""Ways from a uint8 picture (h, w, 3) to scaled float32 planes (3, h, w) in the network's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from bench.turns import Candidate, largest, measure
from saccade.types import InputRule
from saccade.vision.place import place_reference

__all__ = ["FLOAT32_ERROR", "convert_case", "fill"]

ROUNDS = 101
FLOOR = "floor: the same bytes filled with one constant"
FLOAT32_ERROR = 1e-6
KEPT = "`cv2.split`, `np.copyto`, `np.multiply` in place"


def convert_case(picture: np.ndarray, input_wh: tuple[int, int]) -> dict[str, Any]:
    """All candidates on a picture that already has the size it takes in the input."""
    wh = picture.shape[1::-1]
    rule = InputRule(name="images", size_hw=input_wh[::-1])
    out = np.empty((3, *rule.size_hw), np.float32)
    rows = slice((input_wh[1] - wh[1]) // 2, (input_wh[1] - wh[1]) // 2 + wh[1])
    region = out[:, rows]
    want = place_reference(picture, dataclasses.replace(rule, dtype="float64"))[0][:, rows]

    def checked(run: Callable[[], Any]) -> Candidate:
        def measure_error() -> float:
            out.fill(np.nan)
            run()
            return largest(region, want)

        return Candidate(run, measure_error, FLOAT32_ERROR)

    ways = conversions(picture, region)
    strips = {KEPT: ways[KEPT]} | {
        f"the same in strips of {num} rows": in_strips(picture, region, num)
        for num in (30, 60, 120, 240)
        if num < wh[1]
    }

    candidates = {FLOOR: fill(region)} | {name: checked(way) for name, way in ways.items()}
    return {
        "bytes_read": picture.nbytes,
        "bytes_written": region.nbytes,
        "bytes_padding": out.nbytes - region.nbytes,
        "floor": FLOOR,
        "kept": KEPT,
        "candidates": measure(candidates, ROUNDS),
        "strips": measure({n: checked(w) for n, w in strips.items()}, ROUNDS),
        "parts": measure(parts(picture, region, rule), ROUNDS),
    }


def fill(out: np.ndarray) -> Candidate:
    """The floor: it computes nothing, so only that all was written can be checked."""

    def measure_error() -> float:
        out.fill(0.5)
        return largest(out, np.full_like(out, 0.5))

    return Candidate(lambda: out.fill(0.5), measure_error)


def conversions(picture: np.ndarray, region: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Ways to write picture / 255 as planes; every buffer but blobFromImage's is reused."""
    h, w = picture.shape[:2]
    planes = list(np.empty((3, h, w), np.uint8))
    floats = np.empty((h, w, 3), np.float32)
    scale, levels = np.float32(1 / 255), np.float32(255)
    table = (np.arange(256) / 255).astype(np.float32)
    pairs = list(zip(planes, region, strict=True))

    def per_plane(write: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[[], None]:
        def run() -> None:
            cv2.split(picture, planes)
            for plane, target in pairs:
                write(plane, target)

        return run

    def widen_multiply(plane: np.ndarray, target: np.ndarray) -> None:
        np.copyto(target, plane)
        np.multiply(target, scale, out=target)

    def widen_divide(plane: np.ndarray, target: np.ndarray) -> None:
        np.copyto(target, plane)
        np.divide(target, levels, out=target)

    def look_up_then_split() -> None:
        cv2.LUT(picture, table, dst=floats)
        cv2.split(floats, list(region))

    return {
        KEPT: per_plane(widen_multiply),
        "`cv2.split`, `np.copyto`, `np.divide` in place": per_plane(widen_divide),
        "`cv2.split`, `cv2.addWeighted` to float32": per_plane(
            lambda p, t: cv2.addWeighted(p, 1 / 255, p, 0, 0, dst=t, dtype=cv2.CV_32F)
        ),
        "`cv2.split`, `np.multiply` from uint8 to float32": per_plane(
            lambda p, t: np.multiply(p, scale, out=t)
        ),
        "`cv2.split`, `cv2.LUT` with a float32 table": per_plane(
            lambda p, t: cv2.LUT(p, table, dst=t)
        ),
        "`cv2.LUT` on pixels, then `cv2.split` of floats": look_up_then_split,
        "`np.multiply` straight from the strided picture": lambda: np.multiply(
            picture.transpose(2, 0, 1), scale, out=region
        ),
        "`cv2.split`, `cv2.multiply` to float32": per_plane(
            lambda p, t: cv2.multiply(p, 1.0, dst=t, scale=1 / 255, dtype=cv2.CV_32F)
        ),
        "`cv2.dnn.blobFromImage` and a copy into the batch": lambda: np.copyto(
            region, cv2.dnn.blobFromImage(picture, 1 / 255)[0]
        ),
        "`cv2.split`, `cv2.divide` to float32": per_plane(
            lambda p, t: cv2.divide(p, 255.0, dst=t, dtype=cv2.CV_32F)
        ),
    }


def in_strips(picture: np.ndarray, region: np.ndarray, num: int) -> Callable[[], None]:
    """The kept way, a few rows at a time."""
    starts = range(0, len(picture), num)
    ways = [conversions(picture[at : at + num], region[:, at : at + num])[KEPT] for at in starts]

    def run() -> None:
        for way in ways:
            way()

    return run


def parts(picture: np.ndarray, region: np.ndarray, rule: InputRule) -> dict[str, Candidate]:
    """What the kept way is made of, up to which point."""
    planes = np.empty((3, *picture.shape[:2]), np.uint8)
    scale = np.float32(1 / 255)
    plain = dataclasses.replace(
        rule, size_hw=picture.shape[:2], mean=(0.0,) * 3, std=(1.0,) * 3, dtype="float64"
    )
    want = place_reference(picture, plain)[0]

    def split() -> None:
        cv2.split(picture, list(planes))

    def widen() -> None:
        split()
        for plane, target in zip(planes, region, strict=True):
            np.copyto(target, plane)

    def multiply() -> None:
        split()
        for plane, target in zip(planes, region, strict=True):
            np.copyto(target, plane)
            np.multiply(target, scale, out=target)

    def error(run: Callable[[], None], written: np.ndarray, scaled: np.ndarray) -> float:
        planes.fill(7)
        region.fill(np.nan)
        run()
        return largest(written, scaled)

    return {
        "`cv2.split`": Candidate(split, lambda: error(split, planes, want)),
        "and `np.copyto`: all for mean 0, std 1": Candidate(
            widen, lambda: error(widen, region, want)
        ),
        "and `np.multiply`: the whole": Candidate(
            multiply, lambda: error(multiply, region, want / 255), FLOAT32_ERROR
        ),
    }
