"""A job's memory: one line per finished picture, written at once, kept until the job is done.

The journal is the only thing that is written while a job runs. A process that is killed, a full
disk or a power cut cost at most the pictures that were not in it yet; the final files are made
from it at the end, and only then is it removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np

from saccade.errors import InputError, SinkError
from saccade.formats import ErrorNote, Record
from saccade.pipeline.decimals import shortest_decimals
from saccade.types import Detections, Result

__all__ = ["FILE_NAME", "Journal", "explain"]

FILE_NAME = ".saccade-job.jsonl"
SCHEMA = 1
# Kill -9 loses nothing that was handed to the system; a power cut loses at most this.
SYNC_INTERVAL_S = 1.0

Fields = TypeVar("Fields", bound=msgspec.Struct)

REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file grew beyond the limit on file sizes; raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only; name another folder",
    errno.EACCES: "permission denied; change it or name another folder",
    errno.EPERM: "the operation is not permitted; change that or name another folder",
    errno.ENOENT: "it, or the folder it is in, has vanished while the job ran",
    errno.ENOTDIR: "a part of the path is a file, not a folder; name another folder",
    errno.EEXIST: "it is a file, not a folder; name another folder",
    errno.EISDIR: "a folder has the name of the file; move it away",
    errno.ENAMETOOLONG: "the name is too long; name another folder",
}


class _Header(msgspec.Struct):
    schema: int
    identity: dict[str, Any]


class _Found(msgspec.Struct):
    """What a finished picture's line must tell when a job is taken up again."""

    index: int
    path: str
    scores: list[float] = []
    error: ErrorNote | None = None


