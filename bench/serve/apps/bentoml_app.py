"""BentoML: a service with one worker per core; the body is the picture."""

from __future__ import annotations

from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType

from bench.serve.apps.pipeline import Pipeline, case_of_environment, num_instances


@bentoml.service(workers=num_instances())
class Detector:
    def __init__(self) -> None:
        self.pipeline = Pipeline(case_of_environment())

    @bentoml.api
    def detect(self, image: Annotated[bytes, ContentType("image/jpeg")], /) -> dict[str, Any]:
        return self.pipeline(image)
