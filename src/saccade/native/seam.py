"""Between the plan and the kernels: how one step can be run, so that each way can be timed.

    Kernels.ways(step, target)     which implementations there are for a step, cheaply
    Way.build(weights)             its kernels' source or library plan, weights as it wants them,
                                   workspace, launches: no GPU needed unless the way says so
    executor                       compiles, places weights and workspace, resolves pointers, and
                                   launches: to time, and to capture

All of it is plain data, so that an artefact is a dump of what was built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from saccade.native.ops import Step
from saccade.native.tensors import View

__all__ = [
    "Argument",
    "Blob",
    "Built",
    "Kernels",
    "Launch",
    "LibraryLaunch",
    "OfView",
    "OfWeight",
    "OfWorkspace",
    "Scalar",
    "Source",
    "Target",
    "TensorMap",
    "Way",
]


@dataclass(frozen=True, slots=True)
class Target:
    """The card that a plan is built for.

    Attributes:
        arch: E.g. "sm_90".
        num_multiprocessors: How many.
        shared_bytes: Most shared memory of one block.
        l2_bytes: Size of the second-level cache.
        has_device: Whether the card is here and opened (a library can be asked for its plans).
    """

    arch: str
    num_multiprocessors: int = 132
    shared_bytes: int = 227 * 1024
    l2_bytes: int = 50 * 2**20
    has_device: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """CUDA C++ and its macros ("NAME=VALUE"); equal sources are compiled once."""

    text: str
    defines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OfView:
    """Address of a view's first element."""

    view: View


@dataclass(frozen=True, slots=True)
class OfWeight:
    """Address in the prepared weights: which array of `Built.weights`, and bytes into it."""

    index: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class OfWorkspace:
    """Address in the step's workspace, bytes into it."""

    offset: int = 0


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number passed by value.

    Attributes:
        kind: C type: "i32", "u32", "i64", "u64", "f32", "u8".
    """

    kind: Literal["i32", "u32", "i64", "u64", "f32", "u8"]
    value: float


@dataclass(frozen=True, slots=True)
class Blob:
    """A structure passed by value, with addresses patched in.

    Attributes:
        data: Its bytes.
        pointers: Byte offset in data, and what address goes there (8 bytes).
    """

    data: bytes
    pointers: tuple[tuple[int, OfView | OfWeight | OfWorkspace], ...] = ()


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A CUtensorMap (sm_90 and newer), encoded when the address is known.

    Attributes:
        of: The address.
        dtype: Element type.
        sizes: Innermost first.
        strides: Bytes, of all axes but the innermost.
        box: Elements per load, innermost first.
        swizzle: Bytes: 0, 32, 64 or 128.
        im2col: (lower corner, upper corner, channels per pixel, pixels per column) for the
            im2col mode, else None. Corners innermost spatial axis first.
        element_strides: Innermost first; () for ones.
    """

    of: OfView | OfWeight | OfWorkspace
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: Literal[0, 32, 64, 128] = 0
    im2col: tuple[tuple[int, ...], tuple[int, ...], int, int] | None = None
    element_strides: tuple[int, ...] = ()


Argument = OfView | OfWeight | OfWorkspace | Scalar | Blob | TensorMap


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch.

    Attributes:
        source: Index into `Built.sources`.
        function: Name of an extern "C" kernel.
        grid: Blocks.
        block: Threads per block.
        shared_bytes: Dynamic shared memory.
        arguments: In the kernel's order.
        cluster: Blocks per cluster; (1, 1, 1) is none.
    """

    source: int
    function: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    shared_bytes: int = 0
    cluster: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True, slots=True)
class LibraryLaunch:
    """One call of a library's prepared plan.

    Attributes:
        library: E.g. "cudnn".
        plan: Serialised; the library's version is part of the artefact's key.
        pointers: The library's number of a tensor, and its address.
    """

    library: str
    plan: bytes
    pointers: tuple[tuple[int, OfView | OfWeight | OfWorkspace], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """One way of running one step, ready but for addresses.

    Attributes:
        sources: To compile.
        weights: Arrays as the kernels want them, each placed at an address aligned to 256 bytes.
        workspace_bytes: Scratch memory during the step; contents are lost between runs.
        launches: In order.
    """

    sources: tuple[Source, ...]
    weights: tuple[np.ndarray, ...]
    launches: tuple[Launch | LibraryLaunch, ...]
    workspace_bytes: int = 0


class Way(Protocol):
    """One implementation, for one step.

    Attributes:
        name: With its parameters, e.g. "direct 64x32"; the timing cache knows it by this name.
    """

    @property
    def name(self) -> str: ...

    def build(self, weights: Mapping[str, np.ndarray]) -> Built:
        """Prepare everything but addresses.

        Args:
            weights: The plan's, float32 (int8 with scales for quantised steps), by name.

        Raises:
            BuildError: This way cannot do the step after all (a library refuses); it is skipped.
        """
        ...


class Kernels(Protocol):
    """All implementations there are."""

    @property
    def version(self) -> str:
        """Changes when any kernel does: part of the timing cache's key."""
        ...

    def ways(self, step: Step, target: Target) -> tuple[Way, ...]:
        """Ways to run a step, always in one order, most promising first; () if there is none."""
        ...

    def open_library(self, launch: LibraryLaunch) -> Callable[[int, Mapping[int, int], int], None]:
        """Load a library's plan on the current device.

        Returns:
            A function of a stream, addresses by the library's numbers, and the workspace's
            address. It may be captured.
        """
        ...
