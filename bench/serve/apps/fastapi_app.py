"""A plain FastAPI script: uvicorn bench.serve.apps.fastapi_app:app --workers CORES.

The body is the picture; the job runs on the thread pool, one at a time per process.
"""

from __future__ import annotations

import threading
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from bench.serve.apps.pipeline import Pipeline, case_of_environment

app = FastAPI()
pipeline = Pipeline(case_of_environment())
lock = threading.Lock()


def work(jpeg: bytes) -> dict[str, Any]:
    with lock:
        return pipeline(jpeg)


@app.post("/detect")
async def detect(request: Request) -> dict[str, Any]:
    return await run_in_threadpool(work, await request.body())
