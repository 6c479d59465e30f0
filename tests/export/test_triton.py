"""Model repositories for NVIDIA Triton: parsed by its own schema, and served by it where it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import saccade
from bundles import made
from nets import NUM_CLASSES, NUM_ROWS, mean_color_detector
from saccade.bundles import write_bundle
from saccade.errors import BuildError, InputError, ModelError
from saccade.export import TritonOptions, export_triton
from saccade.export.textproto import Enum, text_of
from saccade.types import Plan

PLAN = Plan("onnxruntime", batch=4, streams=2, threads=3)


@pytest.fixture
def bundle(tmp_path):
    def work(plan=PLAN, batch="batch", name="bundle"):
        path = mean_color_detector(tmp_path / f"{name}.onnx", batch=batch)
        with saccade.load(path, labels=["red", 'bl"ue']) as detector:
            contract = detector.contract
        record = made.record(plan, name="colours.onnx")
        return write_bundle(tmp_path / name, model_path=path, contract=contract, record=record).path

    return work


@pytest.fixture
def parsed():
    """Parse with the schema that NVIDIA's client brings."""
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    def work(folder):
        text = (folder / "config.pbtxt").read_text("utf-8")
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    return work


def tensors(specs):
    from tritonclient.grpc.model_config_pb2 import DataType

    return [(spec.name, DataType.Name(spec.data_type), list(spec.dims)) for spec in specs]


def test_the_plan_becomes_instances_threads_and_dynamic_batching(bundle, parsed, tmp_path):
    done = export_triton(bundle(), tmp_path / "repo")
    assert done.folder == tmp_path / "repo" / "colours"
    assert done.max_batch == 4
    config = parsed(done.folder)
    assert (config.name, config.backend) == ("colours", "onnxruntime")
    assert config.max_batch_size == 4
    assert tensors(config.input) == [("images", "TYPE_FP32", [3, 32, 32])]
    assert tensors(config.output) == [("output0", "TYPE_FP32", [4 + NUM_CLASSES, NUM_ROWS])]
    group = config.instance_group[0]
    assert (group.count, group.kind) == (2, group.KIND_CPU)
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.parameters["intra_op_thread_count"].string_value == "3"
    warm = config.model_warmup[0]
    assert warm.batch_size == 4
    assert list(warm.inputs["images"].dims) == [3, 32, 32]
    assert warm.inputs["images"].zero_data
    files = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*.*")}
    assert files == {"config.pbtxt", "contract.toml", "labels.txt", "1/model.onnx"}
    assert (done.folder / "labels.txt").read_text() == 'red\nbl"ue\n'
    assert [p.name for p in (tmp_path / "repo").iterdir()] == ["colours"]


def test_options_win_over_the_plan(bundle, parsed, tmp_path):
    options = TritonOptions(
        name="other", version=7, backend="openvino", max_batch=16, queue_delay_us=500
    )
    done = export_triton(bundle(), tmp_path / "repo", options=options)
    config = parsed(done.folder)
    assert (config.name, config.backend, config.max_batch_size) == ("other", "openvino", 16)
    assert list(config.dynamic_batching.preferred_batch_size) == [16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert (done.folder / "7" / "model.onnx").is_file()
    assert {k: v.string_value for k, v in config.parameters.items()} == {
        "NUM_STREAMS": "2",
        "INFERENCE_NUM_THREADS": "6",
        "ENABLE_BATCH_PADDING": "YES",
    }
    told = " ".join(done.notes)
    assert "checked in onnxruntime" in told
    assert "BF16" in told
    assert "padded" in told


def test_a_graph_that_fixes_the_batch_is_not_batched(bundle, parsed, tmp_path):
    plan = Plan("onnxruntime")
    done = export_triton(bundle(plan, batch=1), tmp_path / "repo")
    config = parsed(done.folder)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert tensors(config.input) == [("images", "TYPE_FP32", [1, 3, 32, 32])]
    assert config.model_warmup[0].batch_size == 1
    assert "fixes its first axis" in done.notes[0]
    with pytest.raises(InputError, match="--max-batch"):
        export_triton(
            bundle(plan, batch=1, name="again"),
            tmp_path / "other",
            options=TritonOptions(max_batch=2),
        )


def test_bf16_and_gpus_are_said(bundle, parsed, tmp_path):
    done = export_triton(bundle(Plan("openvino", "bf16")), tmp_path / "repo")
    assert parsed(done.folder).parameters["HINT_BF16"].string_value == "YES"
    plan = Plan("onnxruntime", device="cuda:1")
    done = export_triton(bundle(plan, name="gpu"), tmp_path / "other")
    group = parsed(done.folder).instance_group[0]
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [1])


def test_a_runtime_that_triton_has_not_is_an_error_with_a_way_out(bundle, parsed, tmp_path):
    made_by_torch = bundle(Plan("torch", "fp16", device="cuda:0"))
    with pytest.raises(BuildError, match="--backend onnxruntime"):
        export_triton(made_by_torch, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    options = TritonOptions(backend="onnxruntime")
    done = export_triton(made_by_torch, tmp_path / "repo", options=options)
    assert any("checked in torch" in note for note in done.notes)
    assert parsed(done.folder).backend == "onnxruntime"


def test_other_models_stay_and_nothing_is_replaced_unasked(bundle, tmp_path):
    repo, folder = tmp_path / "repo", bundle()
    (repo / "mine").mkdir(parents=True)
    (repo / "mine" / "note.txt").write_text("keep")
    export_triton(folder, repo)
    with pytest.raises(InputError, match="--overwrite"):
        export_triton(folder, repo)
    export_triton(folder, repo, options=TritonOptions(version=2), overwrite=True)
    assert (repo / "colours" / "2").is_dir()
    assert not (repo / "colours" / "1").exists()
    with pytest.raises(InputError, match=r"holds no config\.pbtxt"):
        export_triton(folder, repo, options=TritonOptions(name="mine"), overwrite=True)
    assert (repo / "mine" / "note.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "../up"}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"version": 0}, "version"),
        ({"queue_delay_us": -1}, "queue delay"),
        ({"max_batch": 0}, "largest batch"),
        ({"backend": "tensorrt"}, "onnxruntime, openvino"),
    ],
)
def test_wrong_options_say_what_to_give(bundle, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        export_triton(bundle(), tmp_path / "repo", options=TritonOptions(**options))
    assert not (tmp_path / "repo").exists()


def test_a_changed_bundle_is_refused(bundle, tmp_path):
    folder = bundle()
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="sha256"):
        export_triton(folder, tmp_path / "repo")


def test_text_survives_every_character(parsed, tmp_path):
    nasty = 'a"b\\c\n\t\x7fé�漢 \u2028'
    (tmp_path / "config.pbtxt").write_text(
        text_of([("name", nasty), ("backend", "é")], comment=["one", "two"]), "utf-8"
    )
    assert parsed(tmp_path).name == nasty
    assert text_of([("kind", Enum("KIND_CPU")), ("on", True)]) == "kind: KIND_CPU\non: true\n"


def test_the_command_says_what_to_run(bundle, tmp_path):
    command = [sys.executable, "-m", "saccade", "export", "triton", str(bundle()), "-o", "repo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "batches up to 4" in done.stdout
    assert "tritonserver --model-repository=" in done.stdout
    assert "evidence" in done.stderr
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    done = subprocess.run(
        [*command, "--json", "--overwrite"], cwd=tmp_path, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["max_batch"] == 4
