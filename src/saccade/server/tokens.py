"""Who may ask."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from saccade.server.problems import Problem

__all__ = ["check_origin", "check_token"]


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


def check_origin(headers: Mapping[str, str]) -> None:
    """Refuse what a page of another site has a browser send: the server's owner did not ask.

    Raises:
        Problem: The request comes from a page that is not this server's.
    """
    if urlsplit(headers["origin"]).netloc != headers.get("host", ""):
        raise Problem(
            "forbidden",
            "a browser may send requests from this server's own page only",
            f"this one comes from {headers['origin'][:80]!r}",
            "send it from a program, or through a proxy of your own site",
        )
