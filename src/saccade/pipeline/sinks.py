"""Where results go: the journal while the job runs, the final files when it is done."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from saccade import formats
from saccade.errors import BackendUnavailable, InputError, SinkError
from saccade.formats import Format, Job
from saccade.pipeline.journal import Journal, explain
from saccade.types import Result

__all__ = ["ResultSink", "Summary", "draw_one", "drawn_name"]

PARTIAL = ".partial"
MAX_STEM_CHARS = 80


@dataclass(frozen=True, slots=True)
class Summary:
    """What a finished job wrote.

    Attributes:
        num_pictures: All pictures, those with errors included.
        num_detections: Detections in them.
        num_errors: Pictures that have an error.
        num_resumed: Pictures that an earlier, interrupted run had done.
        num_not_in_inputs: Of these, how many are no longer among the inputs; they are in the
            files all the same.
        files: The final files.
    """

    num_pictures: int
    num_detections: int
    num_errors: int
    num_resumed: int
    num_not_in_inputs: int
    files: tuple[Path, ...]


class ResultSink:
    """Takes results in order and makes the final files of them. One thread at a time.

    Use it as a context manager. Leaving it before `finish` keeps what was sent, and the exception
    that leaves gets a note that says how to go on.
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        *,
        labels: Sequence[str] = (),
        output_formats: Sequence[str] = ("coco",),
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Check the formats and open the journal.

        Args:
            folder: Where the files go; made if it is not there.
            identity: All that decides the results, as plain values: a job is only resumed if it
                is the same.
            labels: Class names, index 0 first; empty if unknown.
            output_formats: Names of files in `saccade.formats`.
            resume: Go on with the unfinished job in the folder, if there is one.
            overwrite: Replace what is there.

        Raises:
            InputError: A format is unknown, or the folder is in use or holds other results.
            BackendUnavailable: A format needs a package that is not installed.
            SinkError: The folder cannot be written.
        """
        self.folder = Path(folder)
        self._formats = _usable_formats(output_formats)
        self._labels = tuple(labels)
        self._identity = dict(identity)
        self._is_finished = False
        self._journal = Journal.open(
            self.folder,
            identity,
            resume=resume,
            overwrite=overwrite,
            outputs=[form.file_name for form in self._formats],
        )

    @property
    def num_done(self) -> int:
        """Pictures that are safe, those of an earlier run included."""
        return self._journal.num_done

    @property
    def num_resumed(self) -> int:
        """Pictures that an earlier run had done."""
        return self._journal.num_resumed

    def take(self, name: str) -> bool:
        """Say whether an earlier run did a picture of this name; ask once per source item."""
        return self._journal.take(name)

    def send(self, result: Result) -> None:
        """Write one result; results come in order of their index.

        Raises:
            SinkError: It could not be written; what was sent before is safe.
        """
        self._journal.append(result)

    def finish(self) -> Summary:
        """Make the final files and remove the journal.

        No file gets its final name before all are whole and on the disk. On an error the journal
        stays, and no final name ever holds a part of a file.

        Raises:
            SinkError: A file could not be written; the results are safe.
        """
        journal = self._journal
        job = Job(journal.records, self._labels, self._identity)
        partials = {self.folder / (f.file_name + PARTIAL): f for f in self._formats}
        try:
            for path, form in partials.items():
                with _explained(path, journal.num_done):
                    form.write(job, path)
                    _sync(path)
            with _explained(self.folder, journal.num_done):
                for path in partials:
                    os.replace(path, path.with_name(path.name.removesuffix(PARTIAL)))
                _sync(self.folder)
                journal.remove()
                _sync(self.folder)
        except BaseException:
            for path in partials:
                # The error that is on its way says what is wrong; this must not hide it.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        self._is_finished = True
        return self._summary()

    def _summary(self) -> Summary:
        journal = self._journal
        return Summary(
            num_pictures=journal.num_done,
            num_detections=journal.num_detections,
            num_errors=journal.num_errors,
            num_resumed=journal.num_resumed,
            num_not_in_inputs=journal.num_left,
            files=tuple(self.folder / form.file_name for form in self._formats),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_finished:
            return
        if exc is None:
            self._journal.close()
            return
        try:
            self._journal.close()
        except SinkError as error:
            exc.add_note(str(error))
            return
        if self.num_done:
            exc.add_note(
                f"{self.num_done} pictures are safe in {self._journal.path}; the same command "
                "with --resume goes on from there"
            )


def _usable_formats(names: Sequence[str]) -> tuple[Format, ...]:
    """Look the formats up before any work is done: one that is missing shows at once."""
    if isinstance(names, str) or not names:
        raise InputError(
            f"output formats must be a list of at least one of {', '.join(formats.names())}; got "
            f"{names!r}"
        )
    found = tuple(formats.get(name) for name in dict.fromkeys(names))
    for form in found:
        availability = form.probe()
        if not availability.ok:
            raise BackendUnavailable(availability.reason)
    return found


@contextlib.contextmanager
def _explained(path: Path, num_done: int | None) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise explain(exc, path, num_done) from exc


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as exc:
        # Some network file systems cannot sync a folder; they have no such thing to lose.
        if exc.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def draw_one(
    result: Result,
    source: Path | bytes | np.ndarray,
    folder: Path,
    labels: Sequence[str] = (),
) -> Path | None:
    """Write the picture with its detections drawn in to folder/drawn; from any thread.

    Args:
        result: What was found.
        source: The picture: a path, its encoded bytes, or (h, w, 3) uint8 RGB.
        folder: The job's folder.
        labels: Class names, index 0 first.

    Returns:
        The file, or None if the result is an error.

    Raises:
        PictureError: The picture cannot be read any more.
        SinkError: The file could not be written; no part of it is there.
    """
    if result.detections is None:
        return None
    from saccade.vision.decode import Decoder
    from saccade.vision.draw import draw, encode_jpeg

    decoder = Decoder("rgb")
    if isinstance(source, np.ndarray):
        picture = source
    else:
        picture = decoder.decode(source) if isinstance(source, bytes) else decoder.read(source)
    encoded = encode_jpeg(draw(picture, result.detections, labels))
    target = Path(folder) / "drawn" / drawn_name(result)
    partial = target.with_name(target.name + PARTIAL)
    with _explained(target, None):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(encoded)
            os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    return target


def drawn_name(result: Result) -> str:
    """Name of a drawn picture: its place in the job, a readable part, and a hash of its path.

    The index makes it unique in a job, the hash keeps a job that was resumed with other inputs
    from replacing a picture, and only letters, digits, dot, dash and underscore are left of the
    source's name, so that it cannot lead out of the folder.
    """
    stem = os.path.splitext(os.path.basename(result.path))[0]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:MAX_STEM_CHARS].strip("._-") or "picture"
    name = result.path.encode("utf-8", "backslashreplace")
    digest = hashlib.blake2b(name, digest_size=4).hexdigest()
    return f"{result.index:06d}-{readable}-{digest}.jpg"
