"""The processor this process runs on, as far as the system tells."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

__all__ = ["cuts_off_int8_sums", "processor"]

_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_INT8_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@functools.cache
def processor() -> tuple[str, frozenset[str]]:
    """Its model name and its instruction sets, as Linux names them; none where nothing tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown", frozenset()
    return _read(text)


def _read(text: str) -> tuple[str, frozenset[str]]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    name = fields.get("model name", platform.processor() or "unknown")
    return name, frozenset(flags.split())


def cuts_off_int8_sums() -> bool:
    """Whether runtimes multiply 8-bit numbers here in a way that can lose a part of the sum.

    x86 processors without VNNI have one instruction for it, VPMADDUBSW: it adds two products of an
    unsigned and a signed byte and cuts their sum off at 16 bits, of which two large products need
    17. Where nothing tells the instruction sets, they are taken to be there.

    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, PMADDUBSW.
    """
    flags = processor()[1]
    return platform.machine().lower() in _X86 and bool(flags) and not flags & _INT8_PRODUCTS
