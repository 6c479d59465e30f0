"""Parts of the OpenAPI document: what goes over the wire, and what goes wrong.

Source: KServe, "Open Inference Protocol (V2)"; Triton's extensions of it; RFC 9457.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from saccade.server.dtypes import ITEM_BYTES

__all__ = ["PROBLEMS", "SCHEMAS", "VERSION", "list_of", "ref"]

PROBLEMS = {
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
VERSION = {"type": "string", "pattern": "^[0-9]{1,18}$"}
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


def list_of(name: str) -> dict[str, Any]:
    """A list of what a schema describes."""
    return {"type": "array", "items": ref(name)}


def ref(name: str) -> dict[str, str]:
    """What a schema describes."""
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, Any] = {
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
            "versions": {"type": "array", "items": VERSION},
            "platform": {"type": "string"},
            "inputs": list_of("TensorMetadata"),
            "outputs": list_of("TensorMetadata"),
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
                        "version": VERSION,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": {
                            "type": "object",
                            "additionalProperties": ref("Duration"),
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
            "inputs": list_of("RequestTensor"),
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
            "model_version": VERSION,
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
            "model_version": VERSION,
            "width": _COUNT,
            "height": _COUNT,
            "detections": list_of("Detection"),
        },
        ("model_name", "model_version", "width", "height", "detections"),
    ),
    "Pictures": _object(
        {
            "model_name": {"type": "string"},
            "model_version": VERSION,
            "pictures": {
                "type": "array",
                "description": "In the order of the parts; one that cannot be used has an error.",
                "items": _object(
                    {
                        "name": {"type": "string"},
                        "width": _COUNT,
                        "height": _COUNT,
                        "detections": list_of("Detection"),
                        "error": ref("Problem"),
                    },
                    ("name",),
                ),
            },
        },
        ("model_name", "model_version", "pictures"),
    ),
    "Index": {
        "type": "array",
        "items": _object(
            {
                "name": {"type": "string"},
                "version": VERSION,
                "state": {"enum": ["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]},
                "reason": {"type": "string"},
            },
            ("name", "version", "state", "reason"),
        ),
    },
    "IndexRequest": _object({"ready": {"type": "boolean"}}),
    "LoadRequest": _object(
        {
            "parameters": _object(
                {
                    "path": {
                        "type": "string",
                        "description": "Bundle or ONNX file on the server, inside --model-root.",
                    },
                    "version": VERSION,
                    "force": {
                        "type": "boolean",
                        "description": "Serve a bundle that did not pass its gate.",
                    },
                }
            )
        }
    ),
    "UnloadRequest": _object({"parameters": _PARAMETERS}),
    "Region": _object(
        {
            "name": {"type": "string"},
            "key": {"type": "string"},
            "offset": _COUNT,
            "byte_size": _COUNT,
        },
        ("name", "key", "offset", "byte_size"),
    ),
    "RegisterRequest": _object(
        {"key": {"type": "string"}, "offset": _COUNT, "byte_size": _COUNT}, ("key", "byte_size")
    ),
    "RegisterOnDeviceRequest": _object(
        {
            "raw_handle": _object({"b64": {"type": "string"}}, ("b64",)),
            "device_id": _COUNT,
            "byte_size": _COUNT,
        },
        ("raw_handle", "byte_size"),
    ),
    "Settings": {"type": "object", "additionalProperties": True},
}
