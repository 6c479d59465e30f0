"""Several fronts on one port: one server to its clients, whichever process they meet."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import time

import numpy as np
import pytest

from server import live
from server.conftest import identity, jpeg

pytest.importorskip("httptools", reason="package httptools is not installed (extra serve)")

from saccade.server.board import Board
from saccade.server.stats import Stats

pytestmark = pytest.mark.slow
LIMIT_S = 30
NUM_FRONTS = 3
DETECT = "/v2/models/colours/detect"


class Client:
    """A connection that stays with its front."""

    def __init__(self, running):
        host, _, port = running.host.partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT_S)

    def ask(self, method, path, body=None):
        self._connection.request(method, path, body)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def json(self, path):
        status, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def close(self):
        self._connection.close()


@pytest.fixture(scope="module")
def running(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fronts")
    identity(folder / "more.onnx")
    arguments = [f"{name}={networks[name]}" for name in ("colours", "simple")]
    arguments += ["--fronts", NUM_FRONTS, "--threads", "2", "--model-root", folder]
    with live.server(*arguments) as server:
        server.folder = folder
        yield server


@pytest.fixture
def connect():
    """Connections, closed at the end."""
    made = []

    def more(running, num):
        made.extend(Client(running) for _ in range(num))
        return made[-num:]

    yield more
    for client in made:
        client.close()


@pytest.fixture
def clients(running, connect):
    """Two connections of each front: the door gives each to the one with the fewest."""
    return connect(running, 2 * NUM_FRONTS)


def metric(client, name):
    lines = client.ask("GET", "/metrics")[1].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def wait_for(condition, what):
    end_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end_s, f"waited in vain until {what}"
        os.sched_yield()


def test_any_scrape_shows_all(clients):
    name = 'saccade_requests_total{model="colours",version="1",outcome="ok"}'
    before = metric(clients[0], name)
    answers = {client.ask("POST", DETECT, jpeg()) for client in clients}
    assert [status for status, _ in answers] == [200]
    assert {metric(client, name) - before for client in clients} == {len(clients)}
    assert metric(clients[1], 'saccade_connections{protocol="http"}') >= len(clients)
    assert metric(clients[2], "saccade_fronts") == NUM_FRONTS
    told = [client.json("/v2/models/colours/stats")["model_stats"] for client in clients]
    assert all(one == told[0] for one in told)
    assert clients[1].json("/page/live")["front"]["num_fronts"] == NUM_FRONTS


def test_what_one_front_is_asked_to_change_all_have_changed(running, clients):
    body = json.dumps({"parameters": {"path": str(running.folder / "more.onnx")}})
    for asked in (clients[1], clients[0]):
        assert asked.ask("POST", "/v2/repository/models/more/load", body)[0] == 200
        assert all(client.json("/v2/models/more")["name"] == "more" for client in clients)
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        infer = json.dumps({"inputs": [tensor]})
        answers = {client.ask("POST", "/v2/models/more/infer", infer) for client in clients}
        assert [status for status, _ in answers] == [200], answers
        assert asked.ask("POST", "/v2/repository/models/more/unload")[0] == 200
        assert {client.ask("GET", "/v2/models/more")[0] for client in clients} == {503}
    outside = json.dumps({"parameters": {"path": "/etc/passwd"}})
    refused = [client.ask("POST", "/v2/repository/models/more/load", outside) for client in clients]
    assert [status for status, _ in refused] == [403] * len(clients)
    assert all(json.loads(told)["fix"] == json.loads(refused[0][1])["fix"] for _, told in refused)
    changed = clients[2].ask("POST", "/v2/logging", '{"log_verbose_level": 1}')
    assert json.loads(changed[1]) == {"log_verbose_level": 1}
    assert all(client.json("/v2/logging") == {"log_verbose_level": 1} for client in clients)
    assert clients[1].ask("POST", "/v2/logging", '{"log_verbose_level": 0}')[0] == 200


def test_a_region_is_known_to_all(running, clients):
    import tritonclient.http as http_client
    from tritonclient.utils import shared_memory

    values = np.arange(16, dtype=np.int32).reshape(1, 16)
    region = shared_memory.create_shared_memory_region("both", "/saccade-fronts", 2 * values.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [values, values])
        asked = json.dumps({"key": "/saccade-fronts", "offset": 0, "byte_size": 128})
        path = "/v2/systemsharedmemory/region/both"
        assert clients[1].ask("POST", f"{path}/register", asked)[0] == 200
        assert {client.ask("POST", f"{path}/register", asked)[0] for client in clients} == {409}
        for _ in range(NUM_FRONTS):
            with http_client.InferenceServerClient(running.host) as client:
                inputs = [http_client.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in range(2)]
                for index, one in enumerate(inputs):
                    one.set_shared_memory("both", values.nbytes, index * values.nbytes)
                answer = client.infer("simple", inputs)
                assert np.array_equal(answer.as_numpy("OUTPUT0"), 2 * values)
        assert clients[2].ask("POST", f"{path}/unregister")[0] == 200
        assert {client.ask("GET", f"{path}/status")[0] for client in clients} == {404}
    finally:
        shared_memory.destroy_shared_memory_region(region)


def test_every_front_outlives_an_engine_process(clients):
    assert [client.ask("POST", DETECT, jpeg())[0] for client in clients] == [200] * len(clients)
    wait_for(lambda: clients[0].json("/page/live")["engines"], "the process has told of itself")
    os.kill(clients[0].json("/page/live")["engines"][0]["pid"], signal.SIGKILL)
    for client in clients:
        wait_for(lambda one=client: one.ask("POST", DETECT, jpeg())[0] == 200, "it is back")


def test_a_front_that_ends_is_replaced_and_its_figures_stay(running, clients, connect):
    name = 'saccade_requests_total{model="colours",version="1",outcome="ok"}'
    before = metric(clients[0], name)
    children = f"/proc/{running.process.pid}/task/{running.process.pid}/children"
    with open(children) as file:
        pids = [int(pid) for pid in file.read().split()]
    fronts = [pid for pid in pids if b"saccade.server.further" in command(pid)]
    assert len(fronts) == NUM_FRONTS - 1
    os.kill(fronts[0], signal.SIGKILL)

    def told(wanted):
        """As a new client hears it; one that is given to the dead front hears nothing."""
        client = Client(running)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(client):
            return metric(client, wanted)

    wait_for(lambda: told("saccade_front_restarts_total") == 1, "it is noticed")
    wait_for(lambda: told("saccade_fronts") == NUM_FRONTS, "there is another")
    assert told(name) >= before
    again = connect(running, NUM_FRONTS)
    assert [client.ask("POST", DETECT, jpeg())[0] for client in again] == [200] * NUM_FRONTS


def command(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_answers_come_before_the_end(networks, connect):
    with live.server(f"colours={networks['colours']}", "--fronts", "2") as server:
        clients = connect(server, 4)
        assert [client.ask("POST", DETECT, jpeg())[0] for client in clients] == [200] * 4
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0
        server.has_ended = True


def test_rows_of_the_board_add_up():
    first = Board(3)
    others = [Board(3, row, first.fd) for row in (1, 2)]
    first.hold(0, 4)
    others[0].hold(0, 3)
    others[1].hold(1, 9)
    others[1].count_closed()
    assert [first.held_by_all(engine) for engine in (0, 1, 2)] == [7, 9, 0]
    assert [others[0].num_closed(row) for row in range(3)] == [0, 0, 1]
    first.clear(1)
    assert others[1].held_by_all(0) == 4


def test_figures_of_fronts_add_up():
    total = Stats()
    for num in (1, 2):
        stats = Stats()
        stats.num_connections["http"] = num
        stats.responses["http", 200] = num
        model = stats.model("m", "1")
        model.num_ok, model.num_queued, model.last_ms = num, num, num
        model.fail("timeout", 0.5)
        model.stages["infer"].observe(0.003)
        model.batches[4] = [0.5, 1, 2, 3]
        total.add(stats.as_dict())
    ended = Stats()
    ended.num_connections["http"] = 5
    ended.model("m", "1").num_queued = 5
    total.add(ended.as_dict(), has_ended=True)
    model = total.models["m", "1"]
    assert (model.num_ok, model.num_queued, model.errors) == (3, 3, {"timeout": 2})
    assert (model.stages["infer"].count, model.batches[4]) == (2, [1.0, 2, 4, 6])
    assert total.num_connections["http"] == 3
    assert total.responses == {("http", 200): 3}
