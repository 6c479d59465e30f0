"""The vocabulary of a plan: what one step computes, and on what.

Steps are frozen and hashable. Weights are named, not held: a plan keeps them aside in float32. All
arithmetic is in FP32 (sums too) whatever the element types of the operands; results are rounded
once, when they are stored. Operands never overlap results, unless both are the very same view of
a `Pointwise`.

What each step means, exactly, is `saccade.native.reference`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from saccade.native.tensors import View

__all__ = [
    "IDENTITY",
    "Activation",
    "Apply",
    "Attention",
    "Boxes",
    "Const",
    "Conv",
    "Copy",
    "Expr",
    "Fill",
    "Gather",
    "GridSample",
    "Level",
    "MatMul",
    "Norm",
    "Operand",
    "Pointwise",
    "Pool",
    "PoolChain",
    "Reduce",
    "Resize",
    "RoiAlign",
    "Softmax",
    "Step",
    "TopK",
    "reads",
    "writes",
]

ActivationKind = Literal[
    "none",
    "relu",
    "clip",
    "leaky_relu",
    "silu",
    "sigmoid",
    "hard_sigmoid",
    "hard_swish",
    "gelu",
    "gelu_tanh",
    "tanh",
    "elu",
    "softplus",
    "mish",
]


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of one value.

    Attributes:
        kind: clip is min(max(x, a), b), so ReLU6 is clip 0, 6; leaky_relu and elu have slope a;
            silu is x sigmoid(x); hard_sigmoid is min(max(a x + b, 0), 1); hard_swish is
            x min(max(x / 6 + 1/2, 0), 1); gelu is x Phi(x), gelu_tanh its approximation by tanh.
        a: First parameter.
        b: Second parameter.
    """

    kind: ActivationKind = "none"
    a: float = 0.0
    b: float = 0.0


IDENTITY = Activation()


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution, or a matrix product with weights seen as a 1x1 convolution of rows.

    y = after(scale * activation(conv(x) + bias + residual_before) + residual_after)

    Attributes:
        label: Nodes of the graph that are in this step.
        x: (n, h, w, c). Pixels (`View.is_pixels`; mostly packed), or other strides for a graph
            input that lies as NCHW, then in FP32 or FP16.
        y: (n, h', w', k). Pixels; FP32 in a network of FP16 where it is an output.
        weight: Name of the weights (k, kh, kw, c / groups).
        kernel: (kh, kw).
        bias: Name of (k,), or None.
        stride: (vertical, horizontal).
        pads: (top, left, bottom, right), zeros.
        dilation: (vertical, horizontal).
        groups: c and k are cut in so many; groups == c is depthwise.
        activation: What follows the bias.
        residual: Added, of the shape of y, or None.
        residual_after: Whether it is added after `activation`; else before.
        after: What follows a residual that is added after the activation; else the identity.
        scale: Multiplies the activation's result.
        is_upsampled: Whether x is (n, h/2, w/2, c) and each of its pixels is read as 2x2.
        second: Channels that follow those of x in the convolution's input, or None.
        second_is_upsampled: Likewise for `second`.
        x_scale: Real value of one unit of an 8-bit x, and of `second`.
        y_scale: Real value of one unit of an 8-bit y; results are rounded to even and clipped.
        y_units: Name of (k,), such values per channel instead, or None.
        weight_scale: Name of (k,), real values of one unit of 8-bit weights, or None.
        residual_scale: Real value of one unit of an 8-bit residual.
    """

    label: str
    x: View
    y: View
    weight: str
    kernel: tuple[int, int]
    bias: str | None = None
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    activation: Activation = IDENTITY
    residual: View | None = None
    residual_after: bool = False
    after: Activation = IDENTITY
    scale: float = 1.0
    is_upsampled: bool = False
    second: View | None = None
    second_is_upsampled: bool = False
    x_scale: float = 1.0
    y_scale: float = 1.0
    weight_scale: str | None = None
    residual_scale: float = 1.0
    y_units: str | None = None


@dataclass(frozen=True, slots=True)
class MatMul:
    """y = activation(alpha * a b + bias), in batches; transposed operands have such strides.

    Attributes:
        a: (..., m, k); leading axes as in y, stride 0 repeats.
        b: (..., k, n).
        y: (..., m, n).
        bias: Name of (n,), or None.
    """

    label: str
    a: View
    b: View
    y: View
    alpha: float = 1.0
    bias: str | None = None
    activation: Activation = IDENTITY


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum or mean over windows of pictures; padding never wins a maximum.

    Attributes:
        counts_padding: Whether a mean divides by the whole window at the borders.
    """

    label: str
    kind: Literal["max", "mean"]
    x: View
    y: View
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int] = (1, 1)
    counts_padding: bool = False


