"""The `Predictor` of serve.predictor over a PyTorch artifact: the baseline that everything is compared with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from export.placement import arithmetic, device_seconds, placed
from model.artifact import open_artifact
from model.build import as_encoder
from model.checkpoint import load_model
from model.pretrained import to_transformers
from model.tokenizer import Batch, open_tokenizer
from serve.predictor import INPUTS, names_of
from serve.tasks import batch_for, with_mask

Engine = Literal["transformers", "torch", "torch-compile"]


class TorchPredictor:
    """Logits of a torch module on its device, `provider`; `tokenize` gives what the module is called with."""

    def __init__(
        self, module: Any, tokenize: Any, labels: Sequence[str], engine: str, precision: str, task: str, provider: str = "cpu"
    ) -> None:
        self.module = module
        self.tokenize = tokenize
        self.labels = tuple(labels)
        self.engine = engine
        self.precision = precision
        self.task = task
        self.provider = provider

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """A padded batch, as tensors [B, S]."""
        return self.tokenize(texts, pairs)

    @torch.inference_mode()
    def logits(self, batch: Any) -> np.ndarray:
        """float32 [B, labels], or what the task has there."""
        found: np.ndarray = self._run(self._moved(batch)).float().cpu().numpy()
        return found

    @torch.inference_mode()
    def device_seconds(self, batch: Any) -> float:
        """Mean seconds of a run whose inputs are on the device already and whose logits stay there."""
        return device_seconds(self._run, self._moved(batch), self.provider)

    def _moved(self, batch: Any) -> dict[str, Tensor]:
        return {name: torch.as_tensor(batch[name]).to(self.provider) for name in batch if name in INPUTS}

    def _run(self, tensors: Mapping[str, Tensor]) -> Tensor:
        with nullcontext() if self.engine == "transformers" else arithmetic(self.provider, self.precision):
            found: Tensor = self.module(**tensors)
        return found


def open_torch_predictor(
    path: str | Path,
    engine: Engine = "transformers",
    threads: int = 1,
    provider: str = "cpu",
    precision: str = "fp32",
    compile_mode: str = "default",
    backbone: Path | None = None,
) -> TorchPredictor:
    """Open a torch artifact for running on `provider` ("cpu", "cuda") in `precision` (one of export.placement.DTYPES).

    engine: `transformers` is what its user had before alambic, the model of transformers with its AutoTokenizer (ConfigError if
    transformers has no such model); `torch` our own modules and tokenizer; `torch-compile` those compiled, in torch.compile's
    `compile_mode`. `backbone` as in `load_model`. Raises EnvironmentProblem if PyTorch sees no GPU where one is asked for.
    """
    artifact = open_artifact(path, "torch")
    torch.set_num_threads(threads)
    encoder = load_model(artifact.path, backbone)
    quantized = encoder.config.quantization
    named = "int8" if quantized and quantized.integers else precision
    length, task = encoder.config.max_length, encoder.config.head.kind
    if engine == "transformers":
        from transformers import AutoTokenizer

        tokenize = transformers_batches(AutoTokenizer.from_pretrained(artifact.path), task, length, typed=encoder.config.typed)
        theirs = placed(to_transformers(as_encoder(encoder, artifact.path, "that transformers knows")), provider, precision)
        labels = tuple(artifact.manifest.labels)
        if task == "masked":
            labels = names_of(encoder.config, open_tokenizer(artifact.path, length), labels)
        return TorchPredictor(theirs, tokenize, labels, engine, named, task, provider)
    ours = open_tokenizer(artifact.path, length, typed=encoder.config.typed)

    def encode(texts: Sequence[str], pairs: Sequence[str] | None) -> Batch:
        return batch_for(task, ours, texts, pairs, types=False)

    module: Any = placed(encoder, provider, precision)
    if engine == "torch-compile":
        module = torch.compile(module, dynamic=compile_mode == "default", mode=compile_mode)
    return TorchPredictor(module, encode, names_of(encoder.config, ours, artifact.manifest.labels), engine, named, task, provider)


def transformers_batches(
    tokenizer: Any, task: str, length: int, *, typed: bool = False
) -> Callable[[Sequence[str], Sequence[str] | None], Any]:
    """A function (texts, pairs) → batch of tensors by a tokenizer of transformers: what serve.tasks.batch_for is for ours.

    The model of a tokenizer that does not give token types by itself may be `typed` all the same: it gets those of pairs.
    """

    def tokenize(texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
        options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        if task == "masked" and not pairs:
            found = tokenizer([with_mask(text, tokenizer.mask_token) for text in texts], **options)
            return {**found, "words": _masks(found["input_ids"] == tokenizer.mask_token_id)}
        if task in ("tagging", "replaced") and not pairs:
            found = tokenizer([text.split() for text in texts], is_split_into_words=True, **options)
            return {**found, "words": _first_tokens([found.word_ids(row) for row in range(len(texts))], texts)}
        if task == "embedding" and pairs:
            texts, pairs = [*texts, *pairs], None
        if not pairs:
            return tokenizer(list(texts), **options)
        return tokenizer(list(texts), list(pairs), **options, **({"return_token_type_ids": True} if typed else {}))

    return tokenize


def _masks(there: Tensor) -> np.ndarray:
    """The places of the masks of each text, [B, most masks], -1 for none; `there` [B, S]."""
    places = np.full((len(there), int(there.sum(dim=1).max())), -1)
    for row, masks in enumerate(there):
        found = np.flatnonzero(masks.numpy())
        places[row, : len(found)] = found
    return places


def _first_tokens(owners: Sequence[Sequence[int | None]], texts: Sequence[str]) -> np.ndarray:
    """For each word of each text its first token, -1 where it was cut off; `owners` names the word of each token."""
    places = np.full((len(texts), max(len(text.split()) for text in texts)), -1)
    for row, words in enumerate(owners):
        for place, word in reversed(list(enumerate(words))):
            if word is not None:
                places[row, word] = place
    return places
