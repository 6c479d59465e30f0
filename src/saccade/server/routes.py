"""Which path is answered by whom."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saccade.server.problems import Problem

if TYPE_CHECKING:
    from saccade.server.http import Head

__all__ = ["Endpoint", "Router"]

SMALL_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers one method on one path.

    Attributes:
        answer: Called with the request, then the parts of the path that the route names. It
            returns a Response, or None if it answers the request itself, later perhaps.
        max_body_bytes: Longer bodies are refused before they are read.
        is_open: Whether it is answered without a token.
        is_data: Whether bodies are mostly handed to an engine process as they are.
        name: What logs and metrics call it.
    """

    answer: Callable[..., Any]
    max_body_bytes: int = SMALL_BODY_BYTES
    is_open: bool = False
    is_data: bool = False
    name: str = ""


class Router:
    """Endpoints by pattern: "/v2/models/{}/ready", where {} is one part of the path."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Endpoint]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Endpoint]]] = []
        self._by_pattern: dict[str, dict[str, Endpoint]] = {}

    def add(self, method: str, pattern: str, endpoint: Endpoint) -> None:
        """Register an endpoint; GET answers HEAD too."""
        methods = self._by_pattern.get(pattern)
        if methods is None:
            methods = self._by_pattern[pattern] = {}
            if "{}" in pattern:
                text = re.escape(pattern).replace(r"\{\}", "([^/]+)")
                self._patterns.append((re.compile(text), methods))
            else:
                self._exact[pattern] = methods
        methods[method] = endpoint
        if method == "GET":
            methods.setdefault("HEAD", endpoint)

    def patterns(self) -> list[tuple[str, str]]:
        """Method and pattern of everything that is answered."""
        return [(m, pattern) for pattern, methods in self._by_pattern.items() for m in methods]

    def find(self, head: Head) -> tuple[Endpoint, tuple[str, ...]]:
        """The endpoint for a request and the parts of its path.

        Raises:
            Problem: There is none for the path, or none for the method.
        """
        methods = self._exact.get(head.path)
        args: tuple[str, ...] = ()
        if methods is None:
            for pattern, found in self._patterns:
                match = pattern.fullmatch(head.path)
                if match:
                    methods, args = found, match.groups()
                    break
        if methods is None:
            raise Problem(
                "not_found",
                "a path must be one of those in /openapi.json",
                f"{head.path[:200]!r} is none",
                "check its spelling",
            )
        endpoint = methods.get(head.method)
        if endpoint is None:
            raise Problem(
                "method",
                f"the method for this path must be {' or '.join(sorted(methods))}",
                f"it is {head.method}",
                f"use {', '.join(sorted(methods))}",
            )
        return endpoint, args
