"""Engines in files: the user's cache folder, and the folder of a bundle.

    cache folder    made by whoever needs the engine first; the next process takes it as it is
    bundle          never made here: an engine that does not fit is an error that says why

A file's name says what was asked for, its content what card and versions it was built for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.cuda.compile import cache_dir
from saccade.cuda.driver import device_index
from saccade.cuda.runtime import Device
from saccade.errors import BuildError
from saccade.native.artefact import Artefact
from saccade.native.build import build, key_of, loaded, stored
from saccade.native.engine import NativeEngine
from saccade.native.seam import Kernels
from saccade.types import Plan

if TYPE_CHECKING:
    import onnx

__all__ = ["Request", "cached_bytes", "from_folder", "obtain"]

_SUFFIX = ".engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What an engine is asked for.

    Attributes:
        digest: Of the model's files.
        shapes: Input name to shape.
        plan: Device and precision.
        libraries: Whether other libraries' kernels may be chosen.
        half_inputs: Whether pictures are fed in the plan's precision.
    """

    digest: str
    shapes: Mapping[str, tuple[int, ...]]
    plan: Plan
    libraries: bool = False
    half_inputs: bool = False

    @property
    def name(self) -> str:
        """Tells any two requests apart, whatever the card; the device's number is no part."""
        said = (
            self.digest,
            sorted(self.shapes.items()),
            self.plan.precision,
            self.libraries,
            self.half_inputs,
        )
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]

    def target(self, arch: str) -> str:
        """Name in a bundle, e.g. "sm_90-batch32-0123456789abcdef"."""
        return f"{arch}-batch{self.plan.batch}-{self.name}"


def from_folder(request: Request, folder: Path, kernels: Kernels) -> NativeEngine:
    """An engine of a bundle. Nothing is compiled or measured, and nothing else taken instead.

    Raises:
        BuildError: There is none for this request, or it was built for another card or versions.
        BackendUnavailable: There is no such device.
    """
    there = sorted(folder.glob(f"*{_SUFFIX}"))
    found = [path for path in there if path.stem.endswith(f"-{request.name}")]
    if not found:
        have = ", ".join(path.stem.rpartition("-")[0] or path.stem for path in there)
        wanted = "; ".join(f"{name} {list(shape)}" for name, shape in request.shapes.items())
        raise BuildError(
            f"a bundle must hold a native engine for what is run, {folder.parent} holds "
            f"{have or 'none'}, none for {wanted} in {request.plan.precision}; run it with a batch "
            f"that it holds, or build again: saccade build --from {folder.parent} -o NEW_FOLDER"
        )
    try:
        raw = found[0].read_bytes()
    except OSError as exc:
        raise BuildError(
            f"{found[0]} must be readable, it is not: {exc.strerror}; copy the bundle again"
        ) from exc
    try:
        return loaded(raw, request.plan, kernels)[0]
    except BuildError as exc:
        raise BuildError(
            f"{found[0]}: {exc}: saccade build --from {folder.parent} -o NEW_FOLDER"
        ) from exc.__cause__


def obtain(
    request: Request, read: Callable[[], onnx.ModelProto], kernels: Kernels
) -> tuple[NativeEngine, Artefact]:
    """An engine from the user's cache folder, or built and put there.

    Where several processes build one at once, the first that is done wins and all take its file:
    what one process judged is what the others run.

    Args:
        request: What is asked for.
        read: Gives the tidy graph, if it is needed.
        kernels: All there are.

    Raises:
        BuildError: A node or a step is not covered; names it.
        BackendUnavailable: There is no such device.
        EngineError: It does not fit on the card.
    """
    path = _cache_path(request, kernels)
    try:
        return loaded(path.read_bytes(), request.plan, kernels)
    except OSError:
        pass
    except BuildError:
        # A damaged file is made anew.
        with contextlib.suppress(OSError):
            path.unlink()
    made = build(
        read(),
        request.shapes,
        request.plan,
        kernels,
        libraries=request.libraries,
        half_inputs=request.half_inputs,
    )
    if not _is_there_first(path, stored(made)):
        with contextlib.suppress(OSError, BuildError):
            won = loaded(path.read_bytes(), request.plan, kernels)
            made.engine.close()
            return won
    return made.engine, made.artefact


def cached_bytes(request: Request, kernels: Kernels) -> bytes | None:
    """The engine that processes of this user run for a request, as bytes; None if none was kept.

    Raises:
        BackendUnavailable: There is no such device.
    """
    try:
        return _cache_path(request, kernels).read_bytes()
    except OSError:
        return None


def _cache_path(request: Request, kernels: Kernels) -> Path:
    with Device(device_index(request.plan.device)) as device:
        key = sorted(key_of(device, kernels).items())
    card = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return cache_dir().parent / "native-engines" / f"{request.name}-{card}.native"


def _is_there_first(path: Path, raw: bytes) -> bool:
    """Put a file where none is; False if one is, or the folder cannot be written.

    Without a cache everything works, only the next start is slower.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(raw)
            os.link(aside, path)
        finally:
            os.unlink(aside)
    except OSError:
        return False
    return True
