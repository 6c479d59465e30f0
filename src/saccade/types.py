"""The nouns. Plain, frozen, checked once; everything else is functions on them.

Axis names used in every docstring of the package:

    b  pictures in a batch         n  anchors, queries or rows of a head
    h  height in pixels            c  classes
    w  width in pixels             k  detections of one picture
    p  key points per detection

Frames of reference:

    source  pixels of the picture as a viewer shows it (EXIF orientation applied);
            x grows to the right, y down; (0, 0) is the outer corner of the first pixel
    input   pixels of the network's input, the same convention
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from saccade.errors import InputError, SaccadeError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Availability",
    "Backend",
    "Candidates",
    "Contract",
    "Detections",
    "DeviceBackend",
    "DeviceBuffer",
    "DeviceEngine",
    "Engine",
    "Fallback",
    "Head",
    "HeadRule",
    "InputRule",
    "Model",
    "Placement",
    "Plan",
    "Recognition",
    "Result",
    "Signature",
    "Slot",
    "TensorSpec",
    "Thresholds",
]

Color = Literal["rgb", "bgr", "gray"]
Layout = Literal["nchw", "nhwc"]
Resize = Literal["letterbox", "stretch"]
Anchor = Literal["center", "top_left"]
Interpolation = Literal["linear", "area", "nearest", "cubic", "antialias"]
Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one input or output.

    Attributes:
        name: As in the graph.
        dtype: NumPy's name of the element type, e.g. "float32".
        shape: One entry per axis: a size, or the name of a free axis ("?" if it has none).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Model:
    """A network on disk, checked but not loaded.

    Attributes:
        path: The ONNX file.
        digest: SHA-256 in hex over the file and every external-data file it names.
        inputs: What must be fed; weights that an old exporter lists as inputs are left out.
        outputs: What comes out; free axes keep their names.
        metadata: The key-value pairs stored in the file.
        opset: Version of the default operator set.
        external_files: Files beside the model that hold weights, relative to its folder.
    """

    path: Path
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    opset: int
    external_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """What a head needs to see of a graph in order to recognise it.

    Attributes:
        inputs: As in Model.
        outputs: As in Model, with every axis that follows from the inputs filled in: free batch
            axes stay free, other free axes are resolved with the size in `size_hw`.
        size_hw: Height and width of the picture input; those in the graph, or the trial size.
        size_is_free: True if the graph leaves height and width open.
        tails: For each output name, the operator types met walking back from it, nearest first,
            as far as the last convolutions or matrix products (these included).
        metadata: The key-value pairs stored in the file.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size_hw: tuple[int, int]
    size_is_free: bool
    tails: Mapping[str, tuple[str, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InputRule:
    """How a picture becomes the network's input.

    A picture is decoded to source pixels, resized, put into the channel order `color`, and each
    value x (0 to 255, or 0 to 65535 with bits=16) becomes (x - mean) / std.

    Attributes:
        name: The picture input.
        size_hw: Height and width of the input in pixels.
        color: Channel order that the network was trained on; "gray" is one channel.
        layout: Axis order of the input tensor.
        dtype: NumPy's name of the element type.
        bits: 8, or 16 to keep the depth of 16-bit pictures.
        resize: "letterbox" keeps the aspect ratio and pads; "stretch" does not.
        anchor: Where a letterboxed picture sits.
        pad_value: What letterbox fills with, before mean and std.
        interpolation: "linear", "area", "nearest" and "cubic" as OpenCV defines them;
            "antialias" is Pillow's bilinear filter (a triangle widened when shrinking).
        enlarge: False leaves pictures smaller than the input at their size in a letterbox.
        mean: One per channel, in the order of `color`.
        std: One per channel, in the order of `color`.
        size_input: Name of a second input that takes the source size, or None.
        size_order: Whether that input wants (width, height) or (height, width).
    """

    name: str
    size_hw: tuple[int, int]
    color: Color = "rgb"
    layout: Layout = "nchw"
    dtype: str = "float32"
    bits: Literal[8, 16] = 8
    resize: Resize = "letterbox"
    anchor: Anchor = "center"
    pad_value: float = 114.0
    interpolation: Interpolation = "linear"
    enlarge: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)
    size_input: str | None = None
    size_order: Literal["wh", "hw"] = "wh"

    @property
    def num_channels(self) -> int:
        return 1 if self.color == "gray" else 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is kept of a head's candidates.

    Attributes:
        score: Candidates at or below this score are dropped.
        iou: Of two boxes of one class that overlap more than this, the lower-scored is dropped.
        max_detections: At most this many are kept per picture, best first.
        multi_label: Whether one row of the head may give several classes.
    """

    score: float = 0.25
    iou: float = 0.45
    max_detections: int = 300
    multi_label: bool = False


@dataclass(frozen=True, slots=True)
class HeadRule:
    """How the outputs are read.

    Attributes:
        family: Name of a file in `saccade.heads`.
        outputs: Role in the head to output name in the graph, e.g. {"rows": "output0"}.
        num_classes: c.
        options: What the family needs to know besides, e.g. {"strides": [8, 16, 32]}.
        class_agnostic: Whether suppression ignores classes.
    """

    family: str
    outputs: Mapping[str, str]
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    class_agnostic: bool = False


@dataclass(frozen=True, slots=True)
class Contract:
    """How pictures go into a model and how its outputs are read, as data.

    Attributes:
        input: How a picture becomes the input.
        head: How outputs become candidates.
        detect: Thresholds for looking at pictures.
        evaluate: Thresholds for measuring AP (a low score, more boxes).
        labels: Class names, index 0 first; empty if unknown.
        source: "recognised", "preset NAME" or "file PATH".
        reasons: Why each part is what it is, in words; a rule that was not seen in the graph but
            follows from a family's convention says so.
    """

    input: InputRule
    head: HeadRule
    detect: Thresholds = field(default_factory=Thresholds)
    evaluate: Thresholds = field(
        default_factory=lambda: Thresholds(score=0.001, iou=0.65, max_detections=300)
    )
    labels: tuple[str, ...] = ()
    source: str = "recognised"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a head family says of a graph that it recognises.

    Attributes:
        head: How the outputs are read.
        input: The family's convention for pictures, without name, size, layout and dtype (these
            come from the graph): keyword arguments of InputRule. None if the family has no single
            convention; then a preset or a file must be named.
        detect: The family's customary thresholds.
        evaluate: Likewise for AP.
        seen: What in the graph gave it away.
        assumed: What is the family's convention and cannot be seen in the graph.
        labels: Class names if the graph or the family tells.
    """

    head: HeadRule
    input: Mapping[str, Any] | None
    detect: Thresholds
    evaluate: Thresholds
    seen: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a source picture lies in the network's input.

    x_input = x_source * scale_xy[0] + offset_xy[0], and likewise for y.

    Attributes:
        source_wh: Width and height of the source picture.
        scale_xy: Input pixels per source pixel, per axis.
        offset_xy: Input pixels left of and above the picture.
    """

    source_wh: tuple[int, int]
    scale_xy: tuple[float, float]
    offset_xy: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What a head read for one picture, before suppression.

    Attributes:
        boxes_xyxy: (k, 4) float32.
        scores: (k,) float32 in [0, 1], each above the score threshold.
        classes: (k,) int32.
        keypoints_xy: (k, p, 2) float32 or None.
        frame: Which pixels the coordinates are in; "source" if the graph rescales by itself.
        is_final: True if the graph (or a set-prediction head) needs no suppression.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    keypoints_xy: np.ndarray | None = None
    frame: Literal["input", "source"] = "input"
    is_final: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What a detector found in one picture, best score first.

    Attributes:
        boxes_xyxy: (k, 4) float32, source pixels, inside the picture, x1 <= x2 and y1 <= y2.
        scores: (k,) float32 in [0, 1].
        classes: (k,) int32, an index into the contract's labels.
        keypoints_xy: (k, p, 2) float32, source pixels, or None if the model has none.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    keypoints_xy: np.ndarray | None = None

    def __post_init__(self) -> None:
        k = len(self.scores)
        _check_array("boxes_xyxy", self.boxes_xyxy, (k, 4), "float32")
        _check_array("scores", self.scores, (k,), "float32")
        _check_array("classes", self.classes, (k,), "int32")
        if self.keypoints_xy is not None:
            p = self.keypoints_xy.shape[1] if self.keypoints_xy.ndim > 1 else 0
            _check_array("keypoints_xy", self.keypoints_xy, (k, p, 2), "float32")

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        points = "" if self.keypoints_xy is None else f", {self.keypoints_xy.shape[1]} key points"
        best = f", best score {self.scores[0]:.3f}" if len(self) else ""
        return f"Detections({len(self)} boxes{best}{points})"


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{name} must be {dtype} of shape {shape}, got {array.dtype} of shape {array.shape}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One picture's outcome, in its place: detections or an error, never both.

    Attributes:
        index: Position in the job, from 0.
        path: Where the picture came from; for bytes and arrays a name such as "<array 3>".
        size_wh: Width and height of the source picture, or None if it could not be read.
        detections: What was found, or None.
        error: What is wrong with this picture, or None.
    """

    index: int
    path: str
    size_wh: tuple[int, int] | None = None
    detections: Detections | None = None
    error: SaccadeError | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Which way to run a model. Hashable.

    Attributes:
        backend: Name of a file in `saccade.backends`.
        precision: Arithmetic of the floating-point operators. Quantised operators of a Q/DQ
            graph are INT8 whatever this says.
        batch: Pictures per inference.
        streams: Inferences that may run at the same time.
        threads: Threads inside one inference.
        device: "cpu" or "cuda:N".
        options: Further back-end options as sorted (name, value) pairs.
    """

    backend: str
    precision: Precision = "fp32"
    batch: int = 1
    streams: int = 1
    threads: int = 1
    device: str = "cpu"
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether something can be used here; if not, the reason and the fix."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Fallback:
    """Something that runs otherwise than the plan says: what, wanted, got."""

    what: str
    wanted: str
    got: str


class Slot(Protocol):
    """Static buffers for one batch, and the right to run it. One thread at a time.

    Attributes:
        inputs: Arrays with the plan's batch as first axis; the caller writes them.
    """

    inputs: Mapping[str, np.ndarray]

    def run(self, num: int) -> Mapping[str, np.ndarray]:
        """Run the first num items; the arrays returned are valid until the next run.

        Raises:
            EngineError: The engine failed.
        """
        ...


class Engine(Protocol):
    """A loaded model. Its slots may run at the same time, plan.streams of them in parallel."""

    plan: Plan
    fallbacks: tuple[Fallback, ...]

    def open_slot(self, size_hw: tuple[int, int]) -> Slot:
        """Allocate buffers for one batch of pictures of size_hw (as in the contract)."""
        ...

    def close(self) -> None:
        """Release the runtime's memory. Slots must not be used afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class DeviceBuffer:
    """Memory on a device that stays where it is for the life of its owner.

    Attributes:
        pointer: Address on the device, aligned to 256 bytes.
        shape: Sizes of a C-contiguous array.
        dtype: NumPy's name of the element type ("bfloat16" for what NumPy lacks).
        num_bytes: Size of the array.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


class DeviceEngine(Protocol):
    """A loaded model that is fed with device pointers: the seam of the CUDA path.

    Inputs, outputs and workspace are allocated at load and never move; `enqueue` allocates
    nothing, does not synchronise, and may be captured in a CUDA graph.

    Attributes:
        inputs: By name, with the plan's batch as first axis; the caller writes them.
        outputs: By name; valid after the stream has passed the enqueued work.
        workspace_bytes: Device memory beyond weights, inputs and outputs.
    """

    plan: Plan
    fallbacks: tuple[Fallback, ...]
    inputs: Mapping[str, DeviceBuffer]
    outputs: Mapping[str, DeviceBuffer]
    workspace_bytes: int

    def enqueue(self, stream: int) -> None:
        """Launch one inference of the whole batch on a stream (a cudaStream_t as an integer)."""
        ...

    def close(self) -> None:
        """Release the device memory. The buffers must not be used afterwards."""
        ...


class DeviceBackend(Protocol):
    """A runtime that can also be fed with device pointers."""

    def load_device(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
        """Load a model on plan.device.

        Raises:
            BackendUnavailable: The package, the driver or the device is missing.
            BuildError: The runtime refuses the model or the plan.
        """
        ...


class Backend(Protocol):
    """One runtime. The file name is the name."""

    name: str
    precisions: tuple[Precision, ...]

    def probe(self) -> Availability:
        """Say whether the runtime works here. Never raises."""
        ...

    def supports(self, model: Model) -> Availability:
        """Say whether the runtime can load this model, with its own words if not."""
        ...

    def load(self, model: Model, plan: Plan) -> Engine:
        """Load a model.

        Raises:
            BackendUnavailable: The package or the device is missing.
            BuildError: The runtime refuses the model or the plan.
        """
        ...


class Head(Protocol):
    """One head family. The file name is the family."""

    family: str

    def recognise(self, signature: Signature) -> Recognition | None:
        """Say whether the outputs look like this family, and why."""
        ...

    def decode(
        self,
        outputs: Mapping[str, np.ndarray],
        rule: HeadRule,
        size_hw: tuple[int, int],
        thresholds: Thresholds,
    ) -> list[Candidates]:
        """Read a batch of raw outputs, b pictures, into candidates above the score threshold."""
        ...
