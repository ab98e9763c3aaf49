"""Texts in, scores out: the `Predictor` protocol, and its ONNX Runtime form.

What a session really uses is checked: asked for CUDA, ONNX Runtime answers from the CPU without a word if a library is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from model.artifact import open_artifact
from model.errors import ArtifactError, ConfigError
from model.kinds import ModelConfig, read_model
from model.tokenizer import Batch, Tokenizer, open_tokenizer
from serve.sessions import Later, open_session
from serve.tasks import DECODERS, OUTPUTS, Answer, batch_for, outputs_by_text, stacked

Floats = npt.NDArray[np.floating[Any]]
POOLED = ("classification", "multilabel", "regression", "embedding")  # tasks whose answers need nothing of a batch but the outputs
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
GRAPH = "model.onnx"
SINGLE = "model.onnx.single"  # for one text at a time; some loaders want one *.onnx in a directory, so it is none
LARGEST = 32 * 512**2  # texts × tokens² of a batch that is run at once
WIDE = 8  # outputs of a token that count as one token of its attention
NO_INT8 = {
    "cuda": "for which ONNX Runtime's CUDA provider has no kernels: its linears would run on the CPU, with copies",
    "tensorrt": "with uint8 activations and zero points, the CPU's scheme; TensorRT takes int8 around zero alone",
}


class Predictor(Protocol):
    """Anything that scores texts: `logits(encode(texts))` is float32 [texts, labels], or what its task has there (see serve.tasks).

    A predictor without the attribute `task` is a classifier.
    """

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


@dataclass(frozen=True, eq=False)
class OrtPredictor:
    """A session with its tokenizer; made by `open_predictor`. Safe to use from several threads.

    Where there is a graph for one text at a time, `single` is its session: one text goes there, and `session` is opened when the first
    batch comes.
    """

    session: Any
    inputs: frozenset[str]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    provider: str
    precision: str
    task: str = "classification"
    engine: str = "ort"
    single: Any = None

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Batch:
        """The inputs of the graph, int64 [texts, longest]; one text has no `attention_mask` where it needs none."""
        if self.single is not None and len(texts) == 1 and pairs is None and self.task in POOLED:
            batch = {"input_ids": self.tokenizer.row(texts[0])}
            if "token_type_ids" in self.inputs:
                batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
            return batch
        return batch_for(self.task, self.tokenizer, texts, pairs, types="token_type_ids" in self.inputs)

    def logits(self, batch: Batch) -> npt.NDArray[np.float32]:
        """float32 [texts, labels], or what its task has there; what the graph does not take is left out of `batch`."""
        # Nothing can be left out of one array; between two runs even a short loop costs a microsecond.
        given = batch if len(batch) == 1 else {name: array for name, array in batch.items() if name in self.inputs}
        session = self.session
        if self.single is not None and len(given["input_ids"]) == 1 and ("attention_mask" not in given or given["attention_mask"].all()):
            session = self.single
            given.pop("attention_mask", None)
        return np.asarray(session.run([OUTPUTS[self.task]], given)[0], np.float32)


def open_predictor(
    path: str | Path,
    provider: str = "cpu",
    threads: int = 1,
    allow_fallback: bool = False,
    settings: Mapping[str, str] | None = None,
) -> OrtPredictor:
    """Open an exported model, every file of it verified, to run on `provider` ("cpu", "cuda") with `threads` threads of the CPU.

    `settings` are options of the provider, as serve.gpu has them. Raises ConfigError for a model that the provider has no kernels for,
    ArtifactError if it is damaged, no exported model or not runnable, EnvironmentProblem if ONNX Runtime is not there, is there
    twice, or would not run on `provider`. With `allow_fallback` the CPU will do: the predictor's `provider` tells what came of it.
    """
    artifact = open_artifact(path, "onnx")
    return unsealed_predictor(artifact.path, artifact.manifest.labels, provider, threads, allow_fallback, settings)


def read_models(directory: Path) -> list[ModelConfig]:
    """The configuration in the directory of a model, and those of all others whose mean its file gives (see export/ensemble.py)."""
    path = directory / "config.json"
    content = json.loads(path.read_bytes())
    return [read_model(values, f"model configuration in {path}") for values in (content["alambic"], *content.get("ensemble", ()))]


def read_encoder(directory: Path) -> tuple[ModelConfig, str]:
    """The (first) configuration in the directory of a model, and the precision of its file: "int8", "fp16" or "fp32"."""
    configs = read_models(directory)
    if any(config.quantization and config.quantization.integers for config in configs):
        return configs[0], "int8"
    dtype = json.loads((directory / "config.json").read_bytes()).get("dtype")
    return configs[0], "fp16" if dtype == "float16" else "fp32"


def unsealed_predictor(
    directory: Path,
    labels: Sequence[str],
    provider: str = "cpu",
    threads: int = 1,
    allow_fallback: bool = False,
    settings: Mapping[str, str] | None = None,
) -> OrtPredictor:
    """`open_predictor` for a directory that has no manifest yet, such as export checks before it writes one."""
    config, precision = read_encoder(directory)
    tokenizer = open_tokenizer(directory, config.max_length)
    if provider == "tensorrt":  # which would build an engine first, for minutes
        _runs_int8(directory, provider)
    task = config.head.kind
    labels = names_of(config, tokenizer, labels)
    width = config.vector_width if task == "embedding" else len(labels)

    def batched() -> tuple[Any, str, frozenset[str]]:
        session, used = open_session(directory / GRAPH, provider, threads, allow_fallback, settings=settings)
        return session, used, _checked_inputs(session, directory / GRAPH, width, OUTPUTS[task])

    session: Any
    single = None
    if provider == "cpu" and (directory / SINGLE).is_file():
        single, used = open_session(directory / SINGLE, provider, threads)
        inputs = _checked_inputs(single, directory / SINGLE, width, OUTPUTS[task], masked=False) | {"attention_mask"}
        session = Later(lambda: batched()[0])
    else:
        session, used, inputs = batched()
    _runs_int8(directory, used)
    return OrtPredictor(session, inputs, tokenizer, tuple(labels), used, precision, task, single=single)


def names_of(config: ModelConfig, tokenizer: Tokenizer, labels: Sequence[str]) -> tuple[str, ...]:
    """What the columns of a model's outputs are called: the `labels`, or the tokens where it is a masked language model."""
    if config.head.kind != "masked":
        return tuple(labels)
    return token_names(tokenizer, config.vocabulary)


