"""How long a request took, stage by stage, told to its caller."""

from __future__ import annotations

import time

from saccade.server.wire import Done

__all__ = ["timing_line"]


def timing_line(done: Done, arrived_s: float) -> str:
    """A Server-Timing header line in milliseconds; "queue" is what was neither of the others.

    Browsers show it beside the request, and the page draws it.

    Args:
        done: The engine process's answer.
        arrived_s: When the request was complete, by `time.perf_counter`.

    Source: W3C, "Server Timing".
    """
    decode, prepare, infer, suppress = (ns / 1e6 for ns in done.times_ns)
    total = (time.perf_counter() - arrived_s) * 1e3
    queue = max(0.0, total - decode - prepare - infer - suppress)
    return (
        f"server-timing: queue;dur={queue:.3f}, decode;dur={decode:.3f}, "
        f"prepare;dur={prepare:.3f}, infer;dur={infer:.3f}, suppress;dur={suppress:.3f}, "
        f"total;dur={total:.3f}\r\n"
    )
