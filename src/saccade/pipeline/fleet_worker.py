"""One process of a fleet: loads the network on its device and runs what it is sent.

Started as `python -m saccade.pipeline.fleet_worker FD`, where FD is its end of a pipe.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from saccade.errors import EngineError, SaccadeError
from saccade.pipeline.detector import Detector
from saccade.pipeline.fleet_wire import Job, packed
from saccade.pipeline.run import Run
from saccade.pipeline.sources import SourceItem
from saccade.types import Result

__all__ = ["main"]


class _Chunks(Iterator[SourceItem]):
    """Pictures as they are sent, and how many belong together.

    A thread of its own reads the pipe, so that whoever sends never waits for a result to be read.
    """

    def __init__(self, pipe: Connection) -> None:
        self.sizes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._items: queue.SimpleQueue[SourceItem | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: Connection) -> None:
        while True:
            try:
                kind, chunk = pipe.recv()
            except (EOFError, OSError):
                os._exit(1)  # nobody is there to take the results
            if kind == "end":
                self._items.put(None)
                return
            self.sizes.put(len(chunk))
            for item in chunk:
                self._items.put(item)

    def __next__(self) -> SourceItem:
        item = self._items.get()
        if item is None:
            self._items.put(None)
            raise StopIteration
        return item


def main() -> None:
    """Serve one job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends this process
    pipe = Connection(int(sys.argv[1]))
    job: Job = pipe.recv()
    try:
        _serve(pipe, job)
    except SaccadeError as exc:
        pipe.send(("failed", exc))
    except Exception as exc:  # a process boundary: told to the parent as this device's failure
        traceback.print_exc()
        text = f"the process for {job.plan.device} failed: {type(exc).__name__}: {exc}; report this"
        pipe.send(("failed", EngineError(text)))
    pipe.close()
    # Runtimes with threads of their own are not waited for.
    os._exit(0)


def _serve(pipe: Connection, job: Job) -> None:
    chunks = _Chunks(pipe)  # from now on the end of the parent is the end of this process
    with (
        Detector(job.model, job.contract, plan=job.plan, gpu_memory=job.gpu_memory) as detector,
        Run(detector, chunks, job.thresholds, job.options) as run,
    ):
        pipe.send(("loaded", None))
        _send_results(pipe, run, chunks)
        told: dict[str, Any] = {
            "times": run.times,
            "fallbacks": run.engine_fallbacks,
            "report": run.reports[0] if run.reports else None,
        }
        pipe.send(("done", told))


def _send_results(pipe: Connection, run: Run, chunks: _Chunks) -> None:
    some: list[Result] = []
    size: int | None = None
    try:
        for result in run:
            size = chunks.sizes.get() if size is None else size
            some.append(result)
            if len(some) == size:
                pipe.send(("results", packed(some)))
                some, size = [], None
    except SaccadeError:
        if some:  # what was done before the failure is kept
            pipe.send(("results", packed(some)))
        raise


if __name__ == "__main__":
    main()