def token_names(tokenizer: Tokenizer, vocabulary: int) -> tuple[str, ...]:
    """A name for each of the `vocabulary` outputs of a masked language model; those that the tokenizer does not know have none."""
    return (*tokenizer.tokens, *[""] * (vocabulary - len(tokenizer.tokens)))


def task_of(predictor: Predictor) -> str:
    """The task of a predictor; one that does not say is a classifier."""
    return str(getattr(predictor, "task", "classification"))


def scores(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32) -> npt.NDArray[np.float32]:
    """What the model gives for every text (or pair), float32, in the order given.

    [texts, labels]; for tagging [texts, most words, labels] with NaN where there is no word; for embedding [texts, width], of pairs the
    cosines [texts, 1]. Texts of like length are run together, so that little is padded; their number of characters is near enough.
    """
    if not texts:
        return np.zeros((0, len(predictor.labels)), np.float32)
    task = task_of(predictor)
    lengths = [len(text) for text in texts] if pairs is None else [len(a) + len(b) for a, b in zip(texts, pairs, strict=True)]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    found: dict[int, Floats] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        second = None if pairs is None else [pairs[row] for row in rows]
        for batch in batches(predictor, [texts[row] for row in rows], second):
            outputs = outputs_by_text(task, predictor.logits(batch), batch, second is not None)
            found |= zip(rows[: len(outputs)], outputs, strict=True)
            rows = rows[len(outputs) :]
    return stacked([found[row] for row in range(len(texts))])


def batches(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Iterator[Batch]:
    """The texts as one batch, or halved again and again where that many would be too long for the memory that dense attention takes.

    One text is never too long.
    """
    batch, half = predictor.encode(texts, pairs), len(texts) // 2
    rows, tokens = np.shape(batch["input_ids"]) if "input_ids" in batch else (0, 0)
    if not half or fits(predictor, rows, tokens):
        yield batch
        return
    for part in (slice(half), slice(half, None)):
        yield from batches(predictor, texts[part], None if pairs is None else pairs[part])


def fits(predictor: Predictor, rows: int, tokens: int) -> bool:
    """Whether a batch is at most LARGEST: texts × tokens², or × the outputs of a token where a masked language model has very many."""
    return rows * tokens * max(tokens, len(predictor.labels) // WIDE) <= LARGEST


def predict(predictor: Predictor, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32) -> list[Answer]:
    """One answer for each text (or pair), in the order given: what serve.tasks has for the predictor's task."""
    decode = DECODERS[task_of(predictor)]
    return [decode(row, predictor.labels, text) for row, text in zip(scores(predictor, texts, pairs, batch_size), texts, strict=True)]


def _runs_int8(directory: Path, provider: str) -> None:
    """Raise ConfigError if linears are quantized and `provider` has no kernels for their scheme."""
    schemes = {config.quantization.scheme for config in read_models(directory) if config.quantization and config.quantization.linears}
    if provider == "cpu" or not schemes - ({"tensorrt"} if provider == "tensorrt" else set()):
        return
    hint = "On a GPU run the fp32 model that it was quantized from, exported in fp16, or quantized with --scheme tensorrt by ort-tensorrt."
    raise ConfigError(f"{directory} is int8, {NO_INT8[provider]}.", hint)


def _checked_inputs(session: Any, graph: Path, width: int, output: str, masked: bool = True) -> frozenset[str]:
    """The names of the graph's inputs; raises ArtifactError if the graph is not one of our making, with `output` [.., width]."""
    needed = {"input_ids", "attention_mask"} if masked else {"input_ids"}
    inputs = frozenset(entry.name for entry in session.get_inputs())
    outputs = {entry.name: entry.shape for entry in session.get_outputs()}
    hint = "Make it with `compress export`."
    if not needed <= inputs <= needed | INPUTS - {"attention_mask"}:
        expected = ", ".join(name for name in ("input_ids", "attention_mask") if name in needed)
        raise ArtifactError(f"{graph} takes {', '.join(sorted(inputs))}, where {expected}[, token_type_ids] were expected.", hint)
    if set(outputs) != {output}:
        raise ArtifactError(f"{graph} gives {', '.join(sorted(outputs))}, where its one output should be {output}.", hint)
    found = outputs[output][-1]
    if isinstance(found, int) and found != width:
        raise ArtifactError(f"{graph} gives {found} {output} a text, but its manifest has {width} labels.", hint)
    return inputs
