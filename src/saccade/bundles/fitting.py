"""Whether this machine is one that a bundle's evidence holds for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saccade import backends
from saccade.bundles.manifest import Needs
from saccade.errors import InputError, SaccadeError
from saccade.profiler.gpus import look_at_cards
from saccade.profiler.machine import Machine, machine, versions

if TYPE_CHECKING:
    from saccade.bundles.reading import Bundle

__all__ = ["PREPARING_PACKAGES", "Mismatch", "fits", "needs_of"]

# What decodes, resizes and orders pixels: another version may move a value by one level.
PREPARING_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing that differs between the machine of the evidence and this one.

    Attributes:
        field: What differs.
        wanted: What the bundle was checked with.
        here: What is here.
        matters: True if the answers may differ, so that the bundle must not be used; False if
            only its speed may.
    """

    field: str
    wanted: str
    here: str
    matters: bool

    def __str__(self) -> str:
        return f"{self.field} must be {self.wanted}, it is {self.here}"


def needs_of(backend: str, device: str, here: Machine | None = None) -> Needs:
    """What a bundle needs that was checked on this machine.

    Args:
        backend: Name of the runtime.
        device: As in Plan.
        here: This machine, if it has been looked at already.
    """
    here = here or machine()
    return Needs(
        backend=backend,
        backend_version=_backend_version(backend),
        architecture=platform.machine(),
        instruction_sets=here.instruction_sets,
        device=device,
        num_cores=here.num_cores,
        packages=versions(PREPARING_PACKAGES),
        saccade=here.versions.get("saccade", "unknown"),
        gpu="" if device == "cpu" else _card(device),
    )


def _card(device: str) -> str:
    """A card in words; cards of another kind compute with other kernels."""
    try:
        cards = look_at_cards()
    except SaccadeError:
        return "none"
    number = device.partition(":")[2] or "0"
    found = [card for card in cards if str(card.index) == number]
    if not found:
        return "none"
    return f"{found[0].name} ({'.'.join(map(str, found[0].capability))})"


def fits(bundle: Bundle, here: Needs | None = None) -> list[Mismatch]:
    """Compare what a bundle needs with a machine.

    Args:
        bundle: From `read_bundle`.
        here: What the machine has; this one if left out.

    Returns:
        What differs, what matters first; empty if the bundle fits.
    """
    wanted = bundle.manifest.needs
    here = here or needs_of(wanted.backend, wanted.device)
    found = [*_answers(wanted, here), *_speed(wanted, here)]
    return sorted(found, key=lambda mismatch: not mismatch.matters)


def _answers(wanted: Needs, here: Needs) -> list[Mismatch]:
    pairs = (
        ("back end", wanted.backend_version, here.backend_version),
        ("architecture", wanted.architecture, here.architecture),
        ("GPU", wanted.gpu, here.gpu),
    )
    found = [Mismatch(name, a, b, True) for name, a, b in pairs if a != b]
    missing = [s for s in wanted.instruction_sets if s not in here.instruction_sets]
    if missing and wanted.architecture == here.architecture:
        have = " ".join(here.instruction_sets) or "none of note"
        # Without them a runtime takes other kernels, whose sums of 8-bit products may saturate.
        found.append(Mismatch("instruction sets", " ".join(wanted.instruction_sets), have, True))
    return found


def _speed(wanted: Needs, here: Needs) -> list[Mismatch]:
    found = []
    if wanted.num_cores != here.num_cores:
        found.append(Mismatch("cores", str(wanted.num_cores), str(here.num_cores), False))
    for name, version in sorted(wanted.packages.items()):
        have = here.packages.get(name, "not installed")
        if have != version:
            found.append(Mismatch(f"package {name}", version, have, False))
    if wanted.saccade != here.saccade:
        found.append(Mismatch("package saccade", wanted.saccade, here.saccade, False))
    return found


def _backend_version(name: str) -> str:
    """Package and version in the back end's own words, or why it cannot be used."""
    try:
        found = backends.get(name).probe()
    except InputError as exc:
        return str(exc)
    return found.reason if found.ok else f"not usable: {found.reason}"
