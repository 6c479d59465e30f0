"""What processes and GPUs use, read from the system when somebody asks."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from typing import Any

__all__ = ["GpuWatch", "own_usage"]

# Charts ask once a second and several may: a card is asked at most this often.
_MIN_AGE_S = 0.5


def own_usage() -> dict[str, Any]:
    """Resident memory in bytes, processor seconds and open files of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        "pid": os.getpid(),
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "cpu_s": used.ru_utime + used.ru_stime,
        "num_files": len(os.listdir("/proc/self/fd")),
    }


class GpuWatch:
    """Memory and load of the NVIDIA cards, as NVML tells; none where it is not there.

    Attributes:
        problem: Why no card is watched, or "".
    """

    def __init__(self) -> None:
        self.problem = ""
        self._nvml: Any = None
        self._handles: list[tuple[str, str, Any]] = []
        self._told: list[dict[str, Any]] = []
        self._told_at_s = -1e9
        try:
            import pynvml
        except ImportError:
            self.problem = "package nvidia-ml-py is not installed; run: pip install 'saccade[cuda]'"
            return
        try:
            pynvml.nvmlInit()
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                name, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
                self._handles.append((str(name), str(uuid), handle))
            self._nvml = pynvml
        except pynvml.NVMLError as exc:
            self.problem = f"NVML cannot be used: {exc}"

    def read(self) -> list[dict[str, Any]]:
        """One entry per card: index, name, uuid, memory_used_bytes, memory_total_bytes, and busy,
        the share of the last sample period in which a kernel ran (0 to 1)."""
        if self._nvml is None:
            return []
        now_s = time.monotonic()
        if now_s - self._told_at_s >= _MIN_AGE_S:
            self._told = [
                self._one(index, name, uuid, handle)
                for index, (name, uuid, handle) in enumerate(self._handles)
            ]
            self._told_at_s = now_s
        return self._told

    def _one(self, index: int, name: str, uuid: str, handle: Any) -> dict[str, Any]:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        told = {
            "index": index,
            "name": name,
            "uuid": uuid,
            "memory_used_bytes": int(memory.used),
            "memory_total_bytes": int(memory.total),
        }
        # Cards that are split into instances do not tell.
        with contextlib.suppress(self._nvml.NVMLError):
            told["busy"] = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        return told
