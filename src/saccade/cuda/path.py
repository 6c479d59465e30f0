"""From encoded pictures to final boxes on one GPU.

Threads move slots; none touches a pixel that the GPU can make:

    taker      takes a free slot and describes pictures for it
    launcher   has them decoded, enqueues the slot's graph
    caller     waits for the oldest slot, reads its boxes, frees it

    feed stream     decode batch 2   | decode batch 3   | ...
    work stream     graph of batch 1 | graph of batch 2 | ...

A graph holds the upload of the table of pictures, prepare, the engine, and suppression; its last
kernel writes final boxes to pinned memory. After load nothing is allocated on the device, except
that nvJPEG grows its buffers when pictures larger than any before arrive.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np

from saccade.cuda.frames import FrameCall, FrameCalls, Steps
from saccade.cuda.head import read_head
from saccade.cuda.nv12 import Nv12Frame
from saccade.cuda.nvjpeg import JpegDecoder
from saccade.cuda.options import PathOptions, PathStats
from saccade.cuda.peekable import Peekable
from saccade.cuda.prepare import PICTURE, Preparer
from saccade.cuda.runtime import ALIGNMENT, Device, Stream
from saccade.cuda.slots import FRAME_TABLES, Feeder, Load, Picture, Slot, SlotSizes, path_regions
from saccade.cuda.suppress import FinalBoxes, Suppressor
from saccade.errors import BuildError, EngineError, InputError, PictureError, SaccadeError
from saccade.types import Contract, DeviceEngine, Result, Thresholds

__all__ = ["DevicePath", "Nv12Frame", "PathOptions", "PathStats", "Picture"]

# With what a kernel may read past the end, rounded up.
_FULL_HD_BYTES = 1920 * 1080 * 3 + ALIGNMENT


@dataclass(slots=True)
class _Batch:
    """A slot in flight: for each picture its place, or what is wrong with it."""

    load: Load
    first: int
    wh: list[tuple[int, int] | None] = field(default_factory=list)
    outcome: list[int | SaccadeError] = field(default_factory=list)
    taking_s: float = 0.0
    launching_s: float = 0.0


# A batch, the failure that ends the job, or None at its end.
_Queue: TypeAlias = "queue.SimpleQueue[_Batch | BaseException | None]"


@dataclass(slots=True)
class _Job:
    """What the threads of one job share."""

    source: Peekable[Picture]
    free: queue.SimpleQueue[Slot | None] = field(default_factory=queue.SimpleQueue)
    taken: _Queue = field(default_factory=queue.SimpleQueue)
    running: _Queue = field(default_factory=queue.SimpleQueue)
    is_over: bool = False


class DevicePath:
    """A loaded network with everything around it on one GPU. A context manager.

    Args:
        device: Where; it must be the engine's.
        engine: A loaded network. The path does not close it.
        contract: How pictures go in and outputs are read.
        thresholds: What is kept; default the contract's.
        options: How.
        priors: For an ssd head with priors outside the graph, see `read_head`.

    Attributes:
        batch: Pictures per inference.
        stats: What was done so far.

    Raises:
        BuildError: The contract asks for something the kernels cannot do.
        ContractError: The contract does not fit the engine.
        EngineError: There is not enough memory.
        BackendUnavailable: nvJPEG is missing.
    """

    def __init__(
        self,
        device: Device,
        engine: DeviceEngine,
        contract: Contract,
        *,
        thresholds: Thresholds | None = None,
        options: PathOptions | None = None,
        priors: np.ndarray | None = None,
    ) -> None:
        device.make_current()
        self._device = device.share()
        self._engine = engine
        self.options = options or PathOptions()
        self.stats = PathStats()
        self.batch = engine.plan.batch
        self._lock = threading.Lock()
        self._exit = contextlib.ExitStack()
        self._exit.callback(self._device.close)
        try:
            self._load(contract, thresholds or contract.detect, priors)
        except BaseException:
            self.close()
            raise

    def _load(self, contract: Contract, wanted: Thresholds, priors: np.ndarray | None) -> None:
        device, engine = self._device, self._engine
        self._rule, head_rule = contract.input, contract.head
        rule = self._rule
        if rule.name not in engine.inputs:
            raise BuildError(
                f"the contract's input {rule.name!r} must be one of the engine's, which are "
                f"{', '.join(engine.inputs)}; correct input.name in the contract"
            )
        sizes_of = engine.inputs.get(rule.size_input) if rule.size_input else None
        self._preparer = Preparer(device, rule, engine.inputs[rule.name], sizes_of)
        head = read_head(head_rule, rule.size_hw, engine.outputs, wanted, priors=priors)
        self._suppressor = Suppressor(
            device,
            head,
            engine.outputs,
            wanted,
            rule.size_hw,
            class_agnostic=head_rule.class_agnostic,
            max_candidates=self.options.max_candidates,
        )
        self._work = device.stream()
        self._reserve(head.constants)
        self.decoder: JpegDecoder | None = None
        if self.options.decodes_on_gpu:
            self.decoder = JpegDecoder(device, self.batch)
            self._exit.callback(self.decoder.close)
        stream = device.stream(is_urgent=True)
        self._feeder = Feeder(rule, stream, self.decoder, self.options.max_pixels)
        self._capture()

    def _reserve(self, constants: np.ndarray | None) -> None:
        options, work = self.options, self._suppressor.workspace
        source = options.source_bytes or self.batch * _FULL_HD_BYTES
        staging = options.staging_bytes
        if staging is None:
            staging = 32 << 20 if options.decodes_on_gpu else source
        sizes = SlotSizes(
            source=source,
            staging=staging,
            table=self.batch * PICTURE.itemsize,
            keys=work.keys_bytes,
            counts=work.counts_bytes,
            results=work.results_bytes,
        )
        regions = path_regions(sizes, options.num_slots)
        if constants is not None:
            regions["constants"] = constants.nbytes
        self.arena = self._device.arena(regions)
        self.pinned_bytes = sizes.pinned * options.num_slots
        if constants is not None:
            pinned = self._device.pinned(constants.nbytes)
            pinned.array[:] = np.ascontiguousarray(constants).view(np.uint8).reshape(-1)
            self._work.upload(self.arena.address("constants"), pinned, constants.nbytes)
            self._suppressor.set_constants(self.arena.address("constants"))
        self._slots = [
            Slot(self._device, self.arena, sizes, number) for number in range(options.num_slots)
        ]

    def _capture(self) -> None:
        # Once outside of a graph: libraries choose and load at their first call.
        first = self._slots[0]
        first.enqueue(self._work, self._preparer, self._engine, self._suppressor)
        self._work.synchronize()
        for slot in self._slots:
            slot.capture(self._work, self._preparer, self._engine, self._suppressor)
            self._exit.callback(slot.graph.close)
            # The first launch of a graph uploads it.
            slot.graph.launch(self._work)
        self._work.synchronize()
        self._boxes = {id(s): self._suppressor.final_boxes(s.results.array) for s in self._slots}
        self._frames = FrameCalls(
            first,
            self._work,
            self._rule,
            Steps(self._preparer, self._engine, self._suppressor),
            tables=[self.arena.address(f"frame table {number}") for number in range(FRAME_TABLES)],
            max_pixels=self.options.max_pixels,
        )
        self._exit.callback(self._frames.close)

    @property
    def num_allocations(self) -> int:
        """Blocks of device and pinned memory reserved so far, by this path and its decoder."""
        of_decoder = self.decoder.num_allocations if self.decoder else 0
        return self._device.num_allocations + of_decoder

    @property
    def memory_bytes(self) -> Mapping[str, int]:
        """What this path holds, by part; nvJPEG's share is what it has asked for so far."""
        buffers = (*self._engine.inputs.values(), *self._engine.outputs.values())
        return {
            "slots and suppression, device": self.arena.num_bytes,
            "engine inputs and outputs": sum(b.num_bytes for b in buffers),
            "engine workspace": self._engine.workspace_bytes,
            "nvJPEG, device": self.decoder.allocated_bytes if self.decoder else 0,
            "slots, pinned": self.pinned_bytes,
        }

    def detect(self, picture: Picture) -> Result:
        """Find objects in one picture, with as little delay as possible.

        Frames of a size get a graph of their own, when two of that size have come one after the
        other or `pinned_frame` has been asked for it; that is the one thing made after load.

        Args:
            picture: A file's content, (h, w, 3) uint8 RGB, or a frame of a video.

        Returns:
            Detections, or the error of this picture.
        """
        with self._exclusive():
            if isinstance(picture, np.ndarray):
                call = self._frames.of_frame(picture)
                if call is not None:
                    return self._detect_frame(call, picture)
            return self._detect_any(picture)

    def _detect_any(self, picture: Picture) -> Result:
        batch = _Batch(Load(self._slots[0]), 0)
        self._take(batch, iter([picture]))
        self._launch(batch)
        return next(self._read(batch))

    def pinned_frame(self, size_hw: tuple[int, int]) -> np.ndarray:
        """Memory for one frame that `detect` need not copy again before it goes to the device.

        Args:
            size_hw: Height and width in pixels.

        Returns:
            (h, w, 3) uint8, to be filled with RGB; the next call returns the same memory.

        Raises:
            InputError: No frame of that size fits into the memory of a slot.
        """
        return self.frame_call(size_hw).frame

    def frame_call(self, size_hw: tuple[int, int]) -> FrameCall:
        """The graph for frames of one size, made if it is not there; see `pinned_frame`."""
        with self._exclusive():
            return self._frames.of_size(size_hw)

    def _detect_frame(self, call: FrameCall, picture: np.ndarray) -> Result:
        if picture is not call.frame:
            np.copyto(call.frame, picture)
        wh = picture.shape[1], picture.shape[0]
        call.run()
        self.stats.num_pictures += 1
        self.stats.num_batches += 1
        try:
            return Result(0, "<picture 0>", wh, detections=call.read())
        except EngineError as exc:  # too many candidates: this picture's trouble alone
            return Result(0, "<picture 0>", wh, error=exc)

    def run(self, pictures: Iterable[Picture]) -> Iterator[Result]:
        """Find objects in many pictures.

        Args:
            pictures: Files' contents or (h, w, 3) uint8 RGB arrays, in any mixture; a PictureError
                in place of a picture keeps that place.

        Yields:
            One result per picture, in order.

        Raises:
            EngineError: The device failed. What was yielded before is right.
        """
        with self._exclusive():
            job = _Job(Peekable(pictures))
            for slot in self._slots:
                job.free.put(slot)
            threads = [
                threading.Thread(target=self._pass_on, args=(work, job, to), name=f"saccade-{name}")
                for name, work, to in (
                    ("taker", self._take_all, job.taken),
                    ("launcher", self._launch_all, job.running),
                )
            ]
            for thread in threads:
                thread.start()
            try:
                while (batch := job.running.get()) is not None:
                    if isinstance(batch, BaseException):
                        raise batch
                    yield from self._read(batch)
                    job.free.put(batch.load.slot)
            finally:
                job.is_over = True
                job.free.put(None)
                for thread in threads:
                    thread.join()
                with contextlib.suppress(EngineError):  # a lost device was told already
                    self._feeder.synchronize()
                    self._work.synchronize()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise InputError(
                "a path must do one run or one call at a time, it is busy with another; finish or "
                "close the other first, or load a second path"
            )
        try:
            self._device.make_current()
            yield
        finally:
            self._lock.release()

    def _pass_on(
        self, work: Callable[[_Job], Iterator[_Batch]], job: _Job, next_queue: _Queue
    ) -> None:
        """One thread of a job; how it ended goes the way of its batches."""
        end: BaseException | None = None
        try:
            self._device.make_current()
            for batch in work(job):
                next_queue.put(batch)
        except BaseException as exc:
            end = exc
        next_queue.put(end)

    def _take_all(self, job: _Job) -> Iterator[_Batch]:
        num_taken = 0
        while not job.is_over and not job.source.is_exhausted():
            slot = job.free.get()
            if slot is None:
                return
            start_s = time.perf_counter()
            batch = _Batch(Load(slot), num_taken)
            self._take(batch, job.source)
            num_taken += len(batch.outcome)
            batch.taking_s = time.perf_counter() - start_s
            yield batch

    def _launch_all(self, job: _Job) -> Iterator[_Batch]:
        while (batch := job.taken.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            if not job.is_over:
                self._launch(batch)
                yield batch

    def _take(self, batch: _Batch, source: Iterator[Picture]) -> None:
        """Put pictures into a slot until it is full or the source ends."""
        # Failures take no place, so the number of outcomes is bounded apart from places.
        for picture in source:
            try:
                placed = self._feeder.add(batch.load, picture)
            except PictureError as exc:
                batch.outcome.append(exc)
                batch.wh.append(None)
                if len(batch.outcome) >= 4 * self.batch:
                    break
                continue
            if placed is None:
                assert isinstance(source, Peekable)  # a single picture always fits
                source.push_back(picture)
                break
            batch.outcome.append(placed[0])
            batch.wh.append(placed[1])
            if placed[0] == self.batch - 1:
                break

    def _launch(self, batch: _Batch) -> None:
        """Have a slot's pictures decoded and enqueue its graph."""
        slot, start_s = batch.load.slot, time.perf_counter()
        for place, error in self._feeder.flush(batch.load).items():
            batch.outcome[batch.outcome.index(place)] = error
        self.launch(slot)
        batch.launching_s = time.perf_counter() - start_s

    # What `saccade.cuda.batches` drives.

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Have the path to oneself.

        Raises:
            InputError: It is busy.
        """
        return self._exclusive()

    def parts(self) -> tuple[Device, Feeder, Stream]:
        """The device, what fills slots, and the stream of the graphs."""
        return self._device, self._feeder, self._work

    @property
    def slots(self) -> list[Slot]:
        """The batches that can be in flight."""
        return self._slots

    def boxes_of(self, slot: Slot) -> FinalBoxes:
        """What reads a slot's results once it is done."""
        return self._boxes[id(slot)]

    def launch(self, slot: Slot) -> None:
        """Enqueue a slot's graph behind its pictures."""
        self._work.wait_for(slot.fed)
        slot.begun.record(self._work)
        slot.graph.launch(self._work)
        slot.done.record(self._work)

    def _read(self, batch: _Batch) -> Iterator[Result]:
        slot = batch.load.slot
        slot.done.wait()
        start_s = time.perf_counter()
        results: list[Result] = []
        for i, (outcome, wh) in enumerate(zip(batch.outcome, batch.wh, strict=True)):
            index = batch.first + i
            name = f"<picture {index}>"
            if isinstance(outcome, SaccadeError):
                results.append(Result(index, name, error=outcome))
                continue
            try:
                found = self._boxes[id(slot)].read(outcome)
                results.append(Result(index, name, wh, detections=found))
            except EngineError as exc:  # too many candidates: this picture's trouble alone
                results.append(Result(index, name, wh, error=exc))
            self.stats.num_pictures += 1
        feeder = self._feeder
        self.stats.decoded_on_gpu = feeder.num_on_gpu
        self.stats.decoded_on_cpu = feeder.num_on_cpu + feeder.num_again
        self.stats.decoding_s = feeder.decoding_s
        self.stats.num_batches += 1
        self.stats.feeding_s += batch.taking_s + batch.launching_s
        self.stats.launching_s += batch.launching_s
        self.stats.gpu_busy_s += slot.done.ms_since(slot.begun) / 1000
        self.stats.reading_s += time.perf_counter() - start_s
        return iter(results)

    def close(self) -> None:
        """Release all but the engine; closing twice is no error."""
        with contextlib.suppress(EngineError):  # a lost device cannot be waited for
            self._device.make_current()
            self._device.synchronize()
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
