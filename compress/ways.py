"""Ways of running a model: engine, device and precision, and what opens each in a process of its own.

A way is written `engine` or `engine:precision`: `ort`, `torch-compile:bf16`, `ort-cuda-graph:fp16`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.config import BenchmarkOptions, ExportOptions
from compress.sources import Source
from compress.stage import STAGES, run_stage
from model.artifact import Artifact, Manifest
from model.config import EncoderConfig
from model.errors import AlambicError, ConfigError
from serve.predictor import read_encoder


@dataclass(frozen=True)
class Way:
    """One way of running a model: `factory` ("module:function") returns its predictor for `arguments`.

    `name` is unique in a run; `model` is the model's role or name, which several ways may share. A way of another interpreter, `python`,
    imports its factory from `folders`. A way that `may_fail` is left out with the reason if it cannot be opened.
    """

    name: str
    model: str
    engine: str
    provider: str
    precision: str
    mode: str
    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)
    python: str = ""
    folders: tuple[str, ...] = ()
    may_fail: bool = False

    @property
    def interpreter(self) -> dict[str, Any]:
        """What `serve.timing.start_worker` needs to know of another interpreter."""
        return {"python": self.python, "folders": self.folders} if self.python else {}


@dataclass(frozen=True)
class Engine:
    """What runs a model: the mode that reports name, the precisions it takes, whether it needs a GPU."""

    mode: str
    precisions: tuple[str, ...]
    needs_gpu: bool = False


PYTORCH = {
    "transformers": Engine("eager", ("fp32", "tf32", "fp16", "bf16")),
    "torch": Engine("eager", ("fp32", "tf32", "fp16", "bf16")),
    "torch-compile": Engine("compiled", ("fp32", "tf32", "fp16", "bf16")),
}
ORT = {
    "ort": Engine("graph", ("fp32", "tf32", "fp16")),
    "ort-iobinding": Engine("graph, bound", ("fp32", "tf32", "fp16")),
    "ort-cuda-graph": Engine("CUDA graph", ("fp32", "tf32", "fp16"), needs_gpu=True),
    "ort-tensorrt": Engine("TensorRT", ("fp32", "fp16", "bf16", "int8"), needs_gpu=True),
}
ENGINES = {**PYTORCH, **ORT}


@dataclass(frozen=True)
class Opened:
    """A way with what a report says of its model: its digest, bytes and, where it is an artifact, its manifest's figures."""

    way: Way
    facts: dict[str, Any]


def read_way(text: str, provider: str) -> tuple[str, str]:
    """Engine and precision ("" where none is named); raises ConfigError for what does not exist or does not run on `provider`."""
    engine, _, precision = text.partition(":")
    if engine not in ENGINES:
        raise ConfigError(f"There is no way {engine} to run a model.", f"Ways: {', '.join(ENGINES)}; with a precision: ort:fp16.")
    if precision and precision not in ENGINES[engine].precisions:
        why = " (its CUDA kernels for bf16 are few)" if precision == "bf16" else ""
        if precision == "int8":
            why = " (a quantized artifact runs so by itself, on the CPU; on the CUDA provider int8 falls back to it, with copies)"
        raise ConfigError(f"{engine} does not run in {precision}{why}.", f"{engine} takes {', '.join(ENGINES[engine].precisions)}.")
    if provider == "cpu" and (ENGINES[engine].needs_gpu or precision == "tf32"):
        raise ConfigError(f"The way {text} needs a GPU.", "Give --provider cuda, or leave this way out.")
    return engine, precision


