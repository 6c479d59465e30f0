"""The verb of the front door: from a file name to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saccade.builder.build import BuildOptions, Built
from saccade.builder.build import build as build_bundle
from saccade.errors import InputError
from saccade.pipeline.detector import load

__all__ = ["build"]


def build(
    model: str | Path,
    output: str | Path,
    *,
    preset: str | None = None,
    contract: str | Path | None = None,
    labels: Sequence[str] = (),
    options: BuildOptions | None = None,
    say: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> Built:
    """Find the fastest deployment of a model whose answers stayed right, and write it as a bundle.

    Args:
        model: An ONNX file.
        output: Folder of the bundle; `saccade.load` takes it.
        preset: Name of a preset that says how pictures go in and outputs are read.
        contract: Path of a TOML file that says so.
        labels: Class names, index 0 first, in place of those in the model.
        options: What is asked for; or give the fields of BuildOptions by name.
        say: Told what happens, line by line.

    Returns:
        The bundle and the record of all that was tried.

    Raises:
        ModelError: The file cannot be read, or how it is fed or read is not clear.
        InputError: The call is wrong, or pictures are missing or too few.
        BuildError: The FP32 reference itself cannot run.
        SinkError: The bundle could not be written.
    """
    if options is None:
        options = BuildOptions(**more)
    elif more:
        raise InputError(f"give options or {', '.join(sorted(more))}, not both")
    with load(model, preset=preset, contract=contract, labels=labels) as detector:
        network, how = detector.model, detector.contract
    return build_bundle(network, how, Path(output), options, say)
