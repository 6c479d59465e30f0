"""Kernels from CUDA C++ to machine code for one architecture, kept on disk.

A cubin is found again by source, options, architecture and compiler version. It is written aside
and renamed, and starts with its own digest, so a damaged file is noticed and made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saccade.errors import BackendUnavailable, BuildError

__all__ = ["ARCHITECTURES", "cache_dir", "compile_kernels", "kernel_source", "nvrtc_version"]

# What the kernels are tried on in the tests; others of capability 8.0 and up work as well.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
_OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "-lineinfo")
# The first line of a source that uses instructions which only one architecture has.
_OWN = re.compile(r"// only for (sm_\d+a)\n")
_MAGIC = b"saccade-cubin-1\n"


def kernel_source(*names: str) -> str:
    """Text of the named files of the kernels folder, one after another.

    Each begins with a #line directive, so that the compiler's messages name the file.
    """
    folder = importlib.resources.files("saccade.cuda.kernels")
    return "".join(f'#line 1 "{name}"\n{(folder / name).read_text()}\n' for name in names)


def cache_dir() -> Path:
    """Where cubins are kept: SACCADE_CACHE, or saccade in the user's cache folder."""
    root = os.environ.get("SACCADE_CACHE")
    if root:
        return Path(root) / "cubins"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "saccade" / "cubins"


def nvrtc_version() -> tuple[int, int]:
    """Major and minor version of the compiler.

    Raises:
        BackendUnavailable: It is not installed.
    """
    major, minor = _call("asking for NVRTC's version", _nvrtc().nvrtcVersion)
    return int(major), int(minor)


def compile_kernels(
    source: str, arch: str, defines: Sequence[str] = (), *, folder: Path | None = None
) -> bytes:
    """Machine code of a source for one architecture, from the cache if it is there.

    Args:
        source: CUDA C++. Where its first line is "// only for sm_90a" and the architecture is
            sm_90, it may use what only that architecture has.
        arch: E.g. "sm_90".
        defines: Macros as NAME=VALUE.
        folder: The cache; default `cache_dir()`. A folder that cannot be written is no error.

    Returns:
        A cubin.

    Raises:
        BackendUnavailable: NVRTC is not installed.
        BuildError: The compiler refuses the source or the architecture.
    """
    own = _OWN.match(source)
    if own is not None and own[1].rstrip("a") == arch:
        arch = own[1]
    options = (*_OPTIONS, f"--gpu-architecture={arch}", *(f"-D{d}" for d in defines))
    version = nvrtc_version()
    key = hashlib.sha256(repr((source, options, version)).encode()).hexdigest()
    path = (folder or cache_dir()) / f"{key}.cubin"
    cubin = _read(path)
    if cubin is None:
        cubin = _compile(source, options)
        _write(path, cubin)
    return cubin


def _read(path: Path) -> bytes | None:
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    head, cubin = raw[: len(_MAGIC) + 32], raw[len(_MAGIC) + 32 :]
    return cubin if head == _MAGIC + hashlib.sha256(cubin).digest() else None


def _write(path: Path, cubin: bytes) -> None:
    # Without a cache everything works, only the next start is slower.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(_MAGIC + hashlib.sha256(cubin).digest() + cubin)
                file.close()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc
    except ImportError as exc:
        raise BackendUnavailable(
            f"kernels are compiled with the package cuda-bindings, which cannot be imported "
            f"({exc}); install saccade[cuda]"
        ) from exc
    return nvrtc


def _call(doing: str, function: Any, *args: Any) -> Any:
    try:
        code, *values = function(*args)
    except Exception as exc:
        # The bindings raise several kinds of their own where the library cannot be loaded.
        raise BackendUnavailable(
            f"{doing}: NVRTC cannot be loaded ({str(exc).strip().splitlines()[:1]}); install "
            "saccade[cuda]"
        ) from exc
    if code != 0:
        raise BuildError(f"{doing}: NVRTC must report success, it reports {code.name}")
    return values[0] if len(values) == 1 else tuple(values)


def _compile(source: str, options: Sequence[str]) -> bytes:
    nvrtc = _nvrtc()
    program = _call(
        "reading a kernel", nvrtc.nvrtcCreateProgram, source.encode(), b"kernels.cu", 0, [], []
    )
    raw = [option.encode() for option in options]
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(raw), raw)
        if code != 0:
            log = bytearray(int(_call("compiling", nvrtc.nvrtcGetProgramLogSize, program)))
            nvrtc.nvrtcGetProgramLog(program, log)
            text = bytes(log).rstrip(b"\0").decode(errors="replace").strip()
            raise BuildError(
                f"kernels must compile with {' '.join(options)}, NVRTC {code.name} says:\n{text}\n"
                "report this, it is a fault of the kernel or an architecture too new for NVRTC"
            )
        cubin = bytearray(int(_call("compiling", nvrtc.nvrtcGetCUBINSize, program)))
        _call("compiling", lambda: (*nvrtc.nvrtcGetCUBIN(program, cubin), None))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin)
