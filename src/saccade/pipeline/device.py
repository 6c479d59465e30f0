"""Models on a GPU: from a file and a contract to a path, and from what a caller names to results.

The work is done in `saccade.cuda`; this file fetches pictures and gives results their names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade import backends
from saccade.cuda.path import DevicePath, PathOptions, Picture
from saccade.cuda.runtime import Device
from saccade.errors import BackendUnavailable, InputError, PictureError
from saccade.pipeline.sources import SourceItem, expand
from saccade.types import Contract, Model, Plan, Result, Thresholds

if TYPE_CHECKING:
    import numpy as np

__all__ = ["open_path", "run_on_device"]


@contextlib.contextmanager
def open_path(
    model: Model,
    contract: Contract,
    plan: Plan,
    *,
    thresholds: Thresholds | None = None,
    options: PathOptions | None = None,
) -> Iterator[DevicePath]:
    """Load a model on a GPU with everything around it.

    Args:
        model: The network.
        contract: How pictures go in and outputs are read.
        plan: Back end, precision, batch, and device "cuda:N".
        thresholds: What is kept; default the contract's.
        options: How much the path may hold and how it decodes.

    Yields:
        The path; it is closed, and the engine with it, when the block ends.

    Raises:
        BackendUnavailable: The driver, the device or a package is missing, or the back end cannot
            be fed with device pointers.
        BuildError: The plan or the contract asks for what is not possible there.
    """
    runtime: Any = backends.get(plan.backend)
    if not hasattr(runtime, "load_device"):
        able = [n for n in backends.names() if hasattr(backends.get(n), "load_device")]
        raise BackendUnavailable(
            f"on a GPU the back end must be one of {', '.join(able)}, it is {plan.backend!r}; "
            "choose one of these"
        )
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(Device(_number(plan.device)))
        engine = runtime.load_device(model, plan, contract.input.size_hw)
        stack.callback(engine.close)
        yield stack.enter_context(
            DevicePath(
                device,
                engine,
                contract,
                thresholds=thresholds,
                options=options,
                priors=_priors(contract),
            )
        )


def _number(device: str) -> int:
    name, _, number = device.partition(":")
    if name != "cuda" or not (number or "0").isdigit():
        raise InputError(f"a GPU is named cuda:N, got {device!r}; correct --device")
    return int(number or 0)


def _priors(contract: Contract) -> np.ndarray | None:
    head = contract.head
    if head.family != "ssd" or head.options["priors"] == "in_graph":
        return None
    from saccade.heads.ssd import prior_boxes

    return prior_boxes(head.options["priors"], contract.input.size_hw)


def run_on_device(path: DevicePath, inputs: Any) -> Iterator[Result]:
    """Find objects in many pictures, in order.

    Args:
        path: From `open_path`.
        inputs: As for `saccade.run`, or an iterator of SourceItem.

    Yields:
        One result per picture: detections, or what is wrong with it.
    """
    source = inputs if isinstance(inputs, Iterator) else iter(expand(inputs))
    waiting: deque[SourceItem] = deque()

    def pictures() -> Iterator[Picture]:
        for item in source:
            waiting.append(dataclasses.replace(item, value=None))
            yield _read(item)

    # Results come in the order in which pictures were taken, so the oldest name is the right one.
    for result in path.run(pictures()):
        item = waiting.popleft()
        yield dataclasses.replace(result, index=item.index, path=item.name)


def _read(item: SourceItem) -> Picture:
    if item.error is not None:
        return item.error
    assert item.value is not None  # an item without a value has an error
    if not isinstance(item.value, Path):
        return item.value
    try:
        return item.value.read_bytes()
    except OSError as exc:
        return PictureError(
            f"a picture must be a readable file, {str(item.value)!r} is not ({exc.strerror}); "
            "check the path and its permissions"
        )
