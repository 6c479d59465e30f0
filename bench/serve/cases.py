"""The jobs of the servers: an encoded picture in, its boxes out."""

from __future__ import annotations

from bench.cases import CASES as FILE_CASES
from bench.cases import Case, list_coco

__all__ = ["CASES"]

CASES = {
    "light_person_192": Case(
        name="light_person_192",
        title="light_person_192, COCO pictures",
        family="yolox",
        model="light_person_192.onnx",
        size_hw=(192, 192),
        num_pictures=33,
        list_pictures=list_coco,
    ),
    "cells_640": FILE_CASES["cells_640"],
}
