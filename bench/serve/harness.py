"""JPEG to boxes over HTTP: saccade's server and its peers, every answer checked, in turns.

    python -m bench.serve.harness CASE [--contenders a,b] [--rounds 3] [--seconds 4] [-o FILE]

1. Every server is started and answers every picture; its answers are compared with the plain NumPy
   reference. Who is wrong is refused. A closed loop of 32 connections then says what its most is.
2. Rounds in turns. In each, a server gets: a closed loop of 32 connections, open loops at fixed
   rates, and an open loop at 70 % of its own most. All other servers are stopped meanwhile. The
   same job as a plain script in one thread (no server) takes its turn too.
3. Each answer of each run is compared with the checked answer to the same picture; a different one
   or a missing one is counted and fails the run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

import bench.serve.contenders
from bench import environment, reference
from bench.agreement import Answers, check
from bench.cases import ROOT, WORK, Case
from bench.serve.bare import bare_on_all_cores
from bench.serve.cases import CASES
from bench.serve.load import LOST, UNANSWERED, Load, Requests, run_load
from bench.serve.server import Server, ServerError, exchange, free_port

CONNECTIONS = 32
OPEN_CONNECTIONS = 256
LOW_RATES = {"light_person_192": (20.0, 80.0), "cells_640": (5.0,)}
PART_OF_MOST = 0.7
BARE_SECONDS = 2.0
# What other processes of the machine may take of a run, and how often it is repeated for that.
MAX_OTHER_CORES, MAX_REPEATS = 0.1, 3
MAX_BOX_SHIFT, MAX_SCORE_SHIFT = 0.5, 0.005
BASELINE = "saccade"


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    case = CASES[args.case]
    report = Comparison(case, names_of(args.contenders), args).run()
    target = args.output or ROOT / "bench" / "results" / "serve" / f"{case.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(environment.without_paths(report), indent=1, ensure_ascii=False)
    target.write_text(text + "\n")
    return 1 if any("error" in entry for entry in report["contenders"].values()) else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.serve.harness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--contenders", help="names, separated by commas; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds must be 1 or more and --seconds more than 0")
    return args


def names_of(wanted: str | None) -> list[str]:
    files = sorted(m.name for m in pkgutil.iter_modules(bench.serve.contenders.__path__))
    files.sort(key=lambda name: not name.startswith(BASELINE))
    names = wanted.split(",") if wanted else files
    unknown = [name for name in names if name not in files]
    if unknown:
        sys.exit(f"contenders are {', '.join(files)}; got {', '.join(unknown)}")
    return names


class Contender:
    """One server under test, with its requests, its checked answers and its results."""

    def __init__(self, case: Case, name: str, jpegs: list[bytes], module: Any = None) -> None:
        self.module = module or importlib.import_module(f"bench.serve.contenders.{name}")
        self.case, self.name = case, name
        self.entry: dict[str, Any] = {"label": self.module.LABEL, "note": self.module.NOTE}
        self.raw = [self.module.request(case, jpeg) for jpeg in jpegs]
        self.requests = Requests(f"serve_{name}", self.raw)
        self.expected: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.server: Server | None = None
        self._seen: dict[tuple[int, bytes], bool] = {}

    def start(self) -> float:
        folder = WORK / "serve" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.server = Server(self.name, self.module.launch(self.case, port, folder), port)
        return self.server.wait_ready(self.raw[0])

    def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    def rest(self) -> None:
        """Out of the way of the others: stopped where it stands, or ended."""
        if self.server is not None and self.module.HOLD:
            self.server.hold()
        else:
            self.stop()

    def wake(self) -> None:
        if self.server is None:
            self.start()
        else:
            self.server.release()
        self.load(seconds=0.5, connections=4)  # untimed

    def answer_all(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        assert self.server is not None
        answers = []
        for request in self.raw:
            status, body = exchange(self.server.port, request)
            if status != 200:
                raise ServerError(f"{self.name} answered {status}: {body[:200]!r}")
            answers.append(self.module.read(body))
        return answers

    def load(self, **how: Any) -> Load:
        assert self.server is not None
        return run_load(self.requests, self.server.port, **how)

    def timed(self, **how: Any) -> dict[str, Any]:
        """One run that nobody else disturbed; a disturbed one is repeated, whoever is measured.

        Raises:
            ServerError: An answer was wrong or missing.
        """
        num_repeats = 0
        while True:
            row = self.timed_once(**how)
            if row["other_cores"] <= MAX_OTHER_CORES or num_repeats == MAX_REPEATS:
                return {**row, "num_repeats": num_repeats}
            say(f"  {self.name}: others took {row['other_cores']:.2f} cores; once more")
            num_repeats += 1

    def timed_once(self, **how: Any) -> dict[str, Any]:
        """One run with its figures; its answers are checked after the clock has stopped.

        Raises:
            ServerError: An answer was wrong or missing.
        """
        assert self.server is not None
        machine_s, before_s = machine_cpu_s(), self.server.cpu_s()
        load = self.load(**how)
        server_s, busy_s = self.server.cpu_s() - before_s, machine_cpu_s() - machine_s
        good = load.good()
        if not good:
            raise ServerError(f"{self.name}: no good answer; {self.server.log_tail()}")
        self.check_answers(load)
        return {
            **{key: how[key] for key in ("rate", "connections") if how.get(key)},
            "num": len(good),
            "num_refused": sum(a.status in (429, 503) for a in load.answers),
            "rate_per_s": round(load.rate(), 2),
            "cpu_ms": round(1e3 * server_s / len(good), 4),
            "load_cpu_ms": round(1e3 * load.cpu_s / len(good), 4),
            "other_cores": round((busy_s - server_s - load.cpu_s) / load.wall_s, 3),
            **{f"p{p:g}_ms": round(load.latency_ms(p), 3) for p in (50, 90, 99)},
            "latencies_ms": [round(1e3 * (a.done_s - a.due_s), 2) for a in good]
            if how.get("rate")
            else [],
            **load.extra,
        }

    def check_answers(self, load: Load) -> None:
        lost = sum(answer.status in (LOST, UNANSWERED) for answer in load.answers)
        odd = {a.status for a in load.answers} - {200, 429, 503, LOST, UNANSWERED}
        wrong = sum(not self._is_right(a.index, a.body) for a in load.good())
        if lost or odd or wrong:
            raise ServerError(
                f"{self.name}: {wrong} wrong and {lost} missing answers of {len(load.answers)}, "
                f"odd statuses {sorted(odd)}; {self.server.log_tail() if self.server else ''}"
            )

    def _is_right(self, index: int, body: bytes) -> bool:
        key = (index, body)
        if key not in self._seen:
            self._seen[key] = same(self.module.read(body), self.expected[index])
        return self._seen[key]


def machine_cpu_s() -> float:
    """Seconds that all cores have worked for anyone, or were taken away, since the start."""
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(times, name, 0.0) for name in names))


def same(got: tuple[np.ndarray, ...], want: tuple[np.ndarray, ...]) -> bool:
    """The same boxes in the same order, but for the last digits that were printed."""
    if len(got[1]) != len(want[1]):
        return False
    return bool(
        np.array_equal(got[2], want[2])
        and np.abs(np.asarray(got[0]) - want[0]).max(initial=0) <= MAX_BOX_SHIFT
        and np.abs(np.asarray(got[1]) - want[1]).max(initial=0) <= MAX_SCORE_SHIFT
    )


class Comparison:
    """The whole comparison of one case."""

    def __init__(self, case: Case, names: list[str], args: argparse.Namespace) -> None:
        self.case, self.args = case, args
        self.paths = list(dict.fromkeys(case.round_paths()))
        self.jpegs = [Path(path).read_bytes() for path in self.paths]
        self.contenders = [Contender(case, name, self.jpegs) for name in names]

    def run(self) -> dict[str, Any]:
        machine = environment.describe()
        say(f"{self.case.name}: reference over {len(self.paths)} pictures")
        rows = reference.run(reference.setup(self.case), self.paths)
        wanted: Answers = {path: (boxes, scores, classes) for path, boxes, scores, classes in rows}
        bare = self.bare_job()
        paces = (None, *LOW_RATES[self.case.name])
        bare_rounds: dict[float | None, list[float]] = {pace: [] for pace in paces}
        full_rounds: list[float] = []
        try:
            for contender in self.contenders:
                self.guarded(contender, lambda c: self.examine(c, wanted))
            for index in range(self.args.rounds):
                for pace in paces:
                    bare_rounds[pace].append(bare(pace))
                full_rounds.append(bare_on_all_cores(self.case.name, self.args.seconds))
                told = ", ".join(f"{values[-1]:.2f} ms" for values in bare_rounds.values())
                say(f"round {index + 1}: bare {told}")
                for contender in self.alive():
                    self.guarded(contender, lambda c: self.round(c))
        finally:
            for contender in self.contenders:
                contender.stop()
        report = self.report(machine, bare_rounds)
        report["bare_cpu_ms_on_all_cores"] = spread(full_rounds)
        return report

    def alive(self) -> list[Contender]:
        return [c for c in self.contenders if not {"error", "refused"} & c.entry.keys()]

    def guarded(self, contender: Contender, do: Callable[[Contender], None]) -> None:
        """One contender's failure is its own."""
        try:
            do(contender)
        except ServerError as exc:
            contender.entry["error"] = str(exc)
            say(f"{contender.name} failed: {exc}")
            contender.stop()
        finally:
            contender.rest()

    def examine(self, contender: Contender, wanted: Answers) -> None:
        contender.entry["start_s"] = round(contender.start(), 2)
        contender.entry["versions"] = contender.module.versions()
        contender.expected = contender.answer_all()
        answers = dict(zip(self.paths, contender.expected, strict=True))
        rule = getattr(contender.module, "RULE", "agreement")
        contender.entry["check"] = check(self.case, rule, wanted, answers)
        if not contender.entry["check"]["passed"]:
            contender.entry["refused"] = "its answers are wrong, so it has no speed"
            say(f"{contender.name} refused: {contender.entry['check']}")
            contender.stop()
            return
        contender.load(seconds=1.0, connections=CONNECTIONS)
        most = contender.timed(seconds=self.args.seconds, connections=CONNECTIONS)
        assert contender.server is not None
        contender.entry["memory_mib"] = round(contender.server.pss_bytes() / 2**20)
        say(f"{contender.name}: {most['rate_per_s']:.0f}/s, {most['cpu_ms']:.2f} ms")

    def round(self, contender: Contender) -> None:
        seconds = self.args.seconds
        contender.wake()
        rounds = contender.entry.setdefault("rounds", [])
        closed = contender.timed(seconds=seconds, connections=CONNECTIONS)
        at_rates = [
            contender.timed(
                seconds=seconds, connections=OPEN_CONNECTIONS, rate=rate, seed=1 + len(rounds)
            )
            for rate in LOW_RATES[self.case.name]
        ]
        at_part = contender.timed(
            seconds=2 * seconds,
            connections=OPEN_CONNECTIONS,
            rate=PART_OF_MOST * closed["rate_per_s"],
            seed=100 + len(rounds),
        )
        rounds.append({"closed": closed, "rates": at_rates, "part": at_part})
        say(
            f"  {contender.name}: {closed['rate_per_s']:.0f}/s {closed['cpu_ms']:.2f} ms; "
            + "; ".join(f"at {r['rate']:.0f}/s {r['cpu_ms']:.2f} ms" for r in at_rates)
            + f"; p99 at 70 % {at_part['p99_ms']:.1f} ms"
        )

    def bare_job(self) -> Callable[[float | None], float]:
        """CPU milliseconds per picture of the contenders' own pipeline, in a loop, no server.

        With a pace, pictures fall due at random as they do for the servers: a core that has slept
        comes back with cold caches, and that is no server's fault.
        """
        from bench.serve.apps.pipeline import Pipeline

        pipeline = Pipeline(self.case)

        rng = random.Random(1)

        def once(pace: float | None) -> float:
            pipeline(self.jpegs[0])
            num, due_s = 0, time.monotonic()
            end_s = due_s + (BARE_SECONDS if pace is None else self.args.seconds)
            cpu_s = time.process_time()
            while num % len(self.jpegs) or time.monotonic() < end_s:
                if pace is not None:
                    due_s += rng.expovariate(pace)
                    time.sleep(max(0.0, due_s - time.monotonic()))
                pipeline(self.jpegs[num % len(self.jpegs)])
                num += 1
            return 1e3 * (time.process_time() - cpu_s) / num

        return once

    def report(
        self, machine: dict[str, Any], bare_ms: dict[float | None, list[float]]
    ) -> dict[str, Any]:
        entries = {contender.name: contender.entry for contender in self.contenders}
        bare = spread(bare_ms.pop(None))
        paced = {f"{pace:g}": spread(values) for pace, values in bare_ms.items()}
        for entry in entries.values():
            if entry.get("rounds"):
                summarize(entry, bare["median"], paced)
        return {
            "schema": 1,
            "case": self.case.name,
            "title": self.case.title,
            "thresholds": {"score": self.case.score, "iou": self.case.iou},
            "pictures": len(self.paths),
            "mean_kilobytes": round(sum(map(len, self.jpegs)) / len(self.jpegs) / 1e3, 1),
            "seconds": self.args.seconds,
            "connections": CONNECTIONS,
            "part_of_most": PART_OF_MOST,
            "environment": machine,
            "bare_cpu_ms": bare,
            "bare_cpu_ms_at_rates": paced,
            "contenders": entries,
        }


