"""What both protocols offer besides inference, once: plain values in, plain values out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.server.models import ModelEntry
from saccade.server.options import ModelSource
from saccade.server.problems import Problem
from saccade.server.protocol import config_of, metadata_of, server_metadata, statistics_of
from saccade.server.wire import Forget, Open

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Control"]

_LOG_LEVEL = "log_verbose_level"


class Control:
    """Answers questions about the server, and changes what it serves.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    async def _ask(self, what: str, *arguments: Any) -> Any:
        return await self._front.ask(what, *arguments)

    # Health and descriptions.

    def is_ready(self) -> bool:
        """Whether all models of the start and an engine process are ready."""
        front = self._front
        return front.is_ready and not front.is_draining and self._has_engine()

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether a model takes requests.

        Raises:
            Problem: There is none of that name.
        """
        return self._front.repository.find(name, version).state == "READY" and self._has_engine()

    def _has_engine(self) -> bool:
        return any(engine.is_up for engine in self._front.dispatcher.engines)

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """What goes into a model and comes out."""
        repository = self._front.repository
        return metadata_of(repository.ready(name, version), repository)

    def config(self, name: str, version: str) -> dict[str, Any]:
        """A model's configuration."""
        return config_of(self._front.repository.ready(name, version))

    def shared(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """What concerns all fronts and is done by the first, by the name that `Front.ask` takes;
        arguments and answers are plain values."""
        return {
            "statistics": self._statistics,
            "load": self._load,
            "unload": self._unload,
            "register": self._register,
            "unregister": self._unregister,
            "register_on_device": self._register_on_device,
            "log_settings": self._log_settings,
        }

    async def _statistics(self, name: str, version: str) -> dict[str, Any]:
        """Figures of a model, or of all."""
        repository = self._front.repository
        if not name:
            found = repository.entries()
        elif version:
            found = [repository.find(name, version).base]
        else:
            found = repository.versions(repository.find(name).base.name)
        total, _ = await self._front.fronts.gather()
        told = [statistics_of(total.model(entry.name, entry.version)) for entry in found]
        return {"model_stats": told}

    # Models.

    def index(self, ready_only: bool) -> list[dict[str, str]]:
        """The models and their states."""
        listed = []
        for entry in self._front.repository.entries():
            if ready_only and entry.state != "READY":
                continue
            for face in (entry, entry.pictures):
                if face is not None:
                    told = {"name": face.name, "version": entry.version, "state": entry.state}
                    listed.append({**told, "reason": entry.reason})
        return listed

    async def _load(self, name: str, parameters: dict[str, Any]) -> None:
        """Load a model, anew if it is there: the new one takes over when it is ready.

        Raises:
            Problem: It may not be, or it was refused; what was served goes on being served.
        """
        self._check_can_load()
        unknown = sorted(set(parameters) - {"path", "version", "force"})
        if unknown:
            raise Problem(
                "unimplemented" if "config" in unknown else "input",
                "parameters of load must be among path, version, force",
                f"there is {unknown[0][:80]!r}",
                "leave it out",
            )
        version = str(parameters.get("version", ""))
        before = self._known(name, version)
        path = str(parameters.get("path", "")) or (before.path if before else "")
        if not path:
            raise Problem(
                "not_found",
                "a model to load must have been served before, or have a path",
                f"{name[:80]!r} has neither",
                "send the parameter path",
            )
        self._check_path(path)
        if not version:
            version = before.version if before else "1"
        options = before.options if before else self._front.options.load
        source = ModelSource(name, version, Path(path))
        await self._front.fleet.load(source, options, is_forced=parameters.get("force") is True)

    def _known(self, name: str, version: str) -> ModelEntry | None:
        entries = self._front.repository.versions(name)
        found = [entry for entry in entries if version in ("", entry.version)]
        return found[0] if found else None

    async def _unload(self, name: str, parameters: dict[str, Any]) -> None:
        """Unload a version, or all of a model.

        Raises:
            Problem: It may not be, or is not there.
        """
        self._check_can_load()
        version = str(parameters.get("version", ""))
        repository = self._front.repository
        repository.find(name, version)
        for entry in repository.versions(name):
            if version in ("", entry.version) and entry.state == "READY":
                await self._front.fleet.unload(entry)

    def _check_can_load(self) -> None:
        if not self._front.options.can_load:
            raise Problem(
                "forbidden",
                "clients may not load and unload models on this server",
                "it was started with --no-load",
                "ask who runs it",
            )

    def _check_path(self, path: str) -> None:
        """A client may name only what the server's owner put within its reach."""
        options = self._front.options
        asked = Path(path).resolve()
        known = {Path(entry.path).resolve() for entry in self._front.repository.entries()}
        if asked in known:
            return
        root = options.model_root.resolve() if options.model_root else None
        if root is not None and asked.is_relative_to(root):
            return
        raise Problem(
            "forbidden",
            f"a path to load must lie in {root}" if root else "no folder is open for loading",
            "this one does not" if root else "the server was started without --model-root",
            "put the model there" if root else "start the server with --model-root",
        )

    # Shared memory.

    async def _register(self, name: str, key: str, offset: int, num_bytes: int) -> None:
        """Register a region in every front.

        Raises:
            Problem: There is no such memory, or the name is taken.
        """
        self._front.regions.register(name, key, offset, num_bytes)
        await self._front.fronts.publish()

    async def _register_on_device(
        self, name: str, handle: str, device: int, num_bytes: int
    ) -> None:
        """Register memory of a GPU in every front, if the engine processes can open it.

        Args:
            name: What requests call it.
            handle: The bytes of its cudaIpcMemHandle_t in hexadecimal.
            device: Number of the GPU.
            num_bytes: Of it.

        Raises:
            Problem: It cannot be used, or the name is taken.
        """
        if not self._front.options.devices:
            raise self.no_cuda_memory()
        regions = self._front.regions
        region = regions.register_on_device(name, bytes.fromhex(handle), device, num_bytes)
        try:
            for engine in self._front.dispatcher.engines:
                if engine.is_up:
                    await engine.ask(lambda i, b, c: Open(i, region))
        except Problem:
            await self._unregister(name, True)
            raise
        await self._front.fronts.publish()

    async def _unregister(self, name: str, on_device: bool = False) -> None:
        """Forget a region, or all of a kind, in every process."""
        keys = self._front.regions.unregister(name, on_device=on_device)
        await self._front.fronts.publish()
        for key in keys:
            for engine in self._front.dispatcher.engines:
                if engine.is_up:
                    await engine.ask(lambda i, b, c, key=key: Forget(i, key))

    def no_cuda_memory(self) -> Problem:
        """The answer to a client that wants to share memory of a GPU."""
        return Problem(
            "unimplemented",
            "memory of a GPU can be shared where an engine process has one",
            "this server runs on the CPU",
            "use system shared memory, or send bytes",
        )

    # Settings.

    async def _log_settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        """What is logged, after changes.

        Raises:
            Problem: There is no such setting.
        """
        for name, value in changes.items():
            if name != _LOG_LEVEL or type(value) is not int or value < 0:
                raise Problem(
                    "input",
                    f"the setting that can be changed is {_LOG_LEVEL}, a whole number",
                    f"the request has {name[:80]!r}",
                    "leave it out; others are options of saccade serve",
                )
            self._front.log.with_requests = value > 0
        if changes:
            await self._front.fronts.publish()
        return {_LOG_LEVEL: int(self._front.log.with_requests)}

    def trace_settings(self, changes: dict[str, Any]) -> dict[str, list[str]]:
        """How calls are traced.

        Raises:
            Problem: A change is asked for.
        """
        if changes:
            raise Problem(
                "unimplemented",
                "tracing must be set when the server starts",
                f"the request changes {next(iter(changes))[:80]!r}",
                "see the OpenTelemetry options of saccade serve",
            )
        return {"trace_level": ["OFF"]}

    # gRPC methods.

    def calls(self) -> dict[str, Callable[[Any], Any]]:
        """The methods of the gRPC service, apart from inference: message in, plain values or an
        awaitable of them out."""
        regions = self._front.regions

        def model_ready(request: Any) -> dict[str, Any]:
            try:
                return {"ready": self.is_model_ready(request.name, request.version)}
            except Problem:
                return {"ready": False}  # as the protocol has it for models that are not there

        ask = self._ask

        async def load(request: Any) -> dict[str, Any]:
            await ask("load", request.model_name, _repository_values(request.parameters))
            return {}

        async def unload(request: Any) -> dict[str, Any]:
            values = _repository_values(request.parameters)
            values.pop("unload_dependents", None)
            await ask("unload", request.model_name, values)
            return {}

        async def register(request: Any) -> dict[str, Any]:
            asked = (request.name, request.key, request.offset, request.byte_size)
            await ask("register", *asked)
            return {}

        async def unregister(request: Any) -> dict[str, Any]:
            await ask("unregister", request.name)
            return {}

        async def log_settings(request: Any) -> dict[str, Any]:
            told = await ask("log_settings", _log_values(request.settings))
            return {"settings": {name: {"uint32_param": value} for name, value in told.items()}}

        async def register_on_device(request: Any) -> dict[str, Any]:
            handle = request.raw_handle.hex()
            asked = (request.name, handle, request.device_id, request.byte_size)
            await ask("register_on_device", *asked)
            return {}

        async def unregister_on_device(request: Any) -> dict[str, Any]:
            await ask("unregister", request.name, True)
            return {}

        return {
            "ServerLive": lambda request: {"live": True},
            "ServerReady": lambda request: {"ready": self.is_ready()},
            "ModelReady": model_ready,
            "ServerMetadata": lambda request: server_metadata(
                has_gpu=bool(self._front.options.devices)
            ),
            "ModelMetadata": lambda r: self.metadata(r.name, r.version),
            "ModelConfig": lambda r: {"config": numbered(self.config(r.name, r.version))},
            "ModelStatistics": lambda r: ask("statistics", r.name, r.version),
            "RepositoryIndex": lambda r: {"models": self.index(r.ready)},
            "RepositoryModelLoad": load,
            "RepositoryModelUnload": unload,
            "SystemSharedMemoryStatus": lambda r: {
                "regions": {one["name"]: one for one in regions.status(r.name)}
            },
            "SystemSharedMemoryRegister": register,
            "SystemSharedMemoryUnregister": unregister,
            "CudaSharedMemoryStatus": lambda r: {
                "regions": {one["name"]: one for one in regions.status(r.name, on_device=True)}
            },
            "CudaSharedMemoryRegister": register_on_device,
            "CudaSharedMemoryUnregister": unregister_on_device,
            "TraceSetting": lambda r: {
                "settings": {
                    name: {"value": value}
                    for name, value in self.trace_settings(dict(r.settings)).items()
                }
            },
            "LogSettings": log_settings,
        }


def _repository_values(parameters: Any) -> dict[str, Any]:
    return {name: _chosen(value) for name, value in parameters.items()}


def _log_values(settings: Any) -> dict[str, Any]:
    return {name: _chosen(value) for name, value in settings.items()}


def _chosen(value: Any) -> Any:
    which = value.WhichOneof("parameter_choice")
    return getattr(value, which) if which else None


_KINDS = {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3}
_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32"),
    *("INT64", "FP16", "FP32", "FP64", "STRING", "BF16"),
)


def numbered(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with numbers in place of the names of choices, as gRPC has them."""
    tensors = {
        side: [
            {**one, "data_type": _TYPES.index(one["data_type"].removeprefix("TYPE_"))}
            for one in config[side]
        ]
        for side in ("input", "output")
    }
    groups = [{**one, "kind": _KINDS[one["kind"]]} for one in config["instance_group"]]
    return {**config, **tensors, "instance_group": groups}
