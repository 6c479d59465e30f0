"""Class names: the 80 and 91 of COCO, and those that Ultralytics' exporter writes into a file."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from saccade.types import Signature

__all__ = ["COCO_80", "COCO_91", "labels_of", "ultralytics_names"]

COCO_80: tuple[str, ...] = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n    ", " ").split(", ")
)

# COCO numbers its 80 classes from 1 to 90 and leaves these out.
_COCO_GAPS = frozenset({0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
_NAMES = iter(COCO_80)
COCO_91: tuple[str, ...] = tuple(
    f"unused {i}" if i in _COCO_GAPS else next(_NAMES) for i in range(91)
)


def ultralytics_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Read the class names that Ultralytics' exporters store, or () if there are none.

    The value is a Python literal: a list, or a dict from the index, without gaps, to the name.
    """
    try:
        value = ast.literal_eval(metadata.get("names", "()"))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()  # some other tool's "names", in another notation
    if isinstance(value, dict):
        if set(value) != set(range(len(value))):
            return ()
        value = [value[i] for i in range(len(value))]
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def labels_of(
    signature: Signature, num_classes: int
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Find the names of num_classes classes.

    Returns:
        The names, or (); what was seen; what is assumed.
    """
    names = ultralytics_names(signature.metadata)
    if len(names) == num_classes:
        return names, (f"the file's metadata lists {num_classes} class names",), ()
    if num_classes == len(COCO_80):
        return COCO_80, (), ("80 classes are taken to be those of COCO, in COCO's order",)
    return (), (), ()