def open_ways(
    options: BenchmarkOptions,
    sources: Mapping[str, Source],
    labels: tuple[str, ...],
    work: Path,
    *,
    pairs: bool,
    task: str = "classification",
) -> list[Opened]:
    """The ways of every model: PyTorch for the first, ONNX Runtime for all, exported into `work` where they are not yet.

    A source without a manifest is a model of transformers' own, for `task`, which has to know `labels`; `pairs` tells whether the data are
    pairs.
    Raises ConfigError for a way that does not exist or a model that cannot be run in it, and what an export raises.
    """
    asked = [read_way(text, options.provider) for text in options.way]
    known = {name: _labels_of(source, labels, task) for name, source in sources.items()}  # before anything is exported
    ways: list[Opened] = []
    for number, (name, source) in enumerate(sources.items()):
        mine = list(_kept(asked, source, first=number == 0, provider=options.provider))
        if not mine:
            hint = "Add ort, or torch for the first model (a PyTorch artifact)."
            if "ort-tensorrt:int8" in options.way:
                hint += " ort-tensorrt:int8 is for a model of `compress quantize --scheme tensorrt`."
            raise ConfigError(f"None of the ways {', '.join(options.way)} runs {name}.", hint)
        for engine, precision in mine:
            title = name if len(mine) == 1 else "-".join(part for part in (name, engine, precision) if part)
            if source.artifact is None:
                if pairs and engine in ORT and task != "embedding":
                    raise ConfigError(
                        f"{name} is a model of transformers; its export takes single texts, not pairs.", "Leave out ort for it."
                    )
                ways.append(_foreign(title, name, source, engine, precision, options, known[name], work, task))
            else:
                ways.append(_ours(title, name, source, engine, precision, options, work))
    return ways


def _labels_of(source: Source, labels: tuple[str, ...], task: str) -> list[str]:
    """The labels of a model, in its own order; raises ConfigError for one of transformers that is not for `task`, or knows others."""
    if source.artifact is not None:
        return source.artifact.manifest.labels
    from export.foreign import foreign_labels

    return foreign_labels(source.path, labels, task)


def _kept(asked: list[tuple[str, str]], source: Source, *, first: bool, provider: str) -> Iterator[tuple[str, str]]:
    """The ways that a model has: an exported one has its own precision, and only the first model runs in PyTorch.

    Raises ConfigError for int8 by TensorRT of a model that is quantized for the CPU.
    """
    exported = source.artifact is not None and source.artifact.manifest.kind == "onnx"
    engines = [(engine, precision) for engine, precision in asked if engine in ORT or (first and not exported)]
    own = "fp32" if source.artifact is None else precision_of(source.artifact.manifest)
    if ("ort-tensorrt", "int8") in engines and source.artifact is not None and own == "int8":
        _symmetric(source.artifact)
    if not exported:
        yield from (one for one in engines if one[1] != "int8" or own == "int8")
        return
    converted = {"tf32"} | ({"fp16", "bf16"} if own == "fp32" else set())  # TensorRT makes of fp32 what it is asked for
    fitting = [
        (engine, precision if precision in converted else "")
        for engine, precision in engines
        if precision in ("", "tf32", own) or (engine == "ort-tensorrt" and precision in converted)
    ]
    yield from dict.fromkeys(fitting or [("ort", "")])


def _symmetric(artifact: Artifact) -> None:
    """Raise ConfigError if a quantized artifact is not in the form that TensorRT takes."""
    quantization = read_encoder(artifact.path)[0].quantization
    if quantization and quantization.scheme != "tensorrt":
        raise ConfigError(
            f"{artifact.path} is int8 with uint8 activations, the CPU's scheme; TensorRT takes int8 around zero alone.",
            "Quantize the model with --scheme tensorrt, or leave the way ort-tensorrt:int8 out.",
        )


def _ours(title: str, name: str, source: Source, engine: str, precision: str, options: BenchmarkOptions, work: Path) -> Opened:
    artifact, mode = source.model, ENGINES[engine].mode
    shared: dict[str, Any] = {"threads": options.threads, "provider": options.provider}
    if engine == "transformers" and isinstance(config := read_encoder(artifact.path)[0], EncoderConfig):
        from model.pretrained import check_bert

        check_bert(config, name)
    if engine in PYTORCH:
        factory = "export.torch_predictor:open_torch_predictor"
        arguments = {"path": str(artifact.path), "engine": engine, **shared, "precision": precision or "fp32"}
        way = Way(title, name, engine, options.provider, precision or precision_of(artifact.manifest), mode, factory, arguments)
        return Opened(way, facts_of(artifact))
    run_by = artifact if artifact.manifest.kind == "onnx" else _exported(name, source, engine, precision, options, work)
    arguments = {"path": str(run_by.path), **shared}
    factory, provider = "serve.predictor:open_predictor", "tensorrt" if engine == "ort-tensorrt" else options.provider
    if engine != "ort" or provider != "cpu":
        factory = "serve.gpu:open_gpu_predictor"
        arguments |= {"way": engine, "precision": precision, "cache": str(work / "engines")}
    shown = precision or precision_of(run_by.manifest)
    return Opened(Way(title, name, engine, provider, shown, mode, factory, arguments), facts_of(run_by))


