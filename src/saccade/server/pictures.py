"""Pictures in, boxes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from saccade.server.dispatch import DEFAULT_PRIORITY, Dispatcher, Job, Schedule
from saccade.server.dtypes import join_strings, split_strings
from saccade.server.forms import ARRAYS_HEAD
from saccade.server.http import HttpRequest
from saccade.server.kserve import InferRequest
from saccade.server.models import Face, ModelEntry
from saccade.server.multipart import boundary_of, split_parts
from saccade.server.problems import Problem
from saccade.server.regions import Regions
from saccade.server.routes import Endpoint, Router
from saccade.server.timing import timing_line
from saccade.server.wire import Detect, Done, Region, TensorPart

if TYPE_CHECKING:
    from saccade.server.app import Front

__all__ = ["Pictures", "PicturesRequest", "detect_job"]

_MAX_PICTURES = 256
_CONTENT_TYPES = {"json": "application/json", "jpeg": "image/jpeg", "png": "image/png"}
_KNOWN_QUERY = ("score", "iou", "max_detections", "format", "priority", "timeout_ms")
_Limits = tuple[float | None, float | None, int | None]
_json = msgspec.json.Encoder().encode


def detect_job(
    entry: ModelEntry,
    parts: Sequence[bytes | memoryview],
    num_bytes: int,
    form: str,
    limits: _Limits,
    on_end: Callable[[Any, bytes], None],
    schedule: Schedule,
) -> Job:
    """One picture's run; see `Detect` and `Job`."""
    key = entry.key

    def make(number: int, payload: bytes, block: int, size: int, at_s: float) -> Detect:
        return Detect(number, key, num_bytes, form, limits, payload, block, size, None, at_s)

    return Job(entry, parts, num_bytes, make, on_end, schedule)


