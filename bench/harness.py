"""Files on disk to final boxes: saccade and its peers, checked, then timed in turns.

    python -m bench.harness CASE [--contenders a,b] [--rounds 7] [-o FILE]

1. Each contender alone, in a process of its own: its answers are compared with the plain NumPy
   reference, and its memory is watched over one full round.
2. All that passed, each in its own process: A B C B C A C A B ... While one is timed, the
   processes of all others are stopped (or ended, where a contender cannot bear to be stopped).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import pkgutil
import sys
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil

import bench.contenders
from bench import bound, environment
from bench.agreement import Answers, check, count_boxes, unpack
from bench.cases import CASES, ROOT, WORK, Case
from bench.child import Child, ContenderError, watch_cpu, watch_memory

BASELINE = "saccade"
REFERENCE = "bench.reference"
NUM_WARM = 8
T = TypeVar("T")
MAX_BOX_DRIFT = 0.01


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    case = CASES[args.case]
    names = contenders_of(case, args.contenders)
    report = compare(case, names, rounds=args.rounds, num=args.pictures)
    target = args.output or ROOT / "bench" / "results" / "cpu" / f"{case.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(environment.without_paths(report), indent=1, ensure_ascii=False)
    target.write_text(text + "\n")
    for name, entry in report["contenders"].items():
        for word in ("refused", "error"):
            if word in entry:
                say(f"{name} {word}: {entry[word]}")
    own_refused = "refused" in report["contenders"].get(BASELINE, {})
    has_error = any("error" in entry for entry in report["contenders"].values())
    return 1 if own_refused or has_error else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.harness", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--contenders", help="names, separated by commas; default: all that apply")
    parser.add_argument("--rounds", type=int, default=7, help="0 checks the answers only")
    parser.add_argument("--pictures", type=int, help="pictures per round; default: the case's")
    parser.add_argument("-o", "--output", type=Path, help="default: bench/results/cpu/CASE.json")
    args = parser.parse_args(arguments)
    if args.rounds < 0 or (args.pictures is not None and args.pictures < 1):
        parser.error("--rounds must be 0 or more and --pictures 1 or more")
    return args


def contenders_of(case: Case, wanted: str | None) -> list[str]:
    """Names of the files to run, saccade's first; those that do not apply to the case are out."""
    files = sorted(module.name for module in pkgutil.iter_modules(bench.contenders.__path__))
    files.sort(key=lambda name: not name.startswith(BASELINE))
    names = wanted.split(",") if wanted else files
    unknown = [name for name in names if name not in files]
    if unknown:
        sys.exit(f"contenders are {', '.join(files)}; got {', '.join(unknown)}")
    fitting = []
    for name in names:
        cases = importlib.import_module(f"bench.contenders.{name}").CASES
        if cases is None or case.name in cases:
            fitting.append(name)
    return fitting


def compare(case: Case, names: list[str], *, rounds: int, num: int | None) -> dict[str, Any]:
    """The whole comparison; a contender that fails or is wrong is reported, not timed."""
    machine = environment.describe()
    paths = case.round_paths(num)
    unique = list(dict.fromkeys(paths))
    reference = reference_answers(case, unique)
    entries: dict[str, dict[str, Any]] = {}
    counts: dict[str, int] = {}
    for name in names:
        entries[name], answers = examine(case, name, paths, reference)
        if answers is not None:
            counts[name] = count_boxes(answers, paths)
    before = bound.measure(case) if rounds else None
    if rounds:
        time_all(case, entries, {"paths": paths, "counts": counts, "rounds": rounds})
        summarize(entries)
    return {
        "schema": 1,
        "case": case.name,
        "title": case.title,
        "model": {"file": case.model, "sha256": digest([case.model_path])},
        "thresholds": {"score": case.score, "iou": case.iou},
        "pictures": {
            "per_round": len(paths),
            "different": len(unique),
            "megabytes": round(sum(Path(path).stat().st_size for path in paths) / 1e6, 1),
            "sha256": digest(unique),
        },
        "rounds": rounds,
        "environment": machine,
        "bound": {"before": before, "after": bound.measure(case)} if rounds else None,
        "contenders": entries,
    }


