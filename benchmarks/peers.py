"""Our models and other tools' in one run, each tool in an environment of its own, since their pins conflict.

    python benchmarks/peers.py --quick --data tweets --json benchmarks/peers-tweets.json
    python benchmarks/peers.py --data trec-folder --models runs/trec/teacher runs/trec/student runs/trec/onnx --json peers-trec.json

Every tool starts from the same teacher (model2vec and the small model without a teacher: from the same base and texts). A tool that does
not build or open is a row that says why. The environments are made in benchmarks/peers/.venv-NAME, the models in benchmarks/peers/work;
what is there is taken again, so that after --prepare, which measures nothing, the same command only measures.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import recipe
from compress.benchmarking import Plan, benchmark
from compress.cli import boundary
from compress.config import ExportOptions, QuantizeOptions, Training, TrainOptions
from compress.data import Data, load_data
from compress.progress import bar, say
from compress.report import build_report, write_html, write_json, write_markdown
from compress.sources import open_source
from compress.stage import STAGES, run_stage
from compress.ways import Way, facts_of, precision_of
from model.artifact import directory_digest, file_sha256, open_artifact
from model.checkpoint import read_model_config
from model.errors import AlambicError

HERE = Path(__file__).parent / "peers"
ROOT = HERE.parents[1]
PINS = {"optimum": ROOT / "environments" / "optimum-constraints.txt"}
QUICK_TEXTS = 3000  # that ours and the small model are trained on
BUILD_SECONDS = 1800


@dataclass(frozen=True)
class Peer:
    """A model of another tool: the environment and module that build and open it, what the module is told, what a reader should know."""

    name: str
    environment: str
    arguments: tuple[str, ...]
    precision: str
    note: str = ""

    @property
    def module(self) -> str:
        return f"with_{self.environment}"


PEERS = (
    Peer("optimum-O1", "optimum", ("{plain}", "{out}", "O1"), "fp32"),
    Peer("optimum-O2", "optimum", ("{plain}", "{out}", "O2"), "fp32"),
    Peer("optimum-O3", "optimum", ("{plain}", "{out}", "O3"), "fp32"),
    Peer("optimum-int8", "optimum", ("{plain}", "{out}", "int8"), "int8", "dynamic, avx512_vnni"),
    Peer("olive-fp32", "olive", ("{plain}", "{out}", "fp32"), "fp32", "OrtTransformersOptimization"),
    Peer("olive-int8", "olive", ("{plain}", "{out}", "int8"), "int8", "OnnxDynamicQuantization"),
    Peer("openvino-int8", "openvino", ("{plain}", "{out}", "{texts}"), "int8", "NNCF, static"),
    Peer("model2vec", "model2vec", ("{base}", "{out}", "{train}"), "fp32", "static embeddings of the base, logistic head"),
)


class BuildError(Exception):
    """A tool that did not build; the message is the end of what it said."""


def environment(name: str) -> Path:
    """The interpreter of an environment, made or brought up to date where its pins have changed."""
    folder, pins = HERE / f".venv-{name}", PINS.get(name, HERE / f"{name}.txt")
    python, made = folder / "bin" / "python", folder / "made"
    digest = file_sha256(pins)
    if not made.exists() or made.read_text() != digest:
        say(f"  making the environment {folder.name}")
        execute([sys.executable, "-m", "venv", folder])
        execute([python, "-m", "pip", "install", "--quiet", "-r", pins])
        made.write_text(digest)
    return python


def execute(command: list[Any], folders: tuple[Path, ...] = ()) -> None:
    """Run a command on one thread; raises BuildError with its last words."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OLIVE_DISABLE_TELEMETRY": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, folders))} if folders else {}
    words = [str(part) for part in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_SECONDS, env={**os.environ, **settings, **paths})
    except subprocess.TimeoutExpired:
        raise BuildError(f"was not done after {BUILD_SECONDS} s") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        raise BuildError(said[-1] if said else f"ended with {done.returncode}")


def once(command: list[Any], folders: tuple[Path, ...], out: Path, identity: list[str]) -> None:
    """Run a command of another tool that makes `out`, unless the same script has made it of what `identity` names."""
    said = json.dumps([file_sha256(command[1]), *map(str, command[2:]), *identity])
    made = out.with_name(f"{out.name}.made")
    if not (out.is_dir() and made.exists() and made.read_text() == said):
        made.unlink(missing_ok=True)
        execute(command, folders)
        made.write_text(said)