def _exported(name: str, source: Source, engine: str, precision: str, options: BenchmarkOptions, work: Path) -> Artifact:
    """The export of a model in the scratch folder: fp16 where asked, with ONNX Runtime's own attention for the CUDA provider.

    TensorRT knows neither that operator nor needs the halves: it converts by itself.
    """
    wanted = ExportOptions()
    if engine != "ort-tensorrt":
        attention = "ort" if options.provider == "cuda" else "standard"
        wanted = ExportOptions.model_validate({"precision": "fp16" if precision == "fp16" else "fp32", "attention": attention})
    out = work / "-".join((name, wanted.precision, wanted.attention))
    outcome = run_stage(STAGES["export"], wanted, {"model": source}, None, out)
    return Artifact(outcome.path, outcome.manifest)


def _foreign(
    title: str,
    name: str,
    source: Source,
    engine: str,
    precision: str,
    options: BenchmarkOptions,
    labels: list[str],
    work: Path,
    task: str,
) -> Opened:
    """A model of transformers, with its own labels: itself, compiled, or through our exporter."""
    from export.foreign import export_foreign, weights_size
    from model.pretrained import longest

    if engine not in ("transformers", "torch-compile", "ort", "ort-iobinding") or (precision in ("tf32", "fp16") and engine in ORT):
        raise ConfigError(
            f"{name} is a model of transformers; the way {engine}{precision and ':' + precision} is for artifacts of alambic.",
            "Its ways are transformers, torch-compile, ort and ort-iobinding.",
        )
    shared: dict[str, Any] = {"labels": labels, "threads": options.threads, "provider": options.provider, "task": task}
    if engine in PYTORCH:
        factory, size = "export.foreign:open_foreign", weights_size(source.path)
        arguments = {"path": str(source.path), "engine": engine, "precision": precision or "fp32", **shared}
    else:
        try:
            file = export_foreign(source.path, work / f"{name}-graph", task)
        except AlambicError:
            raise
        except Exception as error:  # torch.export gives up in many ways
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"{name} cannot be exported: {words[0]}", "Leave out the ways of ONNX Runtime for it.") from error
        factory, size = "serve.gpu:open_plain_graph", file.stat().st_size
        arguments = {"path": str(file.parent), "max_length": longest(source.path), "way": engine, **shared}
    way = Way(title, name, engine, options.provider, precision or "fp32", ENGINES[engine].mode, factory, arguments)
    return Opened(way, {"digest": source.digest, "bytes": size})


def precision_of(manifest: Manifest) -> str:
    """The arithmetic of an artifact: "int8" if it or an ancestor was quantized, what it was exported in, else "fp32"."""
    stages = {manifest.stage, *(known["stage"] for known in manifest.ancestors.values())}
    return "int8" if "quantize" in stages else str(manifest.options.get("precision", "fp32")) if manifest.stage == "export" else "fp32"


def facts_of(artifact: Artifact) -> dict[str, Any]:
    """Identity and size of what a way runs; bytes are those of its weights or graph."""
    manifest = artifact.manifest
    size = sum(file.bytes for name, file in manifest.files.items() if name in ("model.safetensors", "model.onnx", "model.onnx.single"))
    known: dict[str, Any] = {name: manifest.metrics[name] for name in ("parameters", "integer_linears") if name in manifest.metrics}
    return {"digest": manifest.digest, "bytes": size, **known}
