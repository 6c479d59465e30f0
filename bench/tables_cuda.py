"""The tables of docs/performance/cuda-path.md, from what stands in bench/results/h200.

`cuda_path.json` is from `python -m bench.cuda_path run`, `bench.cuda_ultralytics` and
`bench.cuda_devices`; `cuda_decoding.json` holds runs of `bench.cuda_decoding`; `cuda_kernels.json`
is from `bench.cuda_kernels`; `cuda_jitter.json` is `parts` of `bench.cuda_path`, in turns with the
driver told to spin; `cuda_path_decoding.json` is of the second round, whose variants are
not in the code any more. `cuda_calls.json` is from `bench.cuda_calls`, `cuda_engines.json` and
`cuda_soak.json` are sections of `bench.cuda_path`, `gpu_tests.json` is from `bench.gpu_tests`,
`cuda_bench.json` from `saccade bench --device cuda:0`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from bench.cases import ROOT
from bench.markdown import NO_RESULT, markdown

FOLDER = ROOT / "bench" / "results" / "h200"
NO_PIPELINE = 1

Row = dict[str, Any]


def cuda_tables() -> dict[str, str]:
    """Each mark's name and its table."""
    makers: dict[str, Callable[[], str]] = {
        "machine": machine,
        "bars": bars,
        "path": rates,
        "memory": memory,
        "large": large,
        "others": others,
        "latency": latency,
        "calls": calls,
        "engines": engines,
        "soak": soak,
        "parts": parts,
        "jitter": jitter,
        "ultralytics": ultralytics,
        "devices": devices,
        "queues": queues,
        "kernels": kernels,
        "decoders": decoders,
        "variants": variants,
    }
    return {f"cuda-{name}": f"\n{make()}\n" for name, make in makers.items()}


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def section(name: str) -> list[Row]:
    found: list[Row] = read("cuda_path.json")["sections"].get(name, [])
    return found


def machine() -> str:
    facts = read("cuda_path.json")["environment"]
    driver = facts["smi"].splitlines()[1].split(", ")[1]
    return (
        f"{facts['gpu']}, driver {driver}, torch {facts['torch']}, Python {facts['python']}, 16 "
        "cores of the host\n"
    )


def number(value: float) -> str:
    return f"{value:,.0f}"


def engine_of(row: Row) -> str:
    way = row["compile"] if row["input"] == "plan" else f"{row['compile']}, channels last"
    return f"{way}, batch {row['batch']}"


def per_s(row: Row) -> float:
    return float(row["batch"] / row["engine_us"] * 1e6)


def spread(rounds: list[Row]) -> str:
    found = sorted(row["pictures_per_s"] for row in rounds)
    return f"{number(found[0])} to {number(found[-1])}"


def rates() -> str:
    head = ["engine", "slots", "bare engine", "JPEG to boxes", "least to most", "of the engine"]
    lines = [[*head, "card busy", "nvJPEG's call, ms", "AP", "agreement"]]
    rows = section("rates") + section("best")
    for row in rows:
        middle = row["sustained"]["median"]
        lines.append(
            [
                engine_of(row),
                str(row["slots"]),
                number(per_s(row)),
                f"**{number(middle['pictures_per_s'])}**",
                spread(row["sustained"]["rounds"]),
                f"**{middle['pictures_per_s'] / per_s(row):.3f}**",
                f"{middle['gpu_busy']:.1%}",
                f"{middle['decoding_us'] / 1000:.2f}",
                f"{row['ap']:.4f}",
                f"{row['agreement']:.3f}",
            ]
        )
    reserved = sum(r["allocations"] for row in rows for r in row["sustained"]["rounds"])
    lost = sum(r["device_bytes_lost"] for row in rows for r in row["sustained"]["rounds"])
    pictures = sum(r["batches"] * row["batch"] for row in rows for r in row["sustained"]["rounds"])
    return (
        f"{markdown(lines)}\nPictures per second, medians of three rounds. In these {pictures:,} "
        f"pictures {reserved} blocks were reserved on the device or pinned, and {lost} bytes of "
        "the device's memory were lost.\n"
    )


