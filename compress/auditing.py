"""What `compress audit` finds and shows: how ONNX Runtime runs an exported model, against what was promised. Torch-free."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from compress.units import milliseconds, significant
from model.artifact import Artifact
from model.config import EncoderConfig
from model.errors import GateError, require
from serve.predictor import SINGLE, read_models

Findings = dict[str, Any]

USUAL = {"attention": "standard", "precision": "fp32"}  # of an artifact made before export had these options
SLOWEST = 12  # nodes that are shown unless all are asked for


def examine(artifact: Artifact, provider: str = "cpu", threads: int = 1) -> Findings:
    """Everything about the graph of an exported model, as JSON values; nodes' times are microseconds, one for each of `shapes`.

    Raises EnvironmentProblem without the extra `export` or where `provider` is not to be had.
    """
    require("export", "onnx", "onnxruntime")
    import onnxruntime

    from export import plan
    from export.audit import ATTENTION, as_written
    from export.profile_run import SHAPES, profile

    configs = read_models(artifact.path)
    config = configs[0]
    file = artifact.path / "model.onnx"
    exported = {name: artifact.manifest.options.get(name, "") or usual for name, usual in USUAL.items()}
    metrics = artifact.manifest.metrics
    promises = []
    for one, made in zip(configs, (metrics, *metrics.get("ensemble", ())), strict=True):
        folded, one_query = (bool(made.get(name)) for name in ("folded", "one_query"))
        promises.append(plan.plan_of(one, **exported, folded=folded, one_query=one_query))
    promised = plan.together(promises)
    audited, profiled = profile(file, vocabulary=config.vocabulary, longest=config.max_length, provider=provider, threads=threads)
    # The CPU takes fp16 apart, and only TensorRT runs its own int8 as integers.
    judged = as_written(file) if promised.elsewhere and (provider == "cpu" or promised.symmetric) else audited
    found = [*plan.problems(promised, judged, profiled, provider), *plan.elsewhere(promised, audited, provider)]
    single, alone = artifact.path / SINGLE, None
    if provider == "cpu" and single.is_file():
        ones = [shape for shape in SHAPES if shape[0] == 1]
        alone = profile(single, vocabulary=config.vocabulary, longest=config.max_length, shapes=ones, threads=threads)
        found += [problem for problem in plan.problems(promised, *alone) if problem not in found]
    modules = {linear.node: linear.name for linear in audited.linears}
    return {
        "artifact": str(artifact.path),
        "digest": artifact.digest,
        "onnxruntime": onnxruntime.__version__,
        "provider": profiled.provider,
        "threads": threads,
        "plan": asdict(promised),
        "problems": [asdict(problem) for problem in found],
        "counts": {
            "nodes": audited.nodes,
            "integer_linears": audited.integer,
            "float_linears": audited.float,
            "symmetric_linears": judged.symmetric,
            "fused_attention": audited.count(*ATTENTION),
            "layers": sum(len(one.layers) for one in configs if isinstance(one, EncoderConfig)),
            "casts": audited.casts,
            "copies": audited.copies,
            "fallen_back": len(profiled.fallen),
        },
        "single": alone and {"nodes": alone[0].nodes, "integer_linears": alone[0].integer, "run_ms": list(alone[1].runs)},
        "fusions": audited.fusions,
        "linears": [asdict(linear) for linear in audited.linears],
        "shapes": [
            {"batch": batch, "length": length, "run_ms": run} for (batch, length), run in zip(profiled.shapes, profiled.runs, strict=True)
        ],
        "nodes": [
            {**asdict(node), "module": modules.get(node.name, ""), "microseconds": list(node.microseconds)} for node in profiled.nodes
        ],
    }


def gate(found: Findings) -> None:
    """Raise GateError if a promise is broken; what else was found costs time, but was never promised."""
    if broken := [problem for problem in found["problems"] if problem["broken"]]:
        raise GateError(" ".join(problem["message"] for problem in broken), " ".join(dict.fromkeys(problem["hint"] for problem in broken)))


def show(found: Findings, every: bool = False) -> RenderableType:
    """Tables of operators and nodes (the slowest, or `every` one), then what was counted and what is wrong."""
    return Group(_operators(found), "", _nodes(found, every), "", *_lines(found))


def _operators(found: Findings) -> Table:
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for node in found["nodes"]:
        groups[node["operator"], node["precision"], node["provider"]].append(node)
    table = _table(found, "Operators", "operator", "computes in", "runs on", "nodes")
    rows = [
        (name, nodes, [sum(times) for times in zip(*(node["microseconds"] for node in nodes), strict=True)])
        for name, nodes in groups.items()
    ]
    for name, nodes, times in sorted(rows, key=lambda row: -row[2][0]):
        table.add_row(*name, str(len(nodes)), *map(_microseconds, times))
    totals = [sum(row[2][shape] for row in rows) for shape in range(len(found["shapes"]))]
    table.add_section()
    table.add_row("all nodes, profiled", "", "", str(len(found["nodes"])), *map(_microseconds, totals))
    table.add_row("a run, not profiled", "", "", "", *(milliseconds(shape["run_ms"]) for shape in found["shapes"]))
    return table


def _nodes(found: Findings, every: bool) -> Table:
    nodes = found["nodes"] if every else sorted(found["nodes"], key=lambda node: -node["microseconds"][0])[:SLOWEST]
    title = "Nodes, in the order in which they run" if every else f"The {len(nodes)} slowest nodes (--nodes shows all)"
    elsewhere = found["provider"] != "cpu"  # on a CPU everything runs there
    table = _table(found, title, "node", "operator", "computes in", *(["runs on"] if elsewhere else []))
    for node in nodes:
        place = [node["provider"]] if elsewhere else []
        times = map(_microseconds, node["microseconds"])
        table.add_row(node["module"] or node["name"], node["operator"], node["precision"], *place, *times)
    return table


def _table(found: Findings, title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold", justify="right" if name == "nodes" else "left")
    for shape in found["shapes"]:
        table.add_column(f"{shape['batch']}×{shape['length']}", justify="right", no_wrap=True)
    return table


def _lines(found: Findings) -> list[str]:
    counts, plan = found["counts"], found["plan"]
    linears = counts["integer_linears"] + counts["float_linears"]
    most = "" if plan["nodes"] is None else f" (at most {plan['nodes']} planned)"
    kept = [linear["name"] for linear in found["linears"] if not linear["stored"]]
    by_plan = f"; in float as planned: {', '.join(kept)}" if plan["integer"] and kept else ""
    lines = [
        f"ONNX Runtime {found['onnxruntime']}, {found['provider']}, threads {found['threads']}; times of texts × tokens, nodes in µs",
        f"{counts['nodes']} nodes{most}, casts: {counts['casts']}, copies between host and device: {counts['copies']}",
        f"{counts['integer_linears']} of {linears} linears run as integers ({plan['integer']} planned){by_plan}",
        *([f"{counts['symmetric_linears']} of {plan['symmetric']} quantized linears are as TensorRT takes them"] * bool(plan["symmetric"])),
        f"one node each: {', '.join(f'{name} × {count}' for name, count in found['fusions'].items()) or 'nothing'}",
    ]
    if found["provider"] != "cpu":
        fused = f"{counts['fused_attention']} of {counts['layers']} layers have fused attention"
        lines.append(f"{counts['fallen_back']} nodes fell back to the CPU; {fused}")
        lines.append("On a GPU a node's time is that of its launch; the whole runs tell what an answer takes.")
    if alone := found["single"]:
        shapes = zip([shape for shape in found["shapes"] if shape["batch"] == 1], alone["run_ms"], strict=True)
        runs = ", ".join(f"{shape['batch']}×{shape['length']} {milliseconds(run)}" for shape, run in shapes)
        lines.append(f"for one text at a time ({SINGLE}): {alone['nodes']} nodes, {alone['integer_linears']} integer linears; a run {runs}")
    lines += [f"{'✗' if problem['broken'] else '!'} {problem['message']} {problem['hint']}" for problem in found["problems"]]
    return lines if found["problems"] else [*lines, "✓ runs as planned"]


def _microseconds(value: float) -> str:
    return significant(value, 2 if value < 10 else 3)