def ours(data: Data, out: Path, quick: bool) -> list[Path]:
    """Teacher, student and exported result of the demo's recipe on `data`."""
    steps = recipe.read_recipe("demo").steps
    for number, step in enumerate(step for step in steps if step.stage.name != "benchmark"):
        options = step.options
        if quick and isinstance(options, Training):
            options = options.model_copy(update={"train_texts": QUICK_TEXTS})
        names = {earlier.out for earlier in steps[:number]}
        sources = {
            role: open_source(str(out / name) if name in names else name, step.stage.kinds[role]) for role, name in step.sources.items()
        }
        say(f"  {step.stage.name}")
        run_stage(step.stage, options, sources, data if step.stage.needs_data else None, out / step.out)
    return [out / "teacher", out / "student", out / "onnx"]


def in_int8(data: Data, model: Path, out: Path) -> Path:
    """The export of one of our PyTorch models after calibration alone."""
    length = read_model_config(model).max_length
    source = {"model": open_source(str(model), "torch")}
    made = run_stage(STAGES["quantize"], QuantizeOptions(max_length=length), source, data, out / f"{model.name}-quantized").path
    return run_stage(STAGES["export"], ExportOptions(), {"model": open_source(str(made), "torch")}, None, out / f"{model.name}-int8").path


def without_teacher(data: Data, base: Path, out: Path, quick: bool) -> tuple[Path, Path]:
    """Two layers of the base, as our students have them, fine-tuned on the labels, and the export of it."""
    texts = QUICK_TEXTS if quick else None
    options = TrainOptions(depth=2, epochs=3, batch_size=64, learning_rate=2e-4, precision="bf16", train_texts=texts)
    trained = run_stage(STAGES["train"], options, {"base": open_source(str(base))}, data, out / "two-layers-trained")
    source = {"model": open_source(str(trained.path), "torch")}
    return trained.path, run_stage(STAGES["export"], ExportOptions(), source, None, out / "two-layers-onnx").path


def build_peers(
    data: Data, teacher: Path, base: Path, work: Path, peers: Sequence[Peer] = PEERS
) -> tuple[list[tuple[Way, dict[str, Any]]], list[dict[str, str]]]:
    """A way with its facts for each of the `peers` that builds, and the reason for every other."""
    work.mkdir(parents=True, exist_ok=True)
    train = data.splits["train"]
    texts = {"texts": train["text"][:2000], "train": {"text": train["text"][:], "label": [data.labels[row] for row in train["label"]]}}
    places: dict[str, Any] = {"plain": work / "plain", "base": base}
    for name, content in texts.items():
        places[name] = work / f"{name}.json"
        places[name].write_text(json.dumps(content))
    folders = (ROOT, HERE)
    ready, failed = [], []
    identity = [data.digest, open_artifact(teacher).digest, directory_digest(base)]
    try:
        if any("{plain}" in peer.arguments for peer in peers):
            once([environment("optimum"), HERE / "plain_graph.py", teacher, places["plain"]], folders, places["plain"], identity)
    except BuildError as error:
        failed.append({"name": "plain graph", "reason": f"the teacher could not be written for other tools: {error}"})
    for peer in peers:
        out = work / peer.name
        say(f"  {peer.name}")
        try:
            python = environment(peer.environment)
            pins = file_sha256(PINS.get(peer.environment, HERE / f"{peer.environment}.txt"))
            command = [python, HERE / f"{peer.module}.py", *(part.format(**places, out=out) for part in peer.arguments)]
            once(command, folders, out, [*identity, pins])
        except BuildError as error:
            failed.append({"name": peer.name, "reason": str(error)})
            continue
        arguments = {"path": str(out), "precision": peer.precision, "threads": 1}
        way = Way(
            name=peer.name,
            model=peer.name,
            engine=peer.environment,
            provider="cpu",
            precision=peer.precision,
            mode="graph" if peer.environment != "model2vec" else "static",
            factory=f"{peer.module}:open_predictor",
            arguments=arguments,
            python=str(python),
            folders=tuple(map(str, folders)),
            may_fail=True,
        )
        ready.append(
            (way, {"digest": directory_digest(out), "bytes": weights(out), "peer": True, **({"note": peer.note} if peer.note else {})})
        )
    return ready, failed


