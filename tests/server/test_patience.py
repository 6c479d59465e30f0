"""Clients that are slow, idle, too many, or do not read: what they cost has a bound."""

from __future__ import annotations

import json
import os
import time

import pytest

from server import live
from server.raw import Raw

pytestmark = pytest.mark.slow
LIMIT_S = 30

# The options of the command line are for people; these times are too short for them.
CODE = """
import sys
from saccade.server.http import HttpLimits
from saccade.server.options import ServeOptions, read_source
from saccade.server.run import serve

limits = HttpLimits(head_s=0.3, idle_s=0.6, body_s=0.3, write_s=0.5, min_rate=1 << 30)
options = ServeOptions(http_port=0, grpc_port=0, limits=limits, max_connections=40, log="off")
told = lambda front, at: print(*(f"{k} {v}" for k, v in at.items()), sep="\\n", flush=True)
serve([read_source(text) for text in sys.argv[1:]], options, on_ready=told)
"""


@pytest.fixture(scope="module")
def strict(networks):
    with live.server(f"wide={networks['wide']}", code=CODE) as running:
        yield running


def connections(running):
    return running.json("/page/live")["connections"]["http"]


def test_a_head_that_does_not_end(strict):
    with Raw(strict.host) as client:
        client.send(b"GET /v2 HTTP/1.1\r\nx: ")
        status, headers, body = client.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "head" in json.loads(body)["detail"]
        assert client.is_closed()


def test_a_body_that_does_not_come(strict):
    with Raw(strict.host) as client:
        client.send(b"POST /v2/models/wide/infer HTTP/1.1\r\ncontent-length: 1000\r\n\r\nsome")
        assert client.answer()[0] == 408
        assert client.is_closed()


def test_a_client_that_says_nothing(strict):
    with Raw(strict.host) as client:
        assert client.is_closed()
    with Raw(strict.host) as client:
        client.send(b"GET /v2 HTTP/1.1\r\n\r\n")
        assert client.answer()[0] == 200
        assert client.is_closed()


def test_too_many_clients(strict):
    clients = [Raw(strict.host) for _ in range(60)]
    for client in clients:
        client.send(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
    answers = [client.answer() for client in clients]
    statuses = [answer[0] for answer in answers if answer is not None]
    assert statuses.count(503) >= 15
    assert statuses.count(200) >= 35
    for client in clients:
        client.socket.close()
    end_s = time.monotonic() + LIMIT_S
    while connections(strict) > 1:
        assert time.monotonic() < end_s
        os.sched_yield()


def test_a_client_that_does_not_read(strict):
    """Its answers would be a gigabyte; the server gives up and holds next to nothing of them."""
    tensor = {"name": "input", "shape": [10, 70_000], "datatype": "FP32"}
    data = b"\0" * (4 * 700_000)
    asked = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
        "parameters": {"binary_data_output": True},
    }
    header = json.dumps(asked).encode()
    head = (
        f"POST /v2/models/wide/infer HTTP/1.1\r\ncontent-length: {len(header) + len(data)}\r\n"
        f"inference-header-content-length: {len(header)}\r\n\r\n"
    ).encode()
    before = strict.json("/page/live")["front"]["rss_bytes"]

    def flood(client):
        for _ in range(400):
            client.send(head + header + data)

    with Raw(strict.host) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        flood(client)
    after = strict.json("/page/live")["front"]["rss_bytes"]
    assert after - before < 200 << 20
    assert strict.get("/v2/health/ready")[0] == 200
