"""Manifests for Kubernetes: against the schemas of its own API."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

import saccade
from bundles import made
from conftest import skip_or_fail
from nets import mean_color_detector
from saccade.bundles import write_bundle
from saccade.errors import InputError, ModelError
from saccade.export import KubernetesOptions, export_kubernetes
from saccade.export.yamltext import yaml_of
from saccade.types import Plan

KINDS = ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]


@pytest.fixture
def bundle(tmp_path):
    def work(plan):
        path = mean_color_detector(tmp_path / "net.onnx")
        with saccade.load(path) as detector:
            contract = detector.contract
        record = made.record(plan, name="Cells_640.onnx")
        return write_bundle(tmp_path / "b", model_path=path, contract=contract, record=record)

    return work


@pytest.fixture(scope="session")
def check():
    """Validate a document against the strict schema of its kind."""
    try:
        import kubernetes_validate
    except ImportError:
        skip_or_fail("deploy", "kubernetes-validate is not installed; pip install it")

    def work(document):
        kubernetes_validate.validate(document, "1.34", strict=True)

    return work


@pytest.fixture
def read():
    yaml = pytest.importorskip("yaml")
    return lambda path: list(yaml.safe_load_all(path.read_text()))


def test_what_is_written_is_what_kubernetes_takes(bundle, check, read, tmp_path):
    export_kubernetes(bundle(Plan("openvino", "bf16")).path, tmp_path / "a.yaml")
    documents = read(tmp_path / "a.yaml")
    assert [one["kind"] for one in documents] == KINDS
    for document in documents:
        check(document)
    broken = documents[0]
    broken["spec"]["template"]["spec"]["containers"][0]["image_"] = "x"
    with pytest.raises(Exception, match="image_"):
        check(broken)


def test_resources_are_those_of_the_plan(bundle, read, tmp_path):
    made_of = bundle(Plan("torch", "fp16", device="cuda:0"))
    resources = export_kubernetes(made_of.path, tmp_path / "a.yaml")
    seen = made_of.manifest.created["speed"]["peak_memory_bytes"] / (1 << 20)
    assert resources == {
        "cpu": str(made_of.manifest.needs.num_cores),
        "memory": f"{math.ceil((1.5 * seen + 1088) / 64) * 64}Mi",
        "nvidia.com/gpu": "1",
    }
    pod = read(tmp_path / "a.yaml")[0]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["resources"] == {"requests": resources, "limits": resources}
    assert pod["metadata"]["annotations"]["saccade/manifest-sha256"] == made_of.manifest.digest


def test_probes_scaling_and_names(bundle, read, tmp_path):
    options = KubernetesOptions(
        name="cells",
        image="r.example/cells:3",
        min_pods=3,
        max_pods=9,
        queue_ms=35,
        with_features=True,
    )
    made_of = bundle(Plan("onnxruntime"))
    export_kubernetes(made_of.path, tmp_path / "a.yaml", options=options)
    deployment, service, scaler, _ = read(tmp_path / "a.yaml")
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] == "r.example/cells:3"
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"] == "cells"
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (3, 9)
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "saccade_queue_seconds"
    assert metric["pods"]["target"]["averageValue"] == "35m"
    features = [name for name in spec["nodeSelector"] if "cpuid" in name]
    assert len(features) == len(made_of.manifest.needs.instruction_sets)


def test_wrong_calls_say_what_to_give(bundle, tmp_path):
    path = bundle(Plan("onnxruntime")).path
    out = tmp_path / "a.yaml"
    for options, said in (
        ({"name": "Big"}, "small letters"),
        ({"min_pods": 4, "max_pods": 3}, "--max-pods"),
        ({"queue_ms": 0}, "above 0"),
    ):
        with pytest.raises(InputError, match=said):
            export_kubernetes(path, out, options=KubernetesOptions(**options))
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        export_kubernetes(path, out)
    assert out.read_text() == "mine"
    (path / "contract.toml").write_text("")
    with pytest.raises(ModelError, match="sha256"):
        export_kubernetes(path, out, overwrite=True)


def test_yaml_reads_back_as_it_was(tmp_path, read):
    nasty = {
        "a": ["x", {"b": [1, 2.5, True, None], "c": {}}, []],
        "no": "no",
        "8080": "8080",
        "text": 'with "quotes", a colon: and # hash',
        "empty": "",
        "deep": {"er": {"list": [["q"], [{"k": "v", "l": ["m"]}]]}},
        "lines": "one\ntwo",
        "minus": "-1",
        "null": "null",
        "url": "http://a.example:80/x",
    }
    (tmp_path / "a.yaml").write_text(yaml_of([nasty, {"second": 1}], comment=["hi"]))
    assert read(tmp_path / "a.yaml") == [nasty, {"second": 1}]


def test_the_command_prints_what_each_pod_asks_for(bundle, tmp_path):
    path = bundle(Plan("onnxruntime")).path
    command = [sys.executable, "-m", "saccade", "export", "kubernetes", str(path), "-o", "k.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kubectl apply -f k.yaml" in done.stdout
    assert (tmp_path / "k.yaml").read_text().startswith("# Written by saccade")
    done = subprocess.run(
        [*command, "--json", "--overwrite"], cwd=tmp_path, capture_output=True, text=True
    )
    assert set(json.loads(done.stdout)["resources"]) == {"cpu", "memory"}
