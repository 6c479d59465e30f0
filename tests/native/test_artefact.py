"""Engines as bytes: what comes back, what is refused. Machine code is stored without a GPU."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest

from saccade.errors import BuildError
from saccade.native.artefact import Artefact, packed, unpacked
from saccade.native.engine import Options
from saccade.native.listing import listed
from saccade.native.ops import Activation, Boxes, Conv, Level
from saccade.native.plan import Plan, Spec
from saccade.native.seam import (
    Blob,
    Built,
    Launch,
    LibraryLaunch,
    OfView,
    OfWeight,
    OfWorkspace,
    Scalar,
    Source,
    TensorMap,
)
from saccade.native.tensors import Buffer, dense, pixels

KEY = {"device": "NVIDIA H200", "kernels": "1"}


def small():
    x, y = pixels(0, "float16", (1, 8, 8, 16)), pixels(1, "float16", (1, 8, 8, 64))
    conv = Conv("first", x, y, "w", (1, 1), activation=Activation("clip", 0.0, 6.0))
    boxes = Boxes("second", (Level(y, 8.0),), dense(2, "float32", (1, 4, 64)), 16, "xyxy")
    plan = Plan(
        buffers=(
            Buffer("input", "x", 2048),
            Buffer("arena", "y", 8192, 256),
            Buffer("output", "boxes", 1024),
        ),
        steps=(conv, boxes),
        weights={"w": np.zeros((64, 1, 1, 16), np.float32)},
        constants={},
        inputs=(Spec("x", 0, "float16", (1, 8, 8, 16)),),
        outputs=(Spec("boxes", 2, "float32", (1, 4, 64)),),
        arena_bytes=8448,
    )
    source = Source("__global__ void k() {}", ("A=1",))
    tensor = TensorMap(OfView(x), "float16", (16, 64), (32,), (16, 8), 32)
    blob = Blob(b"\0" * 16, ((8, OfWorkspace(4)),))
    launch = Launch(
        0, "k", (1, 2, 3), (32, 1, 1), (OfView(y), OfWeight(0, 8), Scalar("f32", 0.5), blob, tensor)
    )
    library = LibraryLaunch("cudnn", b"plan", ((3, OfView(y)),))
    weights = np.arange(6, dtype=np.float16).reshape(2, 3)
    built = (Built((source,), (weights,), (launch,), 64), Built((source,), (weights,), (library,)))
    return Artefact(KEY, plan, built, ("a", "b"), (3.0, 1.0), {source: b"code"}, Options(4, True))


def test_an_engine_comes_back():
    made = small()
    back = unpacked(packed(made), KEY)
    assert back.plan.steps == made.plan.steps
    assert back.plan.buffers == made.plan.buffers
    assert (back.plan.inputs, back.plan.outputs) == (made.plan.inputs, made.plan.outputs)
    assert (back.ways, back.us, back.options) == (made.ways, made.us, made.options)
    for one, other in zip(made.built, back.built, strict=True):
        assert one.launches == other.launches
        assert one.workspace_bytes == other.workspace_bytes
        np.testing.assert_array_equal(one.weights[0], other.weights[0])
        assert other.weights[0].dtype == np.float16
    assert [back.cubins[item.sources[0]] for item in back.built] == [b"code", b"code"]


def test_equal_engines_are_equal_bytes_and_weights_are_kept_once():
    assert packed(small()) == packed(small())
    assert packed(small()).count(np.arange(6, dtype=np.float16).tobytes()) == 1


def test_damage_and_other_cards_are_refused():
    raw = packed(small())
    for bad in (raw[:-1], raw[:40] + b"x" + raw[41:], b"", b"something else" * 9):
        with pytest.raises(BuildError, match="damaged or of another version; build again"):
            unpacked(bad, KEY)
    with pytest.raises(BuildError, match=r"device: built for NVIDIA H200, here is NVIDIA A100"):
        unpacked(raw, KEY | {"device": "NVIDIA A100"})


def test_records_of_another_version_are_refused():
    raw = packed(small())
    start = raw.index(b"\n") + 1 + 32
    body = msgspec.msgpack.decode(raw[start:])
    for change, told in (
        ({"#": "Options", "num_lanes": 4}, "its 'Options' is of another version"),
        ({"#": "Lanes"}, "records that this version knows, it has 'Lanes'"),
    ):
        changed = msgspec.msgpack.encode({**body, "options": change})
        made = raw[: start - 32] + hashlib.sha256(changed).digest() + changed
        with pytest.raises(BuildError, match=f"{told}.*build again"):
            unpacked(made, KEY)


def test_every_kernel_is_listed():
    found = listed(packed(small()))
    first, second = found["kernels"]
    assert (first["kind"], first["way"], first["fuses"]) == ("Conv", "a", "first")
    assert (first["share"], second["share"]) == (0.75, 0.25)
    assert first["floor_us"] == pytest.approx((2048 + 8192) / 4.0e12 * 1e6)
    assert found["about"]["kernels' time one by one"] == "4.0 us"
