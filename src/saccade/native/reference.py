"""A plan in NumPy, step by step: what every kernel and every pass must agree with.

Buffers hold what the device's buffers would: results are rounded to the buffer's element type
when they are stored (bfloat16 as well), everything between is computed in `compute`. Unwritten
memory is NaN, so a step that reads what nobody wrote shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from saccade.native import ops
from saccade.native.plan import Draft, Plan, Spec
from saccade.native.tensors import SIZES, View, dense

__all__ = ["Machine", "as_e4m3", "evaluate", "interpret", "of_e4m3"]

# NumPy's own types do not survive arithmetic under a strict checker.
Array = Any


def interpret(
    plan: Draft | Plan, feeds: Mapping[str, Array], *, compute: type = np.float32
) -> dict[str, Array]:
    """Run a plan.

    Args:
        plan: A draft, or a plan with places: then buffers share the bytes of one arena, as they
            do on a device.
        feeds: Input name to array, of the graph's shape.
        compute: np.float32, or np.float64 for a reference without rounding of its own.

    Returns:
        Output name to array.
    """
    machine = Machine(plan, compute)
    machine.feed(feeds)
    for step in plan.steps:
        machine.run(step)
    return machine.outputs()


class Machine:
    """Buffers and the arithmetic on them; runs one step at a time."""

    def __init__(self, plan: Draft | Plan, compute: type = np.float32) -> None:
        self.compute = compute
        self.weights = plan.weights
        self._plan = plan
        self.memory: dict[int, Array] = {
            number: array.copy() for number, array in plan.constants.items()
        }
        # All bits set: NaN in every float type, and absurd indices.
        num_bytes = plan.arena_bytes if isinstance(plan, Plan) else 0
        self._arena = np.full(num_bytes, 0xFF, np.uint8)

    def feed(self, feeds: Mapping[str, Array]) -> None:
        """Write the inputs."""
        for name, view in _seen(self._plan.inputs).items():
            self.store(view, np.asarray(feeds[name]))

    def outputs(self) -> dict[str, Array]:
        """Copies of the outputs."""
        return {
            name: self.load(view, exact=True) for name, view in _seen(self._plan.outputs).items()
        }

    def _memory(self, view: View) -> Array:
        dtype = _numpy(view.dtype)
        if isinstance(self._plan, Plan):
            made = self._plan.buffers[view.buffer]
            count = made.num_bytes // SIZES[view.dtype]
            # What is held in float32 here has no room in the arena.
            if made.kind == "arena" and view.dtype not in _HELD:
                return self._arena[made.offset :][: made.num_bytes].view(dtype)
        else:
            count = self._plan.buffers[view.buffer].num_elements
        memory = np.zeros(count, dtype)
        if dtype.kind == "f":
            memory[...] = np.nan
        return memory

    def array(self, view: View) -> Array:
        """A view as NumPy sees it; writable."""
        if view.buffer not in self.memory:
            self.memory[view.buffer] = self._memory(view)
        memory = self.memory[view.buffer]
        strides = [stride * memory.itemsize for stride in view.strides]
        made_view = np.ndarray(
            view.shape, memory.dtype, memory.data, view.offset * memory.itemsize, strides
        )
        return made_view

    def load(self, view: View, *, exact: bool = False) -> Array:
        array = self.array(view)
        if exact:
            return array.copy()
        return array.astype(self.compute) if array.dtype.kind == "f" else array.copy()

    def store(self, view: View, array: Array) -> None:
        target = self.array(view)
        with np.errstate(over="ignore", invalid="ignore"):
            if view.dtype == "bfloat16":
                array = _as_bfloat16(array)
            elif view.dtype == "float8_e4m3":
                array = as_e4m3(array)[0]
            target[...] = array

    def weight(self, name: str | None) -> Array | None:
        return None if name is None else self.weights[name].astype(self.compute)

    def run(self, step: ops.Step) -> None:
        with np.errstate(all="ignore"):
            _RULES[type(step)](self, step)


def _seen(given: Mapping[str, View] | Sequence[Spec]) -> dict[str, View]:
    if isinstance(given, Mapping):
        return dict(given)
    return {spec.name: dense(spec.buffer, cast(Any, spec.dtype), spec.shape) for spec in given}


# NumPy has no such types: rounded to them, held in float32.
_HELD = ("bfloat16", "float8_e4m3")


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype("float32" if dtype in _HELD else dtype)


def _as_bfloat16(array: Array) -> Array:
    """Rounded to 8 bits of mantissa, ties to even, kept in float32."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(array), np.float32(np.nan), rounded.view(np.float32))


