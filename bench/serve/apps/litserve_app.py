"""LitServe: a LitAPI with one worker per core; pictures as base64 in JSON, as in its guide."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve

from bench.serve.apps.pipeline import Pipeline, case_of_environment, num_instances


class DetectorAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        del device
        self.pipeline = Pipeline(case_of_environment())

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image_data"])

    def predict(self, jpeg: bytes) -> dict[str, Any]:
        return self.pipeline(jpeg)

    def encode_response(self, found: dict[str, Any]) -> dict[str, Any]:
        return found


if __name__ == "__main__":
    server = litserve.LitServer(
        DetectorAPI(), accelerator="cpu", workers_per_device=num_instances()
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
