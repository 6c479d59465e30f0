"""What the Open Inference Protocol says of a server and its models, for HTTP and gRPC alike.

Source: KServe, "Open Inference Protocol (V2)"; Triton's "Model Configuration" and "Statistics"
extensions.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from saccade.server.kserve import InferRequest
from saccade.server.models import Face, ModelEntry, Repository
from saccade.server.problems import Problem
from saccade.server.stats import ModelStats
from saccade.server.wire import Region

__all__ = [
    "EXTENSIONS",
    "check_inputs",
    "config_of",
    "metadata_of",
    "server_metadata",
    "statistics_of",
]

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
)
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def server_metadata(*, has_gpu: bool = False) -> dict[str, Any]:
    """Name, version and extensions; memory of GPUs can be shared where there is one."""
    version = importlib.metadata.version("saccade")
    more = ("cuda_shared_memory",) if has_gpu else ()
    return {"name": "saccade", "version": version, "extensions": sorted((*EXTENSIONS, *more))}


def metadata_of(entry: ModelEntry | Face, repository: Repository) -> dict[str, Any]:
    """What goes in and comes out."""
    versions = [e.version for e in repository.versions(entry.base.name) if e.state == "READY"]
    return {
        "name": entry.name,
        "versions": sorted(versions, key=int),
        "platform": f"saccade_{entry.details['plan']['backend']}",
        "inputs": entry.details["inputs"],
        "outputs": entry.details["outputs"],
    }


def config_of(entry: ModelEntry | Face) -> dict[str, Any]:
    """The model's configuration in Triton's words. max_batch_size is 0: shapes are given in full,
    with the batch, as in the metadata."""
    plan = entry.details["plan"]
    gpus = [int(name[5:]) for name in plan["device"].split(",") if name.startswith("cuda:")]
    return {
        "name": entry.name,
        "platform": "",
        "backend": plan["backend"],
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [_config(spec) for spec in entry.details["inputs"]],
        "output": [_config(spec) for spec in entry.details["outputs"]],
        "instance_group": [
            {
                "name": entry.name,
                "kind": "KIND_GPU" if gpus else "KIND_CPU",
                "count": plan["streams"],
                **({"gpus": gpus} if gpus else {}),
            }
        ],
        "default_model_filename": "model.onnx",
        "parameters": {
            "precision": {"string_value": plan["precision"]},
            "batch": {"string_value": str(plan["batch"])},
            "threads": {"string_value": str(plan["threads"])},
            "digest": {"string_value": entry.details["digest"]},
        },
    }


def _config(spec: dict[str, Any]) -> dict[str, Any]:
    datatype = spec["datatype"]
    return {
        "name": spec["name"],
        "data_type": _CONFIG_TYPES.get(datatype, f"TYPE_{datatype}"),
        "dims": spec["shape"],
    }


def statistics_of(stats: ModelStats) -> dict[str, Any]:
    """One model's figures in the statistics extension's words."""
    stages = stats.stages

    def spent(*names: str) -> dict[str, int]:
        return {
            "count": max(stages[name].count for name in names),
            "ns": int(sum(stages[name].total for name in names) * 1e9),
        }

    return {
        "name": stats.name,
        "version": stats.version,
        "last_inference": stats.last_ms,
        "inference_count": stats.num_items,
        "execution_count": round(stats.num_executions),
        "inference_stats": {
            "success": {"count": stats.num_ok, "ns": stats.ok_ns},
            "fail": {"count": stats.num_failed, "ns": stats.failed_ns},
            "queue": spent("queue"),
            "compute_input": spent("decode", "prepare"),
            "compute_infer": spent("infer"),
            "compute_output": spent("suppress"),
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": round(sums[0]), "ns": int(sums[1])},
                "compute_infer": {"count": round(sums[0]), "ns": int(sums[2])},
                "compute_output": {"count": round(sums[0]), "ns": int(sums[3])},
            }
            for size, sums in sorted(stats.batches.items())
        ],
    }


def check_inputs(
    entry: ModelEntry | Face, asked: InferRequest
) -> tuple[tuple[str, Region | None], ...]:
    """Check that a request names the model's inputs and outputs.

    Returns:
        The outputs to be computed, each with the client's memory it goes to.

    Raises:
        Problem: It does not.
    """
    specs = entry.details["inputs"]
    given = [part.name for part in asked.inputs]
    names = [spec["name"] for spec in specs]
    if given != names and sorted(given) != sorted(names):
        raise Problem(
            "input",
            f"inputs of model {entry.name!r} must be {', '.join(names)}",
            f"the request has {', '.join(n[:80] for n in given) or 'none'}",
            "correct the names, see the model's metadata",
        )
    outputs = [spec["name"] for spec in entry.details["outputs"]]
    if not asked.outputs:
        return tuple((name, None) for name in outputs)
    for wanted in asked.outputs:
        if wanted.name not in outputs:
            raise Problem(
                "input",
                f"outputs of model {entry.name!r} must be among {', '.join(outputs)}",
                f"the request asks for {wanted.name[:80]!r}",
                "correct the name, see the model's metadata",
            )
        if wanted.num_classes:
            raise Problem(
                "unimplemented",
                "outputs are sent as they are or as boxes",
                f"the request asks for classes of {wanted.name[:80]!r}",
                "leave out the parameter classification",
            )
    return tuple((wanted.name, wanted.region) for wanted in asked.outputs)
