"""How one picture's answer comes from an engine process as arrays."""

from __future__ import annotations

import struct

__all__ = ["ARRAYS_HEAD", "DRAWN_FORMS"]

# Number of boxes, number of key points of each, width, height; then (k, 4) float32 boxes,
# (k,) float32 scores, (k,) int32 classes, (k, p, 2) float32 key points.
ARRAYS_HEAD = struct.Struct("<IIII")
# Forms that are pictures with boxes drawn on them.
DRAWN_FORMS = ("jpeg", "png")
