"""Everything that a GPU is needed for, with one command: `make gpu-benchmark` writes benchmarks/gpu/NAME.json and NAME.md.

    python benchmarks/gpu_benchmark.py prepare               where PyTorch and the exporter are: the models, into benchmarks/gpu/models
    python benchmarks/gpu_benchmark.py measure --name H200   where the GPU is: the base package, numpy, onnxruntime-gpu and the models
    python benchmarks/gpu_benchmark.py measure --name rehearsal --provider cpu --quick

Measured are ids → logits, host to host, and beside it the device alone, for batches × lengths of a MiniLM, a model of BERT-base's shape
(random weights) and the student; in PyTorch eager and compiled where PyTorch is there, and in every way of ONNX Runtime. A way that does
not run is a row that says why. What ran nowhere yet is said in the README.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.statistics import noise_floor, speedup, verdict
from model.errors import AlambicError, EnvironmentProblem
from serve.machine import machine_facts
from serve.timing import Worker, start_worker, unpacked

HERE = Path(__file__).parent / "gpu"
MODELS = HERE / "models"
SHAPES = ("minilm", "bert-base", "student")
BATCHES, LENGTHS = (1, 8, 32, 128), (16, 64, 128, 512)
TEXTS = 1000  # on which files of two precisions are compared
CALIBRATION = 256  # texts that set the ranges of int8
EAGER, GRAPH16 = "transformers:fp16", "ort-cuda-graph:fp16"


@dataclass(frozen=True)
class Run:
    """A model in one way: `name` is "engine:precision", `arguments` are the factory's."""

    name: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)


def runs(model: Path, provider: str) -> list[Run]:
    """All ways of the model whose files are in the folder `model`."""
    found = []
    for engine, precision, mode in (
        ("transformers", "fp32", "default"),
        ("transformers", "tf32", "default"),
        ("transformers", "fp16", "default"),
        ("transformers", "bf16", "default"),
        ("torch-compile", "fp16", "default"),
        ("torch-compile", "fp16", "reduce-overhead"),
        ("torch-compile", "fp16", "max-autotune"),
        ("torch-compile", "bf16", "default"),
    ):
        name = f"{engine}:{precision}" + ("" if mode == "default" else f" ({mode})")
        arguments = {"path": str(model / "torch"), "engine": engine, "precision": precision, "compile_mode": mode}
        found.append(Run(name, "export.torch_predictor:open_torch_predictor", {**arguments, "provider": provider}))
    for way, precision, file in (
        ("ort", "fp32", "fp32"),
        ("ort", "tf32", "fp32"),
        ("ort", "fp16", "fp16"),
        ("ort-iobinding", "fp16", "fp16"),
        ("ort-cuda-graph", "fp32", "fp32"),
        ("ort-cuda-graph", "fp16", "fp16"),
        ("ort-tensorrt", "fp32", "plain"),
        ("ort-tensorrt", "fp16", "plain"),
        ("ort-tensorrt", "bf16", "plain"),
        ("ort-tensorrt", "int8", "int8"),
    ):
        arguments = {"path": str(model / file), "way": way, "provider": provider, "precision": precision}
        found.append(Run(f"{way}:{precision}", "serve.gpu:open_gpu_predictor", {**arguments, "cache": str(HERE / "engines" / model.name)}))
    return found