def as_e4m3(array: Array) -> tuple[Array, Array]:
    """Values rounded to e4m3, ties to even, clipped to 448, as float32; and their bits, uint8."""
    array = np.asarray(array, np.float32)
    size = np.minimum(np.abs(array), np.float32(448))
    exponent = np.maximum(np.frexp(np.where(size > 0, size, 1))[1] - 1, -6)
    rounded = np.ldexp(np.rint(np.ldexp(size, 3 - exponent)), exponent - 3).astype(np.float32)
    again = np.maximum(np.frexp(np.where(rounded > 0, rounded, 1))[1] - 1, -6)
    units = np.ldexp(rounded, 3 - again).astype(np.int32)  # 8 to 15, below 8 if subnormal
    bits = np.where(units < 8, units, (again + 7) * 8 + units - 8) | np.signbit(array) * 128
    is_nan = np.isnan(array)
    values = np.where(is_nan, np.float32(np.nan), np.copysign(rounded, array))
    return values, np.where(is_nan, 0x7F, bits).astype(np.uint8)


def of_e4m3(bits: Array) -> Array:
    """Values of e4m3 bits, float32."""
    bits = bits.view(np.uint8).astype(np.int32)
    exponent, units = bits >> 3 & 15, bits & 7
    values = np.ldexp(np.where(exponent > 0, units + 8, units), np.maximum(exponent, 1) - 10)
    return np.where(bits & 128, -values, values).astype(np.float32)


def evaluate(act: ops.Activation, x: Array) -> Array:
    """An activation's values."""
    return _ACTIVATIONS[act.kind](x, act.a, act.b)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[x.dtype])(x) if x.size else x


def _softplus(x: Array) -> Array:
    return np.logaddexp(x, np.zeros_like(x))


_ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "none": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, 0),
    "clip": lambda x, a, b: np.minimum(np.maximum(x, a), b),
    "leaky_relu": lambda x, a, b: np.where(x < 0, x * x.dtype.type(a), x),
    "silu": lambda x, a, b: x * _sigmoid(x),
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "hard_sigmoid": lambda x, a, b: np.clip(x * x.dtype.type(a) + x.dtype.type(b), 0, 1),
    "hard_swish": lambda x, a, b: x * np.clip(x / 6 + x.dtype.type(0.5), 0, 1),
    "gelu": lambda x, a, b: x * (1 + _erf(x / np.sqrt(x.dtype.type(2)))) / 2,
    "gelu_tanh": lambda x, a, b: (
        x * (1 + np.tanh(x.dtype.type(math.sqrt(2 / math.pi)) * (x + 0.044715 * x * x * x))) / 2
    ),
    "tanh": lambda x, a, b: np.tanh(x),
    "elu": lambda x, a, b: np.where(x < 0, x.dtype.type(a) * np.expm1(np.minimum(x, 0)), x),
    "softplus": lambda x, a, b: _softplus(x),
    "mish": lambda x, a, b: x * np.tanh(_softplus(x)),
}


_EIGHT = ("int8", "float8_e4m3")


