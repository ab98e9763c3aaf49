"""Measure models against the first of them and write the report."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from compress.benchmarking import Plan, Way, benchmark
from compress.config import BenchmarkOptions, ExportOptions
from compress.data import Data
from compress.progress import bar, say
from compress.report import build_report, headline, write_html, write_json, write_markdown
from compress.sources import Source
from compress.stage import STAGES, Result, Workspace, run_stage
from compress.tasks import labels_agree, trainable
from model.artifact import Artifact, Manifest
from model.errors import ConfigError

PYTORCH = ("transformers", "torch", "torch-compile")


def run(options: BenchmarkOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage; the sources' names are the models' names, and the first is the baseline."""
    trainable(data)
    if unknown := sorted(set(options.way) - {*PYTORCH, "ort"}):
        raise ConfigError(f"There is no way {', '.join(unknown)} to run a model.", f"Ways: {', '.join((*PYTORCH, 'ort'))}.")
    for source in sources.values():
        labels_agree(source.model.manifest.labels, data)
    ways = list(_ways(options, sources, workspace))
    part = data.splits[options.split]
    plan = Plan(texts=options.texts, rounds=options.rounds, threads=options.threads, seed=options.seed)
    texts, pairs = part["text"][:], part["text_b"][:] if data.pairs else None
    say(f"  {len(ways)} ways in turn over {min(plan.texts, len(texts))} of {len(texts):,} {options.split} texts, {plan.rounds} rounds")
    baselines = [way.name for way, _ in ways if way.model == next(iter(sources))]
    with bar("measuring") as progress:
        measured = benchmark([way for way, _ in ways], texts, part["label"][:], data.labels, pairs, plan, baselines, progress)
    report = build_report(
        measured,
        task=data.task,
        data={**data.summary(), "split": options.split, "test_texts": len(texts)},
        facts={way.name: _facts(artifact) for way, artifact in ways},
        command=shlex.join(["compress", *sys.argv[1:]]),
        stages=list(_stages(sources)),
        lineage=list(_lineage(sources)),
    )
    write_json(report, workspace.artifact / "report.json")
    write_html(report, workspace.artifact / "report.html")
    (workspace.artifact / "report.md").write_text(write_markdown(report), encoding="utf-8")
    return Result(data.task, list(data.labels), {"headline": headline(report)})


def _ways(options: BenchmarkOptions, sources: Mapping[str, Source], workspace: Workspace) -> Iterator[tuple[Way, Artifact]]:
    """Every way with the artifact that it runs: PyTorch for the baseline, ONNX Runtime for all, exported here where they are not yet."""
    baseline = next(iter(sources))
    for name, source in sources.items():
        artifact = source.model
        engines = [engine for engine in options.way if artifact.manifest.kind == "torch" and name == baseline and engine in PYTORCH]
        engines += ["ort"] if "ort" in options.way or artifact.manifest.kind == "onnx" else []
        for engine in engines:
            title = name if len(engines) == 1 else f"{name}-{engine}"
            if engine in PYTORCH:
                mode = "compiled" if engine == "torch-compile" else "eager"
                arguments = {"path": str(artifact.path), "engine": engine, "threads": options.threads}
                factory, provider, run_by = "export.torch_predictor:open_torch_predictor", "cpu", artifact
            else:
                mode, provider, run_by = "graph", options.provider, _exported(name, source, workspace)
                arguments = {"path": str(run_by.path), "provider": provider, "threads": options.threads}
                factory = "serve.predictor:open_predictor"
            yield Way(title, name, engine, provider, _precision(artifact.manifest), mode, factory, arguments), run_by


def _exported(name: str, source: Source, workspace: Workspace) -> Artifact:
    """The ONNX artifact of a model: itself, or made by the export stage in the scratch folder."""
    artifact = source.model
    if artifact.manifest.kind == "onnx":
        return artifact
    outcome = run_stage(STAGES["export"], ExportOptions(), {"model": source}, None, workspace.work / name)
    return Artifact(outcome.path, outcome.manifest)


def _precision(manifest: Manifest) -> str:
    stages = {manifest.stage, *(known["stage"] for known in manifest.ancestors.values())}
    return "int8" if "quantize" in stages else "fp32"


def _facts(artifact: Artifact) -> dict[str, Any]:
    """Identity and size of what a way runs; bytes are those of its weights or graph."""
    manifest = artifact.manifest
    weights = next(file for name, file in manifest.files.items() if name in ("model.safetensors", "model.onnx"))
    known: dict[str, Any] = {name: manifest.metrics[name] for name in ("parameters", "integer_linears") if name in manifest.metrics}
    return {"digest": manifest.digest, "bytes": weights.bytes, **known}


def _known(sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    """Everything that the models came from and they themselves, by digest, each after its parents."""
    summaries: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        manifest = source.model.manifest
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
            "bytes": known["bytes"],
            "seconds": known.get("seconds"),
            **({"parameters": metrics["parameters"]} if "parameters" in metrics else {}),
            **({"latency_ms": latency} if latency is not None else {}),
        }


def _lineage(sources: Mapping[str, Source]) -> Iterator[dict[str, Any]]:
    for digest, known in _known(sources).items():
        yield {"name": known.get("name", known["stage"]), "stage": known["stage"], "digest": digest, "parents": known["parents"]}
