"""The models that a server knows, by name and version."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from typing import Any

from saccade.server.loading_options import LoadOptions
from saccade.server.problems import Problem
from saccade.server.stats import ModelStats, Stats

__all__ = ["FACE_ENDING", "PICTURE_INPUT", "PICTURE_OUTPUTS", "Face", "ModelEntry", "Repository"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
FACE_ENDING = ".detect"
_MAX_FOUND = 1024
PICTURE_INPUT = {"name": "picture", "datatype": "BYTES", "shape": [-1]}
PICTURE_OUTPUTS = (
    {"name": "num", "datatype": "INT32", "shape": [-1]},
    {"name": "boxes", "datatype": "FP32", "shape": [-1, -1, 4]},
    {"name": "scores", "datatype": "FP32", "shape": [-1, -1]},
    {"name": "classes", "datatype": "INT32", "shape": [-1, -1]},
    {"name": "errors", "datatype": "BYTES", "shape": [-1]},
    {"name": "json", "datatype": "BYTES", "shape": [-1]},
)
POINTS_OUTPUT = {"name": "keypoints", "datatype": "FP32", "shape": [-1, -1, -1, 2]}
_VERSION = re.compile(r"[0-9]{1,18}")


@dataclass(slots=True, eq=False)
class ModelEntry:
    """One loaded (or loading, or leaving) version of a model.

    Attributes:
        name: What clients call it.
        version: A number, as text.
        key: What engine processes call it; every load has another.
        path: Bundle or ONNX file.
        options: How it is loaded.
        stats: Its figures.
        state: "LOADING", "READY", "UNLOADING" or "UNAVAILABLE".
        reason: Why it is not ready.
        details: What an engine process said of it; see `ServedModel.details`.
        num_open: Requests that were taken and not answered.
        cost_s: Estimate of the seconds one request takes in an engine process.
        answer_bytes: The longest answer so far.
        known: What requests said that came before, by their JSON: see `saccade.server.rest`.
    """

    name: str
    version: str
    key: int
    path: str
    options: LoadOptions
    stats: ModelStats
    state: str = "LOADING"
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    num_open: int = 0
    cost_s: float = 0.005
    answer_bytes: int = 0
    known: dict[bytes, Any] = field(default_factory=dict)

    @property
    def is_detector(self) -> bool:
        """Whether it takes pictures."""
        return self.details.get("contract") is not None

    @property
    def base(self) -> ModelEntry:
        """The entry itself; see `Face`."""
        return self

    @property
    def pictures(self) -> Face | None:
        """Its face for pictures, if it is a detector."""
        return Face(self) if self.is_detector else None


class Face:
    """A detector seen as a model of its own: encoded pictures in, boxes out.

    Its name is the model's with ".detect" behind it. So a client that reads a model's metadata
    and fills its inputs, as load generators do, can send pictures.

    Args:
        base: The network.
    """

    __slots__ = ("base",)

    def __init__(self, base: ModelEntry) -> None:
        self.base = base

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.base.name + FACE_ENDING

    @property
    def version(self) -> str:
        """As the network's."""
        return self.base.version

    @property
    def state(self) -> str:
        """As the network's."""
        return self.base.state

    @property
    def stats(self) -> ModelStats:
        """As the network's: they share them."""
        return self.base.stats

    @property
    def details(self) -> dict[str, Any]:
        """The network's, with other inputs and outputs."""
        points = [POINTS_OUTPUT] if self.base.details["contract"]["has_keypoints"] else []
        outputs = [*PICTURE_OUTPUTS, *points]
        return {**self.base.details, "inputs": [PICTURE_INPUT], "outputs": outputs}


class Repository:
    """Entries by name and version.

    Args:
        stats: Where their figures are kept.
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._entries: dict[str, dict[str, ModelEntry]] = {}
        self._keys = itertools.count(1)
        self._found: dict[tuple[str, str], ModelEntry | Face] = {}

    def new(self, name: str, version: str, path: str, options: LoadOptions) -> ModelEntry:
        """An entry that is not in the repository yet.

        Raises:
            Problem: Name or version are none.
        """
        if not _NAME.fullmatch(name) or name.endswith(FACE_ENDING):
            raise Problem(
                "input",
                "a model's name must have letters, digits, '_', '-' and '.' only and not end in "
                f"{FACE_ENDING!r}",
                f"it is {name[:80]!r}",
                "choose another with NAME=PATH",
            )
        if not _VERSION.fullmatch(version):
            raise Problem(
                "input",
                "a model's version must be a number",
                f"it is {version[:80]!r}",
                "choose one with NAME:VERSION=PATH",
            )
        stats = self._stats.model(name, version)
        return ModelEntry(name, version, next(self._keys), path, options, stats)

    def put(self, entry: ModelEntry) -> ModelEntry | None:
        """Make an entry the one of its name and version; the one before it."""
        self._found.clear()
        versions = self._entries.setdefault(entry.name, {})
        before = versions.get(entry.version)
        versions[entry.version] = entry
        return before

    def replace(self, entries: list[ModelEntry]) -> None:
        """Have these entries and no others."""
        self._found.clear()
        self._entries = {}
        for entry in entries:
            self.put(entry)

    def versions(self, name: str) -> list[ModelEntry]:
        """All entries of a name, newest version first."""
        entries = self._entries.get(name, {}).values()
        return sorted(entries, key=lambda entry: int(entry.version), reverse=True)

    def entries(self) -> list[ModelEntry]:
        """All, by name, newest version first."""
        return [entry for name in sorted(self._entries) for entry in self.versions(name)]

    def find(self, name: str, version: str = "") -> ModelEntry | Face:
        """The entry of a version, or the newest that is ready; or its face for pictures.

        Raises:
            Problem: There is none.
        """
        if name.endswith(FACE_ENDING):
            entry = self._find(name.removesuffix(FACE_ENDING), version)
            if entry.is_detector or entry.state != "READY":
                return Face(entry)
        return self._find(name, version)

    def _find(self, name: str, version: str) -> ModelEntry:
        if version:
            entry = self._entries.get(name, {}).get(version)
            if entry is not None:
                return entry
        else:
            entries = self.versions(name)
            for entry in entries:
                if entry.state == "READY":
                    return entry
            if entries:
                return entries[0]
        known = ", ".join(sorted(self._entries)) or "none"
        what = f"version {version[:40]!r} of model {name[:80]!r}" if version else repr(name[:80])
        raise Problem(
            "not_found",
            f"a model must be one of: {known}",
            f"there is no {what}",
            "check the name, or load it",
        )

    def ready(self, name: str, version: str = "") -> ModelEntry | Face:
        """As `find`, if it can take requests.

        Raises:
            Problem: There is none, or it cannot now.
        """
        # What was found is right until another entry is put or this one is not ready any more.
        found = self._found.get((name, version))
        if found is not None and found.state == "READY":
            return found
        entry = self.find(name, version)
        if entry.state != "READY":
            reason = entry.base.reason
            raise Problem(
                "unavailable",
                f"model {name!r} must be ready",
                f"it is {entry.state.lower()}" + (f" ({reason})" if reason else ""),
                "try again later, or load it",
                retry_after_s=1,
            )
        if len(self._found) >= _MAX_FOUND:
            self._found.clear()
        self._found[name, version] = entry
        return entry
