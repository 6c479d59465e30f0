"""Engine processes and the models in them: every process has every model, or is not up."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from saccade.server.engines import Engine
from saccade.server.loading_options import LoadOptions
from saccade.server.models import ModelEntry
from saccade.server.options import ModelSource
from saccade.server.problems import Problem
from saccade.server.spare import Spare
from saccade.server.wire import Load, Status, Unload

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Fleet", "drained"]

_STATUS_S = 2.0
# On a GPU: one batch runs, one is being decoded, one is being filled, one is being answered.
_BATCHES_AHEAD = 4
_POLL_S = 0.01
# A process that starts should not have to share its cores with the next spare.
_SPARE_S = 1.0


async def drained(front: Front, entry: ModelEntry) -> None:
    """Wait until nothing of a model is under way in a front, and drop its queue there."""
    while entry.num_open:
        await asyncio.sleep(_POLL_S)
    front.dispatcher.forget(entry)


class Fleet:
    """Starts, fills, watches and ends engine processes.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._engines = front.dispatcher.engines
        self._spare: Spare | None = None
        self._is_ending = False

    @property
    def _up(self) -> list[Engine]:
        return [engine for engine in self._engines if engine.is_up]

    async def start(self) -> None:
        """Start the engine processes."""
        from saccade.profiler.machine import num_cores

        front = self._front
        devices = front.options.devices or ("cpu",) * front.options.engines
        on_cpu = max(1, num_cores() // len(devices))
        for number, device in enumerate(devices):
            threads = front.options.threads or (on_cpu if device == "cpu" else _BATCHES_AHEAD)
            engine = Engine(number, front.arena, threads, front.loop, self._on_death, device)
            self._engines.append(engine)
            engine.start()
            engine.is_up = True
        front.spawn(self._watch())

    async def stop(self) -> None:
        """End them all."""
        self._is_ending = True
        if self._spare is not None:
            await self._front.loop.run_in_executor(None, self._spare.close)
        for engine in self._engines:
            await engine.stop()

    async def load(
        self, source: ModelSource, options: LoadOptions, *, is_forced: bool = False
    ) -> ModelEntry:
        """Load a model in every engine process, then let it take over from the one before it.

        Raises:
            Problem: It was refused; what was served before goes on being served.
        """
        front, begun_s = self._front, time.monotonic()
        if is_forced:
            options = msgspec.structs.replace(options, is_forced=True)
        repository = front.repository
        entry = repository.new(source.name, source.version, str(source.path), options)
        if not any(one.version == entry.version for one in repository.versions(entry.name)):
            repository.put(entry)
        told = {"model": entry.name, "version": entry.version}
        try:
            details = await self._load_everywhere(entry)
        except Problem as problem:
            entry.state, entry.reason = "UNAVAILABLE", str(problem)
            await front.fronts.publish()
            front.log.event("model refused", **told, why=entry.reason)
            await self._unload_everywhere(entry)
            raise
        entry.details = details
        entry.state = "READY"
        front.dispatcher.suit(entry)
        before = repository.put(entry)
        await front.fronts.publish()
        seconds = round(time.monotonic() - begun_s, 3)
        front.log.event("model ready", **told, path=entry.path, seconds=seconds)
        front.loop.call_later(_SPARE_S, self._keep_spare)
        if before is not None and before is not entry:
            front.spawn(self._retire(before))
        return entry

    async def _load_everywhere(self, entry: ModelEntry) -> dict[str, Any]:
        """Load in all processes that are up, those that come up meanwhile too; what one of them
        says of the model, with the devices of all."""
        done: set[int] = set()
        details: dict[str, Any] = {}
        devices: set[str] = set()
        while missing := [engine for engine in self._up if engine.pid not in done]:
            pids = [engine.pid for engine in missing]
            work = (self._load_in(engine, entry) for engine in missing)
            for answer in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(answer, BaseException):
                    raise answer
                details = msgspec.json.decode(answer)
                devices.add(details["plan"]["device"])
            done.update(pids)
        if not details:
            raise Problem(
                "unavailable",
                "an engine process must be up to load a model",
                "none is",
                "try again in a moment",
                retry_after_s=1,
            )
        details["plan"]["device"] = ",".join(sorted(devices))
        return details

    async def _load_in(self, engine: Engine, entry: ModelEntry) -> bytes:
        latency_ms = self._front.options.latency_ms
        options = msgspec.structs.replace(
            entry.options,
            workers=engine.num_threads,
            latency_ms=latency_ms,
            device=entry.options.device or engine.device,
        )
        packed = msgspec.json.encode(options)
        return await engine.ask(lambda i, b, c: Load(i, entry.key, entry.name, entry.path, packed))

    async def unload(self, entry: ModelEntry) -> None:
        """Take no more requests for a model, finish those it has, and release it."""
        entry.state, entry.reason = "UNLOADING", ""
        await self._front.fronts.publish()
        await self._retire(entry)
        entry.state, entry.reason = "UNAVAILABLE", "unloaded"
        await self._front.fronts.publish()
        self._front.log.event("model unloaded", model=entry.name, version=entry.version)

    async def _retire(self, entry: ModelEntry) -> None:
        await asyncio.gather(drained(self._front, entry), self._front.fronts.retire(entry.key))
        await self._unload_everywhere(entry)

    async def _unload_everywhere(self, entry: ModelEntry) -> None:
        for engine in self._up:
            try:
                await engine.ask(lambda i, b, c: Unload(i, entry.key))
            except Problem:
                continue  # it ended, and the model with it

    # Watching.

    def _keep_spare(self) -> None:
        """Have a process ready that takes the place of one that ends."""
        if self._spare is None and not self._is_ending:
            entries = self._front.repository.entries()
            names = {e.details["plan"]["backend"] for e in entries if e.details}
            is_on_cpu = all(engine.device == "cpu" for engine in self._engines)
            # What GPUs need is read with the device, which a spare must leave alone.
            self._spare = Spare(sorted(names) if is_on_cpu else ())

    def _on_death(self, engine: Engine) -> None:
        self._front.stats.num_restarts += 1
        self._front.log.event("engine process ended", engine=engine.number)
        self._front.spawn(self._restart(engine))

    async def _restart(self, engine: Engine) -> None:
        """Start a process again; it is up when it has all models that are ready then."""
        spare, self._spare = self._spare, None
        engine.start(spare)
        pid = engine.pid
        loaded: dict[int, ModelEntry] = {}
        while True:
            ready = {e.key: e for e in self._front.repository.entries() if e.state == "READY"}
            missing = [entry for key, entry in ready.items() if key not in loaded]
            gone = [key for key in loaded if key not in ready]
            if not missing and not gone:
                break
            try:
                for entry in missing:
                    loaded[entry.key] = entry
                    await self._load_in(engine, entry)
                for key in gone:
                    del loaded[key]
                    await engine.ask(lambda i, b, c, key=key: Unload(i, key))  # type: ignore[misc]
            except Problem as problem:
                if engine.pid != pid or not engine.is_running:
                    return  # it ended again, and will be started again
                told = {"model": entry.name, "version": entry.version}
                entry.state, entry.reason = "UNAVAILABLE", str(problem)
                await self._front.fronts.publish()
                self._front.log.event("model lost", **told, why=entry.reason)
        engine.is_up = True
        await self._front.fronts.connect(engine)
        self._front.log.event("engine process is back", engine=engine.number, pid=pid)
        self._front.dispatcher.pump()
        self._front.loop.call_later(_SPARE_S, self._keep_spare)

    async def _watch(self) -> None:
        stats: Any = self._front.stats
        while True:
            for engine in self._up:
                try:
                    details = await engine.ask(lambda i, b, c: Status(i))
                except Problem:
                    continue
                stats.engines[engine.number] = msgspec.json.decode(details)
            await asyncio.sleep(_STATUS_S)
