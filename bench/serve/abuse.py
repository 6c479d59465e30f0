"""What a server must survive: good, broken, oversized, slow and vanishing clients, all at once.

    python -m bench.serve.abuse [--seconds 1800] [--kill-every 60] [-o FILE]

More is asked of the server than it can do, and an engine process is killed every minute. Counted
are wrong answers, requests without an answer, answers that do not fit what was sent, how long after
a kill the next right answer comes, and the server's memory and open files.

What passes: nothing wrong, nothing unanswered, memory in the last fifth of the time within 5 % of
the second fifth's, recovery in less than 2 s.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from bench import environment, reference
from bench.agreement import check
from bench.cases import ROOT, SHARED
from bench.serve.cases import CASES
from bench.serve.contenders import saccade
from bench.serve.harness import same
from bench.serve.http import kserve_request, post, read_kserve
from bench.serve.load import Requests, run_load
from bench.serve.server import Server, exchange, free_port

NUM_GOOD, NUM_TENSOR, NUM_BAD = 8, 4, 8
FLOOD_CONNECTIONS, FLOOD_S = 512, 10.0
ON_ITS_WAY_S = 0.05
ANSWER_S = 60.0  # a request that has no answer after this long has none
MAX_MEMORY_DRIFT, MAX_RECOVERY_S = 0.05, 2.0
SAMPLE_S = 2.0
REFUSED = (429, 503, 504)
Answer = tuple[int, dict[str, str], bytes]


class Lost(Exception):
    """The connection ended before the answer was whole."""


class Connection:
    """One HTTP/1.1 connection, as plain as it can be."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def send(self, data: bytes) -> None:
        if self._writer is None:
            await self.open()
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self) -> Answer:
        """Read one answer.

        Raises:
            Lost: It ended before.
        """
        assert self._reader is not None
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            pairs = (line.partition(":") for line in lines[1:] if line)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            raise Lost(repr(exc)) from exc
        return int(lines[0].split()[1]), headers, body

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer; the connection stays open if the server lets it.

        Raises:
            Lost: No whole answer came.
        """
        try:
            await self.send(request)
        except ConnectionError as exc:
            raise Lost(repr(exc)) from exc
        answer = await self.answer()
        if answer[1].get("connection", "").lower() == "close":
            self.close()
        return answer

    def close(self) -> None:
        """Go away without a word."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


