"""Bodies of several parts.

Source: RFC 7578 and RFC 2046, section 5.1.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from saccade.server.problems import Problem

__all__ = ["Part", "boundary_of", "split_parts"]

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,200})"|([^;\s"]{1,200}))', re.IGNORECASE)
_NAME = re.compile(rb';\s*(filename|name)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_MAX_HEAD_BYTES = 8192


class Part(NamedTuple):
    """One part.

    Attributes:
        name: Of the field.
        file_name: What the client calls the file, or "".
        content: Its bytes.
    """

    name: str
    file_name: str
    content: memoryview


def boundary_of(content_type: str) -> bytes:
    """What separates the parts.

    Raises:
        Problem: The type does not say.
    """
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise Problem(
            "input",
            "multipart/form-data must name its boundary",
            f"it is {content_type[:120]!r}",
            "let the client library set the header",
        )
    return (match[1] or match[2]).encode("latin-1", "replace")


def split_parts(body: bytes, boundary: bytes, max_parts: int) -> list[Part]:
    """Take a body apart; contents share its memory.

    Raises:
        Problem: It is not made of parts, or has too many.
    """
    mark = b"--" + boundary
    view = memoryview(body)
    at = body.find(mark)
    if at != 0 and body[at - 2 : at] != b"\r\n":
        at = -1
    parts: list[Part] = []
    while at >= 0:
        at += len(mark)
        if body[at : at + 2] == b"--":
            return parts
        line_end = body.find(b"\r\n", at)
        head_end = body.find(b"\r\n\r\n", line_end, line_end + _MAX_HEAD_BYTES)
        end = body.find(b"\r\n" + mark, max(head_end + 2, 0))
        if line_end < 0 or head_end < 0 or end < 0 or body[at:line_end].strip(b" \t"):
            break
        if len(parts) == max_parts:
            raise Problem(
                "large",
                f"a body must have at most {max_parts} parts",
                "this one has more",
                "send several requests",
            )
        names = {key.lower(): value for key, value in _NAME.findall(body[line_end:head_end])}
        content = view[min(head_end + 4, end) : end]
        parts.append(Part(_text(names.get(b"name")), _text(names.get(b"filename")), content))
        at = end + 2
    raise Problem(
        "input",
        "a multipart body must have parts between its boundaries and end with one",
        f"this one breaks off after {len(parts)} parts",
        "send all of it, with the boundary that its header names",
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")[:256]