class Pictures:
    """Answers the paths that take pictures.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front

    def register(self, router: Router) -> None:
        """Add the paths to a router."""
        data = self._front.http_limits.max_body_bytes
        for base in ("/v2/models/{}", "/v2/models/{}/versions/{}"):
            router.add(
                "POST", f"{base}/detect", Endpoint(self.detect, max_body_bytes=data, is_data=True)
            )

    def detect(self, request: HttpRequest, name: str, version: str = "") -> None:
        """Find objects in the picture that is the body, or in those that are its parts."""
        head = request.head
        entry = self._front.repository.ready(name, version).base
        check_detector(entry)
        form, schedule = "json", _DEFAULT
        limits: _Limits = (None, None, None)
        if head.raw_query or "accept" in head.headers:
            accept = head.headers.get("accept", "")
            form, limits, schedule = asked_for(head.raw_query, accept)
        if head.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            self._detect_parts(request, entry, form, limits, schedule)
            return
        if not request.num_bytes:
            raise Problem(
                "input", "the body must be a picture", "it is empty", "send the file's content"
            )

        def on_end(reply: Any, content: bytes) -> None:
            if isinstance(reply, Problem):
                request.fail(reply)
                return
            if form == "json":
                content = start_of(entry) + content[1:]
            request.done = reply
            more = timing_line(reply, request.arrived_s)
            request.respond(200, content, _CONTENT_TYPES[form], more)

        dispatcher = self._front.dispatcher
        job = detect_job(entry, request.parts, request.num_bytes, form, limits, on_end, schedule)
        job.block, request.block = request.block, -1
        request.on_gone = lambda: dispatcher.cancel(job)
        dispatcher.submit(job)

    def _detect_parts(
        self,
        request: HttpRequest,
        entry: ModelEntry,
        form: str,
        limits: _Limits,
        schedule: Schedule,
    ) -> None:
        boundary = boundary_of(request.head.headers["content-type"])
        parts = split_parts(request.body, boundary, _MAX_PICTURES)
        if not parts or (form != "json" and len(parts) != 1):
            raise Problem(
                "input",
                "a multipart body must have at least one picture, and one to be drawn on",
                f"this one has {len(parts)}",
                "send the pictures as files of a form",
            )

        def on_end(replies: list[tuple[Any, bytes]]) -> None:
            if form != "json":
                reply, content = replies[0]
                if isinstance(reply, Problem):
                    request.fail(reply)
                else:
                    more = timing_line(reply, request.arrived_s)
                    request.respond(200, content, _CONTENT_TYPES[form], more)
                return
            listed = [
                _json({"name": part.file_name or part.name, "error": reply.as_dict()})
                if isinstance(reply, Problem)
                else b'{"name":' + _json(part.file_name or part.name) + b"," + content[1:]
                for part, (reply, content) in zip(parts, replies, strict=True)
            ]
            problems = [reply for reply, _ in replies if isinstance(reply, Problem)]
            if len(problems) == len(replies) and all(p.status >= 500 for p in problems):
                request.fail(problems[0])
                return
            request.respond(200, start_of(entry) + b'"pictures":[' + b",".join(listed) + b"]}")

        together = _Together(self._front.dispatcher, len(parts), on_end)
        for number, part in enumerate(parts):
            content = part.content
            together.add(
                detect_job(
                    entry,
                    (bytes(content),),
                    len(content),
                    form,
                    limits,
                    together.ending(number),
                    schedule,
                )
            )
        request.on_gone = together.cancel
        together.submit()


def start_of(entry: ModelEntry) -> bytes:
    """The first members of an answer."""
    return f'{{"model_name":"{entry.name}","model_version":"{entry.version}",'.encode()


def check_detector(entry: ModelEntry) -> None:
    """Refuse pictures for a network that is no detector.

    Raises:
        Problem: It is none.
    """
    if not entry.is_detector:
        raise Problem(
            "input",
            f"model {entry.name!r} must be a detector to be given pictures",
            f"it is not: {entry.details['why_no_detector']}",
            "send tensors to its infer path, or load it with a preset",
        )


class _Together:
    """Several jobs that are answered as one."""

    def __init__(
        self, dispatcher: Dispatcher, num: int, on_end: Callable[[list[tuple[Any, bytes]]], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._jobs: list[Job] = []
        self._replies: list[tuple[Any, bytes]] = [(None, b"")] * num
        self._num_open = num
        self._on_end = on_end

    def ending(self, number: int) -> Callable[[Any, bytes], None]:
        """What one of the jobs calls at its end."""

        def on_end(reply: Any, content: bytes) -> None:
            self._replies[number] = (reply, content)
            self._num_open -= 1
            if not self._num_open:
                self._on_end(self._replies)

        return on_end

    def add(self, job: Job) -> None:
        """Take one more job."""
        self._jobs.append(job)

    def submit(self) -> None:
        """Put all in the queue."""
        for job in list(self._jobs):
            self._dispatcher.submit(job)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        for job in self._jobs:
            self._dispatcher.cancel(job)


# The query of /detect.


def _number(query: dict[str, str], name: str, kind: type) -> Any:
    text = query.get(name)
    if text is None:
        return None
    try:
        value = kind(text)
        if not math.isfinite(value):
            raise ValueError(text)
    except (ValueError, OverflowError) as exc:
        raise Problem(
            "input",
            f"query parameter {name} must be a number",
            f"it is {text[:40]!r}",
            "correct it",
        ) from exc
    return value


@lru_cache(maxsize=1024)
def asked_for(raw_query: str, accept: str) -> tuple[str, _Limits, Schedule]:
    """`read_query` of a query as sent; clients ask for the same again and again."""
    return read_query(dict(parse_qsl(raw_query, keep_blank_values=True)), accept)


def read_query(query: dict[str, str], accept: str) -> tuple[str, _Limits, Schedule]:
    """What the query of /detect asks for.

    Raises:
        Problem: It has what there is not, or values that make no sense.
    """
    unknown = [name for name in query if name not in _KNOWN_QUERY]
    if unknown:
        raise Problem(
            "input",
            f"query parameters must be among {', '.join(_KNOWN_QUERY)}",
            f"there is {unknown[0][:80]!r}",
            "check its spelling",
        )
    accepted = accept.partition(",")[0].partition(";")[0].strip().lower()
    by_header = {"image/jpeg": "jpeg", "image/png": "png"}.get(accepted, "json")
    form = query.get("format", by_header)
    form = "jpeg" if form == "jpg" else form
    if form not in _CONTENT_TYPES:
        raise Problem(
            "input",
            f"format must be one of {', '.join(_CONTENT_TYPES)}",
            f"it is {form[:40]!r}",
            "correct it",
        )
    priority = _number(query, "priority", int) or 0
    timeout_ms = _number(query, "timeout_ms", float) or 0.0
    if not 0 <= priority <= 9 or not 0 <= timeout_ms < 1e9:
        raise Problem(
            "input",
            "priority must be 1 (first) to 9 (last) and timeout_ms 0 or more",
            f"they are {priority} and {timeout_ms:g}",
            "correct them",
        )
    score, iou = _number(query, "score", float), _number(query, "iou", float)
    limits = checked_limits(score, iou, _number(query, "max_detections", int))
    return form, limits, Schedule(priority or DEFAULT_PRIORITY, timeout_ms / 1000)


_DEFAULT = Schedule()


def checked_limits(score: Any, iou: Any, max_detections: Any) -> _Limits:
    """Thresholds of a request.

    Raises:
        Problem: One is impossible.
    """
    for name, value in (("score", score), ("iou", iou)):
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= 1):
            raise Problem("input", f"{name} must be 0 to 1", f"it is {value!r}"[:80], "correct it")
    if max_detections is not None and (
        type(max_detections) is not int or not 1 <= max_detections <= 100_000
    ):
        raise Problem(
            "input",
            "max_detections must be a whole number from 1 to 100000",
            f"it is {max_detections!r}"[:80],
            "correct it",
        )
    return score, iou, max_detections


# Pictures as BYTES tensors of the protocol.


class PicturesRequest:
    """An infer request whose tensor holds encoded pictures; each goes its own way.

    A picture that cannot be used has no boxes and its error in the output "errors". If none can,
    the request fails.

    Args:
        dispatcher: The queue.
        face: The model.
        asked: The request.
        schedule: When.
        on_end: As for `start_infer`.

    Raises:
        Problem: The request is wrong.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        face: ModelEntry | Face,
        asked: InferRequest,
        schedule: Schedule,
        on_end: Callable[[Any, bytes], None],
    ) -> None:
        entry = face.base
        details = Face(entry).details
        self._outputs = _wanted(entry, details["outputs"], asked)
        self._shape = asked.inputs[0].shape if len(asked.inputs) == 1 else ()
        self._on_end = on_end
        pictures = _pictures_of(asked)
        parameters = asked.parameters
        limits = checked_limits(*(parameters.get(n) for n in ("score", "iou", "max_detections")))
        form = "arrays and json" if "json" in self._outputs else "arrays"
        self._together = _Together(dispatcher, len(pictures), self._finish)
        for number, picture in enumerate(pictures):
            ending = self._together.ending(number)
            self._together.add(_job(entry, picture, form, limits, ending, schedule))
        self.cancel = self._together.cancel
        self._together.submit()

    def _finish(self, replies: list[tuple[Any, bytes]]) -> None:
        good = [(reply, content) for reply, content in replies if isinstance(reply, Done)]
        if not good:
            self._on_end(replies[0][0], b"")
            return
        found = [_Found(reply, content) for reply, content in replies]
        parts, pieces, at = [], [], 0
        for name in self._outputs:
            part, data = _output(name, found, at)
            parts.append(part)
            pieces.append(data)
            at += len(data)
        times = tuple(sum(reply.times_ns[i] for reply, _ in good) for i in range(4))
        done = Done(0, at, tuple(parts), times, len(good), len(good))  # type: ignore[arg-type]
        self._on_end(done, b"".join(pieces))