def _conv(m: Machine, step: ops.Conv) -> None:
    x = _doubled(m.load(step.x)) if step.is_upsampled else m.load(step.x)
    if step.second is not None:
        second = m.load(step.second)
        second = _doubled(second) if step.second_is_upsampled else second
        x = np.concatenate((x, second), axis=3)
    kernel: Array = m.weights[step.weight]
    is_eight = step.x.dtype in _EIGHT
    if is_eight:
        x = x.astype(m.compute) * m.compute(step.x_scale)
        kernel = kernel if step.x.dtype == "int8" else of_e4m3(kernel)
    kernel = kernel.astype(m.compute) if is_eight else _stored(m.weight(step.weight), step)
    if step.weight_scale is not None:
        scale = m.weight(step.weight_scale)
        assert scale is not None
        kernel = kernel * scale.reshape(-1, 1, 1, 1)
    y = _convolved(x, kernel, step)
    bias = m.weight(step.bias)
    y = y if bias is None else y + bias
    added: Array = 0 if step.residual is None else m.load(step.residual)
    if step.residual is not None and step.residual.dtype in _EIGHT:
        added = added.astype(m.compute) * m.compute(step.residual_scale)
    if step.residual is not None and not step.residual_after:
        y = y + added
    y = evaluate(step.activation, y) * m.compute(step.scale)
    if step.residual is not None and step.residual_after:
        y = evaluate(step.after, y + added)
    if step.y.dtype in _EIGHT:
        per_channel = m.weight(step.y_units)
        y = y / (m.compute(step.y_scale) if per_channel is None else per_channel)
    if step.y.dtype == "int8":
        y = np.clip(np.rint(y), -128, 127)
    m.store(step.y, y)


def _stored(kernel: Array, step: ops.Conv) -> Array:
    """Weights as a convolution of halves keeps them: rounded to the type of its pictures."""
    for dtype in (step.x.dtype, step.y.dtype):
        if dtype == "float16":
            return kernel.astype(np.float16).astype(kernel.dtype)
        if dtype == "bfloat16":
            return _as_bfloat16(kernel).astype(kernel.dtype)
    return kernel


def _doubled(x: Array) -> Array:
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _padded(x: Array, pads: Sequence[int], value: float) -> Array:
    top, left, bottom, right = pads
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def _taps(x: Array, step: ops.Conv | ops.Pool, value: float) -> Any:
    """For each place in the window: its row and column, and what all windows see there."""
    x = _padded(x, step.pads, value)
    oh, ow = step.y.h, step.y.w
    sh, sw = step.stride
    # Windows that reach beyond the padding (ceil) see nothing there.
    need_h = (oh - 1) * sh + (step.kernel[0] - 1) * step.dilation[0] + 1
    need_w = (ow - 1) * sw + (step.kernel[1] - 1) * step.dilation[1] + 1
    more = (max(need_h - x.shape[1], 0), max(need_w - x.shape[2], 0))
    x = _padded(x, (0, 0, *more), value)
    for i in range(step.kernel[0]):
        for j in range(step.kernel[1]):
            top, left = i * step.dilation[0], j * step.dilation[1]
            rows = slice(top, top + (oh - 1) * sh + 1, sh)
            yield i, j, x[:, rows, left : left + (ow - 1) * sw + 1 : sw]


