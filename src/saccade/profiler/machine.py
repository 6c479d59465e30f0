"""What this machine has: the part of a measurement that must travel with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from saccade.processor import processor

__all__ = ["Machine", "machine", "num_cores", "versions"]

# Instruction sets that decide which kernels a runtime picks, as Linux names them.
_NOTABLE_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
_PACKAGES = (
    "saccade",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "torch",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "hotcoco",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the software that numbers come from.

    Attributes:
        cpu: Model name of the processor.
        num_cores: Cores that this process may use, after affinity and container limits.
        instruction_sets: Of those that runtimes ask for, the ones that are there.
        memory_bytes: Physical memory, or the container's limit if that is lower.
        system: Kernel and release.
        python: Version of the interpreter.
        versions: Package versions; packages that are not installed are left out.
    """

    cpu: str
    num_cores: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


def machine() -> Machine:
    """Look at the machine this process runs on."""
    name, flags = processor()
    return Machine(
        cpu=name,
        num_cores=num_cores(),
        instruction_sets=tuple(flag for flag in _NOTABLE_FLAGS if flag in flags),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
    )


def versions(packages: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def num_cores() -> int:
    """Cores that this process may use: its affinity, cut by a container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup_quota_cores()
    cores = min(allowed or 1, quota) if quota else allowed or 1
    return max(1, int(cores))


def _cgroup_quota_cores() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _memory_bytes() -> int:
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))
