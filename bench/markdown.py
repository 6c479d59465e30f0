"""Tables in the documents: rows of text as Markdown."""

from __future__ import annotations

NO_RESULT = "-"


def markdown(rows: list[list[str]]) -> str:
    """The first row is the head; the first column is on the left, numbers on the right."""
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *body))
