"""The command line as a newcomer uses it: outputs, exit codes, wrong options."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from nets import mean_color_detector
from saccade import backends
from saccade.vision.draw import encode_jpeg


def saccade(*args, **more):
    command = [sys.executable, "-m", "saccade", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mean_color_detector(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        picture = np.full((20, 30, 3), color, np.uint8)
        (folder / f"{name}.jpg").write_bytes(encode_jpeg(picture))
    return folder


@pytest.mark.parametrize("command", ["", "doctor", "inspect", "detect", "eval", "bench", "demo"])
def test_help(command):
    done = saccade(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_doctor_lists_every_back_end():
    done = saccade("doctor", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert set(told["backends"]) == set(backends.names())
    assert told["machine"]["num_cores"] >= 1
    assert told["machine"]["memory_bytes"] > 1e8
    text = saccade("doctor").stdout
    assert all(name in text for name in backends.names())


def test_doctor_names_the_fix_where_nothing_is_installed(tmp_path):
    """In an environment without runtimes it ends with 1 and says what to install."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "hidden = ('onnxruntime', 'openvino', 'torch', 'tensorrt', 'tensorrt_rtx', 'cuda')\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in hidden: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "u.find_spec = lambda name, *a: None if name.split('.')[0] in hidden else find(name, *a)\n"
        "sys.argv = ['saccade', 'doctor']\n"
        "from saccade.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "pip install 'saccade[cpu]'" in done.stdout
    assert "pip install 'saccade[openvino]'" in done.stdout


def test_inspect(model):
    done = saccade("inspect", model, "--json", "--batch", 1, "--batch", 8)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["contract"]["head"]["family"] == "yolov8"
    one, eight = told["costs"]
    assert (one["batch"], eight["batch"]) == (1, 8)
    assert eight["peak_activation_bytes"] == 8 * one["peak_activation_bytes"]
    assert told["backends"]["onnxruntime"]["ok"]
    text = saccade("inspect", model).stdout
    for word in ("yolov8", "images", "output0", "multiply-adds", "letterbox"):
        assert word in text


def test_inspect_writes_a_contract_that_detect_takes(model, pictures, tmp_path):
    toml = saccade("inspect", model, "--toml").stdout
    path = tmp_path / "contract.toml"
    path.write_text(toml.replace("labels = []", 'labels = ["warm", "cold"]'))
    out = tmp_path / "out"
    done = saccade("detect", model, pictures, "-o", out, "--contract", path, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "detections.jsonl").read_text().splitlines()]
    assert [line["detections"][0]["label"] for line in lines] == ["cold", "warm"]
    assert 'labels = ["warm", "cold"]' in (out / "contract.toml").read_text()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["onnx_classifier_not_detector", "onnx_trt_plugin_efficientnms"])
def test_inspect_shows_what_it_can_of_models_that_do_not_fit(shared, name):
    done = saccade("inspect", shared / f"odd/{name}.onnx")
    assert done.returncode == 1
    assert "contract: not clear" in done.stdout
    assert "Traceback" not in done.stderr
    if "efficientnms" in name:
        assert "EfficientNMS_TRT" in done.stdout


@pytest.mark.shared
def test_every_broken_model_is_one_clear_error(shared):
    fine = {"onnx_uint8_nhwc_input.onnx", "onnx_classifier_not_detector.onnx",
            "onnx_custom_op_unknown_domain.onnx", "onnx_trt_plugin_efficientnms.onnx",
            "onnx_unknown_op_default_domain.onnx"}  # fmt: skip
    for path in sorted((shared / "odd").glob("onnx_*.onnx")):
        if path.name in fine:
            continue
        done = saccade("detect", path, shared / "images/hopper_128.jpg", "-o", "/nonexistent/x")
        assert done.returncode == 1, path.name
        assert done.stderr.startswith("saccade: "), path.name
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_detect_draws(model, pictures, tmp_path):
    out = tmp_path / "out"
    done = saccade("detect", model, pictures, "-o", out, "--draw", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["summary"]["num_pictures"] == 2
    assert told["fallbacks"] == []
    assert len(list((out / "drawn").glob("*.jpg"))) == 2


def test_detect_reads_a_list_on_standard_input(model, pictures, tmp_path):
    names = "\n".join(str(path) for path in sorted(pictures.iterdir()))
    out = tmp_path / "out"
    done = saccade("detect", model, "-", "-o", out, "--format", "jsonl", input=names)
    assert done.returncode == 0, done.stderr
    assert len((out / "detections.jsonl").read_text().splitlines()) == 2


def test_nothing_is_overwritten_unasked(model, pictures, tmp_path):
    out = tmp_path / "out"
    assert saccade("detect", model, pictures, "-o", out).returncode == 0
    again = saccade("detect", model, pictures, "-o", out)
    assert again.returncode == 2
    assert "overwrite" in again.stderr
    assert saccade("detect", model, pictures, "-o", out, "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("detect",), "MODEL"),
        (("detect", "{model}", "{pictures}"), "--output"),
        (("detect", "{model}", "-o", "{out}"), "inputs must name at least one picture"),
        (("detect", "{model}", "none.jpg", "-o", "{out}"), "'none.jpg' does not"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--backend", "onxruntime"),
         "did you mean 'onnxruntime'"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--format", "xml"), "xml"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--batch", "0"), "batch must be"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--score", "7"), "score threshold"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--size", "big"), "WIDTHxHEIGHT"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--preset", "yolo8"), "yolov8"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--labels", "none"), "--labels"),
        (("detekt",), "detect"),
        (("detect", "{model}", "{pictures}", "-o", "{out}", "--bach", "3"), "--bach"),
        (("bench", "{model}", "{pictures}", "--rounds", "0"), "rounds"),
        (("eval", "{model}", "--data", "none.json", "--images", "."), "none.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_wrong_calls_end_with_2_and_say_what_to_do(model, pictures, tmp_path, args, message):
    places = {"model": model, "pictures": pictures, "out": tmp_path / "out"}
    done = saccade(*(arg.format(**places) for arg in args))
    assert done.returncode == 2, done.stderr + done.stdout
    assert message in " ".join((done.stderr + done.stdout).replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_precision_that_a_back_end_lacks_is_an_error(model, pictures, tmp_path):
    done = saccade("detect", model, pictures, "-o", tmp_path / "out", "--precision", "bf16")
    assert done.returncode == 1
    assert "precision of back end 'onnxruntime' must be" in done.stderr


def test_bench_is_checked_and_complete(model):
    done = saccade("bench", model, "--seconds", 1, "--rounds", 2, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["num_checked"] > 0
    assert set(told["stages"]) == {"decode", "prepare", "infer", "suppress"}
    assert len(told["overlapped_per_s"]) == 2
    cpu_s = sum(cost["cpu_s"] for cost in told["stages"].values())
    assert told["bound_per_s"] == pytest.approx(told["machine"]["num_cores"] / cpu_s)
    assert told["machine"]["versions"]["numpy"]


def test_demo_finds_most_red_cells(tmp_path):
    done = saccade("demo", "-o", tmp_path / "demo", "--pictures", 6, "--bench-seconds", 0)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.strip().startswith("RBC"))
    assert float(row.split()[2].rstrip("%")) >= 85
    assert len(list((tmp_path / "demo/drawn").iterdir())) == 6


def test_a_reader_that_leaves_is_no_crash(model):
    command = f"{sys.executable} -m saccade inspect {model} --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
