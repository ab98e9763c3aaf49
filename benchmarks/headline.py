"""The headline: from the dense teacher to the static floor, and what other tools make of the same teacher; in one run a set.

    compress run headline-sst2 --out runs/headline-sst2
    python benchmarks/headline.py sst2 --peers --json benchmarks/headline.json --picture docs/headline.svg

RUNS/headline-SET holds the teacher and what was exported beside it; each is a row, and what it is (a student, the teacher itself, a model
that never had a teacher) is read from its lineage. The same with other seeds lies in seed-N below (`compress run … --seed N`): a row then
has the mean of all seeds, and the latency of the first. --peers adds models of other tools, in environments of their own. Latency is
text → answer, one text at a time on one thread. The share is the ratio of the accuracies over the same texts, its interval a paired
bootstrap over them.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.peers import PEERS, Peer, build_peers, in_int8, own_way
from compress.benchmarking import Plan, benchmark
from compress.builtin import SETS
from compress.charts import front, label_points
from compress.cli import boundary
from compress.config import ExportOptions
from compress.data import Data, load_data
from compress.progress import bar, say
from compress.report_tables import peer_sentence
from compress.sources import open_source
from compress.stage import STAGES, run_stage
from compress.statistics import Floats, bootstrap
from compress.units import factor
from model.artifact import Artifact, open_artifact, read_manifest
from model.errors import AlambicError, ArtifactError, ConfigError
from serve.machine import machine_facts
from serve.predictor import open_predictor, scores

PARTS = {"sst2": ("validation", "test")}  # both are evaluation parts of its source; elsewhere the test part alone is read
EAGER, ORT = "teacher-eager", "teacher-ort"
FULL, QUICK = Plan(texts=150, rounds=11), Plan(texts=60, rounds=5)
BEST = ("model2vec", "optimum-int8", "openvino-int8")  # the floor, and the quickest int8 of each engine that others run
KINDS = {  # what a row is → colour, marker, words
    "teacher": ("#0f172a", "s", "the teacher"),
    "student": ("#2563eb", "o", "its students"),
    "without a teacher": ("#16a34a", "^", "the same student without a teacher"),
    "peer": ("#d97706", "D", "other tools"),
}
AREA = 28  # of a mark, square points
OURS = ("teacher", "student")
TICKS = (102, 101, 100, 99, 98, 97, 95, 90, 80, 70, 50, 30)  # % of the teacher's accuracy


def exports(folder: Path) -> list[Artifact]:
    """The exported artifacts in `folder`, by name, without the teacher's own in fp32; raises ArtifactError if there is none."""
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


def kind_of(artifact: Artifact, teacher: Artifact) -> str:
    """A "student" learned from a teacher somewhere in its lineage; else it is the `teacher` itself, or "without a teacher"."""
    manifest = artifact.manifest
    if any("teacher" in parents for parents in (manifest.parents, *(known["parents"] for known in manifest.ancestors.values()))):
        return "student"
    return "teacher" if teacher.digest in manifest.ancestors else "without a teacher"


