"""Who may ask."""

from __future__ import annotations

import hmac

from saccade.server.problems import Problem

__all__ = ["check_token"]


def check_token(header: str, token: str) -> None:
    """Compare a bearer token in constant time.

    Raises:
        Problem: It is missing or wrong.
    """
    kind, _, sent = header.partition(" ")
    if kind.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), token.encode()):
        return
    raise Problem(
        "unauthorized",
        "the header authorization must be 'Bearer' and this server's token",
        "it is missing" if not header else "it is another",
        "send the token that the server was started with",
    )
