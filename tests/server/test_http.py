"""HTTP/1.1 as bytes: whole, in pieces, ahead, in chunks, too long, and wrong."""

from __future__ import annotations

import json

import pytest

from server.conftest import jpeg
from server.raw import Raw

pytestmark = pytest.mark.slow
LIVE = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
INFER = b"POST /v2/models/identity/infer HTTP/1.1\r\nhost: x\r\n"


def body(values=(1, 2, 3, 4)):
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": list(values)}
    return json.dumps({"inputs": [tensor]}).encode()


def posted(content, extra=b""):
    return INFER + extra + b"content-length: %d\r\n\r\n" % len(content) + content


def values_of(answer):
    assert answer[0] == 200, answer
    return json.loads(answer[2])["outputs"][0]["data"]


def test_byte_by_byte(served):
    with Raw(served.host) as client:
        for byte in posted(body()):
            client.send(bytes((byte,)))
        assert values_of(client.answer()) == [1, 2, 3, 4]


def test_ahead_of_its_answers(served):
    with Raw(served.host) as client:
        client.send(b"".join(posted(body((k, 0, 0, 0))) for k in range(50)) + LIVE)
        assert [values_of(client.answer())[0] for _ in range(50)] == list(range(50))
        assert client.answer()[0] == 200


def test_chunks(served):
    content = body()
    pieces = b"".join(b"%x;note=1\r\n%c\r\n" % (1, byte) for byte in content)
    sent = (
        INFER + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\ntrailer: 1\r\n\r\n" + LIVE
    )
    for step in (1, 7, len(sent)):
        with Raw(served.host) as client:
            for at in range(0, len(sent), step):
                client.send(sent[at : at + step])
            assert values_of(client.answer()) == [1, 2, 3, 4]
            assert client.answer()[0] == 200


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n",
        b"-1\r\n",
        b"\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"1" * 9999,
    ],
)
def test_wrong_chunks(served, chunks):
    with Raw(served.host) as client:
        client.send(INFER + b"transfer-encoding: chunked\r\n\r\n" + chunks)
        status, headers, content = client.answer()
        assert status in (400, 413)
        assert headers["connection"] == "close"
        assert json.loads(content)["status"] == status


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /v2 HTTP/3.0\r\n\r\n", 400),
        (INFER + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (INFER + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (INFER + b"content-length: -1\r\n\r\n", 400),
        (INFER + b"content-length: 99999999999999\r\n\r\n", 413),
        (INFER + b"transfer-encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 9000 + b"\r\n", 431),
    ],
)
def test_wrong_heads(served, sent, status):
    with Raw(served.host) as client:
        client.send(sent)
        got, headers, content = client.answer()
        assert got == status
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(content)["detail"]
        assert client.is_closed()


def test_a_refused_body_does_not_end_the_connection(served):
    content = b"x" * 3_000_000
    with Raw(served.host) as client:
        client.send(b"POST /nowhere HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(content))
        assert client.answer()[0] == 404
        client.send(content + LIVE)
        assert client.answer()[0] == 200


def test_a_body_that_is_waited_for(served):
    content = body()
    with Raw(served.host) as client:
        client.send(INFER + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(content))
        assert client.answer()[0] == 100
        client.send(content)
        assert values_of(client.answer()) == [1, 2, 3, 4]
    with Raw(served.host) as client:
        client.send(b"POST /nowhere HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        assert client.answer()[0] == 404
        assert client.is_closed()


def test_methods_and_endings(served):
    with Raw(served.host) as client:
        client.send(b"HEAD /v2 HTTP/1.1\r\n\r\n")
        while b"\r\n\r\n" not in client.held:
            assert client._more()
        assert client.held.endswith(b"\r\n\r\n")
    with Raw(served.host) as client:
        client.send(b"DELETE /v2 HTTP/1.1\r\n\r\n")
        status, headers, _ = client.answer()
        assert (status, headers["allow"]) == (405, "GET, HEAD")
    with Raw(served.host) as client:
        client.send(b"GET /v2 HTTP/1.0\r\n\r\n")
        assert client.answer()[0] == 200
        assert client.is_closed()
    with Raw(served.host) as client:
        client.send(LIVE.replace(b"host: x", b"x-request-id: mine"))
        assert client.answer()[1]["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"inputs": 3}',
        b'{"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP32"}]}',
        b'{"inputs": [{"name": "input", "shape": [-1, 4], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "input", "shape": [1, 4], "datatype": "F", "data": [1, 2, 3, 4]}]}',
        body((1, 2, 3)),
        body((1, 2, 3, "four")),
        body(([1, 2], 3, 4, 5)),
        b"[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
)
def test_wrong_requests(served, content):
    status, headers, answer = served.ask("POST", "/v2/models/identity/infer", content)
    assert status == 400
    assert headers["content-type"] == "application/problem+json"
    assert json.loads(answer)["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1e3", "9" * 30])
def test_wrong_lengths_of_the_json_part(served, length):
    headers = {"inference-header-content-length": length}
    assert served.ask("POST", "/v2/models/identity/infer", body(), **headers)[0] == 400


def test_binary_tensors_must_fill_the_body(served):
    tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32"}
    for size, num in ((16, 15), (16, 17), (15, 15), (-16, 16), (1 << 60, 16)):
        asked = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
        header = json.dumps(asked).encode()
        length = {"inference-header-content-length": str(len(header))}
        path = "/v2/models/identity/infer"
        assert served.ask("POST", path, header + b"\0" * num, **length)[0] == 400


def test_a_caller_that_leaves_harms_nobody(served):
    for cut in (10, 200, len(posted(jpeg()))):
        with Raw(served.host) as client:
            client.send(posted(body())[:cut])
    assert served.get("/v2/health/ready")[0] == 200
