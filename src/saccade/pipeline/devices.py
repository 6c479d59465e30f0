"""Names of devices, and whether they are there; light, since CPU jobs load it too."""

from __future__ import annotations

from saccade.cuda.driver import device_index
from saccade.errors import BackendUnavailable, InputError

__all__ = ["check_device", "device_name", "parse_bytes"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def device_name(text: str) -> str:
    """ "cpu" or "cuda:N" from these, from "cuda", or from a number alone.

    Raises:
        InputError: It is none of these.
    """
    cleaned = text.strip().lower()
    if cleaned == "cpu":
        return "cpu"
    return f"cuda:{device_index(f'cuda:{cleaned}' if cleaned.isdecimal() else cleaned)}"


def check_device(device: str) -> None:
    """Look whether a device is there and can be used, without opening it.

    Raises:
        BackendUnavailable: There is no driver, no such card, or a card that is too old.
    """
    if device == "cpu":
        return
    from saccade.profiler.gpus import look_at_cards

    cards = look_at_cards()
    index = device_index(device)
    if index >= len(cards):
        there = ", ".join(f"cuda:{card.index}" for card in cards) or "none"
        raise BackendUnavailable(
            f"the device must be one of {there}, it is {device}; choose another --device"
        )
    if cards[index].problem:
        raise BackendUnavailable(cards[index].problem)


def parse_bytes(text: str) -> int:
    """Bytes from "4GiB", "512 MiB", "4G" or a plain number.

    Raises:
        InputError: The text is none of these.
    """
    cleaned = text.strip().lower().removesuffix("ib").removesuffix("b").strip()
    unit = cleaned[-1:] if cleaned[-1:].isalpha() else ""
    try:
        number = float(cleaned.removesuffix(unit))
        found = int(number * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        found = 0
    if found < 1:
        raise InputError(f"--gpu-memory must be a size such as 4GiB or 512MiB, got {text!r}")
    return found
