"""saccade demo"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("out/demo"),
    pictures: int = 48,
    seed: int = 1,
    backend: str = "onnxruntime",
    bench_seconds: float = 12.0,
) -> int:
    """Find blood cells in pictures that the demo draws itself.

    Draws pictures of blood smears, so that it is known what is in them; finds the cells with the
    network that comes with saccade; writes detections and drawn pictures; says how many cells
    were found; and measures the speed against the bare engine. Needs no network and no data.

    Args:
        output: Folder for pictures and results; what an earlier demo left there is replaced.
        pictures: How many pictures.
        seed: Other seeds give other pictures.
        backend: Runtime; `saccade doctor` lists them.
        bench_seconds: About how long the speed is measured; 0 leaves it out.
    """
    import saccade
    from saccade.cli._show import progress
    from saccade.demo.run import CLASS_NAMES, draw_pictures, model_path, score
    from saccade.errors import InputError
    from saccade.pipeline.job import OutputOptions, detect_to_folder

    if pictures < 1:
        raise InputError(f"--pictures must be at least 1, got {pictures}")
    is_shown = sys.stderr.isatty()
    print(f"1. drawing {pictures} blood smears with known truth into {output / 'pictures'}")
    with progress("draw", pictures, not is_shown) as advance:
        truths = draw_pictures(output / "pictures", pictures, seed, lambda: advance(0))
    paths = [truth.path for truth in truths]
    found: list[Any] = []
    with saccade.load(model_path(), backend=backend, labels=CLASS_NAMES) as detector:
        print(f"2. finding cells with {detector!r}")
        with progress("detect", pictures, not is_shown) as advance:

            def on_result(result: Any) -> None:
                if result.error is not None:
                    raise result.error
                found.append(result.detections)
                advance(0)

            report = detect_to_folder(
                detector,
                paths,
                output,
                outputs=OutputOptions(formats=("coco", "jsonl"), is_drawn=True, overwrite=True),
                on_result=on_result,
            )
        print(
            f"   {report.summary.num_detections} cells in {report.wall_s:.1f} s, "
            f"{report.num_run / report.wall_s:.1f} pictures/s with drawing and writing"
        )
        for file in report.summary.files:
            print(f"   {file}")
        print(f"   {output / 'drawn'}/  the pictures with what was found")
        print("3. compared with what was drawn (a cell counts as found at IoU 0.5)")
        _print_found(score(truths, found))
        if bench_seconds > 0:
            print("4. speed, from JPEG files to final boxes")
            _print_speed(detector, paths, bench_seconds)
    return 0


def _print_found(classes: list[Any]) -> None:
    from saccade.cli._show import print_table

    rows = [
        (
            f"   {one.name}",
            one.num_drawn,
            f"{one.num_found / one.num_drawn:.1%}" if one.num_drawn else "-",
            one.num_detections,
            f"{one.num_right / one.num_detections:.1%}" if one.num_detections else "-",
        )
        for one in classes
    ]
    print_table("", ("   class", "drawn", "found", "detections", "right"), rows)


def _print_speed(detector: Any, paths: list[Path], seconds: float) -> None:
    from saccade.cli.bench import print_report
    from saccade.pipeline.benchmark import BenchOptions, benchmark
    from saccade.pipeline.sources import expand

    how = BenchOptions(seconds=seconds, rounds=3)
    print_report(benchmark(detector, list(expand(paths)), how=how))
