"""The `Predictor` of serve.predictor over a PyTorch artifact: the baseline that everything is compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from model.artifact import open_artifact
from model.checkpoint import load_model
from model.pretrained import to_transformers
from model.tokenizer import open_tokenizer

Engine = Literal["transformers", "torch", "torch-compile"]


class TorchPredictor:
    """Logits of a torch module; `tokenize` gives what the module is called with."""

    provider = "cpu"

    def __init__(self, module: Any, tokenize: Any, labels: Sequence[str], engine: str, precision: str) -> None:
        self.module = module
        self.tokenize = tokenize
        self.labels = tuple(labels)
        self.engine = engine
        self.precision = precision

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        """A padded batch, as tensors [B, S]."""
        return self.tokenize(texts, pairs)

    @torch.inference_mode()
    def logits(self, batch: Any) -> np.ndarray:
        """float32 [B, labels]."""
        tensors = {name: torch.as_tensor(array) for name, array in batch.items()}
        found: np.ndarray = self.module(**tensors).float().numpy()
        return found


def open_torch_predictor(path: str | Path, engine: Engine = "transformers", threads: int = 1) -> TorchPredictor:
    """Open a torch artifact for running.

    engine: `transformers` is what its user had before alambic, the model of transformers with its AutoTokenizer (ConfigError if
    transformers has no such model); `torch` our own modules and tokenizer; `torch-compile` those compiled.
    """
    artifact = open_artifact(path, "torch")
    torch.set_num_threads(threads)
    encoder = load_model(artifact.path)
    precision = "int8" if encoder.config.quantization else "fp32"
    length = encoder.config.max_length
    if engine == "transformers":
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(artifact.path)

        def tokenize(texts: Sequence[str], pairs: Sequence[str] | None) -> Any:
            options = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
            return tokenizer(list(texts), list(pairs), **options) if pairs else tokenizer(list(texts), **options)

        return TorchPredictor(to_transformers(encoder).eval(), tokenize, artifact.manifest.labels, engine, precision)
    module = torch.compile(encoder, dynamic=True) if engine == "torch-compile" else encoder
    return TorchPredictor(module, open_tokenizer(artifact.path, length).encode, artifact.manifest.labels, engine, precision)
