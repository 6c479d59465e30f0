"""saccade inspect"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from saccade.cli._options import ModelOptions


def inspect(
    model: Path,
    /,
    *,
    how: ModelOptions | None = None,
    batch: tuple[int, ...] = (1,),
    toml: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Inputs, outputs, head and contract with reasons, cost, and which back ends can run a model.

    Exit code 1 if the contract is not clear or no back end can run the model. Of a bundle: what it
    is, the figures that let it through the gate, whether it fits this machine (1 if not), and
    every kernel of the engines of back end 'native' in it.

    Args:
        model: An ONNX file, a bundle, or an engine of back end 'native' (.native): each kernel,
            what it fuses, its time, its floor, its share.
        batch: Batch sizes for which peak activation memory is told.
        toml: Print only the contract, as a TOML file to edit and use with --contract.
        json: Print JSON.
    """
    from saccade.bundles import is_bundle
    from saccade.cli._show import print_json
    from saccade.pipeline.inspection import inspect_model

    how = how or ModelOptions()
    if model.suffix == ".native":
        return _inspect_native(model, json=json)
    if is_bundle(model):
        return _inspect_bundle(model, how, toml=toml, json=json)
    found = inspect_model(model, **how.contract_keys(), batches=batch)
    if toml:
        return _print_toml(found)
    if json:
        print_json(found.as_dict())
    else:
        _print(found)
    return 0 if found.contract is not None and found.is_supported else 1


def _inspect_bundle(folder: Path, how: ModelOptions, *, toml: bool, json: bool) -> int:
    from dataclasses import asdict

    import msgspec

    from saccade.bundles import fits, read_bundle
    from saccade.cli._show import print_json
    from saccade.errors import InputError

    if how != ModelOptions():
        raise InputError(
            "a bundle says by itself how it is fed, read and run; leave out the options of the "
            f"model, or inspect its network: {folder / 'model.onnx'}"
        )
    bundle = read_bundle(folder)
    mismatches = fits(bundle)
    is_fit = not any(mismatch.matters for mismatch in mismatches)
    if toml:
        print(bundle.contract_path.read_text("utf-8"), end="")
    elif json:
        told = [asdict(mismatch) for mismatch in mismatches]
        manifest = msgspec.to_builtins(bundle.manifest)
        about = {"bundle": str(folder), "fits": is_fit, "mismatches": told}
        print_json(about | manifest | {"native": _native_engines(bundle)})
    else:
        _print_bundle(bundle, mismatches)
        for target, found in _native_engines(bundle).items():
            print(f"\nengine {target}, kernel by kernel as measured when it was built")
            if "error" in found:
                print(found["error"])
            else:
                _print_kernels(found)
    return 0 if is_fit else 1


def _native_engines(bundle: Any) -> dict[str, Any]:
    """Of each engine of back end native: about it, and its kernels. Needs no GPU.

    Of one that another version wrote: why it cannot be read; the rest of the bundle can.
    """
    from saccade.errors import BuildError
    from saccade.native.listing import listed

    found: dict[str, Any] = {}
    for target, path in bundle.engine_paths.items():
        if bundle.manifest.engines[target].get("backend") == "native":
            try:
                found[target] = listed(path.read_bytes())
            except BuildError as exc:
                found[target] = {"error": str(exc)}
    return found


def _inspect_native(path: Path, *, json: bool) -> int:
    from saccade.cli._show import print_json
    from saccade.errors import InputError
    from saccade.native.listing import listed

    try:
        found = listed(path.read_bytes())
    except OSError as exc:
        raise InputError(
            f"{path} must be a native engine that can be read, it is not ({exc}); name another"
        ) from exc
    if json:
        print_json(found)
    else:
        _print_kernels(found)
    return 0


def _print_kernels(found: Any) -> None:
    from saccade.cli._show import print_table

    for name, value in found["about"].items():
        print(f"{name}: {value}")
    columns = ("kernel", "way", "result", "us", "floor", "x floor", "share", "fuses")
    rows = [
        (
            row["kind"], row["way"], "x".join(map(str, row["result"])), f"{row['us']:.2f}",
            f"{row['floor_us']:.2f}", f"{row['ratio']:.1f}", f"{row['share']:.1%}", row["fuses"],
        )
        for row in found["kernels"]
    ]  # fmt: skip
    print_table("", columns, rows)


