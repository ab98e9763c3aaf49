"""Models of other makers, as transformers loads them: run as they are, compiled, or through our exporter.

They are not artifacts: a directory with config.json, model.safetensors and a fast tokenizer (tokenizer.json).

Tasks: what AutoModelForSequenceClassification loads, with one label (regression), one of several or any of several; tags of
AutoModelForTokenClassification; embeddings, AutoModel with the pooling that sentence-transformers wrote beside it, or the mean; words
that AutoModelForMaskedLM finds, and those that ELECTRA's discriminator takes for replaced.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.graph import OPSET, export_module
from export.parity import batch_of, grid
from export.placement import placed
from export.torch_predictor import TorchPredictor, transformers_batches
from model.errors import ConfigError, GateError, require
from model.heads import POOLINGS
from model.pretrained import longest, own_task
from model.tokenizer import open_tokenizer
from serve.gpu import open_plain_graph
from serve.predictor import GRAPH, token_names
from serve.tasks import OUTPUTS

TOLERANCE = 1e-4
LOADERS = {
    **dict.fromkeys(("classification", "multilabel", "regression"), "AutoModelForSequenceClassification"),
    "tagging": "AutoModelForTokenClassification",
    "embedding": "AutoModel",
    "masked": "AutoModelForMaskedLM",
    "replaced": "AutoModelForPreTraining",
}
POOLED = Path("1_Pooling", "config.json")  # of sentence-transformers


class Logits(nn.Module):
    """A model of transformers that returns its logits alone, [B, labels] or [B, S, labels]; `single`: it gives one a token, [B, S]."""

    def __init__(self, model: nn.Module, *, single: bool = False) -> None:
        super().__init__()
        self.model = model
        self.single = single

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """As the model's own; single texts need no token types."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits[..., None] if self.single else logits


class Vectors(nn.Module):
    """A model of transformers that returns a vector of length 1 for each text, [B, W]; `pooling` is one of model.heads.POOLINGS."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        self.model = model
        self.pool = POOLINGS[pooling]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """As the model's own states, pooled."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        return functional.normalize(self.pool(states, attention_mask.to(states.dtype)), dim=-1)


def pooling_of(directory: Path) -> str:
    """How sentence-transformers pools the model in `directory`, "mean" where it has not said; raises ConfigError for another way."""
    if not (directory / POOLED).exists():
        return "mean"
    said = [name for name, on in json.loads((directory / POOLED).read_bytes()).items() if name.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(said) != 1 or said[0] not in known:
        raise ConfigError(
            f"{directory / POOLED} asks for {', '.join(said) or 'no pooling'}.", f"Measured here: {', '.join(known)}, one of them alone."
        )
    return known[said[0]]


def foreign_labels(directory: Path, wanted: Sequence[str], task: str = "classification") -> list[str]:
    """Names of the model's classes by number; names that say nothing (LABEL_0 …) stand for `wanted` in their order.

    A score has whatever name, a vector and the tokens of a vocabulary none. Raises ConfigError if the directory holds no model for `task`,
    or a classifier of other classes.
    """
    if task not in LOADERS:
        raise ConfigError(f"Models of transformers are not measured here for {task}.", f"They are for {', '.join(LOADERS)}.")
    if task in ("masked", "replaced") and own_task(directory) != task:
        needed = {"masked": "masked language model (…ForMaskedLM)", "replaced": "discriminator of ELECTRA (ElectraForPreTraining)"}[task]
        raise ConfigError(f"{directory} is no {needed}, by its config.json.", "Measure models of one task against each other.")
    if task in ("embedding", "masked", "replaced"):
        return list(wanted)
    try:
        config = json.loads((directory / "config.json").read_bytes())
        named = {int(number): str(name) for number, name in config["id2label"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        raise ConfigError(
            f"{directory} is no classifier: its config.json names no classes (id2label).",
            "Fine-tune it first: `compress train DATA --base …`.",
        ) from None
    names = [named[number] for number in sorted(named)]
    if task == "regression" and len(names) == 1:
        return list(wanted)
    if all(name == f"LABEL_{number}" for number, name in enumerate(names)) and len(names) == len(wanted):
        return list(wanted)
    if sorted(names) != sorted(wanted):
        raise ConfigError(
            f"{directory} knows the classes {', '.join(names)}, but the data has {', '.join(wanted)}.",
            "Measure it on the data that it was trained for.",
        )
    return names


def weights_size(directory: Path) -> int:
    """Bytes of the model's safetensors files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def load_foreign(directory: Path, task: str = "classification") -> nn.Module:
    """The model for `task` in `directory`, in eval mode; raises ConfigError with transformers' words if it has none there."""
    require("train", "transformers")
    for chatty in ("torchao", "torch.utils._pytree"):  # notes at import about what nobody here asked for
        logging.getLogger(chatty).setLevel(logging.ERROR)
    import transformers
    from transformers.utils import logging as chatter

    progress: Any = chatter.disable_progress_bar  # which has no types
    progress()
    try:
        model: nn.Module = getattr(transformers, LOADERS[task]).from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"transformers cannot load {directory}: {words[0]}", "Give a directory that save_pretrained wrote.") from None
    return (Vectors(model, pooling_of(directory)) if task == "embedding" else Logits(model, single=task == "replaced")).eval()


def open_foreign(
    path: str | Path,
    labels: Sequence[str],
    engine: str = "transformers",
    threads: int = 1,
    provider: str = "cpu",
    precision: str = "fp32",
    task: str = "classification",
) -> TorchPredictor:
    """The model as it is ("transformers") or compiled ("torch-compile"), with its own tokenizer."""
    require("train", "transformers")
    from transformers import AutoTokenizer

    directory = Path(path)
    torch.set_num_threads(threads)
    module: Any = placed(load_foreign(directory, task), provider, precision)
    if task == "masked":
        labels = token_names(open_tokenizer(directory, longest(directory)), module.model.config.vocab_size)
    if engine == "torch-compile":
        module = torch.compile(module, dynamic=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokenize = transformers_batches(tokenizer, task, longest(directory))
    return TorchPredictor(module, tokenize, labels, engine, precision, task, provider)


def export_foreign(directory: Path, out: Path, task: str = "classification") -> Path:
    """Write the model and its tokenizer to `out`, and return the graph, which gave PyTorch's answers at every shape of the grid.

    Raises ConfigError if it cannot be loaded, GateError if the graph differs by more than TOLERANCE.
    """
    module: Any = load_foreign(directory, task)
    config = module.model.config
    out.mkdir(parents=True, exist_ok=True)
    length = longest(directory)
    open_tokenizer(directory, length).save(out)
    file = out / GRAPH
    export_module(module, file, opset=OPSET, inputs=("input_ids", "attention_mask"), output=OUTPUTS[task], longest=length)
    predictor = open_plain_graph(out, [], length, task=task)
    for number, shape in enumerate(grid(min(length, 128))):
        batch = batch_of(shape, config.vocab_size, number, pairs=False)
        with torch.no_grad():
            expected = module(*(torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))).numpy()
        difference = float(np.abs(predictor.logits(batch) - expected).max())
        if not difference <= TOLERANCE:
            raise GateError(
                f"The exported graph of {directory} differs from PyTorch by {difference:.2g} at batch and length {shape}.",
                "Leave out the ways of ONNX Runtime for it.",
            )
    return file
