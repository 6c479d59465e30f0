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
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_schemathesis_finds_nothing(tmp_path, mode):
    """Requests made up after the document, and against it: no server error, and no answer that
    the document does not describe."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    # A schema cannot say which tensors fit a model, nor what a picture is; and that a server
    # offers no memory of GPUs (501) is no fault of it.
    beyond = [
        checks.positive_data_acceptance,
        checks.negative_data_rejection,
        schemathesis.checks.not_a_server_error,
    ]
    net = mean_color_detector(tmp_path / "colours.onnx")
    with live.server(net, "--threads", "1") as server:
        schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
        count = 0
        for result in schema.get_all_operations():
            operation = result.ok()
            strategy = operation.as_strategy(generation_mode=GenerationMode[mode])

            @settings(
                max_examples=20,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def check(case):
                answer = case.call_and_validate(excluded_checks=beyond)
                assert answer.status_code != 500, answer.text

            try:
                check()
            except schemathesis_skips():
                continue
            count += 1
        assert count > 10
        assert server.get("/v2/health/ready")[0] == 200
        assert json.loads(server.get("/v2/models/colours")[2])["name"] == "colours"


def schemathesis_skips():
    """What says that an operation has nothing to be made wrong."""
    from hypothesis.errors import Unsatisfiable

    return (Unsatisfiable, pytest.skip.Exception)
