"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from saccade.errors import InputError

if TYPE_CHECKING:
    from saccade.pipeline.detector import Detector
    from saccade.pipeline.run import RunOptions
    from saccade.types import Thresholds

__all__ = [
    "JobOptions",
    "ModelOptions",
    "ThresholdOptions",
    "read_labels",
    "read_pairs",
    "read_size",
]


@Parameter(name="*", group="Model")
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How the model is read and run.

    Attributes:
        preset: Name of a preset that says how pictures go in and outputs are read.
        contract: TOML file that says so.
        labels: Text file with one class name per line.
        size: Input size as WIDTHxHEIGHT, where the model leaves it free.
        backend: Runtime, default onnxruntime, on a GPU torch; `saccade doctor` lists them. A
            bundle has its own.
        precision: Arithmetic of the runtime, default fp32. A bundle has its own.
        device: cpu (the default) or cuda:N.
        devices: Several GPUs, separated by commas, such as 0,1: one process for each.
        engine_options: Further options of the runtime, such as compile=inductor,input=plan.
        gpu_memory: Refuse what needs more device memory than this, such as 4GiB.
    """

    preset: str | None = None
    contract: Path | None = None
    labels: Path | None = None
    size: str | None = None
    backend: str | None = None
    precision: Literal["fp32", "fp16", "bf16"] | None = None
    device: str | None = None
    devices: str | None = None
    engine_options: str | None = None
    gpu_memory: str | None = None

    def contract_keys(self) -> dict[str, Any]:
        """What decides the contract, as keyword arguments."""
        return {
            "preset": self.preset,
            "contract": self.contract,
            "size_hw": read_size(self.size) if self.size else None,
            "labels": read_labels(self.labels) if self.labels else (),
        }

    def load(self, model: Path) -> Detector:
        """Load the model or bundle with these options; says what of a bundle is not ideal here."""
        import sys

        from saccade.pipeline.detector import load

        several = self.device_names()
        detector = load(
            model,
            backend=self.backend,
            precision=self.precision,
            device=several[0] if several else self.device,
            engine_options=read_pairs(self.engine_options) if self.engine_options else None,
            gpu_memory=self.gpu_memory,
            **self.contract_keys(),
        )
        for mismatch in detector.mismatches:
            print(f"saccade: note: {model} was tuned elsewhere: {mismatch}", file=sys.stderr)
        return detector

    def device_names(self) -> tuple[str, ...]:
        """The devices that share a job; empty if there is one."""
        from saccade.pipeline.devices import device_name

        if self.devices is None:
            return ()
        if self.device is not None:
            raise InputError(
                f"--device {self.device} names one device and --devices {self.devices} several; "
                "give one of the two"
            )
        return tuple(device_name(part) for part in self.devices.split(","))


@Parameter(name="*", group="Thresholds")
@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdOptions:
    """What is kept.

    Attributes:
        score: Score threshold in place of the contract's.
        iou: IoU threshold of suppression in place of the contract's.
        max_detections: Most boxes per picture in place of the contract's.
    """

    score: float | None = None
    iou: float | None = None
    max_detections: int | None = None

    def over(self, base: Thresholds) -> Thresholds:
        """The contract's thresholds with these changes."""
        import dataclasses

        from saccade.contracts.resolve import check_thresholds

        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        made = dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None})
        check_thresholds(made)
        return made


@Parameter(name="*", group="Running")
@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a job runs.

    Attributes:
        batch: Pictures per inference; default 1, on a GPU 32, or what the model fixes or the
            bundle says.
        streams: Inferences at the same time; default one per core, or what the bundle says. On a
            GPU batches in flight, default 4.
        threads: Threads inside one inference; default 1, or what the bundle says.
        workers: Threads that decode, prepare and suppress; default one per core, or what the
            bundle says.
        serial: One stage of one picture after the other: the reference, not the fast way. On a
            GPU the network alone then runs there.
        strict: Stop at the first picture that cannot be used.
        max_pixels: Refuse larger pictures before they are decoded.
        scaled_decode: Decode JPEGs much larger than the input at a fraction of their size. Faster,
            but it changes answers; default no, or what the bundle was checked with.
    """

    batch: int | None = None
    streams: int | None = None
    threads: int | None = None
    workers: int | None = None
    serial: Annotated[bool, Parameter(negative="")] = False
    strict: Annotated[bool, Parameter(negative="")] = False
    max_pixels: int | None = None
    scaled_decode: bool | None = None

    def options(self, how: ModelOptions | None = None) -> RunOptions:
        """The same as RunOptions, with the devices of the model's options."""
        from saccade.pipeline.run import RunOptions
        from saccade.vision.decode import DEFAULT_MAX_PIXELS

        return RunOptions(
            batch=self.batch,
            streams=self.streams,
            threads=self.threads,
            workers=self.workers,
            is_overlapped=not self.serial,
            is_strict=self.strict,
            max_pixels=DEFAULT_MAX_PIXELS if self.max_pixels is None else self.max_pixels,
            scaled_decode=self.scaled_decode,
            devices=how.device_names() if how else (),
        )


def read_size(text: str) -> tuple[int, int]:
    """(height, width) from "WIDTHxHEIGHT".

    Raises:
        InputError: The text is not a size.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})[xX]([1-9]\d{0,4})", text.strip())
    if match is None:
        raise InputError(f"--size must be WIDTHxHEIGHT such as 640x480, got {text!r}")
    return int(match[2]), int(match[1])


def read_pairs(text: str) -> dict[str, str]:
    """Names and values from "a=1,b=2".

    Raises:
        InputError: A part is not NAME=VALUE.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    for name, sign, value in pairs:
        if not (name.strip() and sign and value.strip()):
            raise InputError(
                f"--engine-options must be NAME=VALUE, with commas between several, got {text!r}"
            )
    return {name.strip(): value.strip() for name, _, value in pairs}


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one per line; blank lines are dropped.

    Raises:
        InputError: The file cannot be read, or is empty.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"--labels must be a text file in UTF-8, {path} is not: {exc}") from exc
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"--labels must name at least one class, {path} names none")
    return names
