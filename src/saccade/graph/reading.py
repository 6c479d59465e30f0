"""An ONNX file into a checked Model, without loading its weights from other files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.errors import ModelError
from saccade.graph.external import check_tensors
from saccade.graph.topology import check_graph, node_tensors, tensors
from saccade.types import Model, TensorSpec

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

__all__ = ["free_rank", "load_proto", "read_model", "spec_of"]

MAX_PROTO_BYTES = 2**31 - 1
CHUNK_BYTES = 1 << 20

# What people pass by mistake, by the first bytes of the file.
KNOWN_HEADS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with 'git lfs pull'"),
    (b"PK\x03\x04", "a ZIP archive, as PyTorch writes; export the network to ONNX"),
    (b"\x80\x02", "a Python pickle, as PyTorch writes; export the network to ONNX"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; convert it to ONNX"),
    (b"ptrt", "a TensorRT engine; pass the ONNX file it was built from"),
    (b"ftrt", "a TensorRT engine; pass the ONNX file it was built from"),
    (b"<", "HTML or XML, perhaps an error page; download the file again"),
)


def read_model(path: str | Path) -> Model:
    """Read and check an ONNX file.

    The structure is checked: versions, that each tensor is made once and is there when read, no
    circles, stored tensors whole, external files inside the model's folder. Whether the operators
    are known is for the back ends to say. An output that the file gives no shape has it inferred;
    if its number of axes stays unknown its shape is ("...",).

    Args:
        path: The ONNX file. External files with weights are looked for in its folder.

    Raises:
        ModelError: The file cannot be used; says which node or tensor is to blame.
    """
    path = Path(path)
    try:
        return _read_model(path)
    except ModelError as exc:
        raise ModelError(f"{path}: {exc}") from exc.__cause__


def _read_model(path: Path) -> Model:
    proto = _parse(path)
    _check_versions(proto)
    _check_text(proto)
    graph = proto.graph
    check_graph(graph)
    if not graph.output:
        raise ModelError("a network must have an output, this graph has none; export it again")
    external_files = check_tensors(_all_tensors(proto), path)
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {sparse.values.name for sparse in graph.sparse_initializer}
    fed = [value for value in graph.input if value.name not in weights]
    return Model(
        path=path,
        digest=_digest(path, external_files),
        inputs=tuple(spec_of(value, "input") for value in fed),
        outputs=_output_specs(proto),
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        opset=_opset(proto),
        external_files=external_files,
    )


def load_proto(model: Model) -> onnx.ModelProto:
    """Parse the model file again; weights in external files stay there.

    Raises:
        ModelError: The file has gone or changed into something unreadable.
    """
    try:
        return _parse(model.path)
    except ModelError as exc:
        raise ModelError(f"{model.path}: {exc}") from exc.__cause__


def spec_of(value: onnx.ValueInfoProto, role: str) -> TensorSpec:
    """Name, dtype and shape of an input or output; sizes of 0 and below count as free.

    Args:
        value: From the graph.
        role: "input" or "output", for the message.

    Raises:
        ModelError: It is not a tensor, or of an unknown type.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"{role} {value.name!r} must be a tensor, it is "
            f"{kind.removesuffix('_type') if kind else 'of no type'}; export the model again "
            "without it"
        )
    tensor_type = value.type.tensor_type
    shape: tuple[int | str, ...] = ("...",)
    if tensor_type.HasField("shape"):
        shape = tuple(_axis(dim) for dim in tensor_type.shape.dim)
    return TensorSpec(value.name, _dtype_name(value.name, tensor_type.elem_type), shape)


def free_rank(spec: TensorSpec) -> bool:
    """Whether not even the number of axes is known."""
    return spec.shape == ("...",)


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or "?"


def _dtype_name(name: str, elem_type: int) -> str:
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, ValueError) as exc:
        raise ModelError(
            f"the element type of tensor {name!r} must be one that onnx {onnx.__version__} knows, "
            f"it is number {elem_type}; upgrade onnx, or export the model again"
        ) from exc


