"""saccade export"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def export(
    server: Literal["triton"],
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
    """Write a bundle's network for another server: a model repository for NVIDIA Triton.

    The configuration has dynamic batching, and the instances and threads of the bundle's plan.
    Decoding, preparing and suppressing are the client's there; contract.toml beside the
    configuration says how. What of the gate's evidence does not hold there is printed.

    Args:
        server: triton.
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
