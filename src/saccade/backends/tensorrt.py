"""TensorRT for RTX and TensorRT: one adapter, since precision is in the graph for both.

Networks are strongly typed: FP16 is what the graph casts, INT8 and FP8 are its explicit Q/DQ
pairs. TF32 is off unless the plan says so, because a plan that says fp32 means it. Both libraries
report failures as None and a line in a log; here these become errors that hold the lines.

Engines are built with or without a GPU. Running them needs one, and was not possible where this
file was written: it follows the documented interface and says so in `probe`.
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade.backends._shape_ranges import ShapeRange, derive_shapes, parse_shapes
from saccade.backends._shapes import default_batch
from saccade.backends._tensorrt_build import (
    PRECISIONS,
    BuiltEngine,
    build_one,
    check_plan,
    check_zero_points,
    planned_shapes,
)
from saccade.backends._tensorrt_library import (
    card_at,
    for_card,
    imported,
    installed_names,
    library_of,
    targets_of,
    version_of,
)
from saccade.backends._tensorrt_run import Loaded, TrtDeviceEngine, TrtEngine
from saccade.errors import BackendUnavailable, SaccadeError
from saccade.types import Availability, DeviceEngine, Engine, Model, Plan, Precision

__all__ = ["BACKEND", "ShapeRange", "TensorRtBackend", "derive_shapes", "parse_shapes"]


class TensorRtBackend:
    """TensorRT for RTX or TensorRT, whichever is installed and fits the card.

    Attributes:
        precision_is_in_graph: FP16 is what the graph casts to.
    """

    name = "tensorrt"
    precisions: tuple[Precision, ...] = PRECISIONS
    precision_is_in_graph = True

    def probe(self) -> Availability:
        try:
            installed = [imported(name) for name in installed_names()]
        except BackendUnavailable as exc:
            return Availability(False, str(exc))
        told = ", ".join(map(version_of, installed))
        try:
            card, capability = card_at(0)
            library = for_card(installed, card, capability)
        except BackendUnavailable as exc:
            return Availability(False, f"{told} builds engines here, but none can run: {exc}")
        return Availability(True, f"{version_of(library)} on {card}")

    def can_build(self) -> Availability:
        """Say whether engines can be built here, which needs no GPU. Never raises."""
        try:
            return Availability(True, version_of(library_of(Plan(self.name))))
        except SaccadeError as exc:
            return Availability(False, str(exc))

    def targets(self) -> tuple[str, ...]:
        """Cards that engines can be built for without having them, e.g. ("sm75", "sm80").

        Raises:
            BackendUnavailable: The package is missing.
        """
        return targets_of(library_of(Plan(self.name)))

    def card(self, index: int = 0) -> str:
        """The target of a card that is here, e.g. "sm89".

        Raises:
            BackendUnavailable: There is no driver or no such card.
        """
        _, (major, minor) = card_at(index)
        return f"sm{major}{minor}"

    def supports(self, model: Model) -> Availability:
        probed = self.probe()
        if not probed.ok:
            return probed
        try:
            plan = Plan(self.name, batch=default_batch(model), device="cuda:0")
            self.load(model, plan).close()
        except SaccadeError as exc:
            return Availability(False, str(exc))
        return probed

    def build(
        self,
        model: Model,
        plan: Plan,
        targets: Sequence[str],
        *,
        shapes: Sequence[ShapeRange] = (),
    ) -> dict[str, BuiltEngine]:
        """Build engines ahead of time. Needs no GPU, except for target "current".

        Args:
            model: The graph; its types are the precision.
            plan: Batch, and options "shapes", "workspace_mib", "tf32" and "package".
            targets: "sm86", "sm89", ...; "sm86+sm89" for one engine that serves both; "current"
                for the card in this machine.
            shapes: Ranges of the picture input, one optimisation profile each; in place of the
                plan's. Without any, free axes take the plan's batch.

        Returns:
            One engine per target.

        Raises:
            BackendUnavailable: The package is missing.
            BuildError: The library refuses the graph; the message has its words.
            InputError: A target or an option is unknown.
        """
        check_plan(plan)
        library = library_of(plan)
        check_zero_points(model)
        ranges = tuple(shapes) or planned_shapes(model, plan)
        return {target: build_one(library, model, plan, target, ranges) for target in targets}

    def load(self, model: Model, plan: Plan) -> Engine:
        return TrtEngine(model, plan, Loaded(model, plan))

    def load_device(self, model: Model, plan: Plan, size_hw: tuple[int, int]) -> DeviceEngine:
        """Load a model on plan.device, fed with device pointers. See `DeviceBackend`."""
        loaded = Loaded(model, plan)
        try:
            return TrtDeviceEngine(loaded, model, plan, size_hw)
        except BaseException:
            loaded.close()
            raise


BACKEND = TensorRtBackend()