class Tally:
    """What was seen, by kind of client; the first examples of what was wrong."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.num_faults = 0

    def saw(self, kind: str, what: str) -> None:
        self.counts[f"{kind}: {what}"] += 1

    def fault(self, kind: str, what: str) -> None:
        self.num_faults += 1
        self.counts[f"{kind}: FAULT"] += 1
        text = f"{kind}: {what}"
        is_new = not any(text[:80] == known[:80] for known in self.faults)
        if is_new and len(self.faults) < 20:
            self.faults.append(text)


class Abuse:
    """The clients of one run. All share one server, one clock and one tally."""

    def __init__(self, server: Server, seconds: float, kill_every: float, seed: int) -> None:
        self.server, self.seconds, self.kill_every = server, seconds, kill_every
        self.tally = Tally()
        self.rng = random.Random(seed)
        self.case = CASES["light_person_192"]
        paths = list(dict.fromkeys(self.case.round_paths()))
        self.paths = paths
        self.jpegs = [Path(path).read_bytes() for path in paths]
        self.requests = [saccade.request(self.case, jpeg) for jpeg in self.jpegs]
        self.flood_requests = Requests("abuse_flood", self.requests)
        self.expected: list[Any] = []
        self.seen_bodies: dict[tuple[int, bytes], bool] = {}
        self.tensor = np.random.default_rng(seed).integers(0, 255, (1, 3, 192, 192))
        self.tensor = self.tensor.astype(np.float32)
        self.tensor_answer = np.empty(0)
        self.odd = [
            (path.name, path.read_bytes()) for path in sorted((SHARED / "odd").glob("img_*"))
        ]
        self.odd_status: dict[str, int] = {}
        self.memory: list[tuple[float, int, int]] = []
        self.kills_s: list[float] = []
        self.right_s: list[float] = []  # when right answers came, of any client
        self.begun = 0.0
        self.engines_killed = 0

    # Before: what the right answers are, asked one at a time.

    def learn(self) -> None:
        """The right answers, checked against the plain reference; broken pictures' statuses."""
        self.server.wait_ready(self.requests[0])
        for request in self.requests:
            status, body = exchange(self.server.port, request)
            assert status == 200, body
            self.expected.append(saccade.read(body))
        rows = reference.run(reference.setup(self.case), self.paths)
        wanted = {path: (boxes, scores, classes) for path, boxes, scores, classes in rows}
        answers = dict(zip(self.paths, self.expected, strict=True))
        verdict = check(self.case, "agreement", wanted, answers)
        assert verdict["passed"], verdict
        status, body = exchange(self.server.port, self.tensor_request())
        assert status == 200, body
        self.tensor_answer = read_kserve(body)["output"].copy()
        for name, data in self.odd:
            self.odd_status[name], body = exchange(self.server.port, self.detect(data))
            if self.odd_status[name] != 200:
                self.check_problem("odd picture", name, self.odd_status[name], body)

    def detect(self, data: bytes) -> bytes:
        return post("/v2/models/light_person_192/detect", data, Content_Type="image/jpeg")

    def tensor_request(self) -> bytes:
        data = ("FP32", list(self.tensor.shape), self.tensor.tobytes())
        return kserve_request("/v2/models/light_person_192/infer", {"images": data})

    # The clients.

    async def good(self, index: int) -> None:
        """Asks for boxes as fast as it gets answers; each must be right, or an honest refusal."""
        connection = Connection(self.server.port)
        while not self.is_over():
            which = self.rng.randrange(len(self.requests))
            answer = await self.expect("good", connection, self.requests[which])
            if answer is None:
                continue
            status, headers, body = answer
            if status == 200:
                if self.is_right(which, body):
                    self.tally.saw("good", "right")
                    self.right_s.append(time.monotonic())
                else:
                    self.tally.fault("good", f"wrong answer to picture {which}: {body[:200]!r}")
            else:
                await self.check_refusal("good", status, headers, body)
        connection.close()

    async def tensors(self, index: int) -> None:
        """Sends the same tensor through the standard infer call."""
        connection = Connection(self.server.port)
        request = self.tensor_request()
        while not self.is_over():
            answer = await self.expect("tensor", connection, request)
            if answer is None:
                continue
            status, headers, body = answer
            if status != 200:
                await self.check_refusal("tensor", status, headers, body)
            elif np.allclose(read_kserve(body)["output"], self.tensor_answer, atol=1e-4):
                self.tally.saw("tensor", "right")
            else:
                self.tally.fault("tensor", "another output for the same tensor")

    async def broken(self, index: int) -> None:
        """Sends files that are no pictures, or bombs; each has one right status."""
        connection = Connection(self.server.port)
        while not self.is_over():
            name, data = self.rng.choice(self.odd)
            answer = await self.expect("odd picture", connection, self.detect(data))
            if answer is None:
                continue
            status, headers, body = answer
            if status in REFUSED:
                await self.check_refusal("odd picture", status, headers, body)
            elif status != self.odd_status[name]:
                text = f"{name}: {status}, alone {self.odd_status[name]}: {body[:200]!r}"
                self.tally.fault("odd picture", text)
            elif status != 200:
                self.check_problem("odd picture", name, status, body)
            else:
                self.tally.saw("odd picture", "answered")
            await asyncio.sleep(0.02)

    async def malformed(self, index: int) -> None:
        """Requests whose parts contradict each other: an error with a body, or a closed door."""
        whole = self.tensor_request()
        body = whole.partition(b"\r\n\r\n")[2]
        infer = "/v2/models/light_person_192/infer"
        cases = [
            b"NONSENSE\r\n\r\n",
            b"GET /v2 HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
            post(infer, b"{", Content_Type="application/json"),
            post(infer, b'{"inputs": [{"name": "images"}]}'),
            post(infer, body[:1000], Inference_Header_Content_Length="100000"),
            post(infer, body[:-7], Inference_Header_Content_Length=str(body.index(b"}}") + 2)),
            post(infer, body, Inference_Header_Content_Length="-5"),
            post("/v2/models/absent/detect", self.jpegs[0]),
            post("/v2/models/light_person_192/detect?score=2", self.jpegs[0]),
            post("/v2/models/light_person_192/detect", b""),
            b"POST /v2/models/light_person_192/detect HTTP/1.1\r\nHost: a\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n\r\n",
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /v2 HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        ]
        while not self.is_over():
            request = self.rng.choice(cases)
            connection = Connection(self.server.port)
            answer = await self.expect("malformed", connection, request, may_close=True)
            if answer is not None:
                status, headers, answer_body = answer
                if status in REFUSED:
                    await self.check_refusal("malformed", status, headers, answer_body)
                elif 400 <= status < 500 or status in (501, 505):
                    self.tally.saw("malformed", str(status))
                else:
                    text = f"{status} for {request[:80]!r}: {answer_body[:200]!r}"
                    self.tally.fault("malformed", text)
            connection.close()
            await asyncio.sleep(0.05)

    async def oversized(self, index: int) -> None:
        """Announces or sends far too much; must be told so early."""
        path = "/v2/models/light_person_192/detect"
        while not self.is_over():
            connection = Connection(self.server.port)
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\n".encode()
            if self.rng.random() < 0.2:
                request = head + b"Transfer-Encoding: chunked\r\n\r\n"
                request += (b"100000\r\n" + bytes(1 << 20) + b"\r\n") * 80
            else:
                length = self.rng.choice((10**10, 10**18))
                request = head + f"Content-Length: {length}\r\n\r\n".encode() + bytes(1 << 16)
            answer = await self.expect("oversized", connection, request, may_close=True)
            if answer is not None:
                if answer[0] in (413, *REFUSED):
                    self.tally.saw("oversized", str(answer[0]))
                else:
                    self.tally.fault("oversized", f"{answer[0]}: {answer[2][:200]!r}")
            connection.close()
            await asyncio.sleep(0.5)

    async def slow(self, index: int) -> None:
        """Sends a byte now and then. Ends when the server has had enough of it."""
        while not self.is_over():
            connection = Connection(self.server.port)
            request = self.rng.choice(self.requests)
            at = self.rng.choice((0, 40, len(request) // 2))
            with contextlib.suppress(ConnectionError, Lost, TimeoutError):
                await connection.send(request[:at])
                for byte in request[at:]:
                    if self.is_over():
                        break
                    await connection.send(bytes([byte]))
                    await asyncio.sleep(0.5)
            self.tally.saw("slow", "given up by the server" if not self.is_over() else "at the end")
            connection.close()

    async def vanishing(self, index: int) -> None:
        """Goes away in the head, in the body, after it, or while the answer is being made."""
        while not self.is_over():
            connection = Connection(self.server.port)
            request = self.rng.choice([*self.requests, self.tensor_request()])
            end = self.rng.choice((10, 200, len(request) // 2, len(request)))
            with contextlib.suppress(ConnectionError):
                await connection.send(request[:end])
                await asyncio.sleep(self.rng.choice((0.0, 0.001, 0.01, 0.05)))
            connection.close()
            self.tally.saw("vanishing", "gone")
            await asyncio.sleep(0.01)

    async def killer(self) -> None:
        """Kills an engine process now and then, and waits until new requests are answered."""
        while self.left_s() > self.kill_every / 2 + 5:
            await asyncio.sleep(self.kill_every / 2)
            os.kill(self.rng.choice(self.engine_pids()), signal.SIGKILL)
            self.engines_killed += 1
            self.kills_s.append(time.monotonic())
            await self.see_recovery(time.monotonic())
            await asyncio.sleep(self.kill_every / 2)

    def engine_pids(self) -> list[int]:
        """The engine processes, as the server knows them."""
        request = b"GET /page/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        _, body = exchange(self.server.port, request)
        return [engine["pid"] for engine in json.loads(body)["engines"]]

    async def see_recovery(self, began_s: float) -> None:
        """Ask until a request that was begun after the kill has a good answer."""
        connection = Connection(self.server.port)
        while time.monotonic() - began_s < ANSWER_S:
            answer = await self.expect("after a kill", connection, self.requests[0])
            if answer is not None and answer[0] == 200:
                connection.close()
                self.tally.saw("after a kill", "right")
                self.right_s.append(time.monotonic())
                return
            await asyncio.sleep(0.02)
        self.tally.fault("after a kill", "no good answer")

    def recoveries(self) -> list[float]:
        """Seconds from each kill to the next right answer; what was on its way then is left out."""
        times = np.sort(self.right_s)
        found = []
        for kill_s in self.kills_s:
            later = times[np.searchsorted(times, kill_s + ON_ITS_WAY_S) :]
            found.append(float(later[0] - kill_s) if len(later) else ANSWER_S)
        return found

    async def weigher(self) -> None:
        """Memory and open files of the server's processes."""
        while not self.is_over():
            num_files = 0
            for process in self.server.tree():
                with contextlib.suppress(psutil.Error):
                    num_files += process.num_fds()
            sample = (time.monotonic() - self.begun, self.server.pss_bytes(), num_files)
            self.memory.append(sample)
            await asyncio.sleep(SAMPLE_S)

    async def flood(self, rate: float) -> None:
        """More than the server can do, from the load generator; its log is checked afterwards."""
        seed = 0
        while self.left_s() > 1.0:
            seed += 1
            began_s = time.monotonic()
            load = await asyncio.to_thread(
                run_load,
                self.flood_requests,
                self.server.port,
                connections=FLOOD_CONNECTIONS,
                seconds=min(FLOOD_S, self.left_s()),
                rate=rate,
                seed=seed,
            )
            for answer in load.answers:
                if answer.status in REFUSED:
                    self.tally.saw("flood", f"refused with {answer.status}")
                elif answer.status != 200:
                    self.tally.fault("flood", f"status {answer.status}: {answer.body[:200]!r}")
                elif self.is_right(answer.index, answer.body):
                    self.tally.saw("flood", "right")
                    self.right_s.append(began_s + answer.done_s)
                else:
                    self.tally.fault("flood", f"wrong answer to picture {answer.index}")
                await asyncio.sleep(0)

    # What they share.

    def is_over(self) -> bool:
        return self.left_s() <= 0

    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.begun)

    async def expect(
        self, kind: str, connection: Connection, request: bytes, *, may_close: bool = False
    ) -> Answer | None:
        """The answer; its absence is a fault, unless closing is an answer too."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await connection.ask(request)
        except TimeoutError:
            self.tally.fault(kind, f"no answer within {ANSWER_S:.0f} s")
        except (Lost, ConnectionError) as exc:
            if may_close:
                self.tally.saw(kind, "closed")
            else:
                self.tally.fault(kind, f"no answer: {exc}")
        connection.close()
        return None

    def is_right(self, which: int, body: bytes) -> bool:
        key = (which, body)
        if key not in self.seen_bodies:
            self.seen_bodies[key] = same(saccade.read(body), self.expected[which])
        return self.seen_bodies[key]

    async def check_refusal(
        self, kind: str, status: int, headers: dict[str, str], body: bytes
    ) -> None:
        if status not in REFUSED:
            self.tally.fault(kind, f"{status}: {body[:300]!r}")
        elif status == 503 and "retry-after" not in headers:
            self.tally.fault(kind, f"503 without Retry-After: {body[:300]!r}")
        else:
            self.tally.saw(kind, f"refused with {status}")
            await asyncio.sleep(0.05)

    def check_problem(self, kind: str, name: str, status: int, body: bytes) -> None:
        try:
            problem = json.loads(body)
            ok = 400 <= status < 500 and problem["status"] == status and problem["detail"]
        except (ValueError, KeyError):
            ok = False
        if ok:
            self.tally.saw(kind, f"refused with {status}")
        else:
            self.tally.fault(kind, f"{name}: {status}, no problem document: {body[:200]!r}")

    async def run(self, rate: float) -> dict[str, Any]:
        self.begun = time.monotonic()
        kinds: list[tuple[Callable[[int], Awaitable[None]], int]] = [
            (self.good, NUM_GOOD),
            (self.tensors, NUM_TENSOR),
            (self.broken, NUM_BAD),
            (self.malformed, NUM_BAD // 2),
            (self.oversized, 2),
            (self.slow, 32),
            (self.vanishing, NUM_BAD),
        ]
        before_s = self.server.cpu_s()
        async with asyncio.TaskGroup() as group:
            for client, num in kinds:
                for index in range(num):
                    group.create_task(client(index))  # type: ignore[arg-type]
            if rate:
                group.create_task(self.flood(rate))
            group.create_task(self.killer())
            group.create_task(self.weigher())
        used_s = self.server.cpu_s() - before_s
        alive, last_error = self.after()
        report = {
            "seconds": self.seconds,
            "server_cpu_s": round(used_s, 1),
            "counts": dict(sorted(self.tally.counts.items())),
            "num_faults": self.tally.num_faults,
            "faults": self.tally.faults,
            "engines_killed": self.engines_killed,
            "recovery_s": [round(value, 3) for value in self.recoveries()],
            "memory": memory_of(self.memory),
            "right_afterwards": alive,
            "log_tail": self.server.log_tail() if last_error else "",
        }
        report["passed"] = passed(report)
        return report

    def after(self) -> tuple[bool, bool]:
        """Whether it answers rightly once all is quiet again."""
        good = True
        for which, request in enumerate(self.requests):
            status, body = exchange(self.server.port, request)
            good &= status == 200 and self.is_right(which, body)
        return good, not good


def memory_of(samples: list[tuple[float, int, int]]) -> dict[str, Any]:
    """Medians over fifths of the time: whether it grew between the second and the last."""
    fifths = [[] for _ in range(5)]  # type: list[list[tuple[float, int, int]]]
    end_s = samples[-1][0] or 1.0
    for sample in samples:
        fifths[min(4, int(5 * sample[0] / end_s))].append(sample)
    mib = [round(median(s[1] for s in part) / 2**20, 1) if part else None for part in fifths]
    files = [median(s[2] for s in part) if part else None for part in fifths]
    drift = mib[4] / mib[1] - 1 if mib[1] and mib[4] else None
    step = max(1, len(samples) // 120)
    return {
        "mib_by_fifth": mib,
        "files_by_fifth": files,
        "drift": None if drift is None else round(drift, 4),
        "samples_s_mib_files": [
            [round(t), round(size / 2**20, 1), files] for t, size, files in samples[::step]
        ],
    }


def passed(report: dict[str, Any]) -> dict[str, bool]:
    drift = report["memory"]["drift"]
    return {
        "nothing_wrong": report["num_faults"] == 0 and report["right_afterwards"],
        "memory_flat": drift is not None and abs(drift) <= MAX_MEMORY_DRIFT,
        "recovery": max(report["recovery_s"], default=0.0) < MAX_RECOVERY_S,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve.abuse", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--kill-every", type=float, default=60.0)
    parser.add_argument(
        "--flood", type=float, default=450.0, help="requests/s beside the others; 0 needs no gcc"
    )
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument(
        "--only-right",
        action="store_true",
        help="the exit status says nothing of memory and time (for short runs)",
    )
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    machine = environment.describe()
    port = free_port()
    server = Server("abuse", saccade.launch(CASES["light_person_192"], port, Path()), port)
    try:
        abuse = Abuse(server, args.seconds, args.kill_every, args.seed)
        abuse.learn()
        report = asyncio.run(abuse.run(args.flood))
    finally:
        server.close()
    report = {"schema": 1, "environment": machine, "kill_every_s": args.kill_every, **report}
    text = json.dumps(environment.without_paths(report), indent=1, ensure_ascii=False)
    target = args.output or ROOT / "bench" / "results" / "serve" / "abuse.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n")
    shown = {key: report[key] for key in ("counts", "faults", "recovery_s", "passed")}
    print(json.dumps(shown, indent=1, ensure_ascii=False), file=sys.stderr)
    verdict = report["passed"]
    return 0 if (verdict["nothing_wrong"] if args.only_right else all(verdict.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
