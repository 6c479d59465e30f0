"""Kubernetes manifests whose resources are those of a bundle's plan.

    Deployment                   probes, whole cores, memory as measured, no rights
    Service                      HTTP and gRPC
    HorizontalPodAutoscaler      as many pods as keep the time in the queue short
    PodDisruptionBudget          one pod stays up

Source: https://kubernetes.io/docs/reference/kubernetes-api/
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.bundles import Bundle, read_bundle
from saccade.errors import InputError, SinkError
from saccade.export.yamltext import yaml_of

__all__ = ["QUEUE_METRIC", "KubernetesOptions", "export_kubernetes"]

# What prometheus-adapter makes of the exported histogram; see deploy/kubernetes.
QUEUE_METRIC = "saccade_queue_seconds"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_HTTP, _GRPC = 8000, 8001
_MIB = 1 << 20
# What the front, its arena and the bodies that wait may take besides the engine: the bounds that
# `saccade serve` has by default.
_FRONT_MIB = 64 + 512 + 512
_STEP_MIB = 64
_DRAIN_S = 30
# Features that node-feature-discovery names otherwise than Linux does.
_FEATURES = {
    "avx2": "AVX2",
    "fma": "FMA3",
    "f16c": "F16C",
    "avx512f": "AVX512F",
    "avx512bw": "AVX512BW",
    "avx512_vnni": "AVX512VNNI",
    "avx512_bf16": "AVX512BF16",
    "amx_tile": "AMXTILE",
    "amx_int8": "AMXINT8",
    "amx_bf16": "AMXBF16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """What a bundle does not decide.

    Attributes:
        name: Of everything that is made; default that of the source model.
        image: With the bundle inside, see deploy/docker/Dockerfile.bundle; default "NAME:1".
        min_pods: At least so many.
        max_pods: At most so many.
        queue_ms: Mean milliseconds in the queue past which pods are added.
        with_features: Ask for nodes whose processors have the bundle's instruction sets; needs
            node-feature-discovery in the cluster.
    """

    name: str = ""
    image: str = ""
    min_pods: int = 2
    max_pods: int = 10
    queue_ms: float = 20.0
    with_features: bool = False


def export_kubernetes(
    bundle: str | Path,
    file: str | Path,
    *,
    options: KubernetesOptions | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the manifests of a service for one bundle.

    Args:
        bundle: Folder that `saccade build` wrote; all of its files are checked.
        file: Where the manifests go, as YAML.
        options: What the bundle does not decide.
        overwrite: Replace a file that is there.

    Returns:
        The resources that each pod asks for.

    Raises:
        ModelError: The bundle is not whole.
        InputError: An option is wrong, or the file is there.
        SinkError: The file could not be written.
    """
    options, read, path = options or KubernetesOptions(), read_bundle(bundle), Path(file)
    name = options.name or _name_of(str(read.manifest.model["name"]))
    _check(name, options)
    if path.exists() and not overwrite:
        raise InputError(
            f"the file must be a new one, {path} is there; choose another, or replace it with "
            "--overwrite"
        )
    resources = _resources(read)
    documents = [
        _deployment(name, read, options, resources),
        _service(name),
        _autoscaler(name, options),
        _budget(name),
    ]
    comment = (
        f"Written by saccade {read.manifest.needs.saccade} from the bundle of "
        f"{read.manifest.model['name']}",
        f"(manifest sha256 {read.manifest.digest}).",
        f"The autoscaler needs the pods metric {QUEUE_METRIC}: deploy/kubernetes says how.",
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml_of(documents, comment=comment), "utf-8")
    except OSError as exc:
        raise SinkError(
            f"{path} must be writable, it is not: {exc.strerror}; choose another place"
        ) from exc
    return resources


def _name_of(model: str) -> str:
    """A name that DNS takes."""
    return re.sub(r"[^a-z0-9]+", "-", Path(model).stem.lower()).strip("-")[:50] or "saccade"


