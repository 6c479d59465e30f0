"""Ray Serve: one replica per core behind its HTTP proxy; the body is the picture."""

from __future__ import annotations

import signal
import sys
from typing import Any

import ray
from ray import serve
from starlette.requests import Request

from bench.serve.apps.pipeline import Pipeline, case_of_environment, num_instances


@serve.deployment(num_replicas=num_instances(), ray_actor_options={"num_cpus": 0.5})
class Detector:
    def __init__(self) -> None:
        self.pipeline = Pipeline(case_of_environment())

    async def __call__(self, request: Request) -> dict[str, Any]:
        return self.pipeline(await request.body())


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=num_instances() * 2, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Detector.bind(), route_prefix="/detect")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
