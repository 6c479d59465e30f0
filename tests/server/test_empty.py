"""A server that is started without a model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nets import mean_color_detector
from server import live
from server.conftest import jpeg

COMMAND = [sys.executable, "-m", "saccade", "serve", "--port", "0", "--grpc-port", "0"]


@pytest.mark.parametrize("more", [[], ["--no-load", "--model-root", "."]])
def test_one_that_could_never_have_a_model_does_not_start(more):
    done = subprocess.run([*COMMAND, *more], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--model-root" in done.stderr
    assert "saccade serve model.onnx" in done.stderr


@pytest.mark.slow
def test_one_that_clients_fill_says_so(tmp_path, capfd):
    mean_color_detector(tmp_path / "colours.onnx")
    with live.server("--model-root", tmp_path) as server:
        assert "/v2/repository/models/NAME/load" in capfd.readouterr().err
        assert server.get("/v2/health/ready")[0] == 200
        body = json.dumps({"parameters": {"path": str(tmp_path / "colours.onnx")}}).encode()
        assert server.ask("POST", "/v2/repository/models/colours/load", body)[0] == 200
        assert server.detect("colours", jpeg())["detections"]