def digest(paths: list[str]) -> str:
    """One hash over the contents of files, in order."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return whole.hexdigest()


def reference_answers(case: Case, paths: list[str]) -> Answers:
    say(f"{case.name}: reference over {len(paths)} pictures")
    child = Child("reference", REFERENCE, case.name)
    with contextlib.closing(child):
        child.wait_ready()
        return answers_of(child, paths)


def answers_of(child: Child, paths: list[str]) -> Answers:
    file = WORK / f"{child.name}.answers.json"
    child.ask("answer", paths=paths, file=str(file))
    return unpack(json.loads(file.read_text()))


def examine(
    case: Case, name: str, paths: list[str], reference: Answers
) -> tuple[dict[str, Any], Answers | None]:
    """Alone on the machine: versions, answers against the reference, peak memory.

    Returns:
        What is known of the contender, and its answers, or None if it may not be timed.
    """
    module = importlib.import_module(f"bench.contenders.{name}")
    entry: dict[str, Any] = {"label": module.LABEL, "note": module.NOTE}
    answers = None
    try:
        child = Child(name, module.__name__, case.name)
        with contextlib.closing(child), watch_memory(child) as seen:
            child.wait_ready()
            entry["versions"] = child.ask("versions")["versions"]
            answers = answers_of(child, list(reference))
            entry["check"] = check(case, module.CHECK, reference, answers)
            if entry["check"]["passed"]:
                child.ask("warm", paths=paths)
        entry["peak_mib"] = round(seen["peak_bytes"] / 2**20)
    except ContenderError as exc:
        entry["error"] = str(exc)
        answers = None
    if "check" in entry:
        shown = {k: v for k, v in entry["check"].items() if k in ("agreement", "ap", "passed")}
        say(f"{name}: {shown}, peak {entry.get('peak_mib')} MiB")
        if not entry["check"]["passed"]:
            entry["refused"] = "its answers are wrong, so it has no speed"
            answers = None
    return entry, answers


def time_all(case: Case, entries: dict[str, dict[str, Any]], job: dict[str, Any]) -> None:
    """Rounds in turns over all contenders that passed; fills entry["rounds"].

    Each round begins with another contender: whoever follows one that has to be ended (its
    processes may still be giving back their memory) would else be the same every time.
    """
    held: dict[str, Child] = {}
    try:
        for index in range(job["rounds"]):
            for name, entry in rotated(list(entries.items()), index):
                if not may_be_timed(entry):
                    continue
                try:
                    child = held[name] if name in held else start(case, name)
                    held[name] = child
                    result = time_one(child, job["paths"], job["counts"][name])
                except ContenderError as exc:
                    entry["error"] = str(exc)
                    continue
                finally:
                    if name in held and not held[name].rest():
                        held.pop(name).close()
                entry.setdefault("rounds", []).append(result)
                say(f"round {index + 1}: {name} {result['rate']:.1f} pictures/s")
    finally:
        for child in held.values():
            child.close()


def rotated(values: list[T], by: int) -> list[T]:
    """The same values in the same circular order, beginning `by` places later."""
    first = by % len(values) if values else 0
    return values[first:] + values[:first]


def start(case: Case, name: str) -> Child:
    """A child that is ready.

    Raises:
        ContenderError: Its setup failed.
    """
    child = Child(name, f"bench.contenders.{name}", case.name)
    try:
        child.wait_ready()
    except ContenderError:
        child.close()
        raise
    return child


def may_be_timed(entry: dict[str, Any]) -> bool:
    return "error" not in entry and "refused" not in entry


def time_one(child: Child, paths: list[str], num_boxes: int) -> dict[str, Any]:
    """One round of one contender; the others are held.

    Raises:
        ContenderError: It failed, or answered otherwise than when it was checked.
    """
    child.release()
    child.ask("warm", paths=paths[:NUM_WARM])
    machine_s = machine_cpu_s()
    with watch_cpu(child) as seen:
        result = child.ask("round", paths=paths)
    own_s = seen["cpu_s"]
    others_s = machine_cpu_s() - machine_s - own_s
    if result["num_pictures"] != len(paths):
        raise ContenderError(f"{result['num_pictures']} answers for {len(paths)} pictures")
    if abs(result["num_boxes"] - num_boxes) > MAX_BOX_DRIFT * num_boxes:
        raise ContenderError(f"{result['num_boxes']} boxes, {num_boxes} when it was checked")
    rate = len(paths) / (result["wall_s"] - result.get("start_up_s", 0.0))
    return {
        **result,
        "rate": rate,
        "cpu_s": round(own_s, 3),
        "cpu_ms_per_picture": round(1000 * own_s / len(paths), 3),
        "other_cpu_s": round(max(0.0, others_s), 3),
    }


def machine_cpu_s() -> float:
    """Seconds that all cores have been busy since the machine started."""
    times = psutil.cpu_times()
    return float(
        times.user + times.system + getattr(times, "irq", 0) + getattr(times, "softirq", 0)
    )


def summarize(entries: dict[str, dict[str, Any]]) -> None:
    """Median, least and most over the rounds; ratio to saccade within the same round."""
    baseline = entries.get(BASELINE, {}).get("rounds", [])
    for entry in entries.values():
        if not may_be_timed(entry):
            continue
        rounds = entry["rounds"]
        entry["rate"] = spread([row["rate"] for row in rounds])
        entry["cpu_ms_per_picture"] = spread([row["cpu_ms_per_picture"] for row in rounds])
        if len(baseline) == len(rounds):
            pairs = zip(rounds, baseline, strict=True)
            entry["ratio_to_saccade"] = spread([a["rate"] / b["rate"] for a, b in pairs])


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
