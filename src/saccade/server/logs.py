"""What the server says on standard error: one line per event, as text or JSON."""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

import msgspec

__all__ = ["Log"]


class Log:
    """Writes events.

    Args:
        form: "text", "json" or "off".
        with_requests: Whether requests are events.
    """

    def __init__(self, form: str, *, with_requests: bool) -> None:
        self._form = form
        self.with_requests = with_requests and form != "off"

    def event(self, what: str, **fields: Any) -> None:
        """One line."""
        if self._form == "off":
            return
        now_s = time.time()
        stamp = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))
            + f".{int(now_s % 1 * 1000):03d}Z"
        )
        if self._form == "json":
            line = msgspec.json.encode({"time": stamp, "event": what, **fields}).decode()
        else:
            told = " ".join(f"{name}={_shown(value)}" for name, value in fields.items())
            line = f"{stamp} {what} {told}".rstrip()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def request(self, request: Any, status: int, num_bytes: int) -> None:
        """One request that was answered."""
        head = request.head
        self.event(
            "request",
            id=request.id,
            method=head.method,
            path=head.path,
            status=status,
            bytes_in=request.num_bytes,
            bytes_out=num_bytes,
            ms=round((time.perf_counter() - request.arrived_s) * 1000, 3),
        )

    def fault(self, request_id: str, exc: BaseException) -> None:
        """An error that is the server's fault, with its trace."""
        trace = "".join(traceback.format_exception(exc))
        self.event("fault", id=request_id, error=repr(exc), trace=trace)


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(c in text for c in ' "=\n') else text
