"""Measure models against the first of them and write the report."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from compress.benchmarking import Plan, benchmark
from compress.config import BenchmarkOptions
from compress.data import Data
from compress.lessons import questions
from compress.progress import bar, say
from compress.report import build_report, headline, write_html, write_json, write_markdown
from compress.sources import Source
from compress.stage import Result, Workspace
from compress.tasks import PRETRAINING, first_score, labels_agree, labels_of, trainable
from compress.ways import open_ways
from model.errors import ConfigError


def run(options: BenchmarkOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage; the sources' names are the models' names, and the first is the baseline."""
    task = _task(sources, data)
    labels = labels_of(task, data)
    opened = open_ways(options, sources, tuple(labels), workspace.work, task=task, pairs=data.pairs)
    ways = [one.way for one in opened]
    part = data.splits[options.split]
    plan = Plan(**options.model_dump(include={"texts", "rounds", "seconds", "width", "threads", "sweep", "seed"}))
    texts, pairs, truth = questions(task, part, labels, sources, options.seed)
    how = f"{len(ways)} ways in turn" if len(ways) > 1 else "one way"
    say(
        f"  {how} over {min(plan.texts, len(texts))} of {len(texts):,} {options.split} texts, {plan.rounds} rounds"
        + (f" and more, up to {plan.seconds:g} s" if plan.seconds else "")
    )
    baselines = [way.name for way in ways if way.model == next(iter(sources))]
    with bar("measuring") as progress:
        measured = benchmark(ways, texts, truth, labels, pairs, plan, baselines, progress, task=task)
    report = build_report(
        measured,
        task=task,
        data={**data.summary(), "split": options.split, "test_texts": len(texts)},
        facts={one.way.name: one.facts for one in opened},
        command=shlex.join(["compress", *sys.argv[1:]]),
        stages=list(_stages(sources)),
        lineage=list(_lineage(sources)),
        failed=measured["failed"],
        price_per_hour=options.price,
        examples=options.examples,
    )
    write_json(report, workspace.artifact / "report.json")
    write_html(report, workspace.artifact / "report.html")
    (workspace.artifact / "report.md").write_text(write_markdown(report), encoding="utf-8")
    return Result(task, labels, {"headline": headline(report)})


def _task(sources: Mapping[str, Source], data: Data) -> str:
    """The task that all models have on `data`; raises ConfigError where they differ, DataError where one does not fit the data.

    Models without a manifest do what the others do; where there are no others, what they were pre-trained to do if they have the head for
    that still, else what the labels of the data say.
    """
    tasks = {name: source.artifact.manifest.task for name, source in sources.items() if source.artifact is not None}
    if len(set(tasks.values())) > 1:
        raise ConfigError(
            f"The models are not for one task: {', '.join(f'{name} is for {task}' for name, task in tasks.items())}.",
            "Measure models of one task against each other.",
        )
    for source in sources.values():
        if source.artifact is not None:
            labels_agree(source.artifact.manifest.labels, data, source.artifact.manifest.task)
    if not tasks:
        from model.pretrained import own_task  # here: artifacts alone are measured without torch

        tasks = {name: task for name, source in sources.items() if (task := own_task(source.path)) in PRETRAINING}
    return trainable(data, next(iter(tasks.values()), "auto"))


def _known(sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    """Everything that the models came from and they themselves, by digest, each after its parents."""
    summaries: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        if source.artifact is None:
            continue
        manifest = source.artifact.manifest
        summaries |= {digest: known for digest, known in manifest.ancestors.items() if digest not in summaries}
        summaries[manifest.digest] = {**manifest.summary(), "name": name}
    ordered: dict[str, dict[str, Any]] = {}

    def add(digest: str) -> None:
        for parent in summaries.get(digest, {}).get("parents", {}).values():
            add(parent)
        if digest in summaries:
            ordered.setdefault(digest, summaries[digest])

    for digest in summaries:
        add(digest)
    return ordered


def _stages(sources: Mapping[str, Source]) -> Iterator[dict[str, Any]]:
    for digest, known in _known(sources).items():
        metrics = known.get("metrics", {})
        if known["stage"] == "base":
            continue
        latency = metrics.get("ort_ms", metrics.get("torch_ms"))
        yield {
            "stage": known["stage"],
            "name": known.get("name", known["stage"]),
            "digest": digest,
            "accuracy": metrics.get("validation", {}).get("accuracy"),
            "score": (first_score(metrics.get("validation", {})) or ("", None))[1],
            "bytes": known["bytes"],
            "seconds": known.get("seconds"),
            **({"parameters": metrics["parameters"]} if "parameters" in metrics else {}),
            **({"latency_ms": latency} if latency is not None else {}),
        }


def _lineage(sources: Mapping[str, Source]) -> Iterator[dict[str, Any]]:
    for digest, known in _known(sources).items():
        yield {"name": known.get("name", known["stage"]), "stage": known["stage"], "digest": digest, "parents": known["parents"]}