class Journal:
    """An open journal, locked for this process. One thread at a time.

    Attributes:
        path: The file.
        num_done: Pictures in it.
        num_detections: Detections in it.
        num_errors: Pictures in it that have an error.
        num_resumed: Pictures that were in it when it was opened.
        num_left: Of these, how many `take` was not asked for yet.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.num_done = self.num_detections = self.num_errors = 0
        self.num_resumed = self.num_left = 0
        self._fd = fd
        self._end = 0
        self._synced_at_s = time.monotonic()
        self._encode = msgspec.json.Encoder().encode
        self._keys = np.empty(0, np.uint64)
        self._counts = np.empty(0, np.int64)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        outputs: Sequence[str] = (),
    ) -> Journal:
        """Open the journal in a folder, making both if need be.

        Args:
            folder: Where the job's files go.
            identity: All that decides the results, as plain values.
            resume: Go on with the unfinished job that is there, if any.
            overwrite: Forget what is there.
            outputs: Names of the final files; one that is there already is refused.

        Raises:
            InputError: There are results of another or a finished job, or another process is at
                work in the folder.
            SinkError: The folder cannot be written.
        """
        if resume and overwrite:
            raise InputError("--resume goes on and --overwrite starts again: give one of the two")
        path = Path(folder) / FILE_NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = _open_locked(path)
        except OSError as exc:
            raise explain(exc, path.parent, 0) from exc
        journal = cls(path, fd)
        try:
            journal._begin(identity, resume, overwrite, outputs)
        except OSError as exc:
            journal._abandon()
            raise explain(exc, path, 0) from exc
        except BaseException:
            journal._abandon()
            raise
        return journal

    def take(self, name: str) -> bool:
        """Say whether a picture of this name was finished before, and count it as used.

        A path that was given twice and finished once is True once. Names are compared by 64-bit
        hashes: 12 to 16 bytes per picture, and a chance of mistaking one that stays below 1 in
        10 million for a million pictures.
        """
        if not self.num_left:
            return False
        key = _key(_text(name))
        at = int(np.searchsorted(self._keys, np.uint64(key)))  # an int would copy all keys
        if at == len(self._keys) or self._keys[at] != key or not self._counts[at]:
            return False
        self._counts[at] -= 1
        self.num_left -= 1
        return True

    def append(self, result: Result) -> None:
        """Write one picture's line; when this returns, killing the process cannot lose it.

        The line's index is its place in the journal: that of the result, unless the inputs
        changed between two runs. Detections that hold a number that is not finite are written as
        an error of that picture.

        Raises:
            SinkError: It could not be written. The journal holds what it held before.
        """
        record = _record(result, self.num_done)
        try:
            self._write(self._encode(record) + b"\n")
        except OSError as exc:
            raise explain(exc, self.path, self.num_done) from exc
        self.num_done += 1
        self.num_detections += len(record.scores)
        self.num_errors += record.error is not None

    def records(self, fields: type[Fields], /) -> Iterator[Fields]:
        """Read the lines from the start: Record, or a Struct of some of its fields.

        Raises:
            SinkError: A line was damaged after it was written.
        """
        decode = msgspec.json.Decoder(fields).decode
        with open(self.path, "rb") as stream:
            stream.readline()
            for i, line in enumerate(stream):
                try:
                    record = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                    raise SinkError(
                        f"{self.path} must be as it was written; picture {i} is damaged ({exc}): "
                        "--resume does the pictures from there on again"
                    ) from exc
                yield record

    def close(self) -> None:
        """Make the journal safe against a power cut and let go of it; it stays for later.

        An empty journal is removed. Closing twice does nothing.

        Raises:
            SinkError: It could not be made safe.
        """
        if self._fd < 0:
            return
        try:
            if self.num_done:
                os.fsync(self._fd)
            else:
                self.path.unlink(missing_ok=True)
        except OSError as exc:
            raise explain(exc, self.path, self.num_done) from exc
        finally:
            self._release()

    def remove(self) -> None:
        """Remove the journal: the job is done and its results are elsewhere."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self._release()

    def _begin(
        self, identity: Mapping[str, Any], resume: bool, overwrite: bool, outputs: Sequence[str]
    ) -> None:
        wanted = msgspec.json.decode(msgspec.json.encode(dict(identity)))
        header, start = (None, 0) if overwrite else _read_header(self.path)
        if header is not None and self._scan(start):
            if not resume:
                raise InputError(
                    f"{self.path.parent} must hold no unfinished job; it has one with "
                    f"{self.num_done} pictures done: --resume goes on with it, --overwrite starts "
                    "again, or name another folder"
                )
            _check_identity(self.path, header.identity, wanted)
            self._cut()
            return
        there = [name for name in outputs if os.path.lexists(self.path.parent / name)]
        if there and not overwrite:
            raise InputError(
                f"{self.path.parent} must hold no finished results; it has {', '.join(there)}: "
                "--overwrite replaces them, or name another folder"
            )
        self._end = 0
        self._cut()
        self._write(self._encode(_Header(SCHEMA, wanted)) + b"\n")

    def _scan(self, start: int) -> int:
        """Count the good lines from `start` and remember their names.

        The first line that is torn, is no record or is out of its place ends the journal: what
        comes after it is done again.
        """
        decode = msgspec.json.Decoder(_Found).decode
        hashes = bytearray()
        self._end = start
        with open(self.path, "rb") as stream:
            stream.seek(start)
            for line in stream:
                try:
                    found = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    break
                if not line.endswith(b"\n") or found.index != self.num_done:
                    break
                hashes += _key(found.path).to_bytes(8, "little")
                self._end += len(line)
                self.num_done += 1
                self.num_detections += len(found.scores)
                self.num_errors += found.error is not None
        keys = np.frombuffer(bytes(hashes), "<u8")
        self._keys, self._counts = np.unique(keys, return_counts=True)
        self.num_resumed = self.num_left = self.num_done
        return self.num_done

    def _write(self, line: bytes) -> None:
        status = os.fstat(self._fd)
        if not status.st_nlink:
            raise FileNotFoundError(errno.ENOENT, "removed while in use", str(self.path))
        done = 0
        try:
            while done < len(line):
                done += os.pwrite(self._fd, line[done:], self._end + done)
        except OSError:
            self._cut()
            raise
        self._end += len(line)
        now_s = time.monotonic()
        if now_s - self._synced_at_s >= SYNC_INTERVAL_S:
            os.fdatasync(self._fd)
            self._synced_at_s = now_s

    def _cut(self) -> None:
        os.ftruncate(self._fd, self._end)

    def _abandon(self) -> None:
        """Let go after a refusal, and leave no journal that says nothing."""
        if not self.num_done and not os.fstat(self._fd).st_size:
            self.path.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def explain(exc: OSError, path: Path, num_done: int | None) -> SinkError:
    """Say in words why a result could not be written, what is safe and what to do.

    Args:
        exc: What the system said.
        path: What could not be written.
        num_done: Pictures in the journal; None if whoever writes does not know.
    """
    reason = REASONS.get(exc.errno or 0, exc.strerror or str(exc))
    if num_done == 0:
        after = "no picture was done yet"
    elif exc.errno == errno.ENOENT:
        after = "put it back and go on with --resume, or start again"
    else:
        safe = "what was written before is" if num_done is None else f"{num_done} pictures are"
        after = f"{safe} safe, and the same command with --resume goes on from there"
    return SinkError(f"{path} must be writable: {reason}; {after}")


