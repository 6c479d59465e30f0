"""From what a caller names to one picture after another, in an order that never changes.

Nothing here reads a picture. Whatever cannot be used becomes an item of its own that says why, in
its place, so that one bad name costs one picture and the places of the others stay.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

import numpy as np

from saccade.errors import InputError, PictureError
from saccade.pipeline.listing import has_magic, match, read_list, walk

__all__ = ["Input", "SourceItem", "count", "expand"]

Input: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray"
Piece: TypeAlias = "str | bytes | np.ndarray | PictureError"

PICTURE_ENDINGS = frozenset(
    "jpg jpeg jpe jfif mpo png webp bmp tif tiff gif ppm pgm".split()  # noqa: SIM905
)
VIDEO_ENDINGS = frozenset(
    "mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp mts m2ts ogv".split()  # noqa: SIM905
)
_STDIN = ("-", "@-")


@dataclass(frozen=True, slots=True, eq=False)
class SourceItem:
    """One picture of a job, or why there is none in this place.

    Attributes:
        index: Position in the job, from 0.
        name: The path as it was given or found, "<bytes 3>" or "<array 3>".
        kind: What `value` is; "error" if there is none.
        value: A path, encoded bytes, or (h, w, 3) uint8 RGB; None with an error.
        error: What is wrong, or None.
    """

    index: int
    name: str
    kind: Literal["path", "bytes", "array", "error"]
    value: Path | bytes | np.ndarray | None = None
    error: PictureError | None = None


def expand(inputs: Input | Iterable[Input]) -> Iterator[SourceItem]:
    """Find the pictures that the inputs stand for, one at a time.

    An input is, in this order of trial:

        bytes, an array   a picture
        - or @-           a list of paths on standard input
        a folder          the pictures in it and below it, sorted by name in each folder
        a .txt file       a list of paths; also @FILE
        a file            a picture, whatever its ending
        a pattern         *, ?, [...], and ** for any number of folders: the pictures and
                          folders it matches; only if nothing has the pattern for a name

    Hidden files and folders (.name) are left out of folders and patterns. A list has one path per
    line, relative to the list's folder (of standard input: to the current one); blank lines
    and lines that start with # are skipped. Memory does not grow with the job, apart from the
    names in the folders that are open and, for folders, one number per folder seen.

    Raises:
        InputError: The call is wrong: nothing is given, all that is given is missing, a pattern
            matches nothing, or a single array is no picture. At the end, if there was no picture.
    """
    some = _several(inputs)
    if isinstance(some, Sequence):
        _check(some)
    return _number(some)


def count(inputs: Input | Iterable[Input]) -> int | None:
    """Count the items of `expand`; None if that would use the inputs up (standard input).

    This looks at names only, but it does look at all of them.

    Raises:
        InputError: As in `expand`.
    """
    some = _several(inputs)
    if isinstance(some, Iterator) or any(map(_is_stdin, some)):
        return None
    return sum(1 for _ in expand(some))


def _several(inputs: Input | Iterable[Input]) -> Iterable[Input]:
    if isinstance(inputs, (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray)):
        return [cast(Input, inputs)]
    if isinstance(inputs, Iterable):
        return inputs
    raise InputError(
        f"inputs must be paths, bytes or arrays, or a list of these; got {type(inputs).__name__}"
    )


def _path_of(one: object) -> str | None:
    """The path, pattern or list that an input names; None for a picture itself."""
    return os.fsdecode(one) if isinstance(one, (str, os.PathLike)) else None


def _is_stdin(one: object) -> bool:
    return _path_of(one) in _STDIN


def _check(inputs: Sequence[Input]) -> None:
    """Refuse what is wrong with the call as a whole, before anything starts."""
    if not inputs:
        raise InputError("inputs must name at least one picture; got none")
    if sum(map(_is_stdin, inputs)) > 1:
        raise InputError("- (standard input) must be given once; it is given more often")
    if len(inputs) == 1 and _path_of(inputs[0]) is None:
        problem = next(iter(_pieces(inputs[0], 0)))[1]
        if isinstance(problem, PictureError):
            raise InputError(str(problem))
    for path in map(_path_of, inputs):
        if path is not None and _is_pattern(path) and not any(True for _ in _match(path)):
            raise InputError(
                f"a pattern must match a picture or a folder; {path!r} matches none: check it, "
                "and mind that hidden files are left out"
            )
    if all(_is_missing(_path_of(one)) for one in inputs):
        more = f", nor do the {len(inputs) - 1} others" if len(inputs) > 1 else ""
        raise InputError(
            f"inputs must exist; {_path_of(inputs[0])!r} does not{more}: check the path"
        )


def _is_missing(path: str | None) -> bool:
    if path is None or path in _STDIN or _is_pattern(path):
        return False
    return not (_exists(path) or (path.startswith("@") and _exists(path[1:])))


def _number(inputs: Iterable[Input]) -> Iterator[SourceItem]:
    """Give every piece its place; refuse a job without a picture."""
    index = 0
    for one in inputs:
        for name, piece in _pieces(one, index):
            yield _item(index, name, piece)
            index += 1
    if not index:
        endings = ", ".join(sorted(PICTURE_ENDINGS))
        raise InputError(
            f"inputs must hold at least one picture; none was found (looked for {endings}): name "
            "another folder, or the files themselves"
        )


def _item(index: int, name: str, piece: Piece) -> SourceItem:
    if isinstance(piece, PictureError):
        return SourceItem(index, name, "error", error=piece)
    if isinstance(piece, bytes):
        return SourceItem(index, name, "bytes", piece)
    if isinstance(piece, np.ndarray):
        return SourceItem(index, name, "array", piece)
    return SourceItem(index, name, "path", Path(piece))


def _pieces(one: Input, index: int) -> Iterator[tuple[str, Piece]]:
    path = _path_of(one)
    if path is not None:
        yield from _named(path)
    elif isinstance(one, (bytes, bytearray, memoryview)):
        yield f"<bytes {index}>", bytes(one)
    elif isinstance(one, np.ndarray):
        yield f"<array {index}>", _checked(one)
    else:
        kind = type(one).__name__
        problem = PictureError(
            "an input must be a path, bytes, or an array of (height, width, 3) uint8 RGB; got "
            f"{kind}: convert it"
        )
        yield f"<{kind} {index}>", problem


def _checked(array: np.ndarray) -> np.ndarray | PictureError:
    is_picture = array.ndim == 3 and array.shape[2] == 3 and array.size and array.dtype == np.uint8
    if is_picture:
        return array
    hint = "give a list of pictures" if array.ndim == 4 else "convert it"
    return PictureError(
        "an array must be a picture of (height, width, 3) uint8 RGB; got "
        f"{array.dtype} of shape {array.shape}: {hint}"
    )


def _named(path: str) -> Iterator[tuple[str, Piece]]:
    """What a path stands for that somebody wrote: a folder, a list, a pattern or a picture."""
    if path in _STDIN:
        yield from _listed("-")
    elif os.path.isdir(path):
        yield from _folder(path)
    elif path.startswith("@") and not _exists(path):
        yield from _listed(path[1:])
    elif _is_pattern(path):
        yield from _match(path)
    elif _ending(path) == "txt":
        yield from _listed(path)
    else:
        yield path, _file(path)


def _folder(path: str) -> Iterator[tuple[str, Piece]]:
    """The pictures in a folder. One that is named like a picture and holds none was meant to be
    a picture."""
    is_empty = True
    for piece in walk(path, _is_picture):
        is_empty = False
        yield piece
    if is_empty and _is_picture(path):
        yield (
            path,
            PictureError(
                f"a picture must be a file, {path!r} is a folder without pictures; check the path"
            ),
        )


def _listed(path: str) -> Iterator[tuple[str, Piece]]:
    for line in read_list(path):
        if isinstance(line, PictureError):
            yield path, line
        elif os.path.isdir(line):
            yield from walk(line, _is_picture)
        else:
            yield line, _file(line)


def _file(path: str) -> str | PictureError:
    """Look whether a name leads to something that can be read at all."""
    if _ending(path) in VIDEO_ENDINGS:
        return PictureError(f"{path} must be a picture; it is a video: extract its frames first")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return PictureError(f"{path} must be a file; there is none of that name: check the path")
    except OSError as exc:
        return PictureError(f"{path} must be readable; {exc.strerror}: check the path")
    except ValueError as exc:
        return PictureError(f"{path!r} must be a path; it is none ({exc}): check it")
    if stat.S_ISREG(mode):
        return path
    # A pipe or a device could block the job for ever.
    return PictureError(f"{path} must be an ordinary file; it is a pipe, socket or device")


def _match(pattern: str) -> Iterator[tuple[str, Piece]]:
    ending = _ending(os.path.basename(pattern))
    wanted = "" if has_magic(ending) else ending

    def is_picked(name: str) -> bool:
        return _is_picture(name) or (wanted != "" and _ending(name) == wanted)

    return match(pattern, is_picked, _is_picture)


def _is_pattern(text: str) -> bool:
    return has_magic(text) and not _exists(text)


def _is_picture(name: str) -> bool:
    return _ending(name) in PICTURE_ENDINGS


def _ending(path: str) -> str:
    return os.path.splitext(path)[1][1:].lower()


def _exists(path: str) -> bool:
    """Whether there is something of that name, as far as this process may know."""
    try:
        os.lstat(path)
    except PermissionError:
        return True  # reading it will say why not
    except (OSError, ValueError):
        return False
    return True
