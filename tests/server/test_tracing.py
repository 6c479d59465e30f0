"""Spans, as a collector receives them."""

from __future__ import annotations

import http.server
import json
import queue
import threading

import cv2
import numpy as np
import pytest

from nets import mean_color_detector
from server import live

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch):
    """A collector of spans over HTTP, and what it got."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            asked = ExportTraceServiceRequest.FromString(body)
            for resource in asked.resource_spans:
                service = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    got.extend((service["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "eyes")
    yield got
    server.shutdown()
    server.server_close()


def test_a_request_is_a_span_with_its_stages_inside(collector, tmp_path):
    net = mean_color_detector(tmp_path / "colours.onnx")
    picture = cv2.imencode(".png", np.full((40, 60, 3), 200, np.uint8))[1].tobytes()
    with live.server(net, "--threads", "1", "--spans") as server:
        status, headers, _ = server.ask(
            "POST",
            "/v2/models/colours/detect",
            picture,
            traceparent=f"00-{TRACE}-{CALLER}-01",
            x_request_id="mine",
        )
        assert status == 200
        assert server.ask("POST", "/v2/models/colours/detect", b"none")[0] == 400
    spans = [span for service, span in collector if service == "eyes"]
    mine = [span for span in spans if span.trace_id.hex() == TRACE]
    (root,) = [span for span in mine if span.parent_span_id.hex() == CALLER]
    assert root.name == "POST /v2/models/{}/detect"
    told = {a.key: a.value for a in root.attributes}
    assert told["http.response.status_code"].int_value == 200
    assert told["saccade.request_id"].string_value == "mine"
    assert told["saccade.batch_size"].int_value == 1
    inside = [span for span in mine if span.parent_span_id == root.span_id]
    assert [span.name for span in inside] == ["queue", "decode", "prepare", "infer", "suppress"]
    at = root.start_time_unix_nano
    for span in inside:
        assert span.start_time_unix_nano == at
        at = span.end_time_unix_nano
    assert at <= root.end_time_unix_nano
    # What the header told the caller is what the span says, to the header's last digit.
    timing = dict(part.strip().split(";dur=") for part in headers["server-timing"].split(","))
    infer = next(span for span in inside if span.name == "infer")
    spent_ms = (infer.end_time_unix_nano - infer.start_time_unix_nano) / 1e6
    assert spent_ms == pytest.approx(float(timing["infer"]), abs=0.001)
    (failed,) = [s for s in spans if s.trace_id.hex() != TRACE and "detect" in s.name]
    assert {a.key: a.value for a in failed.attributes}["http.response.status_code"].int_value == 400


def test_a_message_over_grpc_is_a_span_too(collector, tmp_path):
    import tritonclient.grpc as client_module
    from tritonclient.utils import InferenceServerException

    net = mean_color_detector(tmp_path / "colours.onnx")
    picture = cv2.imencode(".png", np.full((40, 60, 3), 200, np.uint8))[1].tobytes()
    answers = queue.SimpleQueue()
    with (
        live.server(net, "--threads", "1", "--spans") as server,
        client_module.InferenceServerClient(server.grpc) as client,
    ):
        tensor = client_module.InferInput("picture", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([picture], object))
        asked = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "mine"}
        client.infer("colours.detect", [tensor], headers=asked)
        with pytest.raises(InferenceServerException):
            client.infer("absent", [tensor])
        client.start_stream(lambda result, error: answers.put(error))
        for _ in range(2):
            client.async_stream_infer("colours.detect", [tensor])
        assert [answers.get(timeout=30) for _ in range(2)] == [None, None]
        client.stop_stream()
    spans = [span for _, span in collector]
    (root,) = [span for span in spans if span.parent_span_id.hex() == CALLER]
    assert root.name == "inference.GRPCInferenceService/ModelInfer"
    told = {a.key: a.value for a in root.attributes}
    assert told["rpc.grpc.status_code"].int_value == 0
    assert told["saccade.request_id"].string_value == "mine"
    inside = [span.name for span in spans if span.parent_span_id == root.span_id]
    assert inside == ["queue", "decode", "prepare", "infer", "suppress"]
    streamed = [span for span in spans if span.name.endswith("/ModelStreamInfer")]
    assert len(streamed) == 2
    for one in streamed:
        assert "infer" in [span.name for span in spans if span.parent_span_id == one.span_id]
    codes = [
        {a.key: a.value for a in span.attributes}["rpc.grpc.status_code"].int_value
        for span in spans
        if span.name.endswith("/ModelInfer")
    ]
    assert sorted(codes) == [0, 5]


def test_without_the_option_nothing_is_sent(collector, tmp_path):
    net = mean_color_detector(tmp_path / "colours.onnx")
    with live.server(net, "--threads", "1") as server:
        assert json.loads(server.get("/v2")[2])["name"] == "saccade"
    assert collector == []
