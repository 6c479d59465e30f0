"""OpenVINO as its guides advise for throughput: AsyncInferQueue, here told to stay in FP32."""

from __future__ import annotations

from typing import Any

from bench.cases import Case

LABEL = "OpenVINO AsyncInferQueue, FP32"
NOTE = "PERFORMANCE_HINT THROUGHPUT, INFERENCE_PRECISION_HINT f32; cv2 on the submitting thread"
CASES = None
VENV = None
CHECK = "agreement"
PRECISION = "f32"


def setup(case: Case) -> tuple[Case, Any]:
    return start(case, PRECISION)


def start(case: Case, precision: str) -> tuple[Case, Any]:
    """A queue of as many requests as OpenVINO asks for; batch 1 whatever the graph leaves free."""
    import openvino

    core = openvino.Core()
    model = core.read_model(case.model_path)
    model.reshape([1, 3, *case.size_hw])
    hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
    return case, openvino.AsyncInferQueue(core.compile_model(model, "CPU", hints))


def run(state: tuple[Case, Any], paths: list[str]) -> list[tuple]:
    import cv2

    from bench import recipes

    case, queue = state
    answers: list[Any] = [None] * len(paths)

    def finish(request: Any, job: tuple[int, recipes.Placement]) -> None:
        index, place = job
        output = request.get_output_tensor(0).data
        found = recipes.finish(case, place, *recipes.read_kept(case, output))
        answers[index] = (paths[index], *found)

    queue.set_callback(finish)
    for index, path in enumerate(paths):
        tensor, place = recipes.prepare(case, cv2.imread(path))
        queue.start_async({0: tensor}, (index, place))
    queue.wait_all()
    return answers


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("numpy", "openvino", "opencv-python-headless")}
