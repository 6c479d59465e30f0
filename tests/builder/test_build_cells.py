"""A real network of the shared material: killed half-way, resumed, and in bad company."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

import saccade
import saccade.backends
from builder import build_cells, wrong_worker
from conftest import skip_or_fail
from saccade import registry
from saccade.builder.candidates import key_of

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def wrong_backends():
    before = list(saccade.backends.__path__)
    wrong_worker.install()
    registry.names.cache_clear()
    yield
    saccade.backends.__path__[:] = before
    registry.names.cache_clear()


@pytest.mark.shared
@pytest.mark.slow
def test_cells_killed_and_resumed_with_a_hang_and_a_memory_eater(shared, tmp_path):
    found = saccade.backends.get("openvino").probe()
    if not found.ok:
        skip_or_fail("openvino", found.reason)
    output = tmp_path / "bundle"
    command = [sys.executable, str(TESTS / "builder" / "build_cells.py"), str(shared), str(output)]
    paths = filter(None, (str(TESTS), os.environ.get("PYTHONPATH")))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("gate:"):
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    assert any(line.startswith("failed: wrong_hang") for line in lines), lines
    saved = msgspec.json.decode((tmp_path / "bundle.build" / "state.json").read_bytes())

    told: list[str] = []
    record = build_cells.run(shared, output, told.append, resume=True).record
    assert not any(text.startswith(("reference:", "probe:", "failed:")) for text in told)
    after = {key_of(row.candidate): row.speed for row in record.rows if row.speed}
    before = {key: row["speed"] for key, row in saved["rows"].items() if row["speed"]}
    assert before
    for key, speed in before.items():
        assert after[key].pictures_per_s[0] == speed["pictures_per_s"][0]
    errors = {
        row.candidate.plan.backend: row.error for row in record.rows if row.status == "failed"
    }
    assert errors["wrong_hang"].startswith("hung: no answer to 'load'")
    assert errors["wrong_eater"].startswith("out of memory")
    verdict = record.rows[record.chosen].verdict
    assert verdict.passed
    assert verdict.metrics["AP"] >= verdict.reference["AP"] - 0.005
    with saccade.load(output) as detector:
        assert detector.backend in ("onnxruntime", "openvino")
