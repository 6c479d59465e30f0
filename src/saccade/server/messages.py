"""The protocol's gRPC messages, from a table, in a descriptor pool of their own.

A pool of their own, because clients of the same protocol register the same full names in the
default pool, and a process may hold both. A table, because generated code is tied to a version of
its runtime. Field names and numbers are those of the protocol: they are the wire format.

Source: KServe, "Open Inference Protocol (V2)", the gRPC API; Triton's extensions to it.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["METHODS", "SERVICE", "message"]

SERVICE = "inference.GRPCInferenceService"

# A message per line; an indented one lies within the one above it. After the name its fields:
# name=number:type, type* if repeated, map:type for maps from strings, and type|choice for a
# member of a oneof.
_TABLE = """
ServerLiveRequest
ServerLiveResponse live=1:bool
ServerReadyRequest
ServerReadyResponse ready=1:bool
ModelReadyRequest name=1:string version=2:string
ModelReadyResponse ready=1:bool
ServerMetadataRequest
ServerMetadataResponse name=1:string version=2:string extensions=3:string*
ModelMetadataRequest name=1:string version=2:string
ModelMetadataResponse name=1:string versions=2:string* platform=3:string inputs=4:ModelMetadataResponse.TensorMetadata* outputs=5:ModelMetadataResponse.TensorMetadata*
 TensorMetadata name=1:string datatype=2:string shape=3:int64*
InferParameter bool_param=1:bool|parameter_choice int64_param=2:int64|parameter_choice string_param=3:string|parameter_choice double_param=4:double|parameter_choice uint64_param=5:uint64|parameter_choice
InferTensorContents bool_contents=1:bool* int_contents=2:int32* int64_contents=3:int64* uint_contents=4:uint32* uint64_contents=5:uint64* fp32_contents=6:float* fp64_contents=7:double* bytes_contents=8:bytes*
ModelInferRequest model_name=1:string model_version=2:string id=3:string parameters=4:map:InferParameter inputs=5:ModelInferRequest.InferInputTensor* outputs=6:ModelInferRequest.InferRequestedOutputTensor* raw_input_contents=7:bytes*
 InferInputTensor name=1:string datatype=2:string shape=3:int64* parameters=4:map:InferParameter contents=5:InferTensorContents
 InferRequestedOutputTensor name=1:string parameters=2:map:InferParameter
ModelInferResponse model_name=1:string model_version=2:string id=3:string parameters=4:map:InferParameter outputs=5:ModelInferResponse.InferOutputTensor* raw_output_contents=6:bytes*
 InferOutputTensor name=1:string datatype=2:string shape=3:int64* parameters=4:map:InferParameter contents=5:InferTensorContents
ModelStreamInferResponse error_message=1:string infer_response=2:ModelInferResponse
ModelConfigRequest name=1:string version=2:string
ModelConfigResponse config=1:ModelConfig
ModelStatisticsRequest name=1:string version=2:string
StatisticDuration count=1:uint64 ns=2:uint64
InferStatistics success=1:StatisticDuration fail=2:StatisticDuration queue=3:StatisticDuration compute_input=4:StatisticDuration compute_infer=5:StatisticDuration compute_output=6:StatisticDuration cache_hit=7:StatisticDuration cache_miss=8:StatisticDuration
InferBatchStatistics batch_size=1:uint64 compute_input=2:StatisticDuration compute_infer=3:StatisticDuration compute_output=4:StatisticDuration
ModelStatistics name=1:string version=2:string last_inference=3:uint64 inference_count=4:uint64 execution_count=5:uint64 inference_stats=6:InferStatistics batch_stats=7:InferBatchStatistics*
ModelStatisticsResponse model_stats=1:ModelStatistics*
ModelRepositoryParameter bool_param=1:bool|parameter_choice int64_param=2:int64|parameter_choice string_param=3:string|parameter_choice bytes_param=4:bytes|parameter_choice
RepositoryIndexRequest repository_name=1:string ready=2:bool
RepositoryIndexResponse models=1:RepositoryIndexResponse.ModelIndex*
 ModelIndex name=1:string version=2:string state=3:string reason=4:string
RepositoryModelLoadRequest repository_name=1:string model_name=2:string parameters=3:map:ModelRepositoryParameter
RepositoryModelLoadResponse
RepositoryModelUnloadRequest repository_name=1:string model_name=2:string parameters=3:map:ModelRepositoryParameter
RepositoryModelUnloadResponse
SystemSharedMemoryStatusRequest name=1:string
SystemSharedMemoryStatusResponse regions=1:map:SystemSharedMemoryStatusResponse.RegionStatus
 RegionStatus name=1:string key=2:string offset=3:uint64 byte_size=4:uint64
