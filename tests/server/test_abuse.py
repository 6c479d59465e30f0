"""Good, broken, oversized, slow and vanishing clients at once, while engine processes are killed.

A few seconds of what `python -m bench.serve.abuse` does for half an hour. What is looked at here
does not depend on the machine's speed: nothing wrong, nothing unanswered, right afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("httptools", reason="package httptools is not installed (extra serve)")

from saccade.server import http
from saccade.server.problems import Problem

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("length", ["9" * 10, "9" * 19, "0" * 30 + "9" * 19])
def test_a_length_past_any_limit_is_a_length(length):
    head = http.parse_head(f"POST /v2 HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
    assert head.length > 1 << 33


def test_chunks_past_the_limit_are_too_large():
    chunks = http._Chunks(100)
    assert chunks.feed(b"40\r\n" + bytes(64) + b"\r\n") is None
    with pytest.raises(Problem) as caught:
        chunks.feed(b"40\r\n" + bytes(64) + b"\r\n")
    assert (caught.value.kind, caught.value.status) == ("large", 413)


@pytest.mark.slow
@pytest.mark.shared
def test_a_server_survives_abuse(shared, tmp_path):
    report_path = tmp_path / "abuse.json"
    flood = "100" if shutil.which("gcc") else "0"
    command = [sys.executable, "-m", "bench.serve.abuse", "--seconds", "20", "--kill-every", "6"]
    done = subprocess.run(
        [*command, "--flood", flood, "--only-right", "-o", str(report_path)],
        cwd=ROOT,
        env={**os.environ, "SACCADE_SHARED": str(shared)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert report_path.is_file(), done.stderr
    report = json.loads(report_path.read_text())
    assert report["faults"] == []
    assert report["right_afterwards"]
    assert report["engines_killed"] >= 1
    assert done.returncode == 0, done.stderr
    counts = report["counts"]
    assert counts["good: right"] > 0
    assert counts["tensor: right"] > 0
    assert counts["oversized: 413"] > 0