def _convolved(x: Array, kernel: Array, step: ops.Conv) -> Array:
    k, _, _, per_group = kernel.shape
    n, oh, ow = step.y.shape[:3]
    groups = step.groups
    y = np.zeros((n * oh * ow, groups, k // groups), x.dtype)
    for i, j, seen in _taps(x, step, 0.0):
        part = seen.reshape(n * oh * ow, groups, per_group)
        weights = kernel[:, i, j].reshape(groups, k // groups, per_group)
        if per_group == 1:
            y += part * weights[None, :, :, 0]
        elif groups == 1:
            y[:, 0] += np.ascontiguousarray(part[:, 0]) @ weights[0].T
        else:
            y += np.einsum("pgc,gkc->pgk", part, weights, optimize=True)
    return y.reshape(n, oh, ow, k)


def _matmul(m: Machine, step: ops.MatMul) -> None:
    y = np.matmul(m.load(step.a), m.load(step.b)) * m.compute(step.alpha)
    bias = m.weight(step.bias)
    m.store(step.y, evaluate(step.activation, y if bias is None else y + bias))


def _pool(m: Machine, step: ops.Pool) -> None:
    x = m.load(step.x).astype(m.compute)
    if step.kind == "max":
        y = None
        for _, _, seen in _taps(x, step, -np.inf):
            y = seen if y is None else np.maximum(y, seen)
        assert y is not None
        m.store(step.y, y)
        return
    total: Array = np.zeros(step.y.shape, m.compute)
    for _, _, seen in _taps(x, step, 0.0):
        total += seen
    ones = np.ones((1, *x.shape[1:3], 1), m.compute)
    count: Array = np.zeros((1, step.y.h, step.y.w, 1), m.compute)
    for _, _, seen in _taps(ones, step, 0.0):
        count += seen
    if step.counts_padding:
        count[...] = math.prod(step.kernel)
    m.store(step.y, total / count)


def _pool_chain(m: Machine, step: ops.PoolChain) -> None:
    half = step.size // 2
    x = step.x
    for y in step.ys:
        _pool(m, ops.Pool("", "max", x, y, (step.size,) * 2, (1, 1), (half,) * 4))
        x = y


def _places(step: ops.Resize, axis: int) -> Array:
    """Where each index of y lies in x, in float32 as runtimes compute it."""
    size, out = step.x.shape[axis + 1], step.y.shape[axis + 1]
    index = np.arange(out, dtype=np.float32)
    scale = np.float32(step.scale[axis])
    if step.coordinates == "asymmetric":
        return index / scale
    if step.coordinates == "align_corners":
        return index * np.float32(size - 1) / np.float32(max(out - 1, 1))
    if step.coordinates == "pytorch_half_pixel" and out == 1:
        return np.zeros(1, np.float32)
    return (index + np.float32(0.5)) / scale - np.float32(0.5)


def _resize(m: Machine, step: ops.Resize) -> None:
    x = m.load(step.x)
    for axis in (0, 1):
        x = _resized(x, step, axis, _places(step, axis))
    m.store(step.y, x)


def _resized(x: Array, step: ops.Resize, axis: int, at: Array) -> Array:
    size = step.x.shape[axis + 1]
    if step.kind == "nearest":
        rounded = {
            "floor": np.floor(at),
            "ceil": np.ceil(at),
            "round_prefer_floor": np.ceil(at - np.float32(0.5)),
            "round_prefer_ceil": np.floor(at + np.float32(0.5)),
        }[step.rounding]
        return x.take(np.clip(rounded.astype(np.int64), 0, size - 1), axis=axis + 1)
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    shape = (1, -1, 1, 1) if axis == 0 else (1, 1, -1, 1)
    share = (at - low).astype(x.dtype).reshape(shape)
    return x.take(low, axis=axis + 1) * (1 - share) + x.take(high, axis=axis + 1) * share


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power,
    "min": np.minimum, "max": np.maximum, "mod": np.fmod, "neg": np.negative, "abs": np.abs,
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
    "round": np.rint, "sign": np.sign, "sin": np.sin, "cos": np.cos, "erf": _erf,
    "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": lambda x: 1 / x, "trunc": np.trunc,
    "less": np.less, "less_equal": np.less_equal, "greater": np.greater,
    "greater_equal": np.greater_equal, "equal": np.equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not,
    "where": lambda c, x, y: np.where(c != 0, x, y),
}  # fmt: skip


def _expression(expr: ops.Expr, operands: Sequence[Array], compute: type) -> Array:
    if isinstance(expr, ops.Operand):
        return operands[expr.index]
    if isinstance(expr, ops.Const):
        return compute(expr.value)
    args = [_expression(arg, operands, compute) for arg in expr.args]
    if expr.op == "act":
        return evaluate(expr.activation, args[0])
    if compute is np.int64 and expr.op == "mod":
        return np.mod(*args)
    if compute is np.int64 and expr.op == "div":
        return np.sign(args[0]) * np.sign(args[1]) * (np.abs(args[0]) // np.abs(args[1]))
    return np.asarray(_FUNCTIONS[expr.op](*args)).astype(compute, copy=False)


def _pointwise(m: Machine, step: ops.Pointwise) -> None:
    compute = np.int64 if step.compute == "int64" else m.compute
    operands = [m.load(view).astype(compute) for view in step.operands]
    found = [_expression(expr, operands, compute) for expr in step.exprs]
    for view, array in zip(step.results, found, strict=True):
        m.store(view, np.broadcast_to(array, view.shape))


def _softmax(m: Machine, step: ops.Softmax) -> None:
    x = m.load(step.x)
    x = x - x.max(axis=step.axis, keepdims=True)
    total = np.exp(x).sum(axis=step.axis, keepdims=True)
    m.store(step.y, x - np.log(total) if step.is_log else np.exp(x) / total)


def _norm(m: Machine, step: ops.Norm) -> None:
    x = m.load(step.x)
    if step.residual is not None:
        x = x + m.load(step.residual)
    if not step.is_rms:
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + m.compute(step.epsilon))
    gain, shift = m.weight(step.gain), m.weight(step.shift)
    x = x if gain is None else x * gain
    m.store(step.y, x if shift is None else x + shift)


def _attention(m: Machine, step: ops.Attention) -> None:
    scores = np.matmul(m.load(step.q), m.load(step.k).swapaxes(-1, -2)) * m.compute(step.scale)
    if step.mask is not None:
        scores = scores + m.load(step.mask)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    m.store(step.y, np.matmul(scores / scores.sum(axis=-1, keepdims=True), m.load(step.v)))


def _reduce(m: Machine, step: ops.Reduce) -> None:
    x = m.load(step.x)
    if step.kind in ("argmax", "argmin"):
        m.store(step.y, getattr(x, step.kind)(axis=step.axes[0], keepdims=True))
        return
    if step.kind == "l2":
        m.store(step.y, np.sqrt((x * x).sum(axis=step.axes, keepdims=True)))
        return
    m.store(step.y, getattr(x, step.kind)(axis=step.axes, keepdims=True))


def _top_k(m: Machine, step: ops.TopK) -> None:
    x = m.load(step.x)
    key = -x if step.largest else x
    chosen = np.argsort(key, axis=-1, kind="stable")[..., : step.k]
    if step.values is not None:
        m.store(step.values, np.take_along_axis(x, chosen, axis=-1))
    if step.indices is not None:
        m.store(step.indices, chosen)


def _gather(m: Machine, step: ops.Gather) -> None:
    x, indices = m.load(step.x), m.load(step.indices).astype(np.int64)
    if step.kind == "take":
        m.store(step.y, x.take(indices, axis=step.axis))
    elif step.kind == "elements":
        indices = np.where(indices < 0, indices + x.shape[step.axis], indices)
        places = list(np.indices(indices.shape, sparse=True))
        places[step.axis] = indices
        m.store(step.y, x[tuple(places)])
    else:
        lead = np.indices(indices.shape[:-1], sparse=True)[: step.batch_axes]
        m.store(step.y, x[(*lead, *np.moveaxis(indices, -1, 0))])


def _grid_sample(m: Machine, step: ops.GridSample) -> None:
    x, grid = m.load(step.x), m.load(step.grid)
    at = [_unnormalised(grid[..., i], size, step) for i, size in ((0, step.x.w), (1, step.x.h))]
    batch = np.arange(step.x.n)[:, None, None]

    def seen(row: Array, column: Array) -> Array:
        is_in = (row >= 0) & (row < step.x.h) & (column >= 0) & (column < step.x.w)
        row = np.clip(np.nan_to_num(row), 0, step.x.h - 1).astype(np.int64)
        column = np.clip(np.nan_to_num(column), 0, step.x.w - 1).astype(np.int64)
        return np.where(is_in[..., None], x[batch, row, column], 0)

    if step.kind == "nearest":
        m.store(step.y, seen(np.rint(at[1]), np.rint(at[0])))
        return
    left, top = np.floor(at[0]), np.floor(at[1])
    fx, fy = (at[0] - left)[..., None], (at[1] - top)[..., None]
    y = seen(top, left) * (1 - fx) * (1 - fy) + seen(top, left + 1) * fx * (1 - fy)
    y = y + seen(top + 1, left) * (1 - fx) * fy + seen(top + 1, left + 1) * fx * fy
    m.store(step.y, y)


def _unnormalised(at: Array, size: int, step: ops.GridSample) -> Array:
    at = (at + 1) / 2 * (size - 1) if step.align_corners else ((at + 1) * size - 1) / 2
    if step.padding == "border":
        return np.clip(at, 0, size - 1)
    if step.padding == "reflection":
        low, high = (0.0, size - 1.0) if step.align_corners else (-0.5, size - 0.5)
        span = max(high - low, 1e-30)
        away = np.abs(at - low)
        turns, rest = np.floor(away / span), np.fmod(away, span)
        at = np.where(turns % 2 == 0, rest + low, high - rest)
        return np.clip(at, 0, size - 1)
    return at


def _roi_align(m: Machine, step: ops.RoiAlign) -> None:
    x, rois = m.load(step.x), m.load(step.rois)
    pictures = m.load(step.pictures).astype(np.int64)
    shift = m.compute(0.5 if step.half_pixel else 0.0)
    _, oh, ow, _ = step.y.shape
    boxes = rois * m.compute(step.scale) - shift
    sizes = boxes[:, 2:] - boxes[:, :2]
    if not step.half_pixel:
        sizes = np.maximum(sizes, 1)
    share = (np.arange(step.samples) + 0.5) / step.samples
    ys = boxes[:, 1, None] + sizes[:, 1, None] / oh * _cells(oh, share)
    xs = boxes[:, 0, None] + sizes[:, 0, None] / ow * _cells(ow, share)
    rows, columns = np.broadcast_arrays(ys[:, :, None], xs[:, None, :])
    seen = _bilinear(x, pictures[:, None, None], rows, columns)
    r, c = len(rois), x.shape[3]
    seen = seen.reshape(r, oh, step.samples, ow, step.samples, c)
    m.store(step.y, seen.mean(axis=(2, 4)) if step.kind == "mean" else seen.max(axis=(2, 4)))


def _cells(count: int, share: Array) -> Array:
    return (np.arange(count)[:, None] + share).reshape(1, -1)


def _bilinear(x: Array, pictures: Array, rows: Array, columns: Array) -> Array:
    """As RoiAlign samples: 0 beyond one pixel outside, else the border."""
    _, h, w, _ = x.shape
    is_out = (rows < -1) | (rows > h) | (columns < -1) | (columns > w)
    rows, columns = np.clip(rows, 0, h - 1), np.clip(columns, 0, w - 1)
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    bottom, right = np.minimum(top + 1, h - 1), np.minimum(left + 1, w - 1)
    fy, fx = (rows - top)[..., None], (columns - left)[..., None]
    y = x[pictures, top, left] * (1 - fy) * (1 - fx) + x[pictures, top, right] * (1 - fy) * fx
    y = y + x[pictures, bottom, left] * fy * (1 - fx) + x[pictures, bottom, right] * fy * fx
    return np.where(is_out[..., None], 0, y)


def _copy(m: Machine, step: ops.Copy) -> None:
    array = m.load(step.x, exact=True)
    if array.dtype.kind == "f" and m.array(step.y).dtype.kind in "iu":
        array = np.trunc(array)
    m.store(step.y, array)


def _fill(m: Machine, step: ops.Fill) -> None:
    m.store(step.y, np.broadcast_to(np.asarray(step.value), step.y.shape))


def _boxes(m: Machine, step: ops.Boxes) -> None:
    found = []
    for level in step.levels:
        n, h, w, _ = level.x.shape
        x = m.load(level.x).reshape(n, h * w, 4, step.bins)
        x = np.exp(x - x.max(axis=-1, keepdims=True))
        x = x / x.sum(axis=-1, keepdims=True)
        sides = (x * np.arange(step.bins)).sum(axis=-1).astype(m.compute)
        row, column = np.divmod(np.arange(h * w), w)
        centre = np.stack([column, row], axis=-1).astype(m.compute) + m.compute(0.5)
        low, high = centre - sides[..., :2], centre + sides[..., 2:]
        pair = ((low + high) / 2, high - low) if step.form == "cxcywh" else (low, high)
        found.append(np.concatenate(pair, axis=-1) * m.compute(level.stride))
    m.store(step.y, np.concatenate(found, axis=1).swapaxes(1, 2))


_RULES: dict[type, Callable[[Machine, Any], None]] = {
    ops.Conv: _conv,
    ops.MatMul: _matmul,
    ops.Pool: _pool,
    ops.PoolChain: _pool_chain,
    ops.Resize: _resize,
    ops.Pointwise: _pointwise,
    ops.Softmax: _softmax,
    ops.Norm: _norm,
    ops.Attention: _attention,
    ops.Reduce: _reduce,
    ops.TopK: _top_k,
    ops.Gather: _gather,
    ops.GridSample: _grid_sample,
    ops.RoiAlign: _roi_align,
    ops.Copy: _copy,
    ops.Fill: _fill,
    ops.Boxes: _boxes,
}
