"""The machine and the code that a number is from. Holds no path of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bench.cases import ROOT, SHARED

__all__ = ["describe", "without_paths"]

FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "avx_vnni", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip
PACKAGES = ("saccade", "numpy", "onnxruntime", "openvino", "opencv-python-headless", "simplejpeg")


def describe() -> dict[str, Any]:
    """Processor, memory, kernel, versions, commit, date and load."""
    rows = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    facts: dict[str, str] = {}
    for key, _, value in rows:
        facts.setdefault(key.strip(), value.strip())
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "cpu": facts.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def without_paths(value: Any) -> Any:
    """The same value with this machine's folders replaced by their names."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        for folder, name in ((SHARED, "<shared>"), (ROOT, "<saccade>"), (Path.home(), "~")):
            value = value.replace(str(folder), name)
    return value