def bars() -> str:
    """Each number that was asked for beside what was found."""
    runs = section("rates") + section("best")
    shares = [row["sustained"]["median"]["pictures_per_s"] / per_s(row) for row in runs]
    rates = [row["sustained"]["median"]["pictures_per_s"] for row in runs]
    (fast,) = section("best")
    own = fast["sustained"]["median"]["pictures_per_s"]
    times = [own / row["pictures_per_s"] for row in section("ultralytics")]
    hd = [
        turn["pictures_per_s"] / turn["nvjpeg_pictures_per_s"]
        for row in section("full_hd")
        for turn in row["rounds"]
    ]
    frame = next(row for row in read("cuda_calls.json")["rows"] if row["backend"] == "torch")
    call, (jpeg,) = frame["product"], section("latency")
    bench = read("cuda_bench.json")
    taken = [r["allocations"] for row in runs for r in row["sustained"]["rounds"]]
    aps = [row["ap"] for row in (*runs, frame)]
    agreements = [row["agreement"] for row in (*runs, frame)]
    return markdown(
        [
            ["what", "asked for", "found"],
            ["bare engine, best batch, pictures/s", "10,000", number(max(map(per_s, runs)))],
            [
                "JPEG to boxes, of the bare engine",
                "0.85",
                f"{min(shares):.3f} to {max(shares):.3f}",
            ],
            ["JPEG to boxes, pictures/s", "8,500", f"{number(min(rates))} to {number(max(rates))}"],
            [
                "the same by `saccade bench`, files by name",
                "0.85",
                f"{bench['of_engine']:.3f}, {number(bench['overlapped_median_per_s'])} pictures/s",
            ],
            [
                "the same, over Ultralytics",
                "12 times",
                f"{min(times):.1f} to {max(times):.1f} times",
            ],
            ["1080p, of nvJPEG", "0.90", f"{min(hd):.3f} to {max(hd):.3f}"],
            ["frame in pinned memory, p50", "1.0 ms", f"{call['p50_us'] / 1000:.3f} ms"],
            ["the same, p99 over p50", "1.1", f"{call['p99_us'] / call['p50_us']:.3f}"],
            ["JPEG, p50", "1.5 ms", f"{jpeg['jpeg']['p50_ms']:.3f} ms"],
            ["allocations in the steady state", "0", str(sum(taken))],
            ["AP, .579 within .003", "0.576 to 0.582", f"{min(aps):.4f} to {max(aps):.4f}"],
            ["AP of agreement with the CPU in FP32", "0.97", f"{min(agreements):.3f}"],
            ["two GPUs, times one", "1.9", two_gpus()],
        ]
    )


def two_gpus() -> str:
    report = read("cuda_devices.json")
    alone = statistics.mean(statistics.median(one) for one in report["processes"]["alone"])
    found = [f"{statistics.median(report['processes']['both']) / alone:.2f} (paths)"]
    if "jobs" in report:
        *each, both = (job["pictures_per_s"] for job in report["jobs"])
        found.append(f"{both / statistics.mean(each):.2f} (`saccade.run` by name)")
    return ", ".join(found)


def memory() -> str:
    lines = [["slots", "told before, MiB", "measured, MiB"]]
    lines += [
        [
            f"{row['slots']}, batch {row['batch']}",
            f"{row['memory_bytes']['slots and suppression, device'] / 2**20:.1f}",
            f"{row['memory_measured_bytes'] / 2**20:.1f}",
        ]
        for row in section("rates") + section("best")
    ]
    return (
        f"{markdown(lines)}\nA path without its engine, at 1 MiB per picture; measured: by the "
        "driver's count, code, graphs and nvJPEG's own included.\n"
    )


def large() -> str:
    lines = [["round", "nvJPEG alone", "JPEG to boxes", "of nvJPEG", "card busy"]]
    rows = section("full_hd")
    for row in rows:
        for num, turn in enumerate(row["rounds"], start=1):
            lines.append(
                [
                    str(num),
                    number(turn["nvjpeg_pictures_per_s"]),
                    number(turn["pictures_per_s"]),
                    f"**{turn['pictures_per_s'] / turn['nvjpeg_pictures_per_s']:.3f}**",
                    f"{turn['gpu_busy']:.1%}",
                ]
            )
    size = rows[0]["bytes_per_picture"] / 1000
    return (
        f"{markdown(lines)}\n1920 x 1080, {size:.0f} KB each, {engine_of(rows[0])}; turn by turn.\n"
    )


