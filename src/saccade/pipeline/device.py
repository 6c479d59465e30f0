"""Models on a GPU: from a file and a contract to a session, and to jobs and calls on it.

The work is done in `saccade.cuda`; this package fetches pictures, decodes what the GPU cannot, and
gives results their names.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from saccade import backends
from saccade.cuda.driver import device_index
from saccade.cuda.path import DevicePath, PathOptions
from saccade.cuda.runtime import Device
from saccade.errors import BackendUnavailable, EngineError, InputError
from saccade.pipeline.device_feed import Fetcher
from saccade.pipeline.device_memory import MemoryBook, check_limit, path_options, predict
from saccade.pipeline.device_run import DeviceRun, fits, named, room_for
from saccade.profiler.machine import num_cores
from saccade.types import (
    Contract,
    Detections,
    DeviceEngine,
    Fallback,
    Model,
    Plan,
    Thresholds,
)
from saccade.vision.decode import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np

    from saccade.pipeline.detector import Detector
    from saccade.pipeline.run import RunOptions
    from saccade.pipeline.sources import SourceItem

__all__ = [
    "DEFAULT_BATCH",
    "DeviceSession",
    "able_backends",
    "detect_one",
    "device_model",
    "start_run",
]

# Pictures per inference where neither the caller nor the graph says: near the best rate of the
# networks that were measured, see docs/performance/torch-engine.md.
DEFAULT_BATCH = 32
_SLOTS = 4


def able_backends() -> tuple[str, ...]:
    """Back ends that can be fed with device pointers."""
    return tuple(n for n in backends.names() if hasattr(backends.get(n), "load_device"))


class DeviceSession:
    """A network on one GPU with the path around it. One job or call at a time; a context manager.

    The engine stays; the path is made again where thresholds or room change.

    Args:
        model: The network.
        contract: How pictures go in and outputs are read.
        plan: Back end, precision, batch, and device "cuda:N".
        limit_bytes: Device memory that this session may take in all, or None.

    Attributes:
        plan: As given.
        contract: As given.
        device: The GPU.
        engine: The loaded network.
        memory: What was predicted and what was measured, by part.
        fetcher: Gets single pictures ready.
        is_lost: Whether the device failed; the session must be closed then.

    Raises:
        BackendUnavailable: The driver, the device or a package is missing, or the back end cannot
            be fed with device pointers.
        BuildError: The plan or the contract asks for what is not possible there, or for more
            memory than there is.
    """

    def __init__(
        self,
        model: Model,
        contract: Contract,
        plan: Plan,
        *,
        limit_bytes: int | None = None,
    ) -> None:
        self.is_lost = False
        self.plan = plan
        self.contract = contract
        self.fetcher = Fetcher(contract.input.color, max_pixels=DEFAULT_MAX_PIXELS)
        self._limit_bytes = limit_bytes
        self._exit = contextlib.ExitStack()
        self._path: DevicePath | None = None
        self._key: tuple[Thresholds, PathOptions] | None = None
        runtime = _runtime(plan.backend)
        try:
            self.memory = MemoryBook(device_index(plan.device))
            self.device = self._exit.enter_context(Device(device_index(plan.device)))
            self.memory.opened(self.device)
            self._model = model
            least = path_options(plan.batch, num_slots=1, max_pixels=1)
            wanted = self._predict(contract.detect, least)
            check_limit(model, contract, plan, wanted, self.memory, limit_bytes)
            file = self._exit.enter_context(device_model(model, plan))
            self.engine: DeviceEngine = runtime.load_device(
                file.model, file.plan, contract.input.size_hw
            )
            self._exit.callback(self.engine.close)
        except BaseException:
            self.close()
            raise

    def mark_lost(self) -> None:
        """Say that the device failed: nothing of this session can be used again."""
        self.is_lost = True

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """What the engine runs otherwise than the plan says."""
        return self.engine.fallbacks

    def _predict(self, thresholds: Thresholds, options: PathOptions) -> dict[str, int]:
        return predict(self._model, self.contract, self.plan, thresholds, options, self.memory)

    def path(self, thresholds: Thresholds, options: PathOptions) -> DevicePath:
        """The path for these thresholds and this room; the one of before if nothing changed.

        Raises:
            BuildError: The contract asks for what the kernels cannot do, or there is too little
                memory.
        """
        if self._path is not None and self._key == (thresholds, options):
            return self._path
        self._drop_path()
        self.memory.predicted = self._predict(thresholds, options)
        self.memory.check(self._limit_bytes, options)
        self._path = DevicePath(
            self.device,
            self.engine,
            _as_laid(self.contract, self.engine),
            thresholds=thresholds,
            options=options,
            priors=_priors(self.contract),
        )
        self._key = (thresholds, options)
        return self._path

    def fitting(self, thresholds: Thresholds, options: PathOptions) -> PathOptions:
        """Options with as many batches in flight as fit the limit, at least one."""
        while self._limit_bytes is not None and options.num_slots > 1:
            if sum(self._predict(thresholds, options).values()) <= self._limit_bytes:
                break
            options = dataclasses.replace(options, num_slots=options.num_slots - 1)
        return options

    def measure(self) -> None:
        """Look at how much memory this session takes now, for `memory`."""
        if self._path is not None:
            self.memory.measure(self.device, self.engine, self._path)

    def _drop_path(self) -> None:
        if self._path is not None:
            self._path.close()
            self._path = self._key = None

    def close(self) -> None:
        """Release the device; closing twice is no error."""
        with contextlib.suppress(EngineError):  # a lost device was told already
            self._drop_path()
        with contextlib.suppress(EngineError):
            self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def start_run(
    detector: Detector,
    source: Iterator[SourceItem],
    thresholds: Thresholds,
    options: RunOptions,
    exit_stack: contextlib.ExitStack,
) -> DeviceRun:
    """Start a job on the detector's GPU.

    Args:
        detector: With a plan for a GPU.
        source: Pictures in order.
        thresholds: What is kept.
        options: How to run, settled.
        exit_stack: Gives the session back when it is closed.

    Raises:
        InputError: An option has no meaning on a GPU.
        BackendUnavailable, BuildError: As in DeviceSession.
    """
    if options.scaled_decode or (options.threads or 1) != 1:
        raise InputError(
            "scaled_decode and threads must be left out on a GPU, where JPEGs are decoded in full "
            "and networks run on the card; leave them out, or run on the CPU"
        )
    plan = detector.plan(batch=options.batch or detector.default_batch())
    session = exit_stack.enter_context(detector.session(plan))
    room = path_options(
        plan.batch, num_slots=options.streams or _SLOTS, max_pixels=options.max_pixels
    )
    if options.streams is None:
        room = session.fitting(thresholds, room)
    workers = options.workers or num_cores()
    return DeviceRun(session, source, thresholds, room, workers=workers)


def detect_one(session: DeviceSession, item: SourceItem, thresholds: Thresholds) -> Detections:
    """Find objects in one picture, with as little delay as possible.

    Raises:
        PictureError: The picture cannot be used.
        EngineError: The device failed.
    """
    room = path_options(session.plan.batch, num_slots=1, max_pixels=DEFAULT_MAX_PIXELS)
    fed = session.fetcher.fed(item)
    if not fits(room, fed):
        room = room_for(room, fed.num_bytes)
    try:
        result = session.path(thresholds, room).detect(fed.picture)
    except EngineError:
        session.mark_lost()
        raise
    if result.error is not None:
        raise named(result, fed.item).error or result.error
    assert result.detections is not None
    return result.detections


def _runtime(name: str) -> Any:
    runtime = backends.get(name)
    if not hasattr(runtime, "load_device"):
        raise BackendUnavailable(
            f"on a GPU the back end must be one of {', '.join(able_backends())}, it is {name!r}; "
            "choose one of these, or run on the CPU"
        )
    return runtime


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceModel:
    """The file an engine is made from, and the plan it is made by."""

    model: Model
    plan: Plan


@contextlib.contextmanager
def device_model(model: Model, plan: Plan) -> Iterator[DeviceModel]:
    """The model in the plan's precision.

    Back ends whose precision is that of the graph get a graph in that precision: FP16 is written
    into a copy that lives as long as the block.
    """
    is_in_graph = getattr(backends.get(plan.backend), "precision_is_in_graph", False)
    if not is_in_graph or plan.precision == "fp32":
        yield DeviceModel(model, plan)
        return
    import tempfile

    from saccade.graph.passes.fp16 import to_fp16
    from saccade.graph.passes.loading import load_tidy, write_proto
    from saccade.graph.reading import read_model

    if plan.precision != "fp16":
        raise InputError(
            f"the precision of back end {plan.backend!r} must be fp32 or fp16 on a GPU, got "
            f"{plan.precision!r}; choose one of these or another back end"
        )
    with tempfile.TemporaryDirectory(prefix="saccade-fp16-") as folder:
        path = Path(folder) / model.path.name
        write_proto(to_fp16(load_tidy(model)), path)
        made = dataclasses.replace(read_model(path), outputs=model.outputs)
        yield DeviceModel(made, dataclasses.replace(plan, precision="fp32"))


def _as_laid(contract: Contract, engine: DeviceEngine) -> Contract:
    """The contract with the layout of the engine's buffer, which may keep channels last."""
    rule = contract.input
    height_width = (*rule.size_hw, rule.num_channels)
    buffer = engine.inputs.get(rule.name)
    if buffer is None or rule.layout == "nhwc" or tuple(buffer.shape[1:]) != height_width:
        return contract
    return dataclasses.replace(contract, input=dataclasses.replace(rule, layout="nhwc"))


def _priors(contract: Contract) -> np.ndarray | None:
    head = contract.head
    if head.family != "ssd" or head.options["priors"] == "in_graph":
        return None
    from saccade.heads.ssd import prior_boxes

    return prior_boxes(head.options["priors"], contract.input.size_hw)