def _open_locked(path: Path) -> int:
    """Open the file for this process alone.

    A process that ends a job removes the file; one that opened it just before would then hold
    the lock of a file without a name, so the name is looked at again.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise InputError(
                f"{path.parent} must be used by one job at a time; another process is writing "
                "there: wait for it, or name another folder"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _read_header(path: Path) -> tuple[_Header | None, int]:
    """Read the first line and where the second begins; None if nothing was ever done."""
    with open(path, "rb") as stream:
        line = stream.readline()
        if not line.endswith(b"\n"):
            return None, 0
        try:
            header = msgspec.json.decode(line, type=_Header)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise InputError(
                f"{path} must be a job's journal; its first line is not ({exc}): move it away, "
                "give --overwrite, or name another folder"
            ) from exc
    if header.schema != SCHEMA:
        raise InputError(
            f"{path} must be a journal of schema {SCHEMA}; it has {header.schema}: finish it with "
            "the version that began it, give --overwrite, or name another folder"
        )
    return header, len(line)


def _check_identity(path: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = _flat(there), _flat(wanted)
    absent = "absent"
    differences = [
        f"{key} was {old.get(key, absent)!r}, is {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
    if differences:
        raise InputError(
            f"{path} must be of the same job to go on with it; {'; '.join(differences)}: run it "
            "as before, name another folder, or start again with --overwrite"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _record(result: Result, index: int) -> Record:
    path, size_wh = _text(result.path), result.size_wh
    if result.error is not None:
        note = ErrorNote(type(result.error).__name__, _text(str(result.error)))
        return Record(index, path, size_wh, error=note)
    found = result.detections
    if found is None:
        raise InputError(
            f"a result must have detections or an error; that of {path} has neither: report this"
        )
    numbers = _numbers(found)
    if not np.isfinite(numbers).all():
        note = ErrorNote(
            "EngineError",
            "detections must be finite numbers; the model gave NaN or infinity for this picture: "
            "try fp32",
        )
        return Record(index, path, size_wh, error=note)
    flat, k = shortest_decimals(numbers), len(found)
    points = None
    if found.keypoints_xy is not None:
        points = flat[5 * k :].reshape(found.keypoints_xy.shape).tolist()
    return Record(
        index=index,
        path=path,
        size_wh=size_wh,
        boxes_xyxy=cast(Any, flat[: 4 * k].reshape(k, 4).tolist()),
        scores=flat[4 * k : 5 * k].tolist(),
        classes=found.classes.tolist(),
        keypoints_xy=points,
    )


def _numbers(found: Detections) -> np.ndarray:
    parts = [found.boxes_xyxy.ravel(), found.scores]
    if found.keypoints_xy is not None:
        parts.append(found.keypoints_xy.ravel())
    return np.concatenate(parts)


def _text(name: str) -> str:
    r"""Make a name valid Unicode: a byte that was not UTF-8, e.g. ff, is written \udcff."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _key(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
