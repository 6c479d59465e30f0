"""Overload, priorities, deadlines, killed engine processes, new versions, and the end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from builder.slow_net import slow_detector
from bundles import made
from nets import mean_color_detector
from saccade.bundles import write_bundle
from saccade.pipeline.detector import load
from saccade.types import Plan
from server import live
from server.conftest import CELLS, jpeg
from server.raw import Raw

pytestmark = pytest.mark.slow
LIMIT_S = 30
POST = b"POST /v2/models/slow/detect%b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b"


def wait_for(condition, what):
    """Ask until it is so."""
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, f"waited in vain until {what}"
        os.sched_yield()


def waiting(running):
    """Requests that wait in the queue, and that an engine process holds."""
    models = running.json("/page/live")["models"]
    return sum(one["num_queued"] for one in models), sum(one["num_running"] for one in models)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """One thread, and a network of tens of milliseconds; six requests may wait."""
    with live.server(f"slow={CELLS}", "--threads", "1", "--max-queue", "6") as running:
        yield running


def sent(running, query=b""):
    client = Raw(running.host)
    picture = jpeg()
    client.send(POST % (query, len(picture), picture))
    return client


def end(*clients):
    for client in clients:
        client.socket.close()


def test_too_many_are_refused_at_once(slow):
    clients = [sent(slow) for _ in range(24)]
    answers = [client.answer() for client in clients]
    end(*clients)
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {200, 503}
    for status, headers, body in answers:
        if status == 503:
            assert int(headers["retry-after"]) >= 1
            assert json.loads(body)["type"].endswith("overloaded")


def test_the_first_in_priority_overtakes(slow):
    # The engine process takes two per thread; the others wait, and these two behind them.
    clients = [sent(slow) for _ in range(4)]
    late, urgent = sent(slow, b"?priority=9"), sent(slow, b"?priority=1")
    order = []

    def note(name, client):
        assert client.answer()[0] == 200
        order.append(name)

    threads = [
        threading.Thread(target=note, args=pair) for pair in (("late", late), ("urgent", urgent))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert [client.answer()[0] for client in clients] == [200] * 4
    end(*clients, late, urgent)
    assert order == ["urgent", "late"]


def test_what_is_too_late_or_not_wanted_is_not_done(slow):
    def executed():
        told = slow.json("/v2/models/slow/stats")["model_stats"][0]
        return told["inference_stats"]["success"]["count"]

    wait_for(lambda: waiting(slow) == (0, 0), "all are done")
    before = executed()
    # Two keep the engine process busy, two wait, and the others wait behind them.
    busy = [sent(slow) for _ in range(4)]
    late, gone = sent(slow, b"?timeout_ms=0.01"), sent(slow)
    gone.socket.close()
    assert late.answer()[0] == 504
    assert [client.answer()[0] for client in busy] == [200] * 4
    wait_for(lambda: waiting(slow) == (0, 0), "all are done")
    assert executed() - before == 4
    end(*busy, late)


def test_a_killed_engine_process_is_replaced(slow):
    wanted = slow.detect("slow", jpeg())
    wait_for(lambda: slow.json("/page/live")["engines"], "the engine process has told of itself")
    pid = slow.json("/page/live")["engines"][0]["pid"]
    clients = [sent(slow) for _ in range(4)]
    wait_for(lambda: waiting(slow)[1] == 2, "the engine process is busy")
    os.kill(pid, signal.SIGKILL)
    answers = [client.answer() for client in clients]
    statuses = sorted(status for status, _, _ in answers)
    assert statuses[0] == 200, "what waited was done by the next process"
    assert statuses[-1] == 503, "what it held got an honest answer"
    for status, headers, body in answers:
        if status == 503:
            assert headers["retry-after"]
            assert "process" in json.loads(body)["detail"]
    end(*clients)
    assert slow.detect("slow", jpeg()) == wanted
    assert slow.json("/page/live")["num_restarts"] == 1


def children_of(running, module):
    """Processes of a server that run one of its modules."""
    with open(f"/proc/{running.process.pid}/task/{running.process.pid}/children") as file:
        pids = [int(pid) for pid in file.read().split()]
    found = []
    for pid in pids:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if module.encode() in file.read():
                found.append(pid)
    return found


def test_a_spare_takes_the_place_and_one_that_is_dead_does_no_harm(networks):
    with live.server(f"colours={networks['colours']}", "--threads", "1") as running:
        wanted = running.detect("colours", jpeg())

        def is_replaced(pid):
            told = running.json("/page/live")["engines"]
            return told and told[0]["pid"] != pid

        def waits():
            return children_of(running, "saccade.server.spare")

        (first,) = children_of(running, "saccade.server.worker")
        wait_for(waits, "there is a spare")
        (spare,) = waits()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: is_replaced(first), "the next has told of itself")
        assert running.json("/page/live")["engines"][0]["pid"] == spare
        assert running.detect("colours", jpeg()) == wanted
        wait_for(lambda: set(waits()) - {spare}, "there is another spare")
        (dead,) = set(waits()) - {spare}
        os.kill(dead, signal.SIGKILL)
        os.kill(spare, signal.SIGKILL)
        wait_for(lambda: is_replaced(spare), "the next has told of itself")
        assert running.json("/page/live")["engines"][0]["pid"] != dead
        assert running.detect("colours", jpeg()) == wanted


def test_one_model_does_not_starve_another():
    picture = jpeg()
    post = b"POST /v2/models/%b/detect HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b"
    with live.server(f"many={CELLS}", f"few={CELLS}", "--threads", "1") as running:
        order, clients = [], []

        def ask(name):
            client = Raw(running.host)
            client.send(post % (name, len(picture), picture))
            clients.append(client)

            def note():
                assert client.answer()[0] == 200
                order.append(name)

            thread = threading.Thread(target=note)
            thread.start()
            return thread

        threads = [ask(b"many") for _ in range(10)]
        wait_for(lambda: sum(waiting(running)) + len(order) == 10, "many are there")
        threads += [ask(b"few") for _ in range(2)]
        for thread in threads:
            thread.join(LIMIT_S)
        end(*clients)
    assert len(order) == 12
    assert order[-2:] == [b"many", b"many"], order


@pytest.fixture
def bundle(tmp_path):
    """Write a bundle whose answers tell which it is, by the name of its class."""

    def write(name, passed=True):
        path = mean_color_detector(tmp_path / f"{name}.onnx")
        with load(path, labels=[name, name]) as detector:
            contract = detector.contract
        record = made.record(Plan("onnxruntime"), name=f"{name}.onnx")
        folder = tmp_path / name
        write_bundle(folder, model_path=path, contract=contract, record=record)
        return folder

    return write


def label_of(running):
    return running.detect("colours", jpeg())["detections"][0]["label"]


def test_a_new_version_takes_over_without_a_loss(tmp_path, bundle):
    first, second = bundle("first"), bundle("second")
    place = tmp_path / "colours"
    shutil.copytree(first, place)
    with live.server(place, "--model-root", tmp_path) as running:
        assert label_of(running) == "first"
        seen, is_over = [], threading.Event()

        def ask():
            while not is_over.is_set():
                seen.append(label_of(running))

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask) for _ in range(3)]
            shutil.rmtree(place)
            shutil.copytree(second, place)
            status, _, answer = running.ask("POST", "/v2/repository/models/colours/load", b"{}")
            assert status == 200, answer
            wait_for(lambda: seen[-1:] == ["second"], "the new one answers")
            is_over.set()
            for one in asking:
                one.result()
        assert set(seen) == {"first", "second"}
        (place / "model.onnx").write_bytes(b"broken")
        status, _, answer = running.ask("POST", "/v2/repository/models/colours/load", b"{}")
        assert status == 412, answer
        assert label_of(running) == "second"
        asked = json.dumps({"parameters": {"path": str(first), "version": "7"}}).encode()
        assert running.ask("POST", "/v2/repository/models/colours/load", asked)[0] == 200
        assert label_of(running) == "first"
        assert running.json("/v2/models/colours")["versions"] == ["1", "7"]
        outside = json.dumps({"parameters": {"path": "/etc/passwd"}}).encode()
        assert running.ask("POST", "/v2/repository/models/colours/load", outside)[0] == 403


def test_the_end_comes_after_the_answers(tmp_path):
    with live.server(f"slow={slow_detector(tmp_path / 'slow.onnx')}") as running:
        clients = [sent(running) for _ in range(8)]
        wait_for(lambda: sum(waiting(running)) or clients[0]._more(), "they were taken")
        running.process.send_signal(signal.SIGTERM)
        assert [client.answer()[0] for client in clients] == [200] * 8
        assert running.process.wait(LIMIT_S) == 0
        end(*clients)
        running.has_ended = True


def test_tokens(tmp_path, networks):
    token = tmp_path / "token"
    token.write_text("correct-horse\n")
    with live.server(f"colours={networks['colours']}", "--token-file", token) as running:
        assert running.get("/v2/health/ready")[0] == 200
        assert running.get("/v2/models/colours")[0] == 401
        assert running.get("/v2/models/colours", authorization="Bearer wrong")[0] == 401
        assert running.get("/v2/models/colours", authorization="Bearer correct-horse")[0] == 200
        import tritonclient.grpc as client_module
        from tritonclient.utils import InferenceServerException

        with client_module.InferenceServerClient(running.grpc) as client:
            with pytest.raises(InferenceServerException, match="authorization"):
                client.get_model_metadata("colours")
            headers = {"authorization": "Bearer correct-horse"}
            assert client.get_model_metadata("colours", headers=headers).name == "colours"


def test_tls(tmp_path, networks):
    import ssl

    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        (
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", key, "-out", certificate),
        ),
        check=True,
        capture_output=True,
    )
    options = ["--certificate", certificate, "--key", key]
    with live.server(f"colours={networks['colours']}", *options) as running:
        assert running.address.startswith("https://")
        trusted = {
            "ssl_context_factory": lambda: ssl.create_default_context(cafile=str(certificate))
        }
        with http_client.InferenceServerClient(running.host, ssl=True, **trusted) as client:
            assert client.is_model_ready("colours")
        with grpc_client.InferenceServerClient(
            running.grpc, ssl=True, root_certificates=str(certificate)
        ) as client:
            assert client.is_model_ready("colours")


def test_a_start_that_cannot_be_says_why(tmp_path, networks, slow):
    port = slow.host.partition(":")[2]
    for arguments, told in (
        ([tmp_path / "none.onnx", "--port", "0", "--grpc-port", "0"], "none.onnx"),
        ([networks["colours"], "--port", port, "--no-grpc"], "must be free"),
        ([networks["colours"], "--key", tmp_path / "key"], "must be given together"),
        ([networks["colours"], "--threads", "0"], "must be at least 1"),
        ([f"a/b={networks['colours']}", "--port", "0", "--grpc-port", "0"], "name"),
    ):
        command = [live.sys.executable, "-m", "saccade", "serve", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode in (1, 2), done
        assert told in done.stderr.splitlines()[-1]