def _wanted(
    entry: ModelEntry, outputs: list[dict[str, Any]], asked: InferRequest
) -> tuple[str, ...]:
    known = [output["name"] for output in outputs]
    for wanted in asked.outputs:
        if wanted.name not in known or wanted.region is not None or wanted.num_classes:
            raise Problem(
                "input",
                f"outputs of {entry.name!r} for pictures must be among {', '.join(known)}, "
                "sent with the answer",
                f"the request asks for {wanted.name[:80]!r}"
                + (" in shared memory" if wanted.region else ""),
                "correct the outputs",
            )
    default = [name for name in known if name != "json"]
    return tuple(w.name for w in asked.outputs) or tuple(default)


def _pictures_of(asked: InferRequest) -> list[memoryview | Region]:
    if len(asked.inputs) != 1 or asked.inputs[0].datatype != "BYTES":
        raise Problem(
            "input",
            "a request with pictures must have one input of type BYTES",
            f"it has {', '.join(f'{p.name[:40]!r} {p.datatype}' for p in asked.inputs) or 'none'}",
            "send encoded pictures in the input 'picture'",
        )
    part = asked.inputs[0]
    wanted = math.prod(part.shape)
    if not 1 <= wanted <= _MAX_PICTURES:
        raise Problem(
            "input",
            f"a request must have 1 to {_MAX_PICTURES} pictures",
            f"its shape {list(part.shape)} says {wanted}",
            "send several requests",
        )
    pictures: list[memoryview | Region]
    if part.region is not None:
        pictures = _in_region(part.region)
    else:
        pictures = [memoryview(text) for text in split_strings(b"".join(asked.parts))]
    if len(pictures) != wanted:
        raise Problem(
            "input",
            f"input {part.name[:80]!r} of shape {list(part.shape)} must hold {wanted} pictures",
            f"it holds {len(pictures)}",
            "correct shape or data",
        )
    return pictures