@dataclass(frozen=True, slots=True)
class PoolChain:
    """Maxima of maxima, as in SPPF: ys[0] pools x, ys[1] pools ys[0], and so on.

    All of the shape of x: stride 1, windows of an odd size, padded by half of it.
    """

    label: str
    x: View
    ys: tuple[View, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Resize:
    """Pictures of another size.

    Attributes:
        scale: y's size per x's size, (vertical, horizontal), as the graph says it (it need not
            be the ratio of the sizes).
        coordinates: How an index of y becomes a place in x: "half_pixel" (i + 1/2) / s - 1/2,
            "asymmetric" i / s, "align_corners" i (h - 1) / (h' - 1), "pytorch_half_pixel" as
            half_pixel but 0 where y has size 1.
        rounding: For nearest: "floor", "ceil", "round_prefer_floor", "round_prefer_ceil".
    """

    label: str
    kind: Literal["nearest", "linear"]
    x: View
    y: View
    scale: tuple[float, float]
    coordinates: str
    rounding: str = "floor"


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand of a pointwise step by its number."""

    index: int


@dataclass(frozen=True, slots=True)
class Const:
    """A number."""

    value: float


@dataclass(frozen=True, slots=True)
class Apply:
    """A function of values.

    Attributes:
        op: "add", "sub", "mul", "div", "pow", "min", "max", "mod"; "neg", "abs", "exp", "log",
            "sqrt", "rsqrt", "reciprocal", "floor", "ceil", "round", "sign", "sin", "cos", "erf";
            "less", "less_equal", "greater", "greater_equal", "equal", "and", "or", "not" (1 or
            0); whole numbers divide towards zero, and their "mod" has the divisor's sign; "where"
            (condition, if not 0, else); "act" with `activation`; "trunc" (towards 0).
    """

    op: str
    args: tuple[Expr, ...]
    activation: Activation = IDENTITY


Expr = Operand | Const | Apply


@dataclass(frozen=True, slots=True)
class Pointwise:
    """One expression per result, for every index of a common shape.

    Attributes:
        operands: All of the shape of the results; strides of 0 broadcast.
        results: Where each expression's value goes; all of one shape.
        exprs: One per result.
        compute: "float32", or "int64" if all operands and results are whole numbers.
    """

    label: str
    operands: tuple[View, ...]
    results: tuple[View, ...]
    exprs: tuple[Expr, ...]
    compute: Literal["float32", "int64"] = "float32"


@dataclass(frozen=True, slots=True)
class Softmax:
    """exp(x - max) / sum over one axis; its logarithm if `is_log`."""

    label: str
    x: View
    y: View
    axis: int
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class Norm:
    """Rows of the last axis, normalised: (x - mean) / sqrt(variance + epsilon) * gain + shift.

    Attributes:
        gain: Name of (c,), or None.
        shift: Name of (c,), or None.
        is_rms: Divide by the root of the mean square instead, and subtract nothing.
        residual: Added to x before, of its shape, or None.
    """

    label: str
    x: View
    y: View
    epsilon: float
    gain: str | None = None
    shift: str | None = None
    is_rms: bool = False
    residual: View | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(scale q k^T + mask) v per batch entry and head.

    Attributes:
        q: (b, heads, m, d).
        k: (b, heads, n, d).
        v: (b, heads, n, e).
        y: (b, heads, m, e).
        mask: (b, heads, m, n), strides of 0 repeat; or None.
    """

    label: str
    q: View
    k: View
    v: View
    y: View
    scale: float
    mask: View | None = None


@dataclass(frozen=True, slots=True)
class Reduce:
    """Over some axes; in y these have size 1."""

    label: str
    kind: Literal["sum", "mean", "max", "min", "prod", "l2", "argmax", "argmin"]
    x: View
    y: View
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TopK:
    """The k best of the last axis, best first; of equal values the lower index comes first."""

    label: str
    x: View
    values: View | None
    indices: View | None
    k: int
    largest: bool = True


@dataclass(frozen=True, slots=True)
class Gather:
    """Elements picked by whole numbers; negative ones count from the end.

    Attributes:
        kind: "take": y[.., i.., ..] = x[.., indices[i..], ..] with the axes of `indices` in place
            of x's `axis`; "elements": indices and y have one shape, and the index replaces the
            coordinate of `axis`; "nd": the last axis of indices holds leading coordinates of x,
            after `batch_axes` axes that x, indices and y share.
    """

    label: str
    kind: Literal["take", "elements", "nd"]
    x: View
    indices: View
    y: View
    axis: int = 0
    batch_axes: int = 0


@dataclass(frozen=True, slots=True)
class GridSample:
    """Pictures read at places given by a grid; as in ONNX and PyTorch.

    Attributes:
        x: (n, h, w, c).
        grid: (n, h', w', 2): x and y in [-1, 1].
        y: (n, h', w', c).
    """

    label: str
    x: View
    grid: View
    y: View
    kind: Literal["linear", "nearest"] = "linear"
    padding: Literal["zeros", "border", "reflection"] = "zeros"
    align_corners: bool = False


@dataclass(frozen=True, slots=True)
class RoiAlign:
    """Mean of bilinear samples in the cells of boxes, as in Mask R-CNN.

    Attributes:
        x: (n, h, w, c).
        rois: (r, 4): x1, y1, x2, y2 in pixels of the picture.
        pictures: (r,): which picture of x each box is of.
        y: (r, oh, ow, c).
        half_pixel: Whether half a pixel is subtracted from scaled boxes.
    """

    label: str
    x: View
    rois: View
    pictures: View
    y: View
    scale: float
    samples: int
    half_pixel: bool
    kind: Literal["mean", "max"] = "mean"


@dataclass(frozen=True, slots=True)
class Copy:
    """x to y, one shape: any strides on both sides, and a change of element type.

    Covers transposes, casts, gathering into a slice of a concatenation, and packing a prepared
    input (n, c, h, w) FP32 into (n, h, w, c) FP16. Floats become whole numbers towards zero.
    """

    label: str
    x: View
    y: View


@dataclass(frozen=True, slots=True)
class Fill:
    """One number everywhere: borders of an explicit padding."""

    label: str
    y: View
    value: float


@dataclass(frozen=True, slots=True)
class Level:
    """One scale of a detection head.

    Attributes:
        x: (n, h, w, 4 * bins): for left, top, right, bottom the logits of `bins` distances.
        stride: Input pixels per cell.
    """

    x: View
    stride: float


@dataclass(frozen=True, slots=True)
class Boxes:
    """Distances by softmax and expectation (DFL), then boxes, level after level.

    A cell's centre is at ((column + 1/2) * stride, (row + 1/2) * stride); distances are in cells.

    Attributes:
        levels: In the order of y's last axis.
        y: (n, 4, cells), any strides.
        bins: Numbers per side.
        form: What y's four rows are.
    """

    label: str
    levels: tuple[Level, ...]
    y: View
    bins: int
    form: Literal["cxcywh", "xyxy"]


Step = (
    Conv
    | MatMul
    | Pool
    | PoolChain
    | Resize
    | Pointwise
    | Softmax
    | Norm
    | Attention
    | Reduce
    | TopK
    | Gather
    | GridSample
    | RoiAlign
    | Copy
    | Fill
    | Boxes
)


def writes(step: Step) -> tuple[View, ...]:
    """Views that a step writes."""
    names = {"values", "indices"} if isinstance(step, TopK) else {"y", "ys", "results"}
    return tuple(
        view for field in fields(step) if field.name in names for view in _views(step, field.name)
    )


def reads(step: Step) -> tuple[View, ...]:
    """Views that a step reads."""
    names = {"values", "indices"} if isinstance(step, TopK) else {"y", "ys", "results"}
    return tuple(
        view
        for field in fields(step)
        if field.name not in names
        for view in _views(step, field.name)
    )


def _views(step: Step, name: str) -> tuple[View, ...]:
    value = getattr(step, name)
    if isinstance(value, View):
        return (value,)
    if not isinstance(value, tuple):
        return ()
    return tuple(
        item.x if isinstance(item, Level) else item
        for item in value
        if isinstance(item, View | Level)
    )