def evaluated(data: Data, parts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Texts and class numbers of the parts that are measured on, one after the other."""
    return [text for part in parts for text in data.splits[part]["text"]], [row for part in parts for row in data.splits[part]["label"]]


def share(model: Floats, teacher: Floats) -> Floats:
    """[k, n] of what either got right → [k], the ratio of their accuracies."""
    ratio: Floats = model.mean(axis=1) / teacher.mean(axis=1)
    return ratio


def measure(name: str, folder: Path, data: Data, plan: Plan, peers: Sequence[Peer]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One set: what was measured on, and a row for each model beside the teacher in fp32."""
    teacher = open_source(str(folder / "teacher"), "torch")
    exported = run_stage(STAGES["export"], ExportOptions(), {"model": teacher}, None, folder / ORT).path
    failed: list[dict[str, str]] = []
    try:
        in_int8(data, teacher.path, folder)
    except AlambicError as error:
        failed.append({"name": "teacher-int8", "reason": error.message})
    found = exports(folder)
    own = [own_way(artifact.path.name, artifact.path, "ort") for artifact in found]
    theirs, broken = build_peers(data, teacher.path, open_source("minilm").path, folder / "peers", peers) if peers else ([], [])
    models = [own_way(EAGER, teacher.path, "transformers"), own_way(ORT, exported, "ort"), *own, *theirs]
    texts, labels = evaluated(data, PARTS.get(name, ("test",)))
    with bar(f"measuring {name}") as progress:
        measured = benchmark([way for way, _ in models], texts, labels, data.labels, None, plan, [EAGER, ORT], progress)
    right = {way: [(given.argmax(axis=1) == labels).astype(float)] for way, given in measured["outputs"].items()}
    for artifact in found:
        for path in sorted(folder.glob(f"seed-*/{artifact.path.name}")):
            right[artifact.path.name].append((scores(open_predictor(path), texts).argmax(axis=1) == labels).astype(float))
    kinds = {artifact.path.name: kind_of(artifact, teacher.model) for artifact in found}
    speedups = {(one["baseline"], one["model"]): (one["speedup"], one["speedup_interval"]) for one in measured["comparisons"]}
    latency = {model["name"]: model["latency_ms"]["median"] for model in measured["models"]}
    sizes = {way.name: facts["bytes"] for way, facts in models}
    accuracy = right[EAGER][0].mean()
    rows = []
    for model in latency.keys() - {EAGER, ORT}:
        over_torch, over_ort = speedups[EAGER, model], speedups[ORT, model]
        seeds = np.stack(right[model])
        rows.append(
            {
                "data": name,
                "student": model,
                "kind": kinds.get(model, "peer"),
                "speedup_torch": over_torch[0],
                "speedup_torch_interval": over_torch[1],
                "speedup_ort": over_ort[0],
                "speedup_ort_interval": over_ort[1],
                "share_of_teacher": seeds.mean() / accuracy,
                "interval": bootstrap(share, seeds.mean(axis=0), right[EAGER][0], seed=plan.seed),
                "seeds": (seeds.mean(axis=1) / accuracy).tolist(),
                "bytes": sizes[model],
                "accuracy": seeds.mean(),
                "latency_ms": latency[model],
            }
        )
    facts = {
        "machine": machine_facts(),
        "data": {**data.summary(), "parts": PARTS.get(name, ("test",)), "texts": len(texts)},
        "teacher": {way: {"accuracy": right[way][0].mean(), "latency_ms": latency[way]} for way in (EAGER, ORT)},
        "noise_floor": measured["protocol"]["noise_floor"],
        "failed": [*failed, *broken, *measured["failed"]],
    }
    return facts, sorted(rows, key=lambda row: row["latency_ms"])


def points_of(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a picture of a set shows: label, kind, latency in ms, share of the teacher's accuracy and its interval, in percent."""
    teacher, points = facts["teacher"], []
    for way, label in ((EAGER, "PyTorch"), (ORT, f"ORT fp32 {factor(teacher[EAGER]['latency_ms'] / teacher[ORT]['latency_ms'])}")):
        part = 100 * teacher[way]["accuracy"] / teacher[EAGER]["accuracy"]
        points.append({"label": label, "kind": "teacher", "ms": teacher[way]["latency_ms"], "share": part, "interval": (part, part)})
    for row in rows:
        label = f"{row['student'].removesuffix('-onnx')} {factor(row['speedup_torch'])}"
        part = 100 * row["share_of_teacher"]
        interval = tuple(100 * end for end in row["interval"]) if row["interval"] else (part, part)
        points.append({"label": label, "kind": row["kind"], "ms": row["latency_ms"], "share": part, "interval": interval})
    return points


def our_front(points: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of the points of ours that no other of ours beats in both, the fastest first."""
    ours = [number for number, point in enumerate(points) if point["kind"] in OURS]
    return [ours[one] for one in front([points[number]["ms"] for number in ours], [points[number]["share"] for number in ours])]


def near_all(share: Any) -> Any:
    """Where a share in percent stands on an axis that gives more room the less of 100 % is lost (or won)."""
    return -np.arcsinh(100 - share)


def from_all(place: Any) -> Any:
    """The share at a place: what `near_all` makes undone."""
    return 100 + np.sinh(place)


def draw(axes: Axes, title: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Share of the teacher's accuracy against latency, on scales that leave room for what is quick or near the teacher; and our front."""
    best = [points[number] for number in our_front(points)]
    axes.step([point["ms"] for point in best], [point["share"] for point in best], where="post", color="#2563eb", linewidth=1.2, alpha=0.5)
    for point in points:
        colour, marker, _ = KINDS[point["kind"]]
        axes.vlines(point["ms"], *point["interval"], color=colour, linewidth=1, alpha=0.5)
        face = "white" if point["kind"] == "peer" else colour
        axes.scatter(point["ms"], point["share"], s=AREA, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.2, zorder=3)
    axes.axhline(99, color="#94a3b8", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_yscale("function", functions=(near_all, from_all))
    latency = [point["ms"] for point in points]
    axes.set_xlim(min(latency) / 4, max(latency) * 4)
    low, high = (near_all(pick(point["interval"][end] for point in points)) for end, pick in ((0, min), (1, max)))
    axes.set_ylim(*from_all(np.array([low - 0.12 * (high - low), high + 0.12 * (high - low)])))
    steps = [step * 10.0**power for power in range(-3, 4) for step in (1, 3)]
    ticks = [step for step in steps if axes.get_xlim()[0] <= step <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks([tick for tick in TICKS if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]])
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("median latency, ms, text → answer (left is faster)", fontsize=8)
    axes.set_ylabel("% of the teacher's accuracy", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def picture(found: Mapping[str, Any], file: Path) -> None:
    """The fronts of all sets, two a row, as SVG (or what the ending of `file` says)."""
    sets = {name: points_of(facts, [row for row in found["rows"] if row["data"] == name]) for name, facts in found["sets"].items()}
    columns = min(2, len(sets))
    lines = -(-len(sets) // columns)
    with matplotlib.rc_context({"svg.hashsalt": "headline"}):
        figure = Figure(figsize=(6 * columns, 4.4 * lines + 0.4), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels[len(sets) :]:
            axes.remove()
        for axes, (name, points) in zip(panels, sets.items(), strict=False):
            draw(axes, f"{name} ({found['sets'][name]['data']['texts']:,} texts)", points)
        present = {point["kind"] for points in sets.values() for point in points}
        shown = [KINDS[kind] for kind in KINDS if kind in present]
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", label=words, markerfacecolor="white" if marker == "D" else colour)
            for colour, marker, words in shown
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns, fontsize=9, frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed on what stands now
        for axes, points in zip(panels, sets.values(), strict=False):
            places = [(point["ms"], point["share"]) for point in points]
            spans = [point["interval"] for point in points]
            texts, colours = [point["label"] for point in points], [KINDS[point["kind"]][0] for point in points]
            label_points(axes, places, texts, spans, [AREA] * len(points), our_front(points), fontsize=8, colours=colours)
        figure.savefig(file, facecolor="white", metadata={"Date": None} if file.suffix == ".svg" else None)


def table(found: Mapping[str, Any]) -> str:
    """Markdown for benchmarks/RESULTS.md."""

    def within(interval: Sequence[float] | None, scale: float = 1) -> str:
        return f" ({interval[0] * scale:.3g}–{interval[1] * scale:.3g})" if interval else ""

    def spread(seeds: Sequence[float]) -> str:
        return f"; {len(seeds)} seeds {100 * min(seeds):.1f}–{100 * max(seeds):.1f}" if len(seeds) > 1 else ""

    lines = ["| set | model | which is | text → answer, ms | over PyTorch | over ORT fp32 | % of the teacher | accuracy, % | MB |"]
    lines += ["|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in sorted(found["rows"], key=lambda row: (row["data"], row["latency_ms"])):
        cells = (
            row["data"],
            row["student"],
            {"teacher": "the teacher", "peer": "another tool's"}.get(row["kind"], row["kind"]),
            f"{row['latency_ms']:.3f}",
            f"{row['speedup_torch']:.4g}×{within(row['speedup_torch_interval'])}",
            f"{row['speedup_ort']:.4g}×{within(row['speedup_ort_interval'])}",
            f"{100 * row['share_of_teacher']:.1f}{within(row['interval'], 100)}{spread(row['seeds'])}",
            f"{100 * row['accuracy']:.1f}",
            f"{row['bytes'] / 1e6:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """Of each set whether a peer, or what had no teacher, lies above and to the left of our front; and what could not be measured."""
    lines = []
    for name, facts in found["sets"].items():
        points = points_of(facts, [row for row in found["rows"] if row["data"] == name])
        models = [
            {
                "name": point["label"],
                "peer": point["kind"] not in OURS,
                "latency_ms": {"median": point["ms"]},
                "quality": {"accuracy": point["share"]},
            }
            for point in points
        ]
        lines += [f"{name}: {said}"] if (said := peer_sentence({"models": models})) else []
        lines += [f"{name}: not measured: {one['name']}: {one['reason']}" for one in facts["failed"]]
    return lines


def main() -> None:
    """Measure every set that is named; what is measured is written after each, so that a kill loses one set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", help="names of sets, whose artifacts lie in RUNS/headline-SET")
    parser.add_argument("--data", type=Path, default=os.environ.get("ALAMBIC_DATA"), help="folder of the sets [default: ALAMBIC_DATA]")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument(
        "--peers",
        nargs="?",
        const=",".join(BEST),
        default="",
        help=f"other tools in the same run, by commas [without names: {','.join(BEST)}]",
    )
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument("--json", type=Path, help="the rows; those of other sets in the file are kept")
    parser.add_argument("--picture", type=Path, help="the fronts of all sets in the file, as .svg or .png")
    options = parser.parse_args()

    known = {peer.name: peer for peer in PEERS}
    asked = [name for name in options.peers.split(",") if name]
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"There is no peer {unknown[0]!r}.", f"Peers: {', '.join(known)}.")
    found: dict[str, Any] = {"rows": [], "sets": {}}
    if options.json and options.json.exists():
        found = json.loads(options.json.read_bytes())
    for name in options.sets:
        if name not in SETS and options.data is None:
            raise ConfigError(f"Where is {name}?", "Name the folder of the sets: --data DIR, or ALAMBIC_DATA.")
        data = load_data(name if name in SETS else str(options.data / name))
        plan = QUICK if options.quick else FULL
        facts, rows = measure(name, options.runs / f"headline-{name}", data, plan, [known[one] for one in asked])
        found["sets"][name] = facts
        found["rows"] = [row for row in found["rows"] if row["data"] != name] + rows
        if options.json:
            options.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.picture:
        picture(found, options.picture)
    say(table(found))
    for line in verdicts(found):
        say(line)


if __name__ == "__main__":
    with boundary():
        main()