def _in_region(region: Region) -> list[memoryview | Region]:
    """Where each string of a BYTES tensor lies in a client's memory."""
    view = Regions().view(region)
    found: list[memoryview | Region] = []
    at, end = 0, len(view)
    while at + 4 <= end and len(found) < _MAX_PICTURES:
        length = int.from_bytes(view[at : at + 4], "little")
        if at + 4 + length > end:
            break
        found.append(Region(region.key, region.offset + at + 4, length, region.name))
        at += 4 + length
        if at == end:
            return found
    raise Problem(
        "input",
        "each string of a BYTES tensor must follow its length in 4 bytes and fill its memory",
        f"what is at byte {at} does not",
        "correct the tensor or shared_memory_byte_size",
    )


def _job(
    entry: ModelEntry,
    picture: memoryview | Region,
    form: str,
    limits: _Limits,
    on_end: Callable[[Any, bytes], None],
    schedule: Schedule,
) -> Job:
    if not isinstance(picture, Region):
        return detect_job(entry, (bytes(picture),), len(picture), form, limits, on_end, schedule)
    key, num_bytes = entry.key, picture.num_bytes

    def make(number: int, payload: bytes, block: int, size: int, at_s: float) -> Detect:
        return Detect(number, key, num_bytes, form, limits, b"", block, size, picture, at_s)

    return Job(entry, (), 0, make, on_end, schedule)


class _Found:
    """One picture's answer, taken apart."""

    def __init__(self, reply: Any, content: bytes) -> None:
        self.error = str(reply).encode() if isinstance(reply, Problem) else b""
        self.num = self.num_points = 0
        self.boxes = self.scores = self.classes = self.points = b""
        self.json = b"{}" if not self.error else _json({"error": self.error.decode()})
        if self.error:
            return
        self.num, self.num_points, _, _ = ARRAYS_HEAD.unpack_from(content)
        at, k = ARRAYS_HEAD.size, self.num
        sizes = (16 * k, 4 * k, 4 * k, 8 * k * self.num_points)
        ends = [at + sum(sizes[: i + 1]) for i in range(4)]
        starts = [at, *ends]
        self.boxes, self.scores, self.classes, self.points = (
            content[starts[i] : ends[i]] for i in range(4)
        )
        self.json = content[ends[3] :] or self.json


def _output(name: str, found: list[_Found], at: int) -> tuple[TensorPart, bytes]:
    """One output tensor: (b, k, ...), filled up behind each picture's own boxes."""
    b, k = len(found), max(one.num for one in found)
    p = max(one.num_points for one in found)
    if name == "num":
        data = b"".join(one.num.to_bytes(4, "little") for one in found)
        return TensorPart(name, "INT32", (b,), at, len(data)), data
    if name in ("errors", "json"):
        data = join_strings(one.error if name == "errors" else one.json for one in found)
        return TensorPart(name, "BYTES", (b,), at, len(data)), data
    datatype, shape, size, fill = {
        "boxes": ("FP32", (b, k, 4), 16, b"\0" * 16),
        "scores": ("FP32", (b, k), 4, b"\0" * 4),
        "classes": ("INT32", (b, k), 4, b"\xff" * 4),
        "keypoints": ("FP32", (b, k, p, 2), 8 * p, b"\0" * 8 * p),
    }[name]
    values = {
        "boxes": [one.boxes for one in found],
        "scores": [one.scores for one in found],
        "classes": [one.classes for one in found],
        "keypoints": [one.points for one in found],
    }[name]
    data = b"".join(value + fill * (k - one.num) for value, one in zip(values, found, strict=True))
    assert len(data) == b * k * size
    return TensorPart(name, datatype, shape, at, len(data)), data
