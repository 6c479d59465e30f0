"""Requests that were seen before take a short way: its answers are those of the long way."""

from __future__ import annotations

import http.client
import json

import numpy as np
import pytest

pytest.importorskip("httptools", reason="package httptools is not installed (extra serve)")

pytestmark = pytest.mark.slow
PATH = "/v2/models/simple/infer"


def body_of(first, second, *, request_id=""):
    """Two binary tensors and their description."""
    inputs = [
        {
            "name": f"INPUT{i}",
            "datatype": "INT32",
            "shape": list(one.shape),
            "parameters": {"binary_data_size": one.nbytes},
        }
        for i, one in enumerate((first, second))
    ]
    asked = {"id": request_id, "inputs": inputs, "parameters": {"binary_data_output": True}}
    head = json.dumps(asked).encode()
    return head + first.tobytes() + second.tobytes(), len(head)


@pytest.fixture
def ask(served):
    host, _, port = served.host.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def send(body, header):
        headers = {"Inference-Header-Content-Length": str(header)}
        connection.request("POST", PATH, body, headers)
        answer = connection.getresponse()
        content, num = answer.read(), answer.headers.get("Inference-Header-Content-Length")
        if num is None:
            return answer.status, json.loads(content), []
        told = json.loads(content[: int(num)])
        tail = np.frombuffer(content[int(num) :], np.int32)
        ends = np.cumsum([one["parameters"]["binary_data_size"] // 4 for one in told["outputs"]])
        parts = np.split(tail, ends[:-1])
        shaped = [p.reshape(o["shape"]) for p, o in zip(parts, told["outputs"], strict=True)]
        return answer.status, told, shaped

    yield send
    connection.close()


def test_the_same_description_with_other_bytes(ask):
    rng = np.random.default_rng(1)
    for num in (1, 1, 1, 3, 3, 1, 2, 4, 4):
        first, second = rng.integers(-1000, 1000, (2, num, 16)).astype(np.int32)
        status, told, outputs = ask(*body_of(first, second, request_id="mine"))
        assert (status, told["id"]) == (200, "mine")
        assert np.array_equal(outputs[0], first + second)
        assert np.array_equal(outputs[1], first - second)


def test_a_known_description_with_too_few_or_too_many_bytes(ask):
    ones = np.ones((1, 16), np.int32)
    body, header = body_of(ones, ones)
    assert ask(body, header)[0] == 200
    for wrong in (body[:-4], body + b"\0\0\0\0", body[:header]):
        status, told, _ = ask(wrong, header)
        assert (status, told["status"]) == (400, 400)
    status, _, outputs = ask(body, header)
    assert status == 200
    assert np.array_equal(outputs[0], 2 * ones)


def test_messages_of_one_length_and_different_meaning(served):
    import tritonclient.grpc as grpc_client

    with grpc_client.InferenceServerClient(served.grpc) as client:
        rng = np.random.default_rng(2)
        for wanted in (["OUTPUT0"], ["OUTPUT1"], ["OUTPUT0"], ["OUTPUT0"], ["OUTPUT1"]) * 3:
            values = rng.integers(-1000, 1000, (2, 1, 16)).astype(np.int32)
            inputs = [grpc_client.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in range(2)]
            for one, value in zip(inputs, values, strict=True):
                one.set_data_from_numpy(value)
            outputs = [grpc_client.InferRequestedOutput(name) for name in wanted]
            answer = client.infer("simple", inputs, outputs=outputs)
            right = {"OUTPUT0": values[0] + values[1], "OUTPUT1": values[0] - values[1]}
            for name, value in right.items():
                found = answer.as_numpy(name)
                assert (found is None) == (name not in wanted)
                assert found is None or np.array_equal(found, value)


def test_a_model_that_was_loaded_anew_is_not_remembered(tmp_path):
    import tritonclient.grpc as grpc_client
    from onnx import TensorProto, helper

    from server import live
    from server.conftest import save_network

    def doubled(times):
        nodes = [
            helper.make_node("Constant", [], ["times"], value_floats=[float(times)]),
            helper.make_node("Mul", ["input", "times"], ["output"]),
        ]
        kind, shape = TensorProto.FLOAT, (1, 4)
        save_network(
            tmp_path / "net.onnx", nodes, [("input", kind, shape)], [("output", kind, shape)]
        )

    doubled(2)
    values = np.arange(4, dtype=np.float32).reshape(1, 4)
    with (
        live.server(tmp_path / "net.onnx", "--threads", "1") as server,
        grpc_client.InferenceServerClient(server.grpc) as client,
    ):
        tensor = grpc_client.InferInput("input", [1, 4], "FP32")
        tensor.set_data_from_numpy(values)
        for times in (2, 3):
            doubled(times)
            client.load_model("net")
            for _ in range(3):
                found = client.infer("net", [tensor]).as_numpy("output")
                assert np.array_equal(found, times * values)
        client.unload_model("net")
        with pytest.raises(grpc_client.InferenceServerException):
            client.infer("net", [tensor])


def test_strings_for_a_network_of_numbers_are_refused(served):
    body = b"\x04\0\0\0abcd"
    asked = {"name": "input", "datatype": "BYTES", "shape": [1, 1]}
    asked["parameters"] = {"binary_data_size": len(body)}
    head = json.dumps({"inputs": [asked]}).encode()
    for _ in range(2):
        status, _, answer = served.ask(
            "POST",
            "/v2/models/identity/infer",
            head + body,
            Inference_Header_Content_Length=str(len(head)),
        )
        assert status == 400, answer
        assert "must be of numbers" in json.loads(answer)["detail"]
