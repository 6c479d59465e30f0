"""The ONNX files of a build's candidates."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from saccade.builder.calibration import Calibration
from saccade.builder.recipes import make_model
from saccade.builder.records import Recipe
from saccade.types import Contract, Model

__all__ = ["Files"]


@dataclass(slots=True)
class Files:
    """Makes networks by recipe, each once, and finds those of an interrupted build again.

    Attributes:
        model: The FP32 network.
        contract: How it is fed and read.
        folder: Where files go.
        calibration: For the recipes that need one.
        calibrate_all: Calibrates roughly for recipes that quantise every operator: many more
            tensors, for candidates that are there to show what they cost.
        made: By recipe.
    """

    model: Model
    contract: Contract
    folder: Path
    calibration: Calibration | None
    calibrate_all: Callable[[], Calibration]
    made: dict[Recipe, Path] = field(default_factory=dict)

    def make(self, recipe: Recipe) -> Path:
        """The file of a recipe; half a file is never taken for one."""
        if recipe == Recipe():
            return self.model.path
        name = hashlib.sha256(msgspec.json.encode(recipe)).hexdigest()[:16]
        place = self.folder / name
        if recipe not in self.made:
            if not place.exists():
                aside = self.folder / f"{name}.partial"
                shutil.rmtree(aside, ignore_errors=True)
                found = self.calibrate_all() if recipe.everything else self.calibration
                path = make_model(self.model, self.contract, recipe, aside, found)
                os.replace(aside, place)
                self.made[recipe] = place / path.name
            else:
                self.made[recipe] = next(place.glob("*.onnx"))
        return self.made[recipe]
