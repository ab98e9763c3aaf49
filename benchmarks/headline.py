"""The headline: students against their teacher in PyTorch and in ONNX Runtime; speed and share of its accuracy, in one run a set.

    compress run headline-sst2 --out runs/headline-sst2
    python benchmarks/headline.py sst2 --json benchmarks/headline.json --picture docs/headline.svg

RUNS/headline-SET holds the teacher and its exported students; each student is a row. Latency is text → answer, one text at a time on one
thread. The share is the ratio of the accuracies over the same texts, its interval a paired bootstrap over them.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from compress.benchmarking import Plan, benchmark
from compress.builtin import SETS
from compress.charts import front
from compress.config import ExportOptions
from compress.data import Data, load_data
from compress.progress import bar, say
from compress.sources import open_source
from compress.stage import STAGES, run_stage
from compress.statistics import Floats, bootstrap
from compress.ways import Way, facts_of, precision_of
from model.artifact import Artifact, open_artifact, read_manifest
from model.errors import ArtifactError, ConfigError
from serve.predictor import open_predictor, scores

PARTS = {"sst2": ("validation", "test")}  # both are evaluation parts of its source; elsewhere the test part alone is read
EAGER, ORT = "teacher-eager", "teacher-ort"
FULL, QUICK = Plan(texts=150, rounds=11), Plan(texts=60, rounds=5)


def students(folder: Path) -> list[Artifact]:
    """The exported artifacts in `folder`, by name, without the teacher's own export; raises ArtifactError if there is none."""
    found = [
        path.parent
        for path in sorted(folder.glob("*/manifest.json"))
        if read_manifest(path.parent).kind == "onnx" and path.parent.name != ORT
    ]
    if not found or not (folder / "teacher").is_dir():
        raise ArtifactError(
            f"{folder} holds no teacher with an exported student.", f"Make them: compress run {folder.name} --out {folder}."
        )
    return [open_artifact(path, "onnx") for path in found]


