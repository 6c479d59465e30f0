"""8-bit codes: kernels, the reference's rounding, which tensors hold codes, how that is chosen."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from native.eight_cases import CASES
from native.kernel_cases import Case, contents
from native.test_kernels import run_way
from saccade.cuda.compile import ARCHITECTURES, compile_kernels
from saccade.cuda.runtime import Device
from saccade.graph.passes.quantize import quantized_tensors, to_qdq
from saccade.native import ops
from saccade.native.drafting import drafted
from saccade.native.kernels.registry import KERNELS
from saccade.native.launching import Loader
from saccade.native.lowering.units import without_pairs
from saccade.native.memory import placed
from saccade.native.mixing import mixed
from saccade.native.ops import Conv, Step, reads, writes
from saccade.native.passes.eight_bits import groups_of, put_codes
from saccade.native.plan import Draft
from saccade.native.reference import Machine, as_e4m3, interpret, of_e4m3
from saccade.native.seam import Target

H200 = Target("sm_90")
COMPILED = (
    "3x3 residual codes", "1x1 fp32 out", "1x1 odd places", "3x3 units per channel",
    "3x3 halves in, residual", "1x1 fp8 residual", "3x3 halves in, fp8 out", "stem", "chain",
    "pool", "resize",
)  # fmt: skip


def is_worth(step: Step) -> bool:
    return any(way.name != "direct" for way in KERNELS.ways(step, H200))


def uses_fp8(case: Case) -> bool:
    return any(view.dtype == "float8_e4m3" for view in (*reads(case.step), *writes(case.step)))


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", COMPILED)
def test_compiles(name: str, arch: str) -> None:
    case = CASES[name]
    ways = KERNELS.ways(case.step, Target(arch, shared_bytes=99 * 1024))
    if uses_fp8(case) and int(arch[3:]) < 89:
        assert not ways, "a card without e4m3 has no kernel for it"
        return
    assert ways
    assert "direct" not in {way.name for way in ways}
    texts = set()
    for way in ways:
        for source in way.build(case.draft.weights).sources:
            if source.text not in texts:
                texts.add(source.text)
                assert compile_kernels(source.text, arch, source.defines)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_numpy(device: Device, name: str) -> None:
    """Codes differ by one at most, where a value lies near the middle between two (the hardware's
    tanh is good to 2^-11 of its value)."""
    case = CASES[name]
    held = contents(case, np.random.default_rng(7))
    machine = Machine(case.draft, np.float64)
    machine.memory.update({n: array.copy() for n, array in held.items()})
    machine.run(case.step)
    target = Target(device.arch, device.num_multiprocessors, device.shared_bytes)
    ways = KERNELS.ways(case.step, target)
    loader = Loader(device, KERNELS)
    assert ways or (uses_fp8(case) and int(device.arch[3:]) < 89)
    for way in ways:
        found = run_way(device, loader, case, way, held)
        for number, want in machine.memory.items():
            dtype = case.draft.buffers[number].dtype
            check(f"{name}: {way.name}", dtype, found[number], want, isinstance(case.step, Conv))


def check(label: str, dtype: str, found: np.ndarray, want: np.ndarray, is_rounded: bool) -> None:
    """Whole buffers: what nobody wrote is what it was before, on both sides."""
    found, want = found.astype(np.float64), want.astype(np.float64)
    if not is_rounded:
        assert np.array_equal(found, want), label
        return
    apart = np.abs(found - want)
    if dtype == "int8":
        assert apart.max() <= 1, label
        assert (apart > 0).mean() < 0.03, label
    elif dtype == "float8_e4m3":
        assert (apart <= np.maximum(np.abs(want) / 8, 2.0**-9)).all(), label
        assert (apart > 0).mean() < 0.05, label
    else:
        assert (apart <= 1e-3 + np.abs(want) * 2.0**-10).all(), label


def test_the_reference_rounds_halves_to_even_and_clips() -> None:
    draft = Draft()
    x, y = draft.new("x", (1, 1, 8, 2), "float16"), draft.new("y", (1, 1, 8, 2), "int8")
    weight = draft.weight("w", np.eye(2, dtype=np.float32).reshape(2, 1, 1, 2))
    draft.steps.append(Conv("c", x, y, weight, (1, 1), y_scale=0.5))
    machine = Machine(draft)
    given = np.array([[0.25, 0.75], [1.25, -0.25], [-0.75, -1.25], [63.5, 63.6],
                      [64, 1e4], [-64, -64.1], [-65, -1e4], [0, 0.26]], np.float16)  # fmt: skip
    machine.store(x, given.reshape(x.shape))
    machine.run(draft.steps[0])
    assert machine.load(y).reshape(-1).tolist() == [
        0, 2, 2, 0, -2, -2, 127, 127, 127, 127, -128, -128, -128, -128, 0, 1,
    ]  # fmt: skip


def test_e4m3_is_that_of_ml_dtypes() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([
        rng.normal(size=4000) * 10.0 ** rng.uniform(-5, 3, 4000),
        np.arange(-600, 600) / 512, [0, -0.0, 448, 464, 1e6, -1e6, 2.0**-9, 2.0**-10, 3 * 2.0**-11],
    ]).astype(np.float32)  # fmt: skip
    want = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    found, bits = as_e4m3(values)
    assert np.array_equal(found, want.astype(np.float32))
    assert np.array_equal(bits, want.view(np.uint8))
    assert np.array_equal(of_e4m3(bits), found)


def small_net() -> onnx.ModelProto:
    """A stem, a split with a residual, a concatenation, pooling, up-sampling, two branches."""
    rng = np.random.default_rng(1)
    weights, nodes = [], []

    def conv(x: str, name: str, c: int, k: int, size: int, stride: int = 1) -> str:
        w = (rng.normal(size=(k, c, size, size)) / (c * size * size) ** 0.5).astype(np.float32)
        b = rng.normal(size=k).astype(np.float32)
        weights.extend(
            [numpy_helper.from_array(w, f"{name}w"), numpy_helper.from_array(b, f"{name}b")]
        )
        nodes.append(helper.make_node(
            "Conv", [x, f"{name}w", f"{name}b"], [name], name, kernel_shape=[size] * 2,
            strides=[stride] * 2, pads=[size // 2] * 4))  # fmt: skip
        nodes.append(helper.make_node("Relu", [name], [f"{name}r"], f"{name}relu"))
        return f"{name}r"

    def add(op: str, inputs: list[str], outputs: list[str], **options: object) -> None:
        nodes.append(helper.make_node(op, inputs, outputs, outputs[0] + op, **options))

    stem = conv("x", "stem", 3, 16, 3, 2)
    first = conv(stem, "first", 16, 32, 1)
    weights.append(numpy_helper.from_array(np.array([16, 16], np.int64), "sizes"))
    add("Split", [first, "sizes"], ["left", "right"], axis=1)
    unit = conv(conv("right", "a", 16, 16, 3), "b", 16, 16, 3)
    add("Add", [unit, "right"], ["sum"])
    add("Concat", ["left", "right", "sum"], ["joined"], axis=1)
    out = conv("joined", "out", 48, 32, 1)
    deep = conv(out, "deep", 32, 32, 3, 2)
    add("MaxPool", [deep], ["pooled"], kernel_shape=[5, 5], pads=[2, 2, 2, 2], strides=[1, 1])
    add("Concat", [deep, "pooled"], ["both"], axis=1)
    back = conv("both", "back", 64, 32, 1)
    weights.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"))
    add("Resize", [back, "", "twice"], ["up"], mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    add("Concat", ["up", out], ["top"], axis=1)
    last = conv("top", "last", 64, 32, 1)
    for name, k in (("box", 16), ("cls", 8)):
        branch = conv(conv(last, f"{name}0", 32, 32, 3), f"{name}1", 32, 32, 3)
        w = (rng.normal(size=(k, 32, 1, 1)) / 6).astype(np.float32)
        weights.append(numpy_helper.from_array(w, f"{name}w"))
        add("Conv", [branch, f"{name}w"], [name], kernel_shape=[1, 1])
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 32, 48])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("box", "cls")],
        weights,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    proto = small_net()
    names = quantized_tensors(proto)
    # Units that differ, so that one in place of another shows.
    return to_qdq(proto, {name: 3.0 + index % 5 / 4 for index, name in enumerate(names)})


@pytest.fixture(scope="module")
def marked(quantized: onnx.ModelProto) -> Draft:
    pairs = without_pairs(quantized)
    assert pairs is not None
    return drafted(pairs[0], {"x": (2, 3, 32, 48)}, "fp16", is_worth, units=pairs[1])


def test_a_quantised_network_computes_what_onnx_runtime_does(
    quantized: onnx.ModelProto, marked: Draft
) -> None:
    """In one arena, all inner tensors but the last in codes, units of merged branches apart."""
    x = np.random.default_rng(5).random((2, 3, 32, 48), np.float32)
    session = onnxruntime.InferenceSession(
        quantized.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = dict(zip(("box", "cls"), session.run(["box", "cls"], {"x": x}), strict=True))
    draft = marked.copy()
    groups = groups_of(draft, "int8", is_worth)
    put_codes(draft, groups, "int8")
    convs = [step for step in draft.steps if isinstance(step, Conv)]
    assert all(step.x.dtype == "int8" for step in convs[1:])
    assert all(step.weight_scale is not None for step in convs[1:])
    assert any(step.y_units is not None for step in convs)
    assert not [step for step in draft.steps if isinstance(step, ops.Pointwise)]
    found = interpret(placed(draft), {"x": x})
    for name, want in wanted.items():
        error = np.linalg.norm(found[name] - want) / np.linalg.norm(want)
        assert error < 0.03, name  # single codes differ, as sums are rounded elsewhere


def test_halves_forget_their_units(marked: Draft) -> None:
    draft = marked.copy()
    put_codes(draft, (), "int8")
    for step in draft.steps:
        if isinstance(step, Conv):
            assert step.weight_scale is None
            assert step.x_scale == step.y_scale == 1.0
    assert all(buffer.dtype != "int8" for buffer in draft.buffers)


def test_buffers_that_are_moved_into_each_other_are_one_group(marked: Draft) -> None:
    groups = groups_of(marked, "int8", is_worth)
    for step in marked.steps:
        if isinstance(step, ops.Resize):
            (group,) = [g for g in groups if step.x.buffer in g.buffers]
            assert step.y.buffer in group.buffers


def test_a_tensor_without_a_kernel_for_codes_stays_in_halves(marked: Draft) -> None:
    first = next(step for step in marked.steps if isinstance(step, Conv))
    groups = groups_of(marked, "int8", lambda step: is_worth(step) and step.label != first.label)
    assert all(first.y.buffer not in group.buffers for group in groups)
    assert groups


def test_the_mix_is_the_cheapest(marked: Draft) -> None:
    """Codes cost half, but for one step that is slow with them; its tensors go back to halves."""
    slow = [step.label for step in marked.steps if isinstance(step, Conv)][4]

    def price(draft: Draft) -> list[float]:
        times = []
        for step in draft.steps:
            is_coded = any(view.dtype == "int8" for view in reads(step))
            times.append(50.0 if is_coded and step.label == slow else 5.0 if is_coded else 10.0)
        return times

    mix = mixed(marked, "int8", is_worth, price)
    step = next(step for step in mix.draft.steps if step.label == slow)
    assert isinstance(step, Conv)
    assert step.x.dtype == "float16"
    assert len(mix.halves) == 1
    assert mix.us < mix.us_halves
    none = mixed(marked, "int8", is_worth, lambda draft: [1.0] * len(draft.steps))
    assert not none.halves, "of equals, codes"


def test_channels_that_passes_added_have_a_unit(marked: Draft) -> None:
    draft = marked.copy()
    index = next(i for i, s in enumerate(draft.steps) if isinstance(s, Conv) and s.weight_scale)
    step = draft.steps[index]
    assert isinstance(step, Conv)
    weight = draft.weights[step.weight]
    wide = np.concatenate([weight, np.zeros((8, *weight.shape[1:]), np.float32)])
    y = draft.new("wide", (*step.y.shape[:3], step.y.c + 8), "float16")
    draft.steps[index] = dataclasses.replace(step, weight=draft.weight("wide", wide), y=y)
    put_codes(draft, groups_of(draft, "int8", is_worth), "int8")
    coded = draft.steps[index]
    assert isinstance(coded, Conv)
    assert coded.weight_scale is not None
    assert draft.weights[coded.weight].dtype == np.int8
    assert draft.weights[coded.weight_scale].shape == (len(wide),)
    assert (draft.weights[coded.weight_scale] > 0).all()


def test_other_grids_stay_steps(quantized: onnx.ModelProto) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(quantized)
    for tensor in other.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and not tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), tensor.name))
    assert without_pairs(other) is None
    assert without_pairs(small_net()) is None


def test_sums_that_may_leave_a_floats_binade_are_converted() -> None:
    case = CASES["3x3 stride 2 deep"]
    assert isinstance(case.step, Conv)
    way = KERNELS.ways(case.step, H200)[0]
    assert "IS_SMALL=0" in way.build(case.draft.weights).sources[0].defines
    few = {**case.draft.weights, case.step.weight: case.draft.weights[case.step.weight] // 64}
    assert "IS_SMALL=1" in way.build(few).sources[0].defines
    assert dataclasses.is_dataclass(way)
