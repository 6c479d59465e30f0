"""Pictures on which the chosen deployment and FP32 differ most."""

from __future__ import annotations

from saccade.builder import answers as answers_file
from saccade.builder.candidates import key_of
from saccade.builder.pictures import Pictures
from saccade.builder.records import BuildRecord, Candidate
from saccade.builder.report import Difference
from saccade.builder.report_pictures import is_matched
from saccade.builder.state import State
from saccade.types import Contract, Detections
from saccade.vision.decode import Decoder

__all__ = ["differences"]

_NUM_DIFFERENCES = 8


def differences(
    record: BuildRecord, state: State, pictures: Pictures, contract: Contract
) -> list[Difference]:
    """Pictures on which the chosen deployment and FP32 differ most, those the most first."""
    was, now = (
        _answers(state, record.rows[i].candidate) for i in (record.reference, record.chosen)
    )
    if record.reference == record.chosen or was is None or now is None:
        return []
    scored = []
    for index, (one, two) in enumerate(zip(was, now, strict=True)):
        if one is not None and two is not None:
            a, b = _shown(one, contract), _shown(two, contract)
            unlike = int((~is_matched(a, b)).sum() + (~is_matched(b, a)).sum())
            if unlike:
                scored.append((unlike, -index, a, b))
    scored.sort(key=lambda entry: entry[:2], reverse=True)
    decoder = Decoder("rgb")
    return [
        Difference(path.name, decoder.read(path).copy(), chosen=b, reference=a)
        for _, index, a, b in scored[:_NUM_DIFFERENCES]
        for path in (pictures.paths[-index],)
    ]


def _answers(state: State, candidate: Candidate) -> tuple[Detections | None, ...] | None:
    path = state.folder / f"{key_of(candidate)}.npz"
    return answers_file.read(path).passes[-1].detections if path.exists() else None


def _shown(found: Detections, contract: Contract) -> Detections:
    keep = found.scores > contract.detect.score
    return Detections(found.boxes_xyxy[keep], found.scores[keep], found.classes[keep])
