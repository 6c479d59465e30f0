"""Everything that can be said of a model without running it on a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saccade import backends, contracts
from saccade.errors import ContractError
from saccade.graph.cost import Cost, cost_of
from saccade.graph.reading import read_model
from saccade.graph.signature import signature_of
from saccade.types import Availability, Contract, Model, TensorSpec

__all__ = ["Inspection", "inspect_model"]

_NO_NETWORK = "null"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a model.

    Attributes:
        model: The file.
        size_hw: Height and width that the costs hold for.
        outputs: Output shapes at that size.
        contract: How it is fed and read, or None if that is not clear.
        contract_error: Why it is not clear, or None.
        costs: Per batch size, in the order asked for.
        support: Per back end, whether it loads the model here.
    """

    model: Model
    size_hw: tuple[int, int]
    outputs: tuple[TensorSpec, ...]
    contract: Contract | None
    contract_error: ContractError | None
    costs: tuple[Cost, ...]
    support: dict[str, Availability]

    @property
    def is_supported(self) -> bool:
        """Whether a back end that runs networks loads the model here."""
        return any(a.ok for name, a in self.support.items() if name != _NO_NETWORK)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "path": str(self.model.path),
            "digest": self.model.digest,
            "opset": self.model.opset,
            "metadata": dict(self.model.metadata),
            "external_files": list(self.model.external_files),
            "inputs": [asdict(spec) for spec in self.model.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "contract": asdict(self.contract) if self.contract else None,
            "contract_error": str(self.contract_error) if self.contract_error else None,
            "costs": [asdict(cost) for cost in self.costs],
            "backends": {name: asdict(a) for name, a in self.support.items()},
        }


def inspect_model(
    path: str | Path,
    *,
    size_hw: tuple[int, int] | None = None,
    preset: str | None = None,
    contract: str | Path | None = None,
    labels: tuple[str, ...] = (),
    batches: tuple[int, ...] = (1,),
) -> Inspection:
    """Look at a model.

    Args:
        path: An ONNX file.
        size_hw: Height and width, if the graph leaves them free.
        preset: Name of a preset to lay over what is recognised.
        contract: Path of a TOML file to lay over it.
        labels: Class names.
        batches: Batch sizes to count memory for; a graph that fixes the batch decides it.

    Raises:
        ModelError: The file cannot be read.
        InputError: The call is wrong.
    """
    model = read_model(path)
    signature = signature_of(model, size_hw)
    made: Contract | None = None
    problem: ContractError | None = None
    try:
        made = contracts.resolve(signature, preset=preset, contract=contract, labels=labels)
    except ContractError as exc:
        problem = exc
    if made is not None and made.input.size_hw != signature.size_hw:
        signature = signature_of(model, made.input.size_hw)
    fixed = [s.shape[0] for s in model.inputs if s.shape and isinstance(s.shape[0], int)]
    sizes = (int(fixed[0]),) if fixed else batches
    return Inspection(
        model=model,
        size_hw=signature.size_hw,
        outputs=signature.outputs,
        contract=made,
        contract_error=problem,
        costs=tuple(cost_of(model, signature.size_hw, batch) for batch in sizes),
        support={name: backends.get(name).supports(model) for name in backends.names()},
    )
