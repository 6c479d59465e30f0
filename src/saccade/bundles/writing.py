"""A bundle onto disk: complete beside its place first, then moved there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from saccade.bundles.fitting import needs_of
from saccade.bundles.manifest import NAME, FileEntry, Manifest, check_name, decode, encode
from saccade.bundles.plain import plain
from saccade.bundles.reading import (
    CONTRACT_FILE,
    ENGINES_FOLDER,
    LABELS_FILE,
    MODEL_FILE,
    Bundle,
    digest_of,
    read_bundle,
)
from saccade.contracts import to_toml
from saccade.errors import InputError, ModelError, SinkError
from saccade.graph.reading import read_model
from saccade.profiler.machine import machine
from saccade.types import Contract

__all__ = ["Build", "BundleExtras", "EngineFile", "write_bundle"]

_RESERVED = (MODEL_FILE, CONTRACT_FILE, LABELS_FILE, NAME)
_CURRENT_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE


class Build(Protocol):
    """What a bundle takes from a build: `saccade.builder.records.BuildRecord`, seen from below.

    Each row has a candidate (recipe, plan, workers, scaled_decode), a verdict and a speed.
    """

    @property
    def model(self) -> str: ...
    @property
    def model_digest(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def latency_ms(self) -> float | None: ...
    @property
    def limits(self) -> Any: ...
    @property
    def rows(self) -> Sequence[Any]: ...
    @property
    def reference(self) -> int: ...
    @property
    def chosen(self) -> int: ...
    @property
    def verdict(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine built ahead of time.

    Attributes:
        data: The engine.
        backend: Name of the back end that runs it.
        package: What built it and can load it, with its version.
        is_verified: Whether the gate ran it. Built ahead of time for a card that is not here, it
            cannot be.
        facts: What else is worth knowing, as plain values: shapes, warnings.
        messages: All that was said while it was built, times included.
    """

    data: bytes
    backend: str
    package: str
    is_verified: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleExtras:
    """What else goes into a bundle.

    Attributes:
        source_metadata: Key-value pairs of the source model; its licence is among them, if known.
        calibration: Digest and settings of the calibration.
        settings: What the build was asked for, so that it can be done again.
        engines: By target, e.g. "sm89".
        files: Further files by path in the bundle, e.g. report.html; contents, or a file to copy.
    """

    source_metadata: Mapping[str, str] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    engines: Mapping[str, EngineFile] = field(default_factory=dict)
    files: Mapping[str, bytes | Path] = field(default_factory=dict)


