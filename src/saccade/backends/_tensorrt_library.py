"""The packages tensorrt_rtx and tensorrt: the one file that imports them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from saccade.errors import BackendUnavailable, InputError
from saccade.types import Plan

PACKAGES = {"tensorrt_rtx": "saccade[trt-rtx]", "tensorrt": "saccade[trt]"}
_DRIVER = "libcuda.so.1"
_MAX_ERROR_LINES = 6


def installed_names() -> list[str]:
    found = [name for name in PACKAGES if importlib.util.find_spec(name) is not None]
    if not found:
        wanted = " or ".join(f"pip install '{extra}'" for extra in PACKAGES.values())
        raise BackendUnavailable(
            f"neither package {' nor '.join(PACKAGES)} is installed; run: {wanted}"
        )
    return found


def imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise BackendUnavailable(
            f"package {name} is broken ({reason}); run: pip install --force-reinstall "
            f"'{PACKAGES[name]}'"
        ) from exc


def library_of(plan: Plan) -> Any:
    """The package that the plan names, or the first that is installed."""
    wanted = dict(plan.options).get("package")
    if wanted is None:
        return imported(installed_names()[0])
    if wanted not in PACKAGES:
        raise InputError(f"option package must be one of {', '.join(PACKAGES)}, got {wanted!r}")
    if wanted not in installed_names():
        raise BackendUnavailable(
            f"package {wanted} is not installed; run: pip install '{PACKAGES[wanted]}'"
        )
    return imported(wanted)


def version_of(library: Any) -> str:
    return f"{library.__name__} {library.__version__}"


def is_rtx(library: Any) -> bool:
    return bool(library.__name__ == "tensorrt_rtx")


def card_at(index: int) -> tuple[str, tuple[int, int]]:
    """Name and compute capability of a card.

    Raises:
        BackendUnavailable: There is no driver or no such card.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as exc:
        raise BackendUnavailable(
            f"an NVIDIA driver must be there, {_DRIVER} is not; run them on a machine with an "
            "NVIDIA GPU and its driver"
        ) from exc
    from saccade.cuda.runtime import Device

    with Device(index) as device:
        return device.name, device.capability


def targets_of(library: Any) -> tuple[str, ...]:
    """Cards that a package can build for without having them, e.g. ("sm75", "sm80")."""
    if not hasattr(library, "ComputeCapability"):
        return ()
    members = library.ComputeCapability.__members__
    return tuple(
        sorted((m.lower() for m in members if m.startswith("SM")), key=lambda m: int(m[2:]))
    )


def for_card(installed: Sequence[Any], card: str, capability: tuple[int, int]) -> Any:
    target = f"sm{capability[0]}{capability[1]}"
    for library in installed:
        if not is_rtx(library) or target in targets_of(library):
            return library
    raise BackendUnavailable(
        f"{card} is {target}, which {version_of(installed[0])} does not serve (it serves "
        f"{', '.join(targets_of(installed[0]))}); run: pip install '{PACKAGES['tensorrt']}'"
    )


def logger_of(library: Any) -> tuple[Any, list[tuple[str, str]]]:
    """A logger that keeps (severity, text) of everything but the verbose lines."""
    kept: list[tuple[str, str]] = []

    class Kept(library.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name != "VERBOSE":
                kept.append((severity.name, text))

    return Kept(), kept


def errors_of(kept: Sequence[tuple[str, str]]) -> str:
    """The library's error lines, or its last words."""
    errors = [text for severity, text in kept if "ERROR" in severity]
    lines = errors or [text for _, text in kept[-1:]] or ["it gave no reason"]
    return "; ".join(" ".join(line.split()) for line in lines[-_MAX_ERROR_LINES:])
