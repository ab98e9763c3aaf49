"""Texts in, scores out: the `Predictor` protocol, and its ONNX Runtime form.

What a session really uses is checked: asked for CUDA, ONNX Runtime answers from the CPU without a word if a library is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from model.artifact import open_artifact
from model.config import read_config
from model.errors import ArtifactError, ConfigError, EnvironmentProblem
from model.tokenizer import Batch, Tokenizer, open_tokenizer

if TYPE_CHECKING:
    from types import ModuleType

Floats = npt.NDArray[np.floating[Any]]
Provider = Literal["cpu", "cuda"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
GRAPH = "model.onnx"
ERRORS_ONLY = 3  # ONNX Runtime's log level: its warnings are about the graph, which is the exporter's business


class Predictor(Protocol):
    """Anything that scores texts: `logits(encode(texts))` is float32 [texts, labels]."""

    @property
    def labels(self) -> tuple[str, ...]: ...  # names of the columns of the logits
    @property
    def engine(self) -> str: ...  # "ort", "torch", "torch-compile", "transformers"
    @property
    def provider(self) -> str: ...  # where it really runs: "cpu", "cuda"
    @property
    def precision(self) -> str: ...  # "fp32", "int8"

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Batch: ...

    def logits(self, batch: Batch) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class Prediction:
    """The likeliest label of a text, its probability, and the probability of every label, in the model's order."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True, eq=False)
class OrtPredictor:
    """A session with its tokenizer; made by `open_predictor`. Safe to use from several threads."""

    session: Any
    inputs: frozenset[str]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    provider: str
    precision: str
    engine: str = "ort"

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Batch:
        """The inputs of the graph, int64 [texts, longest]."""
        return self.tokenizer.encode(texts, pairs, types="token_type_ids" in self.inputs)

    def logits(self, batch: Batch) -> npt.NDArray[np.float32]:
        """float32 [texts, labels]; what the graph does not take is left out of `batch`."""
        found = self.session.run(["logits"], {name: array for name, array in batch.items() if name in self.inputs})[0]
        return np.asarray(found, np.float32)


def open_predictor(path: str | Path, provider: str = "cpu", threads: int = 1, allow_fallback: bool = False) -> OrtPredictor:
    """Open an exported model, every file of it verified, to run on `provider` ("cpu", "cuda") with `threads` threads of the CPU.

    Raises ArtifactError if it is damaged, no exported model or not runnable, EnvironmentProblem if ONNX Runtime is not there, is there
    twice, or would not run on `provider`. With `allow_fallback` the CPU will do: the predictor's `provider` tells what came of it.
    """
    artifact = open_artifact(path, "onnx")
    return unsealed_predictor(artifact.path, artifact.manifest.labels, provider, threads, allow_fallback)


def unsealed_predictor(
    directory: Path, labels: Sequence[str], provider: str = "cpu", threads: int = 1, allow_fallback: bool = False
) -> OrtPredictor:
    """`open_predictor` for a directory that has no manifest yet, such as export checks before it writes one."""
    content = json.loads((directory / "config.json").read_bytes())
    config = read_config(content["alambic"], f"encoder configuration in {directory / 'config.json'}")
    tokenizer = open_tokenizer(directory, config.max_length)
    session, used = open_session(directory / GRAPH, provider, threads, allow_fallback)
    inputs = _checked_inputs(session, directory / GRAPH, len(labels))
    return OrtPredictor(session, inputs, tokenizer, tuple(labels), used, "int8" if config.quantization else "fp32")


