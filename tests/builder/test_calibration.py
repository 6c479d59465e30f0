"""Calibration: the same numbers as running the network by hand, kept and found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from conv_net import SIZE_HW, contract, conv_net, run_ort
from saccade.builder.calibration import (
    Calibration,
    CalibrationSettings,
    cached,
    collect,
    digest_of,
)
from saccade.builder.recipes import calibration_tensors
from saccade.errors import BuildError, InputError
from saccade.graph.reading import read_model
from saccade.pipeline.sources import SourceItem, expand
from saccade.types import Model

FEW = CalibrationSettings(min_pictures=3, max_pictures=6)
TENSORS = ("images", "y0", "half", "c2")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return read_model(conv_net(tmp_path / "net.onnx"))


@pytest.fixture
def items(rng: np.random.Generator) -> list[SourceItem]:
    return list(expand([rng.integers(0, 256, (*SIZE_HW, 3), np.uint8) for _ in range(4)]))


def gather(model: Model, items: list[SourceItem]) -> Calibration:
    return collect(model, contract(), items, tensors=TENSORS, settings=FEW)


@pytest.mark.parametrize("batch", ["batch", 1, 3])
def test_ranges_are_those_of_the_network(
    tmp_path: Path, items: list[SourceItem], batch: int | str
) -> None:
    model = read_model(conv_net(tmp_path / "net.onnx", batch=batch))
    found = gather(model, items)
    inside = onnx.load(model.path)
    inside.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in TENSORS[1:])
    largest = dict.fromkeys(TENSORS, 0.0)
    for item in items:
        x = np.asarray(item.value, np.float32).transpose(2, 0, 1)[None] / np.float32(255)
        x = np.repeat(x, batch if isinstance(batch, int) else 1, axis=0)
        for name, values in zip(TENSORS, [x, *run_ort(inside, {"images": x})[1:]], strict=True):
            largest[name] = max(largest[name], float(np.abs(values).max()))
    assert found.num_pictures == 4
    assert found.ranges("minmax") == pytest.approx(largest, rel=1e-5)
    assert found.ranges("percentile-99")["y0"] < largest["y0"]


def test_too_few_pictures(model: Model, items: list[SourceItem]) -> None:
    match = r"at least 100 pictures, there are 4; .*--min-calibration 4"
    for given in (items, iter(items)):
        with pytest.raises(InputError, match=match):
            collect(model, contract(), given, tensors=TENSORS)
    with pytest.raises(InputError, match="at least 1"):
        CalibrationSettings(min_pictures=0)
    with pytest.raises(InputError, match="200 to 100"):
        CalibrationSettings(min_pictures=200, max_pictures=100)


def test_bad_pictures_are_listed_and_do_not_count(
    model: Model, items: list[SourceItem], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no picture")
    (broken,) = expand([bad])
    found = gather(model, [broken, *items])
    assert found.num_pictures == 4
    assert len(found.skipped) == 1
    assert "bad.jpg" in found.skipped[0]
    with pytest.raises(InputError, match="there are 2"):
        gather(model, [broken, *items[:2]])


def test_not_more_than_asked_for(model: Model, items: list[SourceItem]) -> None:
    settings = CalibrationSettings(min_pictures=1, max_pictures=2)
    found = collect(model, contract(), items, tensors=TENSORS, settings=settings)
    assert found.num_pictures == 2


def test_activations_must_be_finite(tmp_path: Path, items: list[SourceItem]) -> None:
    proto = onnx.load(conv_net(tmp_path / "net.onnx"))
    for tensor in proto.graph.initializer:
        if tensor.name == "stem_b":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, np.nan, np.float32), "stem_b"))
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(BuildError, match=r"tensor '(y0|half|c2)' holds NaN or infinity for <array"):
        gather(read_model(tmp_path / "net.onnx"), items)


def test_unknown_tensors(model: Model, items: list[SourceItem]) -> None:
    with pytest.raises(InputError, match="nowhere are not"):
        collect(model, contract(), items, tensors=["nowhere"], settings=FEW)


def test_saved_and_loaded(model: Model, items: list[SourceItem], tmp_path: Path) -> None:
    found = gather(model, items)
    path = tmp_path / "some" / "calibration.npz"
    found.save(path)
    first = path.read_bytes()
    loaded = Calibration.load(path)
    assert loaded.digest == found.digest
    assert loaded.ranges("mse") == found.ranges("mse")
    assert loaded.num_pictures == 4
    loaded.save(path)
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["calibration.npz"]


def test_damaged_files(model: Model, items: list[SourceItem], tmp_path: Path) -> None:
    path = tmp_path / "calibration.npz"
    gather(model, items).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (b"", b"PK", whole[:100], whole[:-30], bytes(flipped), b"\x93NUMPY" * 9):
        path.write_bytes(content)
        with pytest.raises(InputError, match="must be a calibration"):
            Calibration.load(path)
    with pytest.raises(InputError, match="must be a calibration"):
        Calibration.load(tmp_path / "missing.npz")


def test_cache(model: Model, items: list[SourceItem], tmp_path: Path) -> None:
    notes: list[str] = []

    def get(given: list[SourceItem], tensors: tuple[str, ...] = TENSORS) -> Calibration:
        return cached(
            tmp_path / "cache",
            model,
            contract(),
            given,
            tensors=tensors,
            settings=FEW,
            on_note=notes.append,
        )

    one = get(items)
    (path,) = (tmp_path / "cache").iterdir()
    stamp = path.stat().st_mtime_ns
    assert get(items).ranges("minmax") == one.ranges("minmax")
    assert path.stat().st_mtime_ns == stamp, "found, not made again"
    assert one.digest == digest_of(model, contract(), items, tensors=TENSORS, settings=FEW)
    path.write_bytes(path.read_bytes()[:500])
    assert get(items).ranges("minmax") == one.ranges("minmax")
    assert len(notes) == 1
    assert "calibrating again" in notes[0]
    assert get(items[:3]).digest != one.digest
    assert get(items[::-1]).digest != one.digest
    assert get(items, TENSORS[:2]).digest != one.digest


@pytest.mark.shared
def test_two_inputs(shared: Path) -> None:
    import saccade

    with saccade.load(shared / "models" / "deimv2_atto_320.onnx") as detector:
        files = sorted((shared / "datasets" / "coco_ccby" / "images").iterdir())[:3]
        model = detector.model
        found = collect(
            model,
            detector.contract,
            expand(files),
            tensors=calibration_tensors(model),
            settings=FEW,
        )
    assert found.num_pictures == 3
    assert all(value > 0 for value in found.ranges("mse").values())
