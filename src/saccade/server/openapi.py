"""The OpenAPI document of the REST surface, made of the paths that the router really has.

Source: OpenAPI Specification 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from saccade.server.openapi_schemas import PROBLEMS, SCHEMAS, VERSION, list_of, ref

__all__ = ["document"]

Operation = dict[str, Any]


def document(
    routes: Iterable[tuple[str, str]], version: str, *, has_token: bool = False
) -> dict[str, Any]:
    """The document.

    Args:
        routes: Method and pattern of each path, as in `saccade.server.routes.Router`.
        version: Of saccade.
        has_token: Whether this server wants a bearer token.

    Raises:
        KeyError: A path has no description here.
    """
    paths: dict[str, Any] = {}
    for method, pattern in routes:
        if method == "HEAD":
            continue
        path, operation = _described(method, pattern, has_token)
        paths.setdefault(path, {})[method.lower()] = operation
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "saccade",
            "version": version,
            "description": "Pictures or tensors in, boxes or tensors out: the Open Inference "
            "Protocol, and /detect for encoded pictures.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": SCHEMAS},
    }
    if has_token:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return made


def _described(method: str, pattern: str, has_token: bool) -> tuple[str, Operation]:
    """A path with its parameters named, and what its method does."""
    generic = pattern.replace("/versions/{}", "")
    path, tag, is_open, operation = _OPERATIONS[method, generic]
    is_versioned = generic != pattern
    if is_versioned:
        path = path.replace("/models/{model}", "/models/{model}/versions/{version}")
    made: Operation = {
        **operation,
        "tags": [tag],
        "operationId": _operation_id(method, path),
        "parameters": [*_path_parameters(path), *operation.get("parameters", ())],
    }
    wrong = {400, 404, 405, 408, 413, 431, 503, *operation.get("problems", ())}
    made.pop("problems", None)
    if has_token and not is_open:
        wrong.add(401)
        made["security"] = [{"token": []}]
    made["responses"] = {
        **operation["responses"],
        **{str(status): _problem(status) for status in sorted(wrong)},
    }
    return path, made


def _operation_id(method: str, path: str) -> str:
    words = path.replace("{", "").replace("}", "").replace(".", "/").split("/")
    return "_".join([method.lower(), *filter(None, words)])


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": VERSION if name == "version" else {"type": "string", "minLength": 1},
        }
        for name in names
    ]


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": PROBLEMS[status],
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }


def _gives(
    what: str, schema: dict[str, Any] | None = None, content_type: str = "application/json"
) -> dict[str, Any]:
    made: dict[str, Any] = {"description": what}
    if schema is not None:
        made["content"] = {content_type: {"schema": schema}}
    return {"200": made}


def _query(name: str, schema: dict[str, Any], what: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": what}


def _op(
    method: str, path: str, tag: str, summary: str, responses: dict[str, Any], **more: Any
) -> tuple[tuple[str, str], tuple[str, str, bool, Operation]]:
    """An entry of the table below; is_open: answered without a token."""
    is_open = bool(more.pop("is_open", False))
    pattern = re.sub(r"\{[^}]*\}", "{}", path)
    operation = {"summary": summary, "responses": responses, **more}
    return (method, pattern), (path, tag, is_open, operation)


def _body(name: str) -> dict[str, Any]:
    """A JSON body that may be left out."""
    return {"required": False, "content": {"application/json": {"schema": ref(name)}}}


_TEXT = {"type": "string"}
_ANYTHING = {"type": "object"}
_ANY_LIST = {"type": "array"}
_BINARY = {"type": "string", "format": "binary"}
_RATIO = {"type": "number", "minimum": 0, "maximum": 1}
_INFER_HEADER = {
    "name": "inference-header-content-length",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "Length of the JSON, if tensors follow it as bytes.",
}
_INFER_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": ref("InferRequest")},
        "application/octet-stream": {
            "schema": {**_BINARY, "description": "The JSON, then the bytes of its tensors."}
        },
    },
}
_PICTURE_BODY = {
    "required": True,
    "content": {
        **{kind: {"schema": _BINARY} for kind in ("image/*", "application/octet-stream")},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": _BINARY}},
                "required": ["file"],
            }
        },
    },
}
_PICTURE_QUERY = [
    _query("score", _RATIO, "Score threshold in place of the model's."),
    _query("iou", _RATIO, "IoU threshold in place of the model's."),
    _query(
        "max_detections",
        {"type": "integer", "minimum": 0, "maximum": 100_000},
        "Most boxes in place of the model's.",
    ),
    _query(
        "format",
        {"enum": ["json", "jpeg", "png"]},
        "Boxes, or the picture with the boxes drawn; default by the header accept.",
    ),
    _query("priority", {"type": "integer", "minimum": 0, "maximum": 9}, "1 goes first, 9 last."),
    _query(
        "timeout_ms",
        {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9},
        "After how long the answer is not wanted any more; 0 for never.",
    ),
]
_FOUND = {
    "200": {
        "description": "The boxes, best first; of several pictures one list each.",
        "headers": {
            "server-timing": {"schema": _TEXT, "description": "Milliseconds of each stage."}
        },
        "content": {
            "application/json": {"schema": {"anyOf": [ref("Detections"), ref("Pictures")]}},
            "image/jpeg": {"schema": _BINARY},
            "image/png": {"schema": _BINARY},
        },
    }
}
_TENSORS = {
    "200": {
        "description": "The outputs",
        "content": {
            "application/json": {"schema": ref("InferResponse")},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}
_STATISTICS = _gives("Statistics", ref("Statistics"))
_REGIONS = _gives("Regions", list_of("Region"))
_SETTINGS = _gives("Settings", ref("Settings"))
_FILE = {
    "200": {"description": "The file", "content": {"*/*": {}}},
    "304": {"description": "As it was"},
}
_MODEL = "/v2/models/{model}"
_MEMORY = "/v2/systemsharedmemory"
_CUDA = "/v2/cudasharedmemory"

# By method and pattern without the version: path, tag, whether it is answered without a token,
# and what it does.
_OPERATIONS: dict[tuple[str, str], tuple[str, str, bool, Operation]] = dict(
    [
        _op("GET", "/", "site", "The page.", _gives("HTML", _TEXT, "text/html"), is_open=True),
        _op("GET", "/page/{file}", "site", "A file of the page.", _FILE, is_open=True),
        _op("GET", "/page/live", "site", "Figures for the charts.", _gives("Figures", _ANYTHING)),
        _op(
            "GET",
            "/page/models",
            "site",
            "Models with the figures of their gates.",
            _gives("Models", _ANYTHING),
        ),
        _op("GET", "/metrics", "site", "For Prometheus.", _gives("Text", _TEXT, "text/plain")),
        _op(
            "GET",
            "/openapi.json",
            "site",
            "This document.",
            _gives("The document", _ANYTHING),
            is_open=True,
        ),
        _op(
            "GET",
            "/v2",
            "server",
            "Name, version and extensions.",
            _gives("Metadata", ref("ServerMetadata")),
        ),
        _op("GET", "/v2/health/live", "server", "Does it run?", _gives("It does"), is_open=True),
        _op(
            "GET",
            "/v2/health/ready",
            "server",
            "Are all models ready?",
            _gives("They are"),
            is_open=True,
        ),
        _op(
            "GET",
            _MODEL,
            "models",
            "What goes in and comes out.",
            _gives("Metadata", ref("ModelMetadata")),
        ),
        _op(
            "GET",
            f"{_MODEL}/ready",
            "models",
            "Does the model take requests?",
            _gives("It does"),
            is_open=True,
        ),
        _op(
            "GET",
            f"{_MODEL}/config",
            "models",
            "The model's configuration.",
            _gives("Configuration", ref("ModelConfig")),
        ),
        _op("GET", f"{_MODEL}/stats", "models", "What the model has done.", _STATISTICS),
        _op("GET", "/v2/models/stats", "models", "What all models have done.", _STATISTICS),
        _op(
            "POST",
            f"{_MODEL}/infer",
            "inference",
            "Run a network on tensors.",
            _TENSORS,
            parameters=[_INFER_HEADER],
            requestBody=_INFER_BODY,
            problems=(415, 500, 501, 504),
        ),
        _op(
            "POST",
            f"{_MODEL}/detect",
            "inference",
            "Find objects in the picture that is the body, or in those of a form.",
            _FOUND,
            parameters=_PICTURE_QUERY,
            requestBody=_PICTURE_BODY,
            problems=(415, 500, 504),
        ),
        _op(
            "POST",
            "/v2/repository/index",
            "repository",
            "The models and their states.",
            _gives("Models", ref("Index")),
            requestBody=_body("IndexRequest"),
            problems=(415,),
        ),
        _op(
            "POST",
            "/v2/repository/models/{model}/load",
            "repository",
            "Load a model; one that is there is replaced when the new one is ready.",
            _gives("It is ready"),
            requestBody=_body("LoadRequest"),
            problems=(403, 409, 412, 415, 500, 501),
        ),
        _op(
            "POST",
            "/v2/repository/models/{model}/unload",
            "repository",
            "Take no more requests for a model and release it.",
            _gives("It is released"),
            requestBody=_body("UnloadRequest"),
            problems=(403, 409, 415, 500),
        ),
        _op("GET", f"{_MEMORY}/status", "memory", "Regions that are registered.", _REGIONS),
        _op("GET", f"{_MEMORY}/region/{{region}}/status", "memory", "One region.", _REGIONS),
        _op(
            "POST",
            f"{_MEMORY}/region/{{region}}/register",
            "memory",
            "Register a piece of POSIX shared memory of this machine.",
            _gives("It is registered"),
            requestBody=_body("RegisterRequest"),
            problems=(403, 409, 415),
        ),
        _op("POST", f"{_MEMORY}/unregister", "memory", "Forget all regions.", _gives("Done")),
        _op(
            "POST",
            f"{_MEMORY}/region/{{region}}/unregister",
            "memory",
            "Forget a region.",
            _gives("Done"),
        ),
        _op("GET", f"{_CUDA}/status", "memory", "Regions on GPUs.", _gives("They", _ANY_LIST)),
        _op(
            "GET",
            f"{_CUDA}/region/{{region}}/status",
            "memory",
            "One region on a GPU.",
            _gives("It", _ANY_LIST),
        ),
        _op(
            "POST",
            f"{_CUDA}/region/{{region}}/register",
            "memory",
            "Register memory of a GPU by its CUDA handle, where the server has a GPU.",
            _gives("It is registered"),
            requestBody=_body("RegisterOnDeviceRequest"),
            problems=(409, 415, 501),
        ),
        _op("POST", f"{_CUDA}/unregister", "memory", "Forget all regions.", _gives("Done")),
        _op(
            "POST",
            f"{_CUDA}/region/{{region}}/unregister",
            "memory",
            "Forget a region.",
            _gives("Done"),
        ),
        _op("GET", "/v2/logging", "server", "What is logged.", _SETTINGS),
        _op(
            "POST",
            "/v2/logging",
            "server",
            "Change what is logged.",
            _SETTINGS,
            requestBody=_body("Settings"),
            problems=(415,),
        ),
        *(
            made
            for path in ("/v2/trace/setting", f"{_MODEL}/trace/setting")
            for made in (
                _op("GET", path, "server", "How calls are traced.", _SETTINGS),
                _op(
                    "POST",
                    path,
                    "server",
                    "Change how calls are traced.",
                    _SETTINGS,
                    requestBody=_body("Settings"),
                    problems=(415, 501),
                ),
            )
        ),
    ]
)
