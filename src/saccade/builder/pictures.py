"""The pictures of a build: those it judges by and those it calibrates on, kept apart."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saccade.errors import InputError
from saccade.evaluation.annotations import Annotations, read_annotations
from saccade.pipeline.sources import expand

__all__ = ["Pictures", "calibration_pictures", "gate_pictures", "refuse_shared"]

_MAX_UNLABELLED = 500
_MAX_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """What candidates are judged on.

    Attributes:
        paths: In the order of image ids, or of names.
        annotations: Labels, or None.
    """

    paths: tuple[Path, ...]
    annotations: Annotations | None


def gate_pictures(data: Path | None, images: Path | None) -> Pictures:
    """Find the pictures to judge by.

    Args:
        data: COCO instances JSON, or None.
        images: Folder of the pictures.

    Raises:
        AnnotationError: The annotation file cannot be used.
        InputError: There are no pictures, or some are missing.
    """
    if images is None:
        raise InputError(
            "a build must be judged on pictures, none are given; name a folder with --images, and "
            "with --data the annotation file if they are labelled"
        )
    if data is None:
        return Pictures(_in_folder(images, _MAX_UNLABELLED), None)
    annotations = read_annotations(data)
    return Pictures(_listed(annotations, images, "--images"), annotations)


def _in_folder(folder: Path, at_most: int | None = None) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise InputError(f"pictures must be in a folder, {folder} is none; check the path")
    found = (Path(i.value) for i in expand([folder]) if isinstance(i.value, Path))
    return tuple(itertools.islice(found, at_most))


def _listed(annotations: Annotations, folder: Path, option: str) -> tuple[Path, ...]:
    images = sorted(annotations.images, key=lambda image: image.id)
    paths = tuple(folder / image.file_name for image in images)
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"all {len(paths)} pictures of the annotation file must be in {folder}, {len(missing)} "
            f"are not: {', '.join(missing[:_MAX_SHOWN])}; check {option}"
        )
    return paths


def calibration_pictures(data: Path | None, images: Path | None) -> tuple[Path, ...]:
    """Find the pictures to calibrate on; none if neither is given.

    Raises:
        AnnotationError: The annotation file cannot be used.
        InputError: Pictures are missing.
    """
    if images is None:
        if data is not None:
            raise InputError(
                "--calibration-data must come with --calibration-images, the folder that its file "
                "names are relative to"
            )
        return ()
    if data is None:
        return _in_folder(images)
    return _listed(read_annotations(data), images, "--calibration-images")


def refuse_shared(gate: Sequence[Path], calibration: Sequence[Path]) -> None:
    """Refuse pictures that are calibrated on and judged by: the verdict would flatter.

    Raises:
        InputError: Some files have the same content.
    """
    judged = {_digest(path): path for path in gate}
    both = [(judged[d], path) for path in calibration if (d := _digest(path)) in judged]
    if both:
        shown = ", ".join(f"{a.name} is {b}" for a, b in both[:_MAX_SHOWN])
        raise InputError(
            f"calibration must use other pictures than the gate, {len(both)} of "
            f"{len(calibration)} are the same: {shown}; calibrate on the training part"
        )


def _digest(path: Path) -> bytes:
    """Of the content; of the name where there is none to be read."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return str(path).encode()