def prepare(folder: Path, shapes: Sequence[str], given: dict[str, Path | None]) -> None:
    """The models of `shapes`, random but for those given: as PyTorch artifacts, as files for a GPU, in standard operators, in int8."""
    sys.path.append(str(Path(__file__).parent / "models"))
    from random_weights import make_graph, make_model

    from compress.builtin import tweets
    from compress.config import ExportOptions

    part = tweets()["test"]
    names = sorted(set(part["label"]))
    for shape in shapes:
        torch_ = folder / shape / "torch"
        if not torch_.exists() and (made := given.get(shape)):
            shutil.copytree(made, torch_)
        elif not torch_.exists():
            make_model(torch_, shape, names, max_length=512)
        for name, options in {
            "fp32": ExportOptions(attention="ort"),
            "fp16": ExportOptions(attention="ort", precision="fp16"),
            "plain": ExportOptions(),
        }.items():
            print(make_graph(folder / shape / name, torch_, options), file=sys.stderr)
        print(make_graph(folder / shape / "int8", _for_tensorrt(torch_, folder / shape / "int8-torch")), file=sys.stderr)
    texts = {"text": part["text"][:TEXTS], "label": part["label"][:TEXTS]}
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def _for_tensorrt(model: Path, out: Path) -> Path:
    """The PyTorch artifact `model` with its linears in TensorRT's int8, calibrated on tweets."""
    from datasets import DatasetDict

    from compress.config import QuantizeOptions
    from compress.data import load_data
    from compress.sources import open_source
    from compress.stage import STAGES, run_stage
    from model.checkpoint import read_model_config

    data = load_data("tweets")
    few = replace(data, splits=DatasetDict({name: part.select(range(CALIBRATION)) for name, part in data.splits.items()}))
    options = QuantizeOptions(scheme="tensorrt", calibration_texts=CALIBRATION, max_length=read_model_config(model).max_length)
    return run_stage(STAGES["quantize"], options, {"model": open_source(str(model), "torch")}, few, out).path


def measure_model(
    model: Path,
    ways: Sequence[Run],
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    samples: int,
    texts: dict[str, list[str]],
    provider: str,
    vocabulary: int = 1000,
) -> dict[str, Any]:
    """Every way at every shape, in rounds in a shuffled order; a second process of the first way that runs shows the noise floor."""
    order = np.random.default_rng(0)
    failed: list[dict[str, str]] = []
    seconds: dict[str, dict[tuple[int, int], list[list[float]]]] = {}
    device: dict[str, dict[tuple[int, int], float | None]] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for way in ways:
            try:
                worker = stack.enter_context(start_worker(way.name, way.factory, way.arguments, texts["text"][0]))
                if worker.provider not in (provider, "tensorrt"):
                    raise EnvironmentProblem(f"It was to run on {provider}, but runs on {worker.provider}.", "")
                worker.ask("shape", batch=shapes[0][0], length=shapes[0][1], samples=1, vocabulary=vocabulary)
                workers[way.name] = worker
            except AlambicError as error:
                failed.append({"name": way.name, "reason": _short(error)})
        if not workers:
            raise EnvironmentProblem(f"No way runs {model.name}: {failed[0]['reason']}", "Mend the first of them.")
        first = next(way for way in ways if way.name in workers)
        workers["twin"] = stack.enter_context(start_worker("twin", first.factory, first.arguments, texts["text"][0]))
        for _ in range(rounds):
            for name in order.permutation(list(workers)).tolist():
                for shape in shapes:
                    try:
                        reply = workers[name].ask("shape", batch=shape[0], length=shape[1], samples=samples, vocabulary=vocabulary)
                    except AlambicError as error:
                        failed.append({"name": name, "reason": f"at batch {shape[0]} and length {shape[1]}: {_short(error)}"})
                        workers.pop(name)
                        break
                    seconds.setdefault(name, {}).setdefault(shape, []).append(reply["model"])
                    device.setdefault(name, {})[shape] = reply["device"]
        answers = {
            name: unpacked(worker.ask("scores", texts=texts["text"], pairs=None, batch=32)["logits"])
            for name, worker in workers.items()
            if name != "twin"
        }
        labels = {name: worker.labels for name, worker in workers.items()}
    rows = [
        {
            "way": name,
            "batch": batch,
            "length": length,
            "median_ms": float(np.median(taken) * 1000),
            "texts_per_second": float(batch / np.median(taken)),
            "device_ms": None if device[name][batch, length] is None else float(device[name][batch, length]) * 1000,
            "rounds_ms": np.round(np.asarray(taken) * 1000, 4).tolist(),
        }
        for name, by_shape in seconds.items()
        if name in workers and name != "twin"
        for (batch, length), taken in by_shape.items()
    ]
    floors = [
        {
            "batch": batch,
            "length": length,
            "noise_floor": noise_floor(*(np.asarray(seconds[name][batch, length]) for name in (first.name, "twin"))),
        }
        for batch, length in shapes
        if first.name in workers and "twin" in workers
    ]
    return {"model": model.name, "rows": rows, "floors": floors, "failed": failed, "agreement": list(_agreement(answers, labels, texts))}


