"""Errors on the wire: one table from error classes to HTTP and gRPC codes, and problem JSON.

Source: RFC 9457 for problem JSON; the gRPC codes are those of grpc/status.
"""

from __future__ import annotations

from typing import Any

import msgspec

from saccade import errors

__all__ = ["GRPC_CODES", "Problem", "problem_of"]

GRPC_CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}

# Kind of error: HTTP status, gRPC code, title, and the reason it is counted under.
_KINDS: dict[str, tuple[int, str, str, str]] = {
    "input": (400, "INVALID_ARGUMENT", "The request is wrong", "input"),
    "picture": (400, "INVALID_ARGUMENT", "The picture cannot be used", "picture"),
    "unauthorized": (401, "UNAUTHENTICATED", "A token is needed", "input"),
    "forbidden": (403, "PERMISSION_DENIED", "Not allowed here", "input"),
    "not_found": (404, "NOT_FOUND", "There is nothing of that name", "input"),
    "method": (405, "UNIMPLEMENTED", "The method does not fit the path", "input"),
    "slow": (408, "DEADLINE_EXCEEDED", "The request came too slowly", "timeout"),
    "conflict": (409, "FAILED_PRECONDITION", "Not possible in this state", "input"),
    "length": (411, "INVALID_ARGUMENT", "The length of the body is missing", "input"),
    "refused": (412, "FAILED_PRECONDITION", "The model was refused", "input"),
    "large": (413, "RESOURCE_EXHAUSTED", "The request is too large", "input"),
    "media": (415, "INVALID_ARGUMENT", "The type of the body is not known", "input"),
    "headers": (431, "RESOURCE_EXHAUSTED", "The request's head is too large", "input"),
    "engine": (500, "INTERNAL", "The engine failed", "engine"),
    "internal": (500, "INTERNAL", "The server failed", "engine"),
    "unimplemented": (501, "UNIMPLEMENTED", "Not offered by this server", "input"),
    "overloaded": (503, "RESOURCE_EXHAUSTED", "There is more work than fits", "overloaded"),
    "unavailable": (503, "UNAVAILABLE", "Not able to answer now", "unavailable"),
    "timeout": (504, "DEADLINE_EXCEEDED", "The time was up", "timeout"),
}


class Problem(Exception):
    """A request that gets an error for an answer.

    Args:
        kind: A key of the table above.
        must: What it must be.
        got: What it is.
        fix: What to do.
        retry_after_s: For answers that are worth another try, when.
    """

    def __init__(
        self, kind: str, must: str, got: str = "", fix: str = "", *, retry_after_s: int = 0
    ) -> None:
        text = must if not got else f"{must}, {got}"
        super().__init__(f"{text}; {fix}" if fix else text)
        self.kind = kind
        self.must, self.got, self.fix = must, got, fix
        self.status, self.code_name, self.title, self.reason = _KINDS[kind]
        self.retry_after_s = retry_after_s

    @property
    def grpc_code(self) -> int:
        """The number of the gRPC status."""
        return GRPC_CODES[self.code_name]

    def as_dict(self, request_id: str = "") -> dict[str, Any]:
        """Members of a problem document; `error` is what clients of KServe look at."""
        members: dict[str, Any] = {
            "type": f"urn:saccade:problem:{self.kind}",
            "title": self.title,
            "status": self.status,
            "detail": str(self),
            "error": str(self),
        }
        if self.got or self.fix:
            members |= {"must_be": self.must, "is": self.got, "fix": self.fix}
        if request_id:
            members["request_id"] = request_id
        return members

    def as_json(self, request_id: str = "") -> bytes:
        """The problem document."""
        return msgspec.json.encode(self.as_dict(request_id))


def problem_of(exc: BaseException) -> Problem:
    """What an error of ours is on the wire."""
    if isinstance(exc, Problem):
        return exc
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (errors.PictureError, "picture"),
        (errors.InputError, "input"),
        (errors.Overloaded, "overloaded"),
        (errors.EngineError, "engine"),
        (errors.SaccadeError, "refused"),
    )
    for kind, name in kinds:
        if isinstance(exc, kind):
            return Problem(name, str(exc))
    return Problem(
        "internal",
        "a request must have an answer",
        f"this one met a fault of the server ({type(exc).__name__})",
        "report it with the request id and the server's log",
    )