def weights(out: Path) -> int:
    """Bytes of what a peer loads."""
    kinds = (".onnx", ".bin", ".xml", ".safetensors", ".npz", ".data")
    inner = ("olive", "cache")  # Olive's own copies
    return sum(
        file.stat().st_size
        for file in out.rglob("*")
        if file.suffix in kinds and not any(part in inner for part in file.relative_to(out).parts)
    )


def own_way(name: str, path: Path, engine: str) -> tuple[Way, dict[str, Any]]:
    """A way of one of our artifacts."""
    artifact = open_artifact(path)
    arguments: dict[str, Any] = {"path": str(path), "threads": 1}
    if engine == "ort":
        factory, mode = "serve.predictor:open_predictor", "graph"
    else:
        factory, mode, arguments = "export.torch_predictor:open_torch_predictor", "eager", {**arguments, "engine": engine}
    return Way(name, path.name, engine, "cpu", precision_of(artifact.manifest), mode, factory, arguments), facts_of(artifact)


def main() -> None:
    """Make what is to be compared, measure it in one run, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"ours trained on {QUICK_TEXTS} texts, fewer texts and rounds measured")
    parser.add_argument("--data", default="tweets", help="as `compress benchmark --data`")
    parser.add_argument("--models", nargs="+", type=Path, help="ours, the teacher first, the last exported [default: by the demo's recipe]")
    parser.add_argument("--seconds", type=float, default=600, help="budget for more rounds than 11 [default: 600]")
    parser.add_argument("--prepare", action="store_true", help="make everything that is to be compared, and measure nothing")
    parser.add_argument("--json", type=Path, help="the report; .html and .md are written beside it")
    options = parser.parse_args()

    data = load_data(options.data)
    work = HERE / "work" / (data.name.replace("/", "-") + ("-quick" if options.quick else ""))
    work.mkdir(parents=True, exist_ok=True)
    base = open_source("minilm").path
    teacher, *students = options.models or ours(data, work / "ours", options.quick)
    exported = run_stage(STAGES["export"], ExportOptions(), {"model": open_source(str(teacher), "torch")}, None, work / "teacher-onnx").path
    models = [own_way("teacher", teacher, "transformers"), own_way("teacher-ort", exported, "ort")]
    failed: list[dict[str, str]] = []
    for model in (teacher, *students[:-1]):
        try:
            models.append(own_way(f"{model.name}-int8", in_int8(data, model, work), "ort"))
        except AlambicError as error:
            failed.append({"name": f"{model.name}-int8", "reason": error.message})
    try:
        trained, graph = without_teacher(data, base, work / "alone", options.quick)
        for name, path in {"without-teacher": graph, "without-teacher-int8": in_int8(data, trained, work)}.items():
            way, facts = own_way(name, path, "ort")
            note = "two layers of the base, fine-tuned on the labels" + (", quantized by us" if path != graph else "")
            models.append((way, {**facts, "peer": True, "maker": "alambic, without a teacher", "note": note}))
    except AlambicError as error:
        failed.append({"name": "without-teacher", "reason": error.message})
    peers, broken = build_peers(data, teacher, base, work)
    models += [*peers, own_way("ours", students[-1], "ort")]
    if options.prepare:
        print("\n".join(f"{row['name']}: {row['reason']}" for row in [*failed, *broken]) or f"All {len(models)} ways are made.")
        return

    part = data.splits["test"]
    plan = Plan(texts=60, rounds=5) if options.quick else Plan(texts=150, rounds=11, seconds=options.seconds)
    texts, pairs = part["text"][:], part["text_b"][:] if data.pairs else None
    with bar("measuring") as progress:
        ways = [way for way, _ in models]
        measured = benchmark(ways, texts, part["label"][:], data.labels, pairs, plan, ["teacher", "teacher-ort"], progress)
    report = build_report(
        measured,
        task=data.task,
        data={**data.summary(), "split": "test", "test_texts": len(texts)},
        facts={way.name: facts for way, facts in models},
        command="python " + " ".join(sys.argv),
        failed=[*failed, *broken, *measured["failed"]],
    )
    if options.json:
        write_json(report, options.json)
        write_html(report, options.json.with_suffix(".html"))
        options.json.with_suffix(".md").write_text(write_markdown(report), encoding="utf-8")
    print(write_markdown(report))


if __name__ == "__main__":
    with boundary():
        main()