def _output_specs(proto: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    outputs = list(proto.graph.output)
    if any(_is_untyped(value) for value in outputs):
        from saccade.graph.shapes import declared_outputs

        outputs = declared_outputs(proto)
    return tuple(spec_of(value, "output") for value in outputs)


def _is_untyped(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not value.type.tensor_type.HasField("shape"))


def _all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from tensors(proto.graph)
    for function in proto.functions:
        yield from node_tensors(function.node)
    for training in proto.training_info:
        yield from tensors(training.initialization)
        yield from tensors(training.algorithm)


def _check_versions(proto: onnx.ModelProto) -> None:
    import onnx

    if not proto.HasField("graph"):
        raise ModelError(
            "an ONNX model must have a graph, this file has none; it is empty or not an ONNX "
            "model, export or copy it again"
        )
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"ir_version must be from 1 to {onnx.IR_VERSION} (onnx {onnx.__version__}), it is "
            f"{proto.ir_version}; upgrade onnx, or export with an older opset"
        )
    if _opset(proto) < 1:
        raise ModelError(
            "an ONNX model must import the default operator set, this one imports "
            f"{sorted(entry.domain for entry in proto.opset_import) or 'none'}; export it again"
        )


def _check_text(message: Message) -> None:
    """Check that every string is text: Protocol Buffers hands out bytes where it is not UTF-8."""
    from google.protobuf.message import Message

    inner: list[Message] = []
    if message.DESCRIPTOR.name == "TensorProto":
        strings = [
            message.name,
            *(text for e in message.external_data for text in (e.key, e.value)),
        ]
    else:
        strings = []
        for field, value in message.ListFields():
            values = [value] if isinstance(value, (str, bytes, Message)) else value
            if field.type == field.TYPE_STRING:
                strings += values
            elif field.type == field.TYPE_MESSAGE:
                inner += values
    for text in strings:
        if not isinstance(text, str):
            raise ModelError(
                f"names in an ONNX file must be UTF-8, a {message.DESCRIPTOR.name} has "
                f"{bytes(text)[:40]!r}; the file is damaged, export or copy it again"
            )
    for part in inner:
        _check_text(part)


def _opset(proto: onnx.ModelProto) -> int:
    default = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return int(max(default, default=0))


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    content = _content(path)
    for head, what in KNOWN_HEADS:
        if content.startswith(head):
            raise ModelError(f"a model must be an ONNX file, this is {what}")
    try:
        return onnx.ModelProto.FromString(content)
    except DecodeError as exc:
        raise ModelError(_damage(content)) from exc


def _content(path: Path) -> bytes:
    export = "pass the path of an .onnx file"
    try:
        if path.is_dir():
            raise ModelError(f"a model must be an ONNX file, this is a folder; {export}")
        size_bytes = path.stat().st_size
        if not path.is_file():
            raise ModelError(f"a model must be a plain file, this is a device or pipe; {export}")
        if size_bytes > MAX_PROTO_BYTES:
            raise ModelError(
                f"an ONNX file must be smaller than 2 GiB, it has {size_bytes} bytes; "
                "export with the weights in external files"
            )
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise ModelError(f"a model must be an ONNX file, there is no such file; {export}") from exc
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"a model must be a readable ONNX file, reading it failed ({exc}); "
            "check the path and its permissions"
        ) from exc
    if not content:
        raise ModelError(
            "a model must be an ONNX file, this file is empty; copy or export it again"
        )
    return content


def _damage(content: bytes) -> str:
    """Say in what way bytes are not an ONNX file: text, cut short, or broken inside."""
    must = f"a model must be an ONNX file, this one of {len(content)} bytes"
    sample = content[:256]
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in sample):
        start = sample[:32].decode("ascii")
        return f"{must} is text starting with {start!r}; pass the exported .onnx file"
    missing = _missing_bytes(content)
    if missing:
        return f"{must} is cut short, {missing} bytes are missing; copy or download it again"
    return f"{must} is damaged (its Protocol Buffers cannot be read); copy or export it again"


def _missing_bytes(content: bytes) -> int:
    """Bytes by which the last length-delimited field of the outer message passes the end.

    Source: Protocol Buffers encoding guide, tags and wire types.
    """
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        wire_type, length = tag & 7, 0
        if wire_type == 0:
            _, position = _varint(content, position)
        elif wire_type == 1:
            length = 8
        elif wire_type == 2:
            length, position = _varint(content, position)
        elif wire_type == 5:
            length = 4
        else:
            return 0
        position += length
    return position - len(content)


def _varint(content: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            return number, position + 1
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return number, position


def _digest(path: Path, external_files: Sequence[str]) -> str:
    """SHA-256 over the model file, then each external file after its name, in streams."""
    sha = hashlib.sha256()
    try:
        _feed(sha, path)
        for location in external_files:
            name = location.encode()
            sha.update(len(name).to_bytes(8, "little") + name)
            _feed(sha, path.parent / location)
    except OSError as exc:
        raise ModelError(
            f"the model and its external files must be readable, reading failed ({exc}); "
            "check the files and their permissions"
        ) from exc
    return sha.hexdigest()


def _feed(sha: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
