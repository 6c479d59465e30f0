"""A bundle from disk: every file compared with its digest, nothing outside the folder touched."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from saccade.bundles.manifest import NAME, FileEntry, Manifest, decode
from saccade.errors import ModelError
from saccade.types import Plan

__all__ = ["Bundle", "digest_of", "is_bundle", "read_bundle"]

MODEL_FILE = "model.onnx"
CONTRACT_FILE = "contract.toml"
LABELS_FILE = "labels.txt"
ENGINES_FOLDER = "engines"
_MAX_MANIFEST_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were found whole.

    Attributes:
        path: The folder.
        manifest: What it says of itself.
    """

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The network."""
        return self.path / MODEL_FILE

    @property
    def contract_path(self) -> Path:
        """How pictures go in and outputs are read."""
        return self.path / CONTRACT_FILE

    @property
    def plan(self) -> Plan:
        """How the engine runs; with the folder of engines, if the gate ran one of its back end.

        Engines that nobody ran are never taken: their answers are not known.
        """
        engines = self.manifest.engines.values()
        ready = {engine.get("backend") for engine in engines if engine.get("is_verified") is True}
        if self.manifest.plan.backend not in ready:
            return self.manifest.plan
        option = ("engines", str(self.path / ENGINES_FOLDER))
        options = (*self.manifest.plan.options, option)
        return dataclasses.replace(self.manifest.plan, options=tuple(sorted(options)))

    @property
    def engine_paths(self) -> dict[str, Path]:
        """Engine files by target."""
        return {name: self.path / str(e["file"]) for name, e in self.manifest.engines.items()}


def is_bundle(path: str | Path) -> bool:
    """Whether a path is meant as a bundle: any folder is."""
    return Path(path).is_dir()


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle and check all of its files.

    Args:
        path: The folder.

    Raises:
        ModelError: A file is missing, changed, truncated or not in the manifest, or the manifest
            cannot be read; names the file and both digests.
    """
    folder = Path(path)
    try:
        manifest = decode(_read_manifest(folder))
        _check_files(folder, manifest)
    except ModelError as exc:
        raise ModelError(f"{folder}: {exc}") from exc.__cause__
    except OSError as exc:
        raise ModelError(
            f"{folder}: files of a bundle must be readable, {exc.filename} is not: {exc.strerror}; "
            "check its permissions or copy the bundle again"
        ) from exc
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> bytes:
    path = folder / NAME
    if not folder.is_dir():
        raise ModelError("a bundle must be a folder, this is not one; check the path")
    if (folder / "saved_model.pb").is_file():
        raise ModelError(
            "a model must be an ONNX file, this is a TensorFlow SavedModel; convert it with "
            f"'python -m tf2onnx.convert --saved-model {folder} --output model.onnx'"
        )
    if path.is_symlink() or not path.is_file():
        raise ModelError(
            f"a bundle must hold a plain file {NAME}, this folder holds none; write one with "
            "'saccade build MODEL -o FOLDER', or name a file in it"
        )
    num_bytes = path.stat().st_size
    if num_bytes > _MAX_MANIFEST_BYTES:
        raise ModelError(
            f"{NAME} must have at most {_MAX_MANIFEST_BYTES} bytes, it has {num_bytes}; "
            "do not use this bundle"
        )
    return path.read_bytes()


def _check_files(folder: Path, manifest: Manifest) -> None:
    for needed in (MODEL_FILE, CONTRACT_FILE):
        if needed not in manifest.files:
            raise ModelError(f"{NAME} must list {needed}, it does not; build the bundle again")
    _check_engines(manifest)
    here = set(_files_below(folder))
    missing = sorted(set(manifest.files) - here)
    if missing:
        digest = manifest.files[missing[0]].sha256
        raise ModelError(
            f"all files in {NAME} must be there, {_shown(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing (sha256 of the first {digest}); "
            "copy the bundle again"
        )
    more = sorted(here - set(manifest.files) - {NAME})
    if more:
        digest = digest_of(folder / more[0]).sha256
        raise ModelError(
            f"only files in {NAME} may be in a bundle, {_shown(more)} "
            f"{'is' if len(more) == 1 else 'are'} not in it (sha256 of the first {digest}); "
            "move what you added elsewhere"
        )
    for name, entry in sorted(manifest.files.items()):
        _check_file(folder / name, name, entry)


def _check_engines(manifest: Manifest) -> None:
    for target, engine in manifest.engines.items():
        if engine.get("file") not in manifest.files:
            raise ModelError(
                f"{NAME} must list the engine file of target {target!r}, it does not list "
                f"{engine.get('file')!r}; build the bundle again"
            )


def _files_below(folder: Path) -> Iterator[str]:
    """Paths of all files, relative, with "/" between parts; links and devices are refused."""
    for root, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise ModelError(
                    f"a bundle must hold plain files only, {path.relative_to(folder)} is {kind}; "
                    "copy the bundle with the files that links point to"
                )
        yield from (Path(root, name).relative_to(folder).as_posix() for name in files)


def _raise(exc: OSError) -> None:
    raise exc


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    here = digest_of(path)
    if here == entry:
        return
    how = "was changed"
    if here.num_bytes < entry.num_bytes:
        how = f"is truncated to {here.num_bytes} of {entry.num_bytes} bytes"
    elif here.num_bytes > entry.num_bytes:
        how = f"has grown from {entry.num_bytes} to {here.num_bytes} bytes"
    raise ModelError(
        f"{name} must have sha256 {entry.sha256}, it has {here.sha256}: it {how}; "
        "copy the bundle again or build it again"
    )


def digest_of(path: Path) -> FileEntry:
    """Digest and size of a file."""
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return FileEntry(digest.hexdigest(), num_bytes)


def _shown(names: list[str]) -> str:
    more = len(names) - _MAX_SHOWN
    return ", ".join(names[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
