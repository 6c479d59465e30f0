"""HTTP requests as bytes, and what the contenders' bodies have in common."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["kserve_request", "post", "read_kserve", "read_plain"]

TYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]


def post(path: str, body: bytes, **headers: str) -> bytes:
    """One whole request; header names are written with _ for -."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def kserve_request(path: str, inputs: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """An infer request of the Open Inference Protocol with binary tensors both ways.

    Args:
        path: Of the model's infer endpoint.
        inputs: By name: type, shape, bytes.
    """
    header = {
        "inputs": [
            {
                "name": name,
                "datatype": datatype,
                "shape": shape,
                "parameters": {"binary_data_size": len(data)},
            }
            for name, (datatype, shape, data) in inputs.items()
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    body = text + b"".join(data for _, _, data in inputs.values())
    return post(
        path,
        body,
        Content_Type="application/octet-stream",
        Inference_Header_Content_Length=str(len(text)),
    )


def read_kserve(body: bytes) -> dict[str, np.ndarray]:
    """Outputs by name of an infer answer with binary tensors."""
    text = body.decode("latin-1")  # one character per byte, so that positions stay
    header, at = json.JSONDecoder().raw_decode(text)
    outputs = {}
    for output in header["outputs"]:
        if "data" in output:
            values = np.array(output["data"], TYPES[output["datatype"]])
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(body[at : at + size], TYPES[output["datatype"]])
            at += size
        outputs[output["name"]] = values.reshape(output["shape"])
    return outputs


def read_plain(answer: dict[str, Any]) -> Boxes:
    """The form that all our small services answer in."""
    boxes = np.reshape(np.asarray(answer["boxes"], np.float64), (-1, 4))
    return boxes, np.asarray(answer["scores"], np.float64), np.asarray(answer["classes"], int)