SystemSharedMemoryRegisterRequest name=1:string key=2:string offset=3:uint64 byte_size=4:uint64
SystemSharedMemoryRegisterResponse
SystemSharedMemoryUnregisterRequest name=1:string
SystemSharedMemoryUnregisterResponse
CudaSharedMemoryStatusRequest name=1:string
CudaSharedMemoryStatusResponse regions=1:map:CudaSharedMemoryStatusResponse.RegionStatus
 RegionStatus name=1:string device_id=2:uint64 byte_size=3:uint64
CudaSharedMemoryRegisterRequest name=1:string raw_handle=2:bytes device_id=3:int64 byte_size=4:uint64
CudaSharedMemoryRegisterResponse
CudaSharedMemoryUnregisterRequest name=1:string
CudaSharedMemoryUnregisterResponse
TraceSettingRequest settings=1:map:TraceSettingRequest.SettingValue model_name=2:string
 SettingValue value=1:string*
TraceSettingResponse settings=1:map:TraceSettingResponse.SettingValue
 SettingValue value=1:string*
LogSettingsRequest settings=1:map:LogSettingsRequest.SettingValue
 SettingValue bool_param=1:bool|parameter_choice uint32_param=2:uint32|parameter_choice string_param=3:string|parameter_choice
LogSettingsResponse settings=1:map:LogSettingsResponse.SettingValue
 SettingValue bool_param=1:bool|parameter_choice uint32_param=2:uint32|parameter_choice string_param=3:string|parameter_choice
ModelTensorConfig name=1:string data_type=2:int32 dims=4:int64*
ModelOutputConfig name=1:string data_type=2:int32 dims=3:int64*
ModelInstanceGroup name=1:string count=2:int32 gpus=3:int32* kind=4:int32
ModelVersionPolicy latest=1:ModelVersionPolicy.Latest
 Latest num_versions=1:uint32
ModelDynamicBatching preferred_batch_size=1:int32* max_queue_delay_microseconds=2:uint64 priority_levels=4:uint64 default_priority_level=5:uint64
ModelParameter string_value=1:string
ModelConfig name=1:string platform=2:string version_policy=3:ModelVersionPolicy max_batch_size=4:int32 input=5:ModelTensorConfig* output=6:ModelOutputConfig* instance_group=7:ModelInstanceGroup* default_model_filename=8:string dynamic_batching=11:ModelDynamicBatching parameters=14:map:ModelParameter backend=17:string
"""  # noqa: E501

# Method: request, answer, whether both are streams.
METHODS: dict[str, tuple[str, str, bool]] = {
    **{
        name: (f"{name}Request", f"{name}Response", False)
        for name in (
            *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
            *("ModelInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex"),
            *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
            *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister"),
            *("SystemSharedMemoryUnregister", "CudaSharedMemoryStatus"),
            *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
        )
    },
    "ModelStreamInfer": ("ModelInferRequest", "ModelStreamInferResponse", True),
}

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="saccade/inference.proto", package="inference", syntax="proto3"
    )
    outer: Any = None
    for line in _TABLE.strip("\n").split("\n"):
        name, *fields = line.split()
        if line.startswith(" "):
            made, path = outer.nested_type.add(name=name), f"{outer.name}.{name}"
        else:
            outer = made = file.message_type.add(name=name)
            path = name
        for text in fields:
            _add_field(made, path, text)
    return file


def _add_field(made: Any, path: str, text: str) -> None:
    name, _, rest = text.partition("=")
    number, _, kind = rest.partition(":")
    kind, _, choice = kind.partition("|")
    field = made.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if kind.startswith("map:"):
        kind = f"{path}.{_add_entry(made, name, kind[4:])}*"
    if kind.endswith("*"):
        kind, field.label = kind[:-1], _Field.LABEL_REPEATED
    _set_kind(field, kind)
    if choice:
        if not any(one.name == choice for one in made.oneof_decl):
            made.oneof_decl.add(name=choice)
        field.oneof_index = 0


def _add_entry(made: Any, name: str, kind: str) -> str:
    """The message that protobuf makes of one entry of a map."""
    entry = made.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
    value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL)
    _set_kind(value, kind)
    return str(entry.name)


def _set_kind(field: Any, kind: str) -> None:
    if kind in _KINDS:
        field.type = _KINDS[kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".inference.{kind}"


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    file = _file()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return {
        one.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"inference.{one.name}")
        )
        for one in file.message_type
    }


_CLASSES = _classes()


def message(name: str) -> Any:
    """The class of a message."""
    return _CLASSES[name]
