"""The shape of the package: imports point down, and looking at it costs nothing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import saccade

ROOT = Path(saccade.__file__).resolve().parent
# Lowest first. A package may import from rows above its own line here, never from its own row's
# other packages nor from below.
ROWS = [
    {"errors"},
    {"types"},
    {"registry", "processor"},
    {"vision", "graph"},
    {"cuda"},
    {"native"},
    {"backends", "heads", "formats"},
    {"profiler"},
    {"contracts"},
    {"bundles"},
    {"pipeline"},
    {"evaluation"},
    {"builder", "server", "demo", "export"},
    {"cli"},
]
HEAVY = ("numpy", "onnx", "onnxruntime", "openvino", "cv2", "PIL", "torch", "rich", "pyarrow")


def row_of(package):
    return next(i for i, row in enumerate(ROWS) if package in row)


def modules():
    return sorted(
        path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem != "__init__"
    )


def package_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("saccade"):
            if node.module == "saccade":
                yield from (f"saccade.{alias.name}" for alias in node.names)
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("saccade."))


def test_imports_point_down():
    wrong = []
    for path in modules():
        own = package_of(path)
        if own in ("__init__", "__main__"):
            continue
        for name in imports_of(path):
            other = name.split(".")[1]
            # The front door is for those who come from outside; the command line does.
            if other in saccade.__all__ or other == "__version__":
                wrong += [] if own == "cli" else [f"{path.relative_to(ROOT)} uses the front door"]
            elif other != own and row_of(other) >= row_of(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_private_files_stay_in_their_package():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports_of(path)
        for parts in [name.split(".")]
        if any(part.startswith("_") and part != "__version__" for part in parts)
        and parts[1] != package_of(path)
    ]
    assert wrong == []


def test_packages_and_front_door_do_not_share_names():
    packages = {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert packages & set(saccade.__all__) == set()


def test_exports_exist_and_are_listed():
    assert saccade.__all__ == sorted(saccade.__all__)
    for name in saccade.__all__:
        assert getattr(saccade, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        saccade.nothing


def loaded_after(code):
    text = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light():
    loaded = loaded_after("import saccade")
    assert loaded.isdisjoint(HEAVY)


def test_help_imports_no_command():
    code = (
        "import contextlib, io\nfrom saccade.cli import main\nsys.argv = ['saccade', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()"
    )
    loaded = loaded_after(code)
    assert loaded.isdisjoint(set(HEAVY) - {"rich"})
    assert "saccade.cli.detect" not in loaded


def test_version_is_one_number():
    text = (ROOT.parents[1] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.M)[1] == saccade.__version__


def test_a_job_opens_no_socket(tmp_path):
    """It works without a network, and it does not talk about it."""
    code = """
import socket, sys
def refuse(*args, **more):
    raise AssertionError(f"a socket was opened: {args}")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from nets import mean_color_detector
import numpy as np, saccade
for backend in ("onnxruntime", "openvino"):
    with saccade.load(mean_color_detector(Path(sys.argv[2])), backend=backend) as detector:
        assert len(list(saccade.run(detector, [np.zeros((9, 9, 3), np.uint8)] * 3))) == 3
"""
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "net.onnx")],
        check=True,
    )
