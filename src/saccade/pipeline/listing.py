"""Folders, patterns and text lists: names and nothing else, one at a time."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

from saccade.errors import PictureError

__all__ = ["IsPicture", "has_magic", "match", "read_list", "walk"]

IsPicture: TypeAlias = Callable[[str], bool]
Named: TypeAlias = "tuple[str, str | PictureError]"

# Longer than any path that the system takes: what has no line end by then is no list.
MAX_LINE_BYTES = 1 << 16
MAGIC = re.compile(r"[*?[]")


class _Entry(NamedTuple):
    name: str
    is_folder: bool
    is_file: bool
    is_link: bool


class _Folder(NamedTuple):
    """A folder that is being walked, with what of the pattern can still match in it.

    Attributes:
        path: As it was given or found.
        entries: What is left of it.
        states: Places in the pattern; None if all pictures below are wanted.
    """

    path: str
    entries: Iterator[_Entry]
    states: frozenset[int] | None


def has_magic(text: str) -> bool:
    """Say whether a text holds *, ? or [."""
    return MAGIC.search(text) is not None


def walk(root: str, is_picture: IsPicture) -> Iterator[Named]:
    """Yield the pictures in a folder and below it, sorted by name in each folder.

    No folder is walked twice, whether links lead in a circle or to the same place. A folder that
    cannot be read, a folder named like a picture and a name that leads to no ordinary file are
    errors in their places.
    """
    yield from _walk(root, None, [], (is_picture, is_picture))


def match(pattern: str, is_picked: IsPicture, is_picture: IsPicture) -> Iterator[Named]:
    """Yield what a pattern matches, each file once, sorted by name in each folder.

    Args:
        pattern: With *, ?, [...] inside one name, and ** for any number of folders.
        is_picked: Which of the matching files are wanted.
        is_picture: Which files in matching folders are wanted.
    """
    parts = [part for part in pattern.split("/") if part]
    root = "/" if pattern.startswith("/") else ""
    while not has_magic(parts[0]):
        root = os.path.join(root, parts.pop(0))
    start = _closure({0}, parts)
    yield from _walk(root, start, parts, (is_picked, is_picture))


def read_list(path: str) -> Iterator[str | PictureError]:
    """Yield the paths in a text list ("-" is standard input), made relative to its folder.

    Names that are not UTF-8 are kept as the system gives them (surrogate escapes).
    """
    folder = "" if path == "-" else os.path.dirname(path)
    try:
        with _open(path) as stream:
            line = stream.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                yield PictureError(f"{path} must be a text list in UTF-8; it is UTF-16: convert it")
                return
            while line:
                if len(line) >= MAX_LINE_BYTES - 3:
                    yield PictureError(
                        f"{path} must be a text list with one path per line; it has a line of more "
                        f"than {len(line)} bytes: is it a list at all"
                    )
                    return
                name = os.fsdecode(line.rstrip(b"\r\n"))
                if name.strip() and not name.lstrip().startswith("#"):
                    yield os.path.join(folder, name)
                line = stream.readline(MAX_LINE_BYTES)
    except FileNotFoundError:
        yield PictureError(f"{path} must be a text list; there is none of that name")
    except OSError as exc:
        yield PictureError(f"{path} must be a readable text list; {exc.strerror}")


def _open(path: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if path == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return open(path, "rb")


def _walk(
    root: str,
    states: frozenset[int] | None,
    parts: list[str],
    wanted: tuple[IsPicture, IsPicture],
) -> Iterator[Named]:
    """Walk with a stack, not by recursion: folders nest deeper than Python's calls may."""
    seen: set[tuple[int, int]] = set()
    stack: list[_Folder] = []

    def enter(path: str, states: frozenset[int] | None) -> Iterator[Named]:
        try:
            status = os.stat(path or ".")
            place = (status.st_dev, status.st_ino)
            if place in seen:
                return
            seen.add(place)
            stack.append(_Folder(path, iter(_entries(path)), states))
        except OSError as exc:
            if states is None or not isinstance(exc, (FileNotFoundError, NotADirectoryError)):
                yield path, PictureError(f"{path} must be a readable folder; {exc.strerror}")

    yield from enter(root, states)
    while stack:
        folder = stack[-1]
        entry = next(folder.entries, None)
        if entry is None:
            stack.pop()
            continue
        path = os.path.join(folder.path, entry.name)
        after = folder.states
        if after is not None:
            after = _step(after, entry.name, parts)
        is_whole = after is None or len(parts) in after
        is_wanted = wanted[after is None](entry.name)
        if entry.is_folder:
            if after is None and is_wanted:
                yield path, PictureError(f"{path} must be a picture; it is a directory")
            if after is None or after:
                # A folder that matches is wanted with all that is below it.
                yield from enter(path, None if is_whole else after)
        elif is_whole and is_wanted:
            yield path, path if entry.is_file else _no_file(path, entry)


def _no_file(path: str, entry: _Entry) -> PictureError:
    what = "a link that leads nowhere" if entry.is_link else "a pipe, socket or device"
    return PictureError(f"{path} must be an ordinary file; it is {what}")


def _entries(path: str) -> list[_Entry]:
    """The visible entries of a folder, by name."""
    with os.scandir(path or ".") as found:
        entries = [
            _Entry(entry.name, _is_folder(entry), _is_file(entry), entry.is_symlink())
            for entry in found
            if not entry.name.startswith(".")
        ]
    entries.sort()
    return entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _closure(states: set[int], parts: list[str]) -> frozenset[int]:
    """Add the places behind every **, which may stand for no folder at all."""
    for i in sorted(states):
        while i < len(parts) and parts[i] == "**":
            i += 1
            states.add(i)
    return frozenset(states)


def _step(states: frozenset[int], name: str, parts: list[str]) -> frozenset[int]:
    """Where in the pattern one may be after one more name: many places at once because of **.

    Source: K. Thompson, "Regular expression search algorithm", 1968.
    """
    after: set[int] = set()
    for i in states:
        if i == len(parts):
            continue
        if parts[i] == "**":
            after.add(i)
        elif fnmatch.fnmatchcase(name, parts[i]):
            after.add(i + 1)
    return _closure(after, parts)
