"""An engine process in waiting, so that one that ends is replaced at once.

What takes longest in a new process is reading the code of the libraries. The spare has done that
and nothing else: it has no model, no threads and no device until it takes a place.

Run by the first front as `python -m saccade.server.spare SOCKET_FD BACKEND...`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import msgspec

__all__ = ["Spare", "engine_environment", "main"]

_NUM_FDS = 3


def engine_environment() -> dict[str, str]:
    """Of an engine process: its threads are the engines' own."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class Spare:
    """A spare, seen from the front.

    Args:
        backends: What it reads in advance.
    """

    def __init__(self, backends: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "saccade.server.spare", str(theirs.fileno()), *backends]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=engine_environment(),
            )
        self._socket = ours

    def employ(
        self, fds: Sequence[int], num_threads: int, device: str
    ) -> subprocess.Popen[bytes] | None:
        """Make it the engine process; None if it has ended, as may happen to any.

        Args:
            fds: Socket, arena and door, as for `saccade.server.worker`.
            num_threads: Threads that run tasks.
            device: Where models run.
        """
        with self._socket:
            try:
                told = msgspec.msgpack.encode([num_threads, device])
                socket.send_fds(self._socket, [told], list(fds))
            except OSError:
                self._process.wait()
                return None
        if self._process.poll() is not None:
            return None
        return self._process

    def close(self) -> None:
        """It is not needed."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Wait for a place, then work as an engine process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from saccade import backends
    from saccade.server.worker import work

    for name in sys.argv[2:]:
        # What it cannot read now it says when a model asks for it.
        with contextlib.suppress(Exception):
            backends.get(name).probe()
    import onnx  # noqa: F401  what reads models

    with socket.socket(fileno=int(sys.argv[1])) as sock:
        told, fds, _, _ = socket.recv_fds(sock, 256, _NUM_FDS)
    if len(fds) == _NUM_FDS:
        num_threads, device = msgspec.msgpack.decode(told)
        work(*fds, num_threads=num_threads, device=device)


if __name__ == "__main__":
    main()