def open_session(graph: Path, provider: str = "cpu", threads: int = 1, allow_fallback: bool = False) -> tuple[Any, Provider]:
    """An `onnxruntime.InferenceSession` and the provider that it really uses; raises as `open_predictor` does."""
    if provider not in PROVIDERS:
        raise ConfigError(f"There is no provider {provider!r}.", f"Choose one of {', '.join(PROVIDERS)}.")
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    wanted = [PROVIDERS["cpu"]]
    if provider == "cuda" and PROVIDERS["cuda"] in onnxruntime.get_available_providers():
        wanted = [PROVIDERS["cuda"], *wanted]
    try:
        with redirect_stdout(sys.stderr):  # it prints what it misses of CUDA, and stdout is for answers
            if len(wanted) > 1 and hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # finds the CUDA and cuDNN that pip installed
            session = onnxruntime.InferenceSession(graph, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no class in common but this one
        hint = "Export the model again, or upgrade ONNX Runtime."
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot run {graph}: {error}", hint) from None
    used: Provider = "cuda" if session.get_providers()[0] == PROVIDERS["cuda"] else "cpu"
    if used != provider and not allow_fallback:
        raise _fallback(onnxruntime, len(wanted) > 1)
    return session, used


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime; raises EnvironmentProblem if neither of its two packages is installed, or both are."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise EnvironmentProblem(
            "This needs ONNX Runtime, which is not installed.",
            "Install it with: pip install 'alambic[cpu]' (or 'alambic[gpu]' for CUDA, not both).",
        )
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise EnvironmentProblem(
            "onnxruntime and onnxruntime-gpu are both installed. They are one module in two builds: the one installed last has overwritten "
            "files of the other.",
            "Mend it with: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'alambic[cpu]' (or 'alambic[gpu]').",
        )
    return importlib.import_module("onnxruntime")


def scores(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32) -> npt.NDArray[np.float32]:
    """Logits of every text (or pair), float32 [texts, labels], in the order given.

    Texts of like length are run together, so that little is padded; their number of characters is near enough for that.
    """
    found = np.zeros((len(texts), len(predictor.labels)), np.float32)
    lengths = [len(text) for text in texts] if pairs is None else [len(a) + len(b) for a, b in zip(texts, pairs, strict=True)]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        second = None if pairs is None else [pairs[row] for row in rows]
        found[rows] = predictor.logits(predictor.encode([texts[row] for row in rows], second))
    return found


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def predict(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32) -> list[Prediction]:
    """One Prediction for each text (or pair), in the order given."""
    rows = probabilities(scores(predictor, texts, pairs, batch_size)).tolist()
    named = [dict(zip(predictor.labels, row, strict=True)) for row in rows]
    return [Prediction(label := max(row, key=row.__getitem__), row[label], row) for row in named]


def _checked_inputs(session: Any, graph: Path, labels: int) -> frozenset[str]:
    """The names of the graph's inputs; raises ArtifactError if the graph is not a classifier of our making."""
    inputs = frozenset(entry.name for entry in session.get_inputs())
    outputs = {entry.name: entry.shape for entry in session.get_outputs()}
    hint = "Make it with `compress export`."
    if not {"input_ids", "attention_mask"} <= inputs <= INPUTS:
        raise ArtifactError(
            f"{graph} takes {', '.join(sorted(inputs))}, where input_ids, attention_mask[, token_type_ids] were expected.", hint
        )
    if "logits" not in outputs:
        raise ArtifactError(f"{graph} gives {', '.join(sorted(outputs))}, where logits were expected.", hint)
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != labels:
        raise ArtifactError(f"{graph} gives {width} logits a text, but its manifest has {labels} labels.", hint)
    return inputs


def _fallback(onnxruntime: Any, tried: bool) -> EnvironmentProblem:
    if tried:
        return EnvironmentProblem(
            "CUDA was asked for, but ONNX Runtime could not load it and would run on the CPU.",
            "Check `nvidia-smi`, and that CUDA 13 and cuDNN 9 are installed: pip install 'alambic[gpu]'. --allow-fallback takes the CPU.",
        )
    return EnvironmentProblem(
        f"CUDA was asked for, but this build of ONNX Runtime ({onnxruntime.__version__}) has only the CPU.",
        "Install the other: pip uninstall -y onnxruntime && pip install 'alambic[gpu]'. --allow-fallback takes the CPU.",
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
