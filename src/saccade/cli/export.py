"""saccade export triton, saccade export kubernetes"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def triton(
    bundle: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    name: str = "",
    model_version: int = 1,
    backend: Literal["onnxruntime", "openvino"] | None = None,
    max_batch: int | None = None,
    queue_delay_us: int = 0,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write a bundle's network into a model repository for NVIDIA Triton.

    The configuration has dynamic batching, and the instances and threads of the bundle's plan.
    Decoding, preparing and suppressing are the client's there; contract.toml beside the
    configuration says how. What of the gate's evidence does not hold there is printed.

    Args:
        bundle: Folder that `saccade build` wrote.
        output: Folder of the repository; other models in it stay.
        name: Name of the model there; default that of the source model.
        model_version: Number of the version.
        backend: Back end of Triton; default the one that the bundle was built for.
        max_batch: Largest batch; default the plan's.
        queue_delay_us: How long a request may wait for others to share its batch, microseconds.
        overwrite: Replace a model of that name.
        json: Print JSON.
    """
    from dataclasses import asdict

    from saccade.cli._show import print_json
    from saccade.export import TritonOptions, export_triton

    options = TritonOptions(
        name=name,
        version=model_version,
        backend=backend or "",
        max_batch=max_batch,
        queue_delay_us=queue_delay_us,
    )
    done = export_triton(bundle, output, options=options, overwrite=overwrite)
    if json:
        print_json(asdict(done))
        return 0
    for note in done.notes:
        print(f"saccade: note: {note}", file=sys.stderr)
    batch = f"batches up to {done.max_batch}" if done.max_batch else "no batching"
    print(f"wrote {done.folder} ({batch}); run: tritonserver --model-repository={output.resolve()}")
    return 0


def kubernetes(
    bundle: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    name: str = "",
    image: str = "",
    min_pods: int = 2,
    max_pods: int = 10,
    queue_ms: float = 20.0,
    node_features: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write Kubernetes manifests that serve a bundle with the resources of its plan.

    Deployment with probes, service, an autoscaler that follows the time in the queue, and a
    disruption budget. deploy/README.md of the source says how to make the image and the metric.

    Args:
        bundle: Folder that `saccade build` wrote.
        output: The YAML file.
        name: Of everything that is made; default that of the source model.
        image: With the bundle inside; default NAME:1.
        min_pods: At least so many pods.
        max_pods: At most so many pods.
        queue_ms: Mean milliseconds in the queue past which pods are added.
        node_features: Ask for nodes with the bundle's instruction sets; needs
            node-feature-discovery in the cluster.
        overwrite: Replace a file that is there.
        json: Print JSON.
    """
    from saccade.cli._show import print_json
    from saccade.export import KubernetesOptions, export_kubernetes

    options = KubernetesOptions(
        name=name,
        image=image,
        min_pods=min_pods,
        max_pods=max_pods,
        queue_ms=queue_ms,
        with_features=node_features,
    )
    resources = export_kubernetes(bundle, output, options=options, overwrite=overwrite)
    if json:
        print_json({"file": output, "resources": resources})
        return 0
    told = ", ".join(f"{key} {value}" for key, value in resources.items())
    print(f"wrote {output} (each pod: {told}); run: kubectl apply -f {output}")
    return 0
