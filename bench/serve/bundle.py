"""How much more is served with the bundle that `build` chose than with the model as it came.

    python -m bench.serve.bundle [--bundle FOLDER] [--budget 280s] [--rounds 2] [-o FILE]

cells_640. Without --bundle one is built first, as bench/builds.py does, on the labelled pictures of
BCCD. The bundle's answers are judged by average precision, as its gate did: other precisions give
other last digits, so agreement box by box is not asked for. Everything else is as in the harness.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

from bench import environment
from bench.builds import BCCD
from bench.cases import ROOT, WORK
from bench.serve.cases import CASES
from bench.serve.contenders import saccade
from bench.serve.harness import Comparison, Contender, say
from bench.serve.server import Launch, free_port

CASE = CASES["cells_640"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve.bundle", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--bundle", type=Path, help="default: one is built")
    parser.add_argument("--budget", default="280s", help="of that build")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args(arguments)
    folder = args.bundle or build(args.budget)
    comparison = Comparison(CASE, ["saccade"], args)
    served = Contender(CASE, "saccade_bundle", comparison.jpegs, served_bundle(folder))
    comparison.contenders.append(served)
    report = comparison.run()
    manifest = json.loads((folder / "manifest.json").read_text())
    report["plan"], report["recipe"] = manifest["plan"], manifest["recipe"]
    report = environment.without_paths(report)
    target = args.output or ROOT / "bench" / "results" / "serve" / "bundle.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return 1 if any("error" in entry for entry in report["contenders"].values()) else 0


def build(budget: str) -> Path:
    """Have `saccade build` choose a bundle."""
    folder = WORK / "serve" / "bundle"
    shutil.rmtree(folder.with_name("bundle.build"), ignore_errors=True)  # of a build that broke off
    say(f"building a bundle within {budget}")
    command = [sys.executable, "-m", "saccade", "build", CASE.model_path, "-o", str(folder)]
    command += ["--data", str(BCCD / "annotations" / "test.json")]
    command += ["--calibration-data", str(BCCD / "annotations" / "train.json")]
    for name in ("--images", "--calibration-images"):
        command += [name, str(BCCD / "images")]
    command += ["--max-drop", "AP=0.005", "--budget", budget, "--overwrite", "--quiet"]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def served_bundle(folder: Path) -> Any:
    """A contender that serves the bundle under the model's name; the rest is as for the model."""
    module = types.SimpleNamespace(**vars(saccade))
    module.LABEL = "saccade serve, the bundle"
    module.NOTE = "what build chose, as it comes"
    module.RULE = "ap"

    def launch(case: Any, port: int, work: Path) -> Launch:
        del work
        grpc_port = free_port()
        name = Path(case.model).stem
        argv = [sys.executable, "-m", "saccade", "serve", f"{name}={folder}"]
        argv += ["--port", str(port), "--grpc-port", str(grpc_port)]
        return Launch(argv, {}, {"grpc": grpc_port})

    module.launch = launch
    return module


if __name__ == "__main__":
    sys.exit(main())
