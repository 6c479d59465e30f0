"""The OpenAPI document: complete, well formed, and true of the running server."""

from __future__ import annotations

import asyncio
import json

import pytest

from nets import mean_color_detector
from saccade.server.app import Front
from saccade.server.openapi import document
from saccade.server.options import ServeOptions
from server import live

METHODS = ("get", "post")


@pytest.fixture(scope="module")
def routes():
    loop = asyncio.new_event_loop()
    try:
        yield Front(ServeOptions(log="off"), loop).router.patterns()
    finally:
        loop.close()


def test_every_path_is_described_and_none_besides(routes):
    made = document(routes, "1")
    described = {(m, path) for path, methods in made["paths"].items() for m in methods}
    assert len(described) == len({route for route in routes if route[0] != "HEAD"})
    ids = [m["operationId"] for methods in made["paths"].values() for m in methods.values()]
    assert len(ids) == len(set(ids))
    with pytest.raises(KeyError):
        document([("GET", "/nothing")], "1")


def test_the_document_is_openapi_3_1_and_its_references_lead_somewhere(routes):
    made = document(routes, "1", has_token=True)
    text = json.dumps(made)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names == set(made["components"]["schemas"])
    validate = pytest.importorskip("openapi_spec_validator").validate
    validate(made)


def test_only_open_paths_are_open(routes):
    made = document(routes, "1", has_token=True)["paths"]
    is_open = {
        p for p, methods in made.items() if all("security" not in m for m in methods.values())
    }
    assert is_open == {
        *("/", "/page/{file}", "/openapi.json", "/v2/health/live", "/v2/health/ready"),
        *("/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready"),
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_schemathesis_finds_nothing(tmp_path):
    """Requests made up from the document: no 500, and no answer that it does not describe."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    net = mean_color_detector(tmp_path / "colours.onnx")
    with live.server(net, "--threads", "1") as server:
        schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
        count = 0
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=25,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def check(case):
                case.call_and_validate()

            check()
            count += 1
        assert count > 20
        assert server.get("/v2/health/ready")[0] == 200
        assert json.loads(server.get("/v2/models/colours")[2])["name"] == "colours"
