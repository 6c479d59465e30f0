"""The OpenAPI document of the REST surface, made of the paths that the router really has.

Source: OpenAPI Specification 3.1; KServe, "Open Inference Protocol (V2)"; RFC 9457 for problems.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saccade.server.dtypes import ITEM_BYTES

__all__ = ["document"]

Operation = dict[str, Any]

_PROBLEMS = {
    400: "The request is wrong, or the picture cannot be used.",
    401: "A token is needed.",
    403: "Not allowed on this server.",
    404: "There is nothing of that name.",
    405: "The method does not fit the path.",
    408: "The body came too slowly.",
    409: "Not possible in this state.",
    411: "The length of the body is missing.",
    412: "The model was refused.",
    413: "The body is too large.",
    415: "The type of the body is not known.",
    431: "The head is too large.",
    500: "The engine or the server failed.",
    501: "Not offered by this server.",
    503: "There is more work than fits, or the model is not ready; see retry-after.",
    504: "The time was up.",
}
_VERSION = {"type": "string", "pattern": "^[0-9]{1,18}$"}
_SHAPE = {"type": "array", "items": {"type": "integer"}}
_DATATYPE = {"type": "string", "enum": [*ITEM_BYTES, "BYTES"]}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_COUNT = {"type": "integer", "minimum": 0}
_PARAMETERS = {"type": "object", "additionalProperties": True}


def _object(
    properties: dict[str, Any], required: Iterable[str] = (), **more: Any
) -> dict[str, Any]:
    made = {"type": "object", "properties": properties, "required": list(required), **more}
    if not made["required"]:
        del made["required"]
    return made


def _list_of(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_SCHEMAS: dict[str, Any] = {
    "Problem": _object(
        {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "error": {"type": "string", "description": "As detail, for clients of KServe."},
            "must_be": {"type": "string"},
            "is": {"type": "string"},
            "fix": {"type": "string"},
            "request_id": {"type": "string"},
        },
        ("type", "title", "status", "detail", "error"),
    ),
    "ServerMetadata": _object(
        {
            "name": {"type": "string"},
            "version": {"type": "string"},
            "extensions": {"type": "array", "items": {"type": "string"}},
        },
        ("name", "version", "extensions"),
    ),
    "TensorMetadata": _object(
        {"name": {"type": "string"}, "datatype": _DATATYPE, "shape": _SHAPE},
        ("name", "datatype", "shape"),
    ),
    "ModelMetadata": _object(
        {
            "name": {"type": "string"},
            "versions": {"type": "array", "items": _VERSION},
            "platform": {"type": "string"},
            "inputs": _list_of("TensorMetadata"),
            "outputs": _list_of("TensorMetadata"),
        },
        ("name", "platform", "inputs", "outputs"),
    ),
    "ModelConfig": {
        "type": "object",
        "description": "In the words of Triton's model configuration.",
        "required": ["name", "input", "output", "max_batch_size"],
    },
    "Duration": _object({"count": _COUNT, "ns": _COUNT}, ("count", "ns")),
    "Statistics": _object(
        {
            "model_stats": {
                "type": "array",
                "items": _object(
                    {
                        "name": {"type": "string"},
                        "version": _VERSION,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": {
                            "type": "object",
                            "additionalProperties": _ref("Duration"),
                        },
                        "batch_stats": {"type": "array", "items": {"type": "object"}},
                    },
                    ("name", "version", "inference_count", "execution_count", "inference_stats"),
                ),
            }
        },
        ("model_stats",),
    ),
    "RequestTensor": _object(
        {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": _COUNT, "maxItems": 16},
            "datatype": _DATATYPE,
            "parameters": _PARAMETERS,
            "data": {
                "description": "Values in row-major order, flat or nested; left out where the "
                "bytes follow the JSON or lie in shared memory."
            },
        },
        ("name", "shape", "datatype"),
    ),
    "InferRequest": _object(
        {
            "id": {"type": "string"},
            "parameters": _PARAMETERS,
            "inputs": _list_of("RequestTensor"),
            "outputs": {
                "type": "array",
                "items": _object(
                    {"name": {"type": "string"}, "parameters": _PARAMETERS}, ("name",)
                ),
            },
        },
        ("inputs",),
    ),
    "InferResponse": _object(
        {
            "model_name": {"type": "string"},
            "model_version": _VERSION,
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": _object(
                    {
                        "name": {"type": "string"},
                        "shape": _SHAPE,
                        "datatype": _DATATYPE,
                        "parameters": _PARAMETERS,
                        "data": {"type": "array"},
                    },
                    ("name", "shape", "datatype"),
                ),
            },
        },
        ("model_name", "outputs"),
    ),
    "Detection": _object(
        {
            "box_xyxy": {
                **_NUMBERS,
                "minItems": 4,
                "maxItems": 4,
                "description": "Left, top, right and bottom in pixels of the picture as a viewer "
                "shows it.",
            },
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "class": _COUNT,
            "label": {"type": "string"},
            "keypoints_xy": {"type": "array", "items": {**_NUMBERS, "minItems": 2, "maxItems": 2}},
        },
        ("box_xyxy", "score", "class", "label"),
    ),
    "Detections": _object(
        {
            "model_name": {"type": "string"},
            "model_version": _VERSION,
            "width": _COUNT,
            "height": _COUNT,
            "detections": _list_of("Detection"),
        },
        ("model_name", "model_version", "width", "height", "detections"),
    ),
}


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
        "components": {"schemas": _SCHEMAS},
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
            "schema": _VERSION if name == "version" else {"type": "string", "minLength": 1},
        }
        for name in names
    ]


def _problem(status: int) -> dict[str, Any]:
    return {
        "description": _PROBLEMS[status],
        "content": {"application/problem+json": {"schema": _ref("Problem")}},
    }


def _gives(
    what: str, schema: dict[str, Any] | None = None, content_type: str = "application/json"
) -> dict[str, Any]:
    made: dict[str, Any] = {"description": what}
    if schema is not None:
        made["content"] = {content_type: {"schema": schema}}
    return {"200": made}


def _get(summary: str, responses: dict[str, Any], **more: Any) -> Operation:
    return {"summary": summary, "responses": responses, **more}


def _query(name: str, schema: dict[str, Any], what: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": what}


_TEXT = {"type": "string"}
_ANYTHING = {"type": "object"}
_INFER_HEADER = {
    "name": "inference-header-content-length",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "Length of the JSON, if tensors follow it as bytes.",
}
_INFER_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _ref("InferRequest")},
        "application/octet-stream": {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "The JSON, then the bytes of its tensors.",
            }
        },
    },
}
_RATIO = {"type": "number", "minimum": 0, "maximum": 1}
_PICTURE_BODY = {
    "required": True,
    "content": {
        kind: {"schema": {"type": "string", "format": "binary"}}
        for kind in ("image/jpeg", "image/png", "application/octet-stream")
    },
}

# By method and pattern without the version: path, tag, whether it is answered without a token,
# and what it does.
_OPERATIONS: dict[tuple[str, str], tuple[str, str, bool, Operation]] = {
    ("GET", "/"): ("/", "site", True, _get("The page.", _gives("HTML", _TEXT, "text/html"))),
    ("GET", "/page/{}"): (
        "/page/{file}",
        "site",
        True,
        _get("A file of the page.", {"200": {"description": "The file", "content": {"*/*": {}}}}),
    ),
    ("GET", "/page/live"): (
        "/page/live",
        "site",
        False,
        _get("Figures for the page's charts.", _gives("Figures", _ANYTHING)),
    ),
    ("GET", "/page/models"): (
        "/page/models",
        "site",
        False,
        _get("Models for the page, with the figures of their gates.", _gives("Models", _ANYTHING)),
    ),
    ("GET", "/metrics"): (
        "/metrics",
        "site",
        False,
        _get("Metrics for Prometheus.", _gives("Text", _TEXT, "text/plain")),
    ),
    ("GET", "/openapi.json"): (
        "/openapi.json",
        "site",
        True,
        _get("This document.", _gives("The document", _ANYTHING)),
    ),
    ("GET", "/v2"): (
        "/v2",
        "server",
        False,
        _get("Name, version and extensions.", _gives("Metadata", _ref("ServerMetadata"))),
    ),
    ("GET", "/v2/health/live"): (
        "/v2/health/live",
        "server",
        True,
        _get("Whether the server runs.", _gives("It does")),
    ),
    ("GET", "/v2/health/ready"): (
        "/v2/health/ready",
        "server",
        True,
        _get("Whether all models are ready.", _gives("They are")),
    ),
    ("GET", "/v2/models/{}"): (
        "/v2/models/{model}",
        "models",
        False,
        _get("What goes in and comes out.", _gives("Metadata", _ref("ModelMetadata"))),
    ),
    ("GET", "/v2/models/{}/ready"): (
        "/v2/models/{model}/ready",
        "models",
        True,
        _get("Whether the model takes requests.", _gives("It does")),
    ),
    ("GET", "/v2/models/{}/config"): (
        "/v2/models/{model}/config",
        "models",
        False,
        _get("The model's configuration.", _gives("Configuration", _ref("ModelConfig"))),
    ),
    ("GET", "/v2/models/{}/stats"): (
        "/v2/models/{model}/stats",
        "models",
        False,
        _get("What the model has done.", _gives("Statistics", _ref("Statistics"))),
    ),
    ("GET", "/v2/models/stats"): (
        "/v2/models/stats",
        "models",
        False,
        _get("What all models have done.", _gives("Statistics", _ref("Statistics"))),
    ),
    ("POST", "/v2/models/{}/infer"): (
        "/v2/models/{model}/infer",
        "inference",
        False,
        {
            "summary": "Run a network on tensors.",
            "parameters": [_INFER_HEADER],
            "requestBody": _INFER_BODY,
            "responses": {
                "200": {
                    "description": "The outputs",
                    "content": {
                        "application/json": {"schema": _ref("InferResponse")},
                        "application/octet-stream": {
                            "schema": {"type": "string", "format": "binary"}
                        },
                    },
                }
            },
            "problems": (500, 504),
        },
    ),
    ("POST", "/v2/models/{}/detect"): (
        "/v2/models/{model}/detect",
        "inference",
        False,
        {
            "summary": "Find objects in the picture that is the body.",
            "parameters": [
                _query("score", _RATIO, "Score threshold in place of the model's."),
                _query("iou", _RATIO, "IoU threshold in place of the model's."),
            ],
            "requestBody": _PICTURE_BODY,
            "responses": _gives("The boxes, best first", _ref("Detections")),
            "problems": (415, 500, 504),
        },
    ),
}