def others() -> str:
    head = ["model", "bare engine", "JPEG to boxes", "of the engine", "card busy"]
    lines = [[*head, "nvJPEG's call, ms", "agreement (boxes)"]]
    for row in section("others"):
        middle = row["sustained"]["median"]
        lines.append(
            [
                row["model"],
                number(per_s(row)),
                number(middle["pictures_per_s"]),
                f"{middle['pictures_per_s'] / per_s(row):.3f}",
                f"{middle['gpu_busy']:.1%}",
                f"{middle['decoding_us'] / 1000:.2f}",
                f"{row['agreement']:.3f} ({row['reference_boxes']})",
            ]
        )
    return f"{markdown(lines)}\nFP16, inductor, batch 32, pictures of COCO.\n"


def latency() -> str:
    (row,) = section("latency")
    quantiles = ("p50", "p90", "p99", "p99.9")
    lines = [["one picture", "calls", *quantiles, "p99 / p50", "of it graph, p50 / p99"]]
    names = {
        "pinned_frame": "frame in pinned memory",
        "frame": "frame",
        "jpeg": "JPEG",
        "no garbage collection": "frame in pinned memory, garbage collector off",
        "a loop without any work": "a loop without any work",
    }
    for key, name in names.items():
        found = row[key]
        has_graph = "gpu_p50_ms" in found
        lines.append(
            [
                name,
                number(found["calls"]) if "calls" in found else "5,000",
                *(f"{found[f'{q}_ms']:.3f}" for q in quantiles),
                f"{found['p99_ms'] / found['p50_ms']:.2f}",
                f"{found['gpu_p50_ms']:.3f} / {found['gpu_p99_ms']:.3f}"
                if has_graph
                else NO_RESULT,
            ]
        )
    return (
        f"{markdown(lines)}\nMilliseconds. Bare engine {row['engine_us'] / 1000:.3f}. AP "
        f"{row['ap']:.4f}, agreement {row['agreement']:.3f}.\n"
    )


