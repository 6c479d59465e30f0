"""Every kernel compiles for every architecture, without a GPU; the cache keeps and repairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saccade.cuda import compile as compiling
from saccade.cuda.compile import ARCHITECTURES, compile_kernels, kernel_source
from saccade.cuda.head import FAMILIES, read_head
from saccade.cuda.prepare import prepare_defines, prepare_source
from saccade.cuda.suppress import suppress_defines, suppress_source, workspace_of
from saccade.errors import BuildError, ContractError, InputError
from saccade.types import DeviceBuffer, HeadRule, InputRule, Thresholds

pytestmark = pytest.mark.usefixtures("nvrtc")

KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= FACTOR; }'


def outputs(**shapes: tuple[int, ...]) -> dict[str, DeviceBuffer]:
    return {
        name: DeviceBuffer(0, shape, "int64" if name in ("labels", "count") else "float16", 0)
        for name, shape in shapes.items()
    }


def levels(roles: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {f"{r}_{s}": (2, (64 // s) ** 2, w) for s in (8, 16, 32) for r, w in roles.items()}


def rule(family: str, names: dict[str, DeviceBuffer], classes: int, **options: object) -> HeadRule:
    return HeadRule(family, {name: name for name in names}, classes, options)


SSD = {"boxes": "normalised", "background": 0, "variances": [0.1, 0.2]}
HEADS = {
    "yolov8": (outputs(rows=(2, 84, 84)), 80, {}),
    "yolov8 rows first": (outputs(rows=(2, 84, 7)), 3, {"rows_first": True}),
    "yolov5": (outputs(rows=(2, 252, 85)), 80, {}),
    "yolox": (outputs(rows=(2, 84, 6)), 1, {"decoded": False}),
    "nanodet": (
        outputs(**levels({"cls": 80, "dis": 32})),
        80,
        {"strides": [8, 16, 32], "reg_max": 7, "centre": 0.5},
    ),
    "nanodet plus": (
        outputs(rows=(2, 84, 112)),
        80,
        {"strides": [8, 16, 32], "reg_max": 7, "centre": 0.0},
    ),
    "fastestdet": (outputs(map=(2, 85, 4, 4)), 80, {"stride": 16}),
    "ssd": (
        outputs(scores=(2, 50, 21), boxes=(2, 50, 4)),
        20,
        {"priors": "in_graph", "activation": "none", **SSD},
    ),
    "ssd with priors": (
        outputs(scores=(2, 50, 21), boxes=(2, 50, 4)),
        20,
        {"priors": {}, "activation": "softmax", **SSD},
    ),
    "yunet": (
        outputs(**levels({"cls": 1, "obj": 1, "bbox": 4, "kps": 10})),
        1,
        {"strides": [8, 16, 32]},
    ),
    "damo_yolo": (outputs(scores=(2, 84, 80), boxes=(2, 84, 4)), 80, {}),
    "detr": (
        outputs(labels=(2, 30), boxes=(2, 30, 4), scores=(2, 30)),
        0,
        {"layout": "post"},
    ),
    "detr raw": (outputs(logits=(2, 30, 80), boxes=(2, 30, 4)), 80, {"layout": "raw"}),
    "detr softmax": (
        outputs(logits=(2, 30, 92), boxes=(2, 30, 4)),
        91,
        {"layout": "raw", "activation": "softmax", "no_object": True},
    ),
    "final": (
        outputs(count=(2, 1), boxes=(2, 30, 4), scores=(2, 30), labels=(2, 30)),
        0,
        {"layout": "num_dets"},
    ),
    "final dets": (outputs(dets=(2, 30, 5), labels=(2, 30)), 0, {"layout": "dets_labels"}),
    "final rows": (outputs(rows=(2, 30, 6)), 0, {"layout": "nms6"}),
}


def test_every_family_is_tried() -> None:
    assert {name.split()[0] for name in HEADS} == set(FAMILIES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", HEADS)
def test_suppression_compiles(name: str, arch: str) -> None:
    found, classes, options = HEADS[name]
    head_rule = rule(name.split()[0], found, classes, **options)
    priors = np.zeros((50, 4), np.float32)
    thresholds = Thresholds(multi_label=arch == "sm_90")
    head = read_head(head_rule, (64, 64), found, thresholds, priors=priors)
    work = workspace_of(head, thresholds, 2, 99 * 1024)
    defines = suppress_defines(head, thresholds, (64, 64), work)
    assert compile_kernels(suppress_source(head), arch, defines).startswith(b"\x7fELF")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_prepare_compiles(layout: str, color: str, arch: str) -> None:
    types = ("float32", "float16", "bfloat16", "uint8")
    dtype = types[ARCHITECTURES.index(arch) % 4]
    width = 30 if color == "gray" else 64
    input_rule = InputRule("x", (48, width), color=color, layout=layout, size_input="size")
    defines = prepare_defines(input_rule, dtype)
    assert compile_kernels(prepare_source(), arch, defines).startswith(b"\x7fELF")


def test_cubins_are_kept_by_options(tmp_path: Path) -> None:
    one = compile_kernels(KERNEL, "sm_90", ["FACTOR=2"], folder=tmp_path)
    two = compile_kernels(KERNEL, "sm_90", ["FACTOR=3"], folder=tmp_path)
    assert one != two
    assert compile_kernels(KERNEL, "sm_90", ["FACTOR=2"], folder=tmp_path) == one
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw + b"x"])
def test_damaged_cubin_is_made_anew(tmp_path: Path, damage: object) -> None:
    whole = compile_kernels(KERNEL, "sm_90", ["FACTOR=2"], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert compile_kernels(KERNEL, "sm_90", ["FACTOR=2"], folder=tmp_path) == whole
    assert compiling._read(path) == whole


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = tmp_path / "file" / "cubins"
    assert compile_kernels(KERNEL, "sm_90", ["FACTOR=2"], folder=folder)


def test_refused_source_says_why(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="FACTOR"):
        compile_kernels(KERNEL, "sm_90", folder=tmp_path)
    with pytest.raises(BuildError, match="sm_1"):
        compile_kernels(KERNEL, "sm_1", ["FACTOR=2"], folder=tmp_path)


def test_messages_name_the_kernel_file() -> None:
    assert kernel_source("common.cuh").startswith('#line 1 "common.cuh"')


@pytest.mark.parametrize(
    ("change", "match"),
    [({"interpolation": "area"}, "linear"), ({"bits": 16}, "8-bit")],
)
def test_rules_the_kernel_cannot_follow(change: dict[str, object], match: str) -> None:
    with pytest.raises(BuildError, match=match):
        prepare_defines(InputRule("x", (64, 64), **change), "float16")  # type: ignore[arg-type]


def test_outputs_that_do_not_fit_the_rule() -> None:
    found = outputs(rows=(2, 84, 84))
    with pytest.raises(ContractError, match="num_classes"):
        read_head(rule("yolov8", found, 79), (64, 64), found, Thresholds())
    with pytest.raises(ContractError, match=r"head\.outputs"):
        read_head(HeadRule("yolov8", {"rows": "y"}, 80), (64, 64), found, Thresholds())
    with pytest.raises(BuildError, match="layout"):
        read_head(rule("final", found, 0, layout="nms7"), (64, 64), found, Thresholds())


def test_too_many_detections_are_refused() -> None:
    found = outputs(rows=(2, 84, 84))
    thresholds = Thresholds(max_detections=5000)
    head = read_head(rule("yolov8", found, 80), (64, 64), found, thresholds)
    with pytest.raises(InputError, match="max_detections"):
        workspace_of(head, thresholds, 2, 99 * 1024)