def summarize(entry: dict[str, Any], bare_ms: float, paced: dict[str, Any]) -> None:
    """Medians over the rounds; of the latencies, percentiles of all rounds together."""
    rounds = entry["rounds"]
    closed = [row["closed"] for row in rounds]
    most, cpu = spread([r["rate_per_s"] for r in closed]), spread([r["cpu_ms"] for r in closed])
    load_ms = median(r["load_cpu_ms"] for r in closed)
    bound = 1e3 * len(os.sched_getaffinity(0)) / (bare_ms + load_ms)
    together = [ms for row in rounds for ms in row["part"].pop("latencies_ms")]
    entry["closed"] = {
        "rate_per_s": most,
        "cpu_ms": cpu,
        "load_cpu_ms": round(load_ms, 4),
        "times_bare": round(cpu["median"] / bare_ms, 4),
        "bound_per_s": round(bound, 2),
        "part_of_bound": round(most["median"] / bound, 4),
    }
    entry["at_rates"] = {}
    for index, first in enumerate(rounds[0]["rates"]):
        rows = [row["rates"][index] for row in rounds]
        values = spread([r["cpu_ms"] for r in rows])
        latencies = [ms for r in rows for ms in r.pop("latencies_ms")]
        entry["at_rates"][f"{first['rate']:g}"] = {
            "cpu_ms": values,
            "times_bare": round(values["median"] / paced[f"{first['rate']:g}"]["median"], 4),
            **percentiles(latencies),
        }
    for row in closed:
        row.pop("latencies_ms")
    entry["at_part_of_most"] = {
        "rate_per_s": round(median(row["part"]["rate"] for row in rounds), 1),
        "cpu_ms": spread([row["part"]["cpu_ms"] for row in rounds]),
        **percentiles(together),
        "p99_ms_by_round": spread([row["part"]["p99_ms"] for row in rounds]),
    }


def percentiles(latencies_ms: list[float]) -> dict[str, float]:
    values = np.percentile(latencies_ms, (50, 90, 99))
    return {f"p{p}_ms": round(float(v), 2) for p, v in zip((50, 90, 99), values, strict=True)}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