def _short(error: AlambicError) -> str:
    return " ".join(error.message.split())[-300:]


def _agreement(answers: dict[str, np.ndarray], labels: dict[str, tuple[str, ...]], texts: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """Of every way against fp32 by ONNX Runtime: same answers, largest difference of a logit, accuracy where the labels are the model's."""
    exact = answers.get("ort:fp32")
    for name, found in answers.items():
        row: dict[str, Any] = {"way": name}
        if exact is not None:
            row |= {
                "same_answers": float((found.argmax(1) == exact.argmax(1)).mean()),
                "largest_difference": float(np.abs(found - exact).max()),
            }
        if set(texts["label"]) <= set(labels[name]):
            row["accuracy"] = float(
                np.mean([labels[name][best] == label for best, label in zip(found.argmax(1), texts["label"], strict=True)])
            )
        yield row


def aims(models: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was aimed at, with what came of it at each length: ratios of medians paired by round, and verdicts beyond the noise floor."""
    by_name = {one["model"]: one for one in models}

    def samples(model: str, way: str, batch: int, length: int) -> np.ndarray | None:
        rows = by_name.get(model, {}).get("rows", ())
        found = (row for row in rows if (row["way"], row["batch"], row["length"]) == (way, batch, length))
        return next((np.asarray(row["rounds_ms"]) for row in found), None)

    compiled = sorted({row["way"] for one in models for row in one["rows"] if row["way"].startswith("torch-compile")})
    wanted = [
        ("the teacher's CUDA graph fp16 over PyTorch eager fp16, batch 1", 3.0, ("minilm", EAGER), ("minilm", GRAPH16), 1),
        *((f"the teacher's CUDA graph fp16 over {way}, batch 1", 1.0, ("minilm", way), ("minilm", GRAPH16), 1) for way in compiled),
        ("the student's CUDA graph fp16 over the teacher's, batch 1", 2.0, ("minilm", GRAPH16), ("student", GRAPH16), 1),
        ("the student's CUDA graph fp16 over the teacher's, batch 128", 8.0, ("minilm", GRAPH16), ("student", GRAPH16), 128),
    ]
    found = []
    for what, aim, slow, fast, batch in wanted:
        for length in LENGTHS:
            one, other = samples(*slow, batch, length), samples(*fast, batch, length)
            if one is None or other is None:
                continue
            rounds = min(len(one), len(other))
            ratio, interval = speedup(one[:rounds], other[:rounds])
            floors = [row["noise_floor"] for row in by_name["minilm"]["floors"] if (row["batch"], row["length"]) == (batch, length)]
            row = {"what": what, "length": length, "aim": aim, "ratio": ratio, "interval": interval}
            found.append({**row, "verdict": verdict(ratio, interval, floors[0] if floors else None)})
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report in short."""
    machine = report["machine"]
    parts = [f"# {machine['gpu'] or machine['cpu']}", f"{report['rounds']} rounds of {report['samples']} runs; `{report['command']}`"]
    if report["aims"]:
        lines = ["| aim | length | at least | found | |", "|---|---|---|---|---|"]
        for row in report["aims"]:
            interval = f" ({row['interval'][0]:.2f}–{row['interval'][1]:.2f})" if row["interval"] else ""
            lines.append(f"| {row['what']} | {row['length']} | {row['aim']:g}× | {row['ratio']:.2f}×{interval} | {row['verdict']} |")
        parts.append("\n".join(lines))
    for one in report["models"]:
        shapes = list(dict.fromkeys((row["batch"], row["length"]) for row in one["rows"]))
        lines = ["| way | " + " | ".join(f"{batch} × {length}" for batch, length in shapes) + " |", "|---" * (len(shapes) + 1) + "|"]
        for way in dict.fromkeys(row["way"] for row in one["rows"]):
            cells = {(row["batch"], row["length"]): row for row in one["rows"] if row["way"] == way}
            shown = [_cell(cells.get(shape)) for shape in shapes]
            lines.append(f"| {way} | " + " | ".join(shown) + " |")
        parts += [f"## {one['model']}\n\nMedian ms host to host (device alone), batch × length.", "\n".join(lines)]
        parts += [
            "\n".join(
                f"- {row['way']}: " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in row.items() if name != "way")
                for row in one["agreement"]
            )
        ]
        parts += ["\n".join(f"- not measured: {row['name']}: {row['reason']}" for row in one["failed"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['median_ms']:.3f}" + ("" if row["device_ms"] is None else f" ({row['device_ms']:.3f})")


def measure(options: argparse.Namespace) -> None:
    """Measure all models and write the report; ends with 2 where there is no GPU or no model."""
    machine = machine_facts()
    if options.provider == "cuda" and machine["gpu"] is None:
        raise EnvironmentProblem(
            "There is no GPU here (nvidia-smi finds none), so nothing was measured.",
            "Run this on a machine with one; `measure --provider cpu --quick` rehearses it on the CPU.",
        )
    if not (options.models / "texts.json").exists():
        raise EnvironmentProblem(f"There are no models at {options.models}.", "Make them with: python benchmarks/gpu_benchmark.py prepare")
    texts = json.loads((options.models / "texts.json").read_bytes())
    shapes = [(batch, length) for batch in BATCHES for length in LENGTHS]
    rounds, samples = options.rounds, 30
    if options.quick:
        shapes, rounds, samples = [(1, 16), (1, 128), (8, 64)], min(rounds, 3), 5
        texts = {name: values[:50] for name, values in texts.items()}
    models = []
    for name in options.only:
        print(name, file=sys.stderr, flush=True)
        folder = options.models / name
        models.append(measure_model(folder, runs(folder, options.provider), shapes, rounds, samples, texts, options.provider))
    command = " ".join(["python", *sys.argv])
    report = {"machine": machine, "rounds": rounds, "samples": samples, "command": command, "aims": aims(models), "models": models}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / f"{options.name}.md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


def main() -> None:
    """Read the command line; what a user can mend becomes a line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("prepare")
    making.add_argument("--teacher", type=Path, help="PyTorch artifact of a MiniLM [default: random weights]")
    making.add_argument("--student", type=Path, help="PyTorch artifact, not quantized [default: random weights]")
    measuring = commands.add_parser("measure")
    measuring.add_argument("--name", required=True, help="of the machine: the report's file name")
    measuring.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    measuring.add_argument("--rounds", type=int, default=11)
    measuring.add_argument("--quick", action="store_true", help="three shapes, three rounds")
    measuring.add_argument("--out", type=Path, default=HERE)
    for command in (making, measuring):
        command.add_argument("--models", type=Path, default=MODELS)
        command.add_argument("--only", nargs="+", choices=SHAPES, default=SHAPES, help="these models only")
    options = parser.parse_args()
    try:
        if options.command == "prepare":
            prepare(options.models, options.only, {"minilm": options.teacher, "student": options.student})
        else:
            measure(options)
    except AlambicError as error:
        print(f"Error: {error.message}\nHint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