def _print_bundle(bundle: Any, mismatches: Any) -> None:
    from saccade.cli._show import human_bytes, print_table

    manifest, plan = bundle.manifest, bundle.manifest.plan
    verdict, created = manifest.gate.get("verdict") or {}, manifest.created
    print(f"{bundle.path}: {created.get('verdict', '')}\n")
    options = ", ".join(f"{name}={value}" for name, value in plan.options)
    rows: list[tuple[object, ...]] = [
        ("model", f"{manifest.model['name']} (sha256 {manifest.model['digest'][:12]})"),
        ("licence", manifest.model.get("licence") or "not told by the model"),
        ("labels", ", ".join(manifest.model["labels"][:8]) or "unknown"),
        ("back end", f"{plan.backend} {plan.precision} on {plan.device}"),
        ("plan", f"batch {plan.batch}, {plan.streams} streams x {plan.threads} threads {options}"),
        ("pipeline", f"{manifest.workers} workers, scaled decode {manifest.scaled_decode}"),
        ("precision", " ".join(f"{k}={v}" for k, v in manifest.recipe.items() if v)),
        ("calibration", (manifest.calibration or {}).get("digest", "none")),
        ("built", f"{created.get('at')} with saccade {manifest.needs.saccade}"),
        ("judged by", f"{verdict.get('judged_by')} on {verdict.get('num_pictures')} pictures"),
    ]
    print_table("", ("bundle", ""), rows)
    print()
    _print_gate(verdict)
    rows = [(name, human_bytes(e.num_bytes), e.sha256[:12]) for name, e in manifest.files.items()]
    print_table("", ("file, whole", "size", "sha256"), rows)
    for target, engine in manifest.engines.items():
        run = (
            "run by the gate" if engine.get("is_verified") else "never run: no such card was there"
        )
        print(f"  engine for {target}: built by {engine.get('package')}, {run}")
    print()
    if not mismatches:
        print("fits this machine")
    for mismatch in mismatches:
        print(f"{'does not fit' if mismatch.matters else 'note'}: {mismatch}")
    if any(mismatch.matters for mismatch in mismatches):
        print(f"run: saccade build --from {bundle.path} -o NEW_FOLDER")


def _print_gate(verdict: Any) -> None:
    from saccade.cli._show import print_table

    drops = verdict.get("drops") or {}
    rows = [
        (
            name,
            _figure((verdict.get("reference") or {}).get(name)),
            _figure(value),
            _figure((drops.get(name) or {}).get("value")),
            " to ".join(_figure((drops.get(name) or {}).get(end)) for end in ("low", "high")),
        )
        for name, value in (verdict.get("metrics") or {}).items()
    ]
    columns = ("figure", "reference", "bundle", "drop", "95 % interval of the drop")
    print_table("", columns, rows)
    for reason in (*(verdict.get("reasons") or ()), *(verdict.get("warnings") or ())):
        print(f"  note: {reason['text']}")
    print()


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _print_toml(found: Any) -> int:
    from saccade.contracts import to_toml

    if found.contract is None:
        raise found.contract_error
    print(to_toml(found.contract), end="")
    return 0


def _print(found: Any) -> None:
    from saccade.cli._show import human_bytes, human_count, print_table

    model, cost = found.model, found.costs[0]
    print(f"{model.path}  (opset {model.opset}, sha256 {model.digest[:12]})\n")
    rows: list[tuple[object, ...]] = [
        ("input", s.name, s.dtype, _shape(s.shape)) for s in model.inputs
    ]
    rows += [("output", s.name, s.dtype, _shape(s.shape)) for s in found.outputs]
    print_table("", ("", "name", "dtype", "shape"), rows)
    print()
    if found.contract is None:
        print(f"contract: not clear\n  {found.contract_error}\n")
    else:
        _print_contract(found.contract)
    width_height = f"{found.size_hw[1]}x{found.size_hw[0]}"
    rows = [
        ("parameters", human_count(cost.num_parameters)),
        (f"multiply-adds per picture at {width_height}", human_count(cost.multiply_adds)),
        ("weights", human_bytes(cost.weight_bytes)),
    ]
    for one in found.costs:
        peak = human_bytes(one.peak_activation_bytes)
        rows.append((f"peak activations at batch {one.batch}", peak))
    print_table("", ("cost", ""), rows)
    print("  largest tensors alive at the peak: " + ", ".join(map(_tensor, cost.largest_tensors)))
    for note in cost.notes:
        print(f"  note: {note}")
    counts = sorted(cost.num_operators.items(), key=lambda pair: -pair[1])
    print("  operators: " + ", ".join(f"{name} {count}" for name, count in counts) + "\n")
    rows = [(n, "yes" if a.ok else "no", a.reason) for n, a in found.support.items()]
    print_table("", ("back end", "runs it", "version, or the reason"), rows)


def _print_contract(contract: Any) -> None:
    rule, head = contract.input, contract.head
    size = f"{rule.size_hw[1]}x{rule.size_hw[0]}"
    place = rule.resize if rule.resize == "stretch" else f"letterbox {rule.anchor}"
    pad = "" if rule.resize == "stretch" else f", pad {rule.pad_value:g}"
    classes = head.num_classes or "an unknown number of"
    print(f"contract ({contract.source})")
    print(
        f"  in:   {rule.color.upper()} {size}, {place}{pad}, {rule.interpolation}, "
        f"(x - {list(rule.mean)}) / {list(rule.std)}, {rule.dtype} {rule.layout.upper()}"
    )
    print(f"  head: {head.family}, {classes} classes, options {dict(head.options)}")
    detect, evaluate = contract.detect, contract.evaluate
    print(
        f"  keep: score > {detect.score:g}, IoU {detect.iou:g}, at most {detect.max_detections}; "
        f"for AP score > {evaluate.score:g}, IoU {evaluate.iou:g}"
    )
    if contract.labels:
        more = f" and {len(contract.labels) - 8} more" if len(contract.labels) > 8 else ""
        print(f"  labels: {', '.join(contract.labels[:8])}{more}")
    for reason in contract.reasons:
        print(f"  - {reason}")
    print()


def _shape(shape: tuple[int | str, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _tensor(tensor: Any) -> str:
    from saccade.cli._show import human_bytes

    return f"{tensor.name} {_shape(tensor.shape)} {human_bytes(tensor.num_bytes)}"