def write_bundle(
    folder: str | Path,
    *,
    model_path: Path,
    contract: Contract,
    record: Build,
    extras: BundleExtras | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle. At no time is there half of one in its place.

    Plan, recipe, workers and scaled decoding are those of the record's chosen row.

    Args:
        folder: Where it goes.
        model_path: The transformed network; its external files are taken along.
        contract: How pictures go in and outputs are read.
        record: The build, with the evidence.
        extras: What else goes in.
        overwrite: Replace a bundle that is there. A folder that is no bundle is never replaced.

    Raises:
        InputError: The folder is there, or is no bundle.
        ModelError: The network cannot be read.
        SinkError: The files could not be written; what was there before is untouched.
    """
    folder, extras = Path(folder), extras or BundleExtras()
    _check_place(folder, overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _aside(folder) as aside:
            entries = _write_files(aside, model_path, contract, extras)
            manifest = _manifest(contract, record, extras, entries)
            _put(aside, NAME, encode(manifest))
            read_bundle(aside)
            _sync_folders(aside)
            _move(aside, folder)
    except OSError as exc:
        raise SinkError(
            f"bundle {folder} must be writable, {exc.filename or folder} is not: {exc.strerror}; "
            "free space or choose another folder"
        ) from exc
    return read_bundle(folder)


def _check_place(folder: Path, overwrite: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"the bundle must be a new folder, {folder} is a file or a link")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"the bundle must be a new folder, {folder} is there and not empty; choose another "
            "one, or replace it with --overwrite"
        )
    try:
        decode((folder / NAME).read_bytes())
    except (OSError, ModelError) as exc:
        raise InputError(
            f"only a bundle is replaced, {folder} holds something else; choose another folder or "
            "remove it yourself"
        ) from exc


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A new folder beside the place, on the same file system; removed if it was not moved."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    umask = os.umask(0)
    os.umask(umask)
    aside.chmod(0o777 & ~umask)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_files(
    aside: Path, model_path: Path, contract: Contract, extras: BundleExtras
) -> dict[str, FileEntry]:
    model = read_model(model_path)
    contents: dict[str, bytes | Path] = {MODEL_FILE: model_path}
    for name in model.external_files:
        _add(contents, name, model_path.parent / name)
    contents[CONTRACT_FILE] = to_toml(contract).encode()
    if contract.labels:
        contents[LABELS_FILE] = "".join(_one_line(n) + "\n" for n in contract.labels).encode()
    for target, engine in extras.engines.items():
        _add(contents, f"{ENGINES_FOLDER}/{target}.engine", engine.data)
    for name, content in extras.files.items():
        _add(contents, name, content)
    return {name: _put(aside, name, content) for name, content in sorted(contents.items())}


def _add(contents: dict[str, bytes | Path], name: str, content: bytes | Path) -> None:
    check_name(name)
    if name in contents or name in _RESERVED:
        raise InputError(
            f"files of a bundle must have different names and none of {', '.join(_RESERVED)}; "
            f"{name!r} is taken; rename it"
        )
    contents[name] = content


def _one_line(label: str) -> str:
    return " ".join(label.splitlines())


def _put(folder: Path, name: str, content: bytes | Path) -> FileEntry:
    """Write or copy one file, to the disk, and say what it is."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
    _sync(path)
    return digest_of(path)


def _manifest(
    contract: Contract, record: Build, extras: BundleExtras, entries: dict[str, FileEntry]
) -> Manifest:
    row, here = record.rows[record.chosen], machine()
    candidate = row.candidate
    metadata = dict(extras.source_metadata)
    return Manifest(
        model={
            "name": record.model,
            "digest": record.model_digest,
            "metadata": metadata,
            "licence": metadata.get("license") or metadata.get("licence"),
            "num_classes": contract.head.num_classes,
            "labels": list(contract.labels),
        },
        files=entries,
        plan=candidate.plan,
        workers=candidate.workers,
        scaled_decode=candidate.scaled_decode,
        recipe=plain(candidate.recipe),
        calibration=plain(extras.calibration),
        gate={"limits": plain(record.limits), "verdict": plain(row.verdict)},
        engines={target: _facts(target, one) for target, one in sorted(extras.engines.items())},
        needs=needs_of(candidate.plan.backend, candidate.plan.device, here),
        settings=plain(extras.settings),
        machine=plain(here),
        created=_created(record, row, extras),
    )


def _facts(target: str, engine: EngineFile) -> dict[str, Any]:
    return {
        "file": f"{ENGINES_FOLDER}/{target}.engine",
        "backend": engine.backend,
        "package": engine.package,
        "is_verified": engine.is_verified,
        **plain(engine.facts),
    }


def _created(record: Build, row: Any, extras: BundleExtras) -> dict[str, Any]:
    """All that two equal builds may differ in."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": record.seconds,
        "objective": record.objective,
        "latency_ms": record.latency_ms,
        "verdict": record.verdict,
        "notes": list(record.notes),
        "speed": plain(row.speed),
        "reference_speed": plain(record.rows[record.reference].speed),
        "engines": {target: list(one.messages) for target, one in extras.engines.items()},
    }


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folders(folder: Path) -> None:
    for root, _, _ in os.walk(folder):
        _sync(Path(root))


def _move(aside: Path, folder: Path) -> None:
    """Put the new folder into place; an old one is swapped out in one step where Linux can."""
    if not folder.exists() or not any(folder.iterdir()):
        os.rename(aside, folder)
    elif not _exchange(aside, folder):
        # Between these two renames there is no bundle, for some microseconds.
        old = aside.with_name(aside.name + ".old")
        os.rename(folder, old)
        try:
            os.rename(aside, folder)
        except OSError:
            os.rename(old, folder)
            raise
        shutil.rmtree(old)
    _sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically; False where the system or the file system cannot.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    a, b = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(_CURRENT_FOLDER, a, _CURRENT_FOLDER, b, _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))
