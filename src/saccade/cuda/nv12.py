"""Frames as video decoders give them: a plane of luma, then one of chroma at half the size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from saccade.cuda.prepare import BT601, BT601_FULL, BT709
from saccade.errors import InputError

__all__ = ["Nv12Frame"]

Matrix: TypeAlias = Literal["bt601", "bt709", "bt601_full"]
_MATRICES: dict[str, int] = {"bt601": BT601, "bt709": BT709, "bt601_full": BT601_FULL}


@dataclass(frozen=True, slots=True, eq=False)
class Nv12Frame:
    """One frame in host memory, which a path takes in place of a picture.

    Attributes:
        rows: (h * 3 / 2, w) uint8: h rows of Y, then h / 2 rows of U and V in turns. Width and
            height are even.
        matrix: How it was made from RGB: of limited range by BT.601 or BT.709, or BT.601 of full
            range.

    Raises:
        InputError: It is not laid out like that.
    """

    rows: np.ndarray
    matrix: Matrix = "bt601"

    def __post_init__(self) -> None:
        rows = self.rows
        is_laid = rows.ndim == 2 and rows.dtype == np.uint8 and rows.size > 0
        if not is_laid or rows.shape[0] % 3 or rows.shape[1] % 2:
            raise InputError(
                "an NV12 frame must be uint8 of shape (h * 3 / 2, w) with even w and h, it is "
                f"{rows.dtype} of shape {rows.shape}; put the plane of U and V below that of Y"
            )
        if self.matrix not in _MATRICES:
            raise InputError(
                f"the matrix of an NV12 frame must be one of {', '.join(_MATRICES)}, got "
                f"{self.matrix!r}; look at the stream's colour space"
            )

    @property
    def wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rows.shape[1], self.rows.shape[0] * 2 // 3

    @property
    def matrix_code(self) -> int:
        """As `saccade.cuda.prepare.describe` takes it."""
        return _MATRICES[self.matrix]
