"""MLServer: a custom runtime, one parallel worker per core; pictures as base64 BYTES tensors."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.serve.apps.pipeline import Pipeline, case_of_environment


class DetectorModel(MLModel):
    async def load(self) -> bool:
        self.pipeline = Pipeline(case_of_environment())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (jpeg,) = Base64Codec.decode_input(payload.inputs[0])
        found = zip(("boxes", "scores", "classes"), self.pipeline.find(jpeg), strict=True)
        outputs = [NumpyCodec.encode_output(name, values) for name, values in found]
        return InferenceResponse(model_name=self.name, outputs=outputs)


class IdentityModel(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("OUTPUT0", values)
        return InferenceResponse(model_name=self.name, outputs=[output])