def calls() -> str:
    """Each way to make the same call; of three turns the middle one, and the worst quotient."""
    lines = [["engine", "way", "p50, us", "p99, us", "p99 / p50, worst of three turns"]]
    notes = []
    for row in read("cuda_calls.json")["rows"]:
        name = row["backend"]
        for way, turns in row["ways"].items():
            middle = sorted(turns, key=lambda turn: turn["p50_us"])[len(turns) // 2]
            worst = max(turn["p99_us"] / turn["p50_us"] for turn in turns)
            lines.append(
                [name, way, f"{middle['p50_us']:.0f}", f"{middle['p99_us']:.0f}", f"{worst:.3f}"]
            )
        product, graph = row["product"], row["graph"]
        lines.append(
            [
                name,
                "**the product, 20,000 calls**",
                f"**{product['p50_us']:.0f}**",
                f"**{product['p99_us']:.0f}**",
                f"**{product['p99_us'] / product['p50_us']:.3f}**",
            ]
        )
        notes.append(
            f"{name}: engine {row['engine_us']:.0f} us, graph {graph['gpu_p50_ms'] * 1000:.0f} / "
            f"{graph['gpu_p99_ms'] * 1000:.0f} us (p50 / p99), p99.9 of the product "
            f"{product['p99.9_us']:.0f} us, AP {row['ap']:.4f}, agreement {row['agreement']:.3f}"
        )
    return f"{markdown(lines)}\n{'; '.join(notes)}.\n"


def engines() -> str:
    head = ["engine", "batch", "bare engine", "JPEG to boxes", "of the engine", "AP", "agreement"]
    lines = [head]
    for row in read("cuda_engines.json")["sections"]["engines"]:
        how = row["layout"] if "layout" in row else f"{row['compile']}, from {row['from']}"
        rate = row["sustained"]["median"]["pictures_per_s"]
        lines.append(
            [
                f"{row['backend']}, {how}",
                str(row["batch"]),
                number(per_s(row)),
                number(rate),
                f"{rate / per_s(row):.3f}",
                f"{row['ap']:.4f}",
                f"{row['agreement']:.3f}",
            ]
        )
    facts = read("cuda_engines.json")["environment"]
    return f"{markdown(lines)}\nPictures per second; ONNX Runtime {facts['onnxruntime']}.\n"


def soak() -> str:
    if not (FOLDER / "cuda_soak.json").is_file():
        return "Not measured yet.\n"
    (row,) = read("cuda_soak.json")["sections"]["soak"]
    samples = row["samples"]
    names = {
        "host_bytes": "host, resident, MiB",
        "torch_reserved_bytes": "reserved by torch, MiB",
        "torch_blocks": "blocks reserved by torch",
        "nvjpeg_bytes": "held by nvJPEG, MiB",
        "nvml_own_bytes": "of this process by NVML, MiB",
        "nvml_used_bytes": "of the card by NVML, MiB",
        "allocations": "blocks reserved by the path since it was warm",
    }
    lines = [["memory", "first", "least", "most", "last"]]
    for key, name in names.items():
        values = [sample[key] for sample in samples if sample.get(key) is not None]
        if not values:
            continue
        scale = 2**20 if key.endswith("bytes") else 1
        shown = (values[0], min(values), max(values), values[-1])
        lines.append([name, *(f"{value / scale:,.0f}" for value in shown)])
    beside = f"; beside it: {row['neighbours']}" if row.get("neighbours") else ""
    return (
        f"{markdown(lines)}\n{row['seconds']:.0f} seconds, {samples[-1]['pictures']:,} pictures, "
        f"{len(samples)} looks{beside}.\n"
    )


def parts() -> str:
    """Predicted and measured memory of whole jobs."""
    lines = [["job", "predicted, MiB", "measured, MiB", "quotient"]]
    for row in read("gpu_tests.json")["memory"]:
        told, seen = row["mib_predicted_measured"]["sum"]
        options = f", {row['options'].replace(',', ', ')}" if row["options"] else ""
        name = row["model"].removesuffix(".onnx")
        what = f"{name}, {row['backend']} {row['precision']}, batch {row['batch']}{options}"
        lines.append([what, number(told), number(seen), f"{told / seen:.2f}"])
    return markdown(lines)


def jitter() -> str:
    report = read("cuda_jitter.json")
    spans = ("all", "launching", "gpu", "rest", "reading", "fixed work")
    lines = [["us, p50 / p99", *(span.replace("gpu", "the graph") for span in spans)]]
    for name, row in report.items():
        lines.append([name, *(f"{row[span][0]:.0f} / {row[span][2]:.0f}" for span in spans)])
    together = [row["correlation"] for row in report.values()]
    return (
        f"{markdown(lines)}\nRest: waiting beyond the graph. Fixed work: a loop in Python that has "
        f"nothing to do with the path, after each call; its time and the host's part of the call "
        f"correlate by {min(together):.2f} to {max(together):.2f}.\n"
    )


def ultralytics() -> str:
    rows = section("ultralytics")
    (ours,) = section("best")
    own = ours["sustained"]["median"]["pictures_per_s"]
    head = ["from", "network's input", "pictures/s", "least to most", "boxes per picture"]
    lines = [[*head, "saccade, JPEG to boxes"]]
    lines += [
        [
            row["source"],
            f"{row['size_hw'][1]} x {row['size_hw'][0]}",
            number(row["pictures_per_s"]),
            f"{number(row['least'])} to {number(row['most'])}",
            f"{row['boxes_per_picture']:.0f}",
            f"**{own / row['pictures_per_s']:.1f} times**",
        ]
        for row in rows
    ]
    return (
        f"{markdown(lines)}\nUltralytics {rows[0]['version']}, YOLOv8n, FP16, batch "
        f"{rows[0]['batch']}; saccade in the same run: cells_640 at 640 x 640, {engine_of(ours)}, "
        f"{number(own)}.\n"
    )


def devices() -> str:
    if not (FOLDER / "cuda_devices.json").is_file():
        return "Not measured yet.\n"
    report = read("cuda_devices.json")
    alone = [statistics.median(rates) for rates in report["processes"]["alone"]]
    both = statistics.median(report["processes"]["both"])
    lines = [["", "one GPU", "two GPUs", "times"]]
    mean = statistics.mean(alone)
    lines.append(
        ["a path in a process for each", number(mean), number(both), f"**{both / mean:.2f}**"]
    )
    if "jobs" in report:
        *alone, two = (job["pictures_per_s"] for job in report["jobs"])
        one = statistics.mean(alone)
        name = "`saccade.run`, files by name, results in order"
        lines.append([name, number(one), number(two), f"{two / one:.2f}"])
    return f"{markdown(lines)}\nPictures per second; one GPU: the mean of both, each alone.\n"


def queues() -> str:
    head = ["driver started by", "queues", "nvJPEG", "batch", "alone", "beside the network"]
    lines = [[*head, "call alone / beside, ms", "network beside it"]]
    for one in read("cuda_decoding.json")["sessions"]:
        for row in one["rows"]:
            is_alone_in_turn = row["flags"] & NO_PIPELINE
            lines.append(
                [
                    one.get("first", "saccade"),
                    one["given_connections"] or "8 (set too late)",
                    ", ".join(
                        [
                            row.get("output", "RGB").lower().replace("rgb", "RGB"),
                            *(["chroma interpolated"] if row["flags"] & 32 else []),
                            *(["no pipeline"] if is_alone_in_turn else []),
                        ]
                    ),
                    str(row["batch"]),
                    number(row["alone"]["pictures_per_s"]),
                    number(row["beside"]["pictures_per_s"]),
                    f"{row['alone']['call_us'] / 1000:.2f} / {row['beside']['call_us'] / 1000:.2f}",
                    number(row["network_pictures_per_s"]),
                ]
            )
    unique = list(dict.fromkeys(map(tuple, lines)))
    return (
        f"{markdown([list(line) for line in unique])}\nPictures per second. The network is "
        "cells_640 at batch 32, two inferences always in flight: inductor, eager where torch "
        "started the driver.\n"
    )


def kernels() -> str:
    report = read("cuda_kernels.json")
    lines = [["kernel", "batch", "floor, us", "measured, us", "times the floor"]]
    chosen = [r for r in report["prepare"] if (r["rows"], r["min_blocks"]) == (2, 4)]
    lines += [
        timed_line(f"prepare, {row['source'].replace('x', ' x ')}, {row['dtype']}", row)
        for row in chosen
    ]
    names = {"detect": "for looking", "evaluate": "for AP"}
    lines += [
        timed_line(f"suppression, thresholds {names[row['thresholds']]}", row)
        for row in report["suppress"]
    ]
    copy = report["copy_bytes_per_s"] / 1e12
    return f"{markdown(lines)}\nFloor: bytes at {copy:.2f} TB/s, what a kernel copies.\n"


def timed_line(name: str, row: Row) -> list[str]:
    times = row["us"] / row["floor_us"]
    return [
        name,
        str(row["batch"]),
        f"{row['floor_us']:.1f}",
        f"{row['us']:.1f}",
        f"{times:.1f}" if row["floor_us"] >= 1 else NO_RESULT,
    ]


def decoders() -> str:
    report = read("cuda_kernels.json")
    lines = [["who decodes", "batch", "pictures/s"]]
    who = {"HARDWARE": "nvJPEG, the card's JPEG engine", "CORES": "nvJPEG, the card's cores"}
    lines += [
        [who[row["engine"]], str(row["batch"]), number(row["pictures_per_s"])]
        for row in report["decode"]
        if row.get("decoders") == 1 and "pictures_per_s" in row
    ]
    lines += [
        ["torchvision's decode_jpeg", str(row["batch"]), number(row["pictures_per_s"])]
        for row in report["torchvision"]
    ]
    return markdown(lines)


def variants() -> str:
    report = read("cuda_path_decoding.json")
    head = ["variant", "slots", "pictures/s", "least", "of the engine", "nvJPEG's call, ms"]
    lines = [[*head, "card busy", "agreement"]]
    engine = report["batch"] / report["engine_us"] * 1e6
    for row in report["variants"]:
        if "sustained" not in row:
            lines.append([row["name"], str(row.get("slots", NO_RESULT)), *["refused"] * 6])
            continue
        middle = row["sustained"]["median"]
        lines.append(
            [
                row["name"],
                str(row["slots"]),
                number(middle["pictures_per_s"]),
                number(min(r["pictures_per_s"] for r in row["sustained"]["rounds"])),
                f"{middle['pictures_per_s'] / engine:.3f}",
                f"{middle['decoding_us_per_batch'] / 1000:.2f}",
                f"{middle['gpu_busy']:.0%}",
                f"{row['agreement']:.3f}",
            ]
        )
    return f"{markdown(lines)}\nEngine {number(engine)} pictures/s.\n"
