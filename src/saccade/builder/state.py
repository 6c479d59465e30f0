"""What a build has found out so far, on disk after every finding."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from saccade.builder.candidates import key_of
from saccade.builder.records import Candidate, Islands, Row
from saccade.errors import InputError, SinkError

__all__ = ["State", "digest_of_files", "open_state"]

_NAME = "state.json"
_VERSION = 1


class _Saved(msgspec.Struct):
    identity: dict[str, str]
    rows: dict[str, Row]
    rounds: list[dict[str, float]]
    spent_s: dict[str, float]
    islands: dict[str, Islands] = {}
    version: int = _VERSION


class State:
    """Rows and rounds of one build; kept in a folder beside its output.

    Attributes:
        folder: Files, answers, logs and the state itself.
        rows: By `key_of`, in the order in which they came up.
        rounds: Interleaved rounds: what each candidate reached in it.
        spent_s: By activity, over all runs; brought up to date by whoever keeps the time.
        islands: What has to stay in FP32, by the candidate that was refused without.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.rows: dict[str, Row] = {}
        self.rounds: list[dict[str, float]] = []
        self.spent_s: dict[str, float] = {}
        self.islands: dict[str, Islands] = {}
        self._identity = dict(identity)

    def row(self, candidate: Candidate) -> Row:
        """A candidate's row; a new one waits."""
        return self.rows.setdefault(key_of(candidate), Row(candidate))

    def put(self, row: Row) -> None:
        """Replace a candidate's row, and save."""
        self.rows[key_of(row.candidate)] = row
        self.save()

    def save(self) -> None:
        """Write everything; at no time is there half a file.

        Raises:
            SinkError: The file could not be written.
        """
        saved = _Saved(self._identity, self.rows, self.rounds, self.spent_s, self.islands)
        aside = self.folder / (_NAME + ".partial")
        try:
            aside.write_bytes(msgspec.json.format(msgspec.json.encode(saved), indent=1))
            os.replace(aside, self.folder / _NAME)
        except OSError as exc:
            raise SinkError(
                f"{self.folder} must be writable, it is not ({exc.strerror}); free space or "
                "choose another folder"
            ) from exc

    def restore(self, saved: _Saved) -> None:
        """Take over what an earlier run found out."""
        self.rows, self.rounds = dict(saved.rows), list(saved.rounds)
        self.spent_s, self.islands = dict(saved.spent_s), dict(saved.islands)


def open_state(folder: Path, identity: Mapping[str, str], *, resume: bool) -> State:
    """Begin a build, or go on with one that was interrupted.

    Args:
        folder: Beside the output.
        identity: What must be the same for findings to hold, by name.
        resume: Go on with what is there.

    Raises:
        InputError: There is an interrupted build and resume is False, or it is another build.
    """
    state, path = State(folder, identity), folder / _NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        state.save()
        return state
    if not resume:
        raise InputError(
            f"a build into this folder was interrupted, its findings are in {folder}; go on with "
            "--resume, or remove that folder to begin anew"
        )
    saved = _read(path)
    changed = sorted(
        name
        for name in {*saved.identity, *identity}
        if saved.identity.get(name) != identity.get(name)
    )
    if changed:
        first = changed[0]
        raise InputError(
            f"only the same build can be resumed; {', '.join(changed)} changed ({first} was "
            f"{saved.identity.get(first)!r}, is {identity.get(first)!r}); remove {folder} to begin "
            "anew"
        )
    state.restore(saved)
    return state


def _read(path: Path) -> _Saved:
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
    except (OSError, msgspec.MsgspecError) as exc:
        raise InputError(
            f"{path} must hold the state of a build, it does not ({exc}); remove its folder to "
            "begin anew"
        ) from exc
    if saved.version != _VERSION:
        raise InputError(
            f"{path} must have version {_VERSION}, it has {saved.version}; remove its folder to "
            "begin anew"
        )
    return saved


def digest_of_files(paths: list[Path]) -> str:
    """SHA-256 in hex over names, sizes and contents."""
    digest = hashlib.sha256()
    for path in paths:
        data = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
