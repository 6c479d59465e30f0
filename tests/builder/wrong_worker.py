"""A worker process that also knows the back ends that are wrong on purpose."""

from __future__ import annotations

import sys
from pathlib import Path

import saccade.backends

FOLDER = Path(__file__).parent / "wrong_backends"


def install() -> None:
    """Put the wrong back ends where back ends are looked for."""
    if str(FOLDER) not in saccade.backends.__path__:
        saccade.backends.__path__.append(str(FOLDER))
    if str(FOLDER.parents[1]) not in sys.path:
        sys.path.append(str(FOLDER.parents[1]))  # for nets.py


if __name__ == "__main__":
    install()
    from saccade.builder.worker import main

    main()