def _check(name: str, options: KubernetesOptions) -> None:
    if not re.fullmatch(r"[a-z]([a-z0-9\-]{0,61}[a-z0-9])?", name):
        raise InputError(
            "a name must be of small letters, digits and '-', start with a letter and end with "
            f"none of '-', it is {name!r}; give another one with --name"
        )
    if not 1 <= options.min_pods <= options.max_pods:
        raise InputError(
            "pods must be at least 1 and at most as many as the largest number, they are "
            f"{options.min_pods} to {options.max_pods}; correct --min-pods and --max-pods"
        )
    if not options.queue_ms > 0:
        raise InputError(f"the queue time must be above 0 ms, got {options.queue_ms}")


def _resources(bundle: Bundle) -> dict[str, str]:
    """Per pod: the cores that the plan was chosen for, and the memory that it was seen to take."""
    manifest, plan = bundle.manifest, bundle.plan
    made = {"cpu": str(manifest.needs.num_cores)}
    speed = manifest.created.get("speed") or {}
    seen = int(speed.get("peak_memory_bytes") or 1 << 30)
    # Half again: pictures larger than those of the build.
    mib = 1.5 * seen / _MIB + _FRONT_MIB
    made["memory"] = f"{math.ceil(mib / _STEP_MIB) * _STEP_MIB}Mi"
    if plan.device.startswith("cuda"):
        made["nvidia.com/gpu"] = "1"
    return made


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "saccade", "app.kubernetes.io/instance": name}


def _meta(name: str) -> dict[str, Any]:
    return {"name": name, "labels": _labels(name)}


def _deployment(
    name: str, bundle: Bundle, options: KubernetesOptions, resources: Mapping[str, str]
) -> dict[str, Any]:
    annotations = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(_HTTP),
        "saccade/manifest-sha256": bundle.manifest.digest,
    }
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _DRAIN_S + 15,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": _nodes(bundle, options),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(name)},
            }
        ],
        "containers": [_container(name, options, resources)],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "256Mi"}}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(name),
        "spec": {
            # The number of pods is the autoscaler's; a number here would fight with it.
            "selector": {"matchLabels": _labels(name)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": {
                "metadata": {"labels": _labels(name), "annotations": annotations},
                "spec": pod,
            },
        },
    }


def _container(
    name: str, options: KubernetesOptions, resources: Mapping[str, str]
) -> dict[str, Any]:
    ready = {"httpGet": {"path": "/v2/health/ready", "port": "http"}}
    live = {"httpGet": {"path": "/v2/health/live", "port": "http"}}
    return {
        "name": "saccade",
        "image": options.image or f"{name}:1",
        "ports": [
            {"name": "http", "containerPort": _HTTP},
            {"name": "grpc", "containerPort": _GRPC},
        ],
        # Asked for is what may be used, in whole cores: so a node with the static policy gives
        # the pod cores of its own, as the plan was measured.
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "startupProbe": {**ready, "periodSeconds": 2, "failureThreshold": 150},
        "readinessProbe": {**ready, "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {**live, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        # A moment for the endpoints to forget the pod, before it takes no more connections.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }


def _nodes(bundle: Bundle, options: KubernetesOptions) -> dict[str, str]:
    """Nodes that the bundle fits: answers were checked with these kernels and no others."""
    needs = bundle.manifest.needs
    wanted = {
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _ARCHITECTURES.get(needs.architecture, needs.architecture),
    }
    if options.with_features:
        for name in needs.instruction_sets:
            feature = _FEATURES.get(name, name.upper())
            wanted[f"feature.node.kubernetes.io/cpu-cpuid.{feature}"] = "true"
    return wanted


def _service(name: str) -> dict[str, Any]:
    ports = [
        {"name": "http", "port": _HTTP, "targetPort": "http", "appProtocol": "http"},
        # Clients keep one HTTP/2 connection, so balance inside it or use a headless service.
        {"name": "grpc", "port": _GRPC, "targetPort": "grpc", "appProtocol": "kubernetes.io/h2c"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(name),
        "spec": {"selector": _labels(name), "ports": ports},
    }


def _autoscaler(name: str, options: KubernetesOptions) -> dict[str, Any]:
    target = {"type": "AverageValue", "averageValue": f"{max(1, round(options.queue_ms))}m"}
    metric = {"type": "Pods", "pods": {"metric": {"name": QUEUE_METRIC}, "target": target}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _meta(name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": options.min_pods,
            "maxReplicas": options.max_pods,
            "metrics": [metric],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 30}],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
                },
            },
        },
    }


def _budget(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": _labels(name)}},
    }
