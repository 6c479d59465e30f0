"""Versions of what is installed in a contender's environment."""

from __future__ import annotations

import json
import subprocess

from bench.serve.server import peer

__all__ = ["versions_in"]

ASK = """
import json, sys
from importlib.metadata import version
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def versions_in(venv: str, *packages: str) -> dict[str, str]:
    command = [peer(venv), "-c", ASK, *packages]
    return dict(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
