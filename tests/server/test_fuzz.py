"""Bodies that nobody would write: readers raise Problem and nothing else, a server stays up.

Readers are called in this process, where thousands of bodies fit into a second; a real server gets
fewer of them, over real connections, and must still give right answers afterwards.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
from http.client import HTTPException, HTTPResponse

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

pytest.importorskip("httptools", reason="package httptools is not installed (extra serve)")

from saccade.server import grpc, http, kserve, messages
from saccade.server.problems import Problem

VALUES = np.arange(256, dtype=np.float32).reshape(1, 256)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INFER = "/v2/models/identity/infer"

# Values of the right kind, of the wrong kind, and on the edges.
sizes = st.one_of(
    st.integers(-2, 300),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, -(2**63), 1024, 1023, 1025]),
)
datatypes = st.sampled_from(
    ["FP32", "FP64", "FP16", "BF16", "INT8", "UINT8", "INT64", "UINT64", "BOOL", "BYTES", "", "X"]
)
scalars = st.one_of(
    st.none(), st.booleans(), sizes, st.floats(), st.text(max_size=8), st.just("identity")
)
json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
parameter_names = st.sampled_from(
    [
        *("binary_data_size", "binary_data", "binary_data_output", "classification", "priority"),
        *("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "timeout"),
        *("score", "iou", "max_detections", "sequence_id", "sequence_start"),
    ]
)
parameters = st.dictionaries(
    st.one_of(parameter_names, st.text(max_size=4)), st.one_of(scalars, json_values), max_size=3
)


def mostly(usual, other):
    """The usual value, or now and then another one."""
    return st.one_of(st.just(usual), st.just(usual), other)


tensors = st.fixed_dictionaries(
    {
        "name": mostly("INPUT0", st.one_of(st.text(max_size=6), json_values)),
        "shape": mostly([1, 256], st.one_of(st.lists(sizes, max_size=6), json_values)),
        "datatype": mostly("FP32", st.one_of(datatypes, json_values)),
    },
    optional={
        "parameters": mostly({"binary_data_size": 1024}, st.one_of(parameters, json_values)),
        "data": st.one_of(st.lists(st.floats(width=32), max_size=300), json_values),
    },
)
infer_requests = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(tensors, max_size=3), json_values)},
    optional={
        "id": st.one_of(st.text(max_size=8), json_values),
        "parameters": st.one_of(parameters, json_values),
        "outputs": st.one_of(
            st.lists(
                st.fixed_dictionaries(
                    {"name": mostly("OUTPUT0", st.text(max_size=6))},
                    optional={"parameters": parameters},
                ),
                max_size=3,
            ),
            json_values,
        ),
    },
)


@st.composite
def mutated(draw, seeds):
    """One of some bytes with a few of them changed, cut, doubled or put in."""
    data = bytearray(draw(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["set", "cut", "drop", "put", "double"]))
        if change == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[at:]
        elif change == "drop":
            del data[at : at + draw(st.integers(1, 9))]
        elif change == "put":
            data[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif change == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


@st.composite
def binary_bodies(draw):
    """A body with binary tensors and the length of its JSON, right or wrong."""
    text = json.dumps(draw(infer_requests)).encode()
    tail = draw(mostly(VALUES.tobytes(), st.binary(max_size=64)))
    length = draw(mostly(len(text), st.one_of(st.none(), st.integers(-3, len(text) + 2000))))
    body = text + tail
    if draw(st.integers(0, 3)) == 0:
        body = draw(mutated(st.just(body)))
    return body, length


def good_json() -> dict:
    parameters = {"binary_data_size": VALUES.nbytes}
    tensor = {"name": "INPUT0", "shape": [1, 256], "datatype": "FP32", "parameters": parameters}
    return {"inputs": [tensor], "parameters": {"binary_data_output": True}}


def good_message():
    request = messages.message("ModelInferRequest")(model_name="identity")
    tensor = request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 256])
    tensor.parameters["a"].int64_param = 1
    request.outputs.add(name="OUTPUT0").parameters["binary_data"].bool_param = True
    request.raw_input_contents.append(VALUES.tobytes())
    return request


def no_region(name, offset, size):
    raise Problem("not_found", "a region must be registered", f"{name!r} is not", "register it")


def check_request(request) -> None:
    """Whatever was read fits together."""
    at = 0
    for part in request.inputs:
        if part.region is None:
            assert part.offset == at
            at += part.num_bytes
    assert at == request.num_bytes == sum(map(len, request.parts))


@settings(max_examples=400, deadline=None)
@given(binary_bodies())
def test_json_with_binary_tensors_is_read_or_refused(case):
    body, length = case
    with contextlib.suppress(Problem):
        check_request(kserve.read_infer(body, length, no_region))


@st.composite
def infer_messages(draw):
    """A ModelInferRequest whose fields contradict each other, as bytes."""
    request = messages.message("ModelInferRequest")()
    request.model_name = draw(mostly("identity", st.text(max_size=5)))
    request.model_version = draw(mostly("", st.text(max_size=5)))
    for _ in range(draw(st.integers(0, 3))):
        tensor = request.inputs.add()
        tensor.name = draw(mostly("INPUT0", st.text(max_size=5)))
        tensor.datatype = draw(mostly("FP32", datatypes))
        tensor.shape.extend(draw(mostly([1, 256], st.lists(st.integers(-3, 2**40), max_size=5))))
        set_parameters(draw, tensor.parameters)
        for field in ("bool", "int", "int64", "uint", "uint64", "fp32", "fp64"):
            if draw(st.integers(0, 6)) == 0:
                getattr(tensor.contents, f"{field}_contents").extend(
                    draw(st.lists(st.integers(0, 1), max_size=300))
                )
        if draw(st.integers(0, 6)) == 0:
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=9), max_size=3)))
    for _ in range(draw(st.integers(0, 2))):
        output = request.outputs.add()
        output.name = draw(mostly("OUTPUT0", st.text(max_size=5)))
        set_parameters(draw, output.parameters)
    raw = draw(mostly([VALUES.tobytes()], st.lists(st.binary(max_size=40), max_size=3)))
    request.raw_input_contents.extend(raw)
    set_parameters(draw, request.parameters)
    return request.SerializeToString()


def set_parameters(draw, target) -> None:
    for _ in range(draw(st.integers(0, 2))):
        value = target[draw(st.one_of(parameter_names, st.text(max_size=4)))]
        kind = draw(st.sampled_from(["bool", "int64", "string", "double", "uint64", "none"]))
        if kind == "bool":
            value.bool_param = draw(st.booleans())
        elif kind == "int64":
            value.int64_param = draw(st.integers(-(2**63), 2**63 - 1))
        elif kind == "string":
            value.string_param = draw(st.text(max_size=9))
        elif kind == "double":
            value.double_param = draw(st.floats())
        elif kind == "uint64":
            value.uint64_param = draw(st.integers(0, 2**64 - 1))


any_message = st.one_of(
    infer_messages(),
    mutated(infer_messages()),
    mutated(st.just(good_message().SerializeToString())),
)


@settings(max_examples=400, deadline=None)
@given(any_message)
def test_protobuf_is_read_or_refused(content):
    request = messages.message("ModelInferRequest")()
    with contextlib.suppress(Problem):
        grpc._parse(request, content)
        check_request(grpc.read_request(request, no_region))


HEADS = [
    b"POST /v2/models/identity/infer?a=b%20c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET http://a/%zz HTTP/1.0\r\nA: \xff\r\n b\r\n\r\n",
]


@settings(max_examples=400, deadline=None)
@given(mutated(st.sampled_from(HEADS)))
def test_heads_are_read_or_refused(data):
    with contextlib.suppress(Problem):
        head = http.parse_head(data)
        assert head.path.startswith(("/", "*")) or head.method in ("CONNECT", "OPTIONS")
        assert head.length >= -1
        assert isinstance(head.query, dict)


# Against a real server.


class Live:
    """A server process with one model that hands its input back."""

    def __init__(self, process, http_port, grpc_port):
        self.process, self.http_port, self.grpc_port = process, http_port, grpc_port

    def exchange(self, request: bytes, *, is_all: bool = False):
        """Status and body, or None where the server closed the connection without an answer.

        A request that may be cut short ends with the connection's end, so that nobody waits.
        """
        with socket.create_connection(("127.0.0.1", self.http_port), timeout=60) as connection:
            try:
                connection.sendall(request)
                if is_all:
                    connection.shutdown(socket.SHUT_WR)
                response = HTTPResponse(connection)
                response.begin()
                return response.status, response.read()
            except (HTTPException, ConnectionError):
                return None

    def check(self):
        """It is alive and right."""
        text = json.dumps(good_json()).encode()
        status, body = self.exchange(post(text + VALUES.tobytes(), len(text)))
        assert status == 200, body
        assert body.endswith(VALUES.tobytes())


def post(body: bytes, header_length: int | None) -> bytes:
    lines = [f"POST {INFER} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    if header_length is not None:
        lines.append(f"Inference-Header-Content-Length: {header_length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "identity.onnx"
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256])
        for name in ("INPUT0", "OUTPUT0")
    ]
    graph = helper.make_graph([node], "identity", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    command = [sys.executable, "-m", "saccade", "serve", str(path), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--grpc-port", "0", "--threads", "1"], stdout=subprocess.PIPE, text=True
    )
    try:
        ports = {}
        for line in process.stdout:
            name, _, told = line.strip().partition(" ")
            if name in ("http", "grpc"):
                ports[name] = int(told.rpartition(":")[2])
            if len(ports) == 2:
                break
        assert len(ports) == 2, f"the server ended with {process.wait()}"
        yield Live(process, ports["http"], ports["grpc"])
        assert process.poll() is None, "the server died"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


LIVE = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
@LIVE
@given(case=binary_bodies())
def test_a_server_answers_every_infer_body(live, case):
    body, length = case
    answer = live.exchange(post(body, length))
    assert answer is not None, "no answer"
    status, content = answer
    assert status == 200 or 400 <= status < 500 or status == 501, content
    if status != 200:
        problem = json.loads(content)
        assert problem["status"] == status
        assert problem["detail"]
    live.check()


@pytest.mark.slow
@LIVE
@given(data=mutated(st.sampled_from([*HEADS, post(b"{}", None), post(b"{}" * 9, 2)])))
def test_a_server_answers_or_closes_on_any_head(live, data):
    answer = live.exchange(data, is_all=True)
    if answer is not None:
        status, content = answer
        assert 200 <= status < 500 or status in (501, 505), content
    live.check()


@pytest.mark.slow
@LIVE
@given(content=any_message)
def test_a_server_answers_every_grpc_message(live, content):
    import grpc as client

    with client.insecure_channel(f"127.0.0.1:{live.grpc_port}") as channel:
        call = channel.unary_unary(
            f"/{messages.SERVICE}/ModelInfer",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        try:
            answer, code, details = call(content, timeout=60), None, ""
        except client.RpcError as exc:
            answer, code, details = b"", exc.code(), exc.details()
    if code is None:
        messages.message("ModelInferResponse").FromString(answer)
    else:
        bad = client.StatusCode
        assert code not in (bad.INTERNAL, bad.UNKNOWN, bad.UNAVAILABLE, bad.DEADLINE_EXCEEDED)
        assert details
    live.check()


frames = st.builds(
    lambda kind, flags, stream, payload, lie: (
        struct.pack(">I", max(0, len(payload) + lie))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    ),
    st.integers(0, 12),
    st.sampled_from([0, 1, 4, 5, 8, 32, 0x2D, 255]),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1, 2**32 - 1]),
    st.one_of(st.binary(max_size=40), st.just(b"\x00\x00\x00\x04\x00\x00\xff\xff")),
    mostly(0, st.integers(-5, 2**14)),
)


@pytest.mark.slow
@LIVE
@given(
    preface=mostly(PREFACE, mutated(st.just(PREFACE))),
    sent=st.lists(frames, max_size=6),
    data=st.binary(max_size=30),
)
def test_a_server_survives_any_http2_frames(live, preface, sent, data):
    address = ("127.0.0.1", live.grpc_port)
    with contextlib.suppress(ConnectionError), socket.create_connection(address, 60) as connection:
        connection.sendall(preface + b"".join(sent) + data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    live.check()