def evaluated(data: Data, parts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Texts and class numbers of the parts that are measured on, one after the other."""
    return [text for part in parts for text in data.splits[part]["text"]], [row for part in parts for row in data.splits[part]["label"]]


def share(student: Floats, teacher: Floats) -> Floats:
    """[k, n] of what either got right → [k], the ratio of their accuracies."""
    ratio: Floats = student.mean(axis=1) / teacher.mean(axis=1)
    return ratio


def ort_way(artifact: Artifact, name: str) -> Way:
    """An exported artifact under ONNX Runtime, on one thread."""
    arguments = {"path": str(artifact.path), "threads": 1}
    return Way(name, name, "ort", "cpu", precision_of(artifact.manifest), "graph", "serve.predictor:open_predictor", arguments)


def measure(name: str, folder: Path, data: Data, plan: Plan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One set: what was measured on, and a row for each student."""
    exported = run_stage(
        STAGES["export"], ExportOptions(), {"model": open_source(str(folder / "teacher"), "torch")}, None, folder / ORT
    ).path
    eager = {"path": str(folder / "teacher"), "threads": 1, "engine": "transformers"}
    artifacts = students(folder)
    ways = [
        Way(EAGER, "teacher", "transformers", "cpu", "fp32", "eager", "export.torch_predictor:open_torch_predictor", eager),
        ort_way(open_artifact(exported), ORT),
        *(ort_way(artifact, artifact.path.name) for artifact in artifacts),
    ]
    sizes = {artifact.path.name: facts_of(artifact)["bytes"] for artifact in artifacts}
    texts, labels = evaluated(data, PARTS.get(name, ("test",)))
    with bar(f"measuring {name}") as progress:
        measured = benchmark(ways, texts, labels, data.labels, None, plan, [EAGER, ORT], progress)
    speedups = {(one["baseline"], one["model"]): (one["speedup"], one["speedup_interval"]) for one in measured["comparisons"]}
    models = {model["name"]: model for model in measured["models"]}
    right = {
        path.name: scores(open_predictor(path), texts).argmax(1) == np.array(labels) for path in (exported, *(a.path for a in artifacts))
    }
    accuracy = models[EAGER]["quality"]["accuracy"]
    rows = []
    for found in models.values():
        student = found["name"]
        if student in (EAGER, ORT):
            continue
        interval = bootstrap(share, right[student], right[ORT], seed=plan.seed)
        torch, ort = speedups[EAGER, student], speedups[ORT, student]
        rows.append(
            {
                "data": name,
                "student": student,
                "speedup_torch": torch[0],
                "speedup_torch_interval": torch[1],
                "speedup_ort": ort[0],
                "speedup_ort_interval": ort[1],
                "share_of_teacher": found["quality"]["accuracy"] / accuracy,
                "interval": interval,
                "bytes": sizes[student],
                "accuracy": found["quality"]["accuracy"],
                "latency_ms": found["latency_ms"]["median"],
            }
        )
    facts = {
        "data": {**data.summary(), "parts": PARTS.get(name, ("test",)), "texts": len(texts)},
        "teacher": {one: {"accuracy": accuracy, "latency_ms": models[one]["latency_ms"]["median"]} for one in (EAGER, ORT)},
        "noise_floor": measured["protocol"]["noise_floor"],
    }
    return facts, rows


def draw(axes: Axes, name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Share of the teacher's accuracy against how many times faster than it in PyTorch; the line is the front."""
    teacher = facts["teacher"]
    points = [("teacher, PyTorch", 1.0, 1.0, None)]
    points.append(("teacher, ORT fp32", teacher[EAGER]["latency_ms"] / teacher[ORT]["latency_ms"], 1.0, None))
    for row in rows:
        points.append((row["student"], row["speedup_torch"], row["share_of_teacher"], row["interval"]))
    best = front([-point[1] for point in points], [point[2] for point in points])
    axes.step(
        [points[one][1] for one in best], [100 * points[one][2] for one in best], where="pre", color="#2563eb", linewidth=1.2, alpha=0.6
    )
    for label, speed, part, interval in points:
        if interval:
            axes.vlines(speed, 100 * interval[0], 100 * interval[1], color="#64748b", linewidth=1)
        axes.scatter(speed, 100 * part, s=28, color="#2563eb", zorder=3)
        axes.annotate(label, (speed, 100 * part), xytext=(4, -9 if "ORT" in label else 5), textcoords="offset points", fontsize=7)
    axes.axhline(99, color="#94a3b8", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_title(f"{name} ({facts['data']['texts']:,} texts)", fontsize=9)
    axes.set_xlabel("times faster than the teacher in PyTorch", fontsize=8)
    axes.set_ylabel("% of the teacher's accuracy", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def picture(found: Mapping[str, Any], file: Path) -> None:
    """The fronts of all sets, two a row, as SVG (or what the ending of `file` says)."""
    sets = found["sets"]
    columns = min(2, len(sets))
    lines = -(-len(sets) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.6 * lines), layout="constrained")
    for number, (name, facts) in enumerate(sets.items(), start=1):
        draw(figure.add_subplot(lines, columns, number), name, facts, [row for row in found["rows"] if row["data"] == name])
    figure.savefig(file, facecolor="white", metadata={"Date": None} if file.suffix == ".svg" else None)


def table(found: Mapping[str, Any]) -> str:
    """Markdown for benchmarks/RESULTS.md."""

    def within(interval: Sequence[float] | None, scale: float = 1) -> str:
        return f" ({interval[0] * scale:.3g}–{interval[1] * scale:.3g})" if interval else ""

    lines = ["| set | student | text → answer, ms | over PyTorch | over ORT fp32 | % of the teacher | accuracy, % | MB |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in sorted(found["rows"], key=lambda row: (row["data"], row["latency_ms"])):
        cells = (
            row["data"],
            row["student"],
            f"{row['latency_ms']:.3f}",
            f"{row['speedup_torch']:.4g}×{within(row['speedup_torch_interval'])}",
            f"{row['speedup_ort']:.4g}×{within(row['speedup_ort_interval'])}",
            f"{100 * row['share_of_teacher']:.1f}{within(row['interval'], 100)}",
            f"{100 * row['accuracy']:.1f}",
            f"{row['bytes'] / 1e6:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure every set that is named; what is measured is written after each, so that a kill loses one set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", help="names of sets, whose artifacts lie in RUNS/headline-SET")
    parser.add_argument("--data", type=Path, default=os.environ.get("ALAMBIC_DATA"), help="folder of the sets [default: ALAMBIC_DATA]")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument("--json", type=Path, help="the rows; those of other sets in the file are kept")
    parser.add_argument("--picture", type=Path, help="the fronts of all sets in the file, as .svg or .png")
    options = parser.parse_args()

    found: dict[str, Any] = {"rows": [], "sets": {}}
    if options.json and options.json.exists():
        found = json.loads(options.json.read_bytes())
    for name in options.sets:
        if name not in SETS and options.data is None:
            raise ConfigError(f"Where is {name}?", "Name the folder of the sets: --data DIR, or ALAMBIC_DATA.")
        data = load_data(name if name in SETS else str(options.data / name))
        facts, rows = measure(name, options.runs / f"headline-{name}", data, QUICK if options.quick else FULL)
        found["sets"][name] = facts
        found["rows"] = [row for row in found["rows"] if row["data"] != name] + rows
        if options.json:
            options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.picture:
        picture(found, options.picture)
    say(table(found))


if __name__ == "__main__":
    main()
