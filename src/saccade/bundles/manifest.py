"""manifest.json: what is in a bundle, what it needs, and why it was let through the gate."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from saccade.errors import ModelError
from saccade.types import Plan

__all__ = ["NAME", "SCHEMA", "FileEntry", "Manifest", "Needs", "check_name", "decode", "encode"]

NAME = "manifest.json"
FORMAT = "saccade bundle"
SCHEMA = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle.

    Attributes:
        sha256: Digest in hex.
        num_bytes: Size.
    """

    sha256: str
    num_bytes: int


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the machine must have for the evidence to hold.

    Attributes:
        backend: Name of the runtime.
        backend_version: Its package and version, in the words of the back end's probe.
        architecture: As `platform.machine` names it.
        instruction_sets: Those that runtimes choose kernels by.
        device: As in Plan.
        num_cores: Cores that streams, threads and workers were chosen for.
        packages: Versions of what decodes and prepares pictures.
        saccade: Version that wrote the bundle.
        gpu: Name and compute capability of the card, or "" on a processor.
    """

    backend: str
    backend_version: str
    architecture: str
    instruction_sets: tuple[str, ...]
    device: str
    num_cores: int
    packages: dict[str, str]
    saccade: str
    gpu: str = ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole manifest. Only `created` and `digest` differ between two equal builds.

    Attributes:
        format: Always "saccade bundle".
        schema: Version of this layout.
        digest: SHA-256 in hex over the manifest without this key.
        model: Where the network comes from: file name, digest, metadata, licence.
        files: Every other file, by its path in the bundle.
        plan: How the engine runs.
        workers: Threads that decode, prepare and suppress.
        scaled_decode: Whether large JPEGs are decoded at a fraction of their size.
        recipe: How the network was made from the source model.
        calibration: Digest and settings of the calibration, or None.
        gate: Limits, and the verdict on the chosen candidate with every figure.
        engines: Per target, what is known of the engine file.
        needs: What the machine must have.
        settings: What `saccade build` was asked for; `--from` uses them again.
        machine: The machine and all versions that the evidence is from.
        created: When, how long it took, and measured speeds.
    """

    format: str = FORMAT
    schema: int = SCHEMA
    digest: str = ""
    model: dict[str, Any]
    files: dict[str, FileEntry]
    plan: Plan
    workers: int
    scaled_decode: bool
    recipe: dict[str, Any]
    calibration: dict[str, Any] | None
    gate: dict[str, Any]
    engines: dict[str, dict[str, Any]]
    needs: Needs
    settings: dict[str, Any]
    machine: dict[str, Any]
    created: dict[str, Any]


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON with its own digest filled in."""
    sealed = msgspec.structs.replace(manifest, digest=_digest(msgspec.to_builtins(manifest)))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        ModelError: It is not one, of another schema, or was changed.
    """
    try:
        raw = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelError(
            f"{NAME} must be JSON, it is not ({exc}): truncated or changed; copy the bundle again"
        ) from exc
    if raw.get("format") != FORMAT:
        raise ModelError(
            f"{NAME} must have format {FORMAT!r}, it has {raw.get('format')!r}; "
            "this folder is no bundle"
        )
    if raw.get("schema") != SCHEMA:
        raise ModelError(
            f"{NAME} must have schema {SCHEMA}, it has {raw.get('schema')!r}; use the version of "
            f"saccade that wrote it ({_writer(raw)}), or build it again with "
            "'saccade build --from BUNDLE' of that version"
        )
    wanted, here = raw.get("digest"), _digest(raw)
    if wanted != here:
        raise ModelError(
            f"{NAME} must have the digest that it names, {wanted!r}, it has {here!r}: it was "
            "changed after it was written; copy the bundle again or build it again"
        )
    try:
        manifest = msgspec.convert(raw, Manifest)
    except (msgspec.MsgspecError, TypeError) as exc:
        raise ModelError(f"{NAME} is wrong: {exc}; build the bundle again") from exc
    for name, entry in manifest.files.items():
        check_name(name)
        if not _SHA256.fullmatch(entry.sha256) or entry.num_bytes < 0:
            raise ModelError(
                f"{NAME} must give a SHA-256 and a size for {name!r}, it gives "
                f"{entry.sha256[:80]!r} and {entry.num_bytes}; build the bundle again"
            )
    return manifest


def check_name(name: str) -> None:
    """Refuse a path that could lie outside the bundle.

    Raises:
        ModelError: The path is absolute, climbs, or is not written plainly.
    """
    windows = PureWindowsPath(name)
    is_plain = (
        name not in ("", ".")
        and name.isprintable()
        and "\\" not in name
        and not (windows.drive or windows.root)
        and ".." not in windows.parts
        and str(PurePosixPath(name)) == name
    )
    if not is_plain:
        raise ModelError(
            f"files of a bundle must be plain relative paths inside it, got {name!r}; "
            "do not use this bundle"
        )


def _digest(raw: dict[str, Any]) -> str:
    rest = {key: value for key, value in raw.items() if key != "digest"}
    return hashlib.sha256(msgspec.json.encode(rest, order="sorted")).hexdigest()


def _writer(raw: dict[str, Any]) -> str:
    needs = raw.get("needs")
    version = needs.get("saccade") if isinstance(needs, dict) else None
    return str(version)[:40] if version else "unknown"
