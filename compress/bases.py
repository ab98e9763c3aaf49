"""What a model starts from: an artifact, a checkpoint of another maker, or a configuration, with a head for the task."""

import json
from pathlib import Path
from typing import Any

from compress.sources import Source
from model.checkpoint import load_model
from model.config import EncoderConfig, read_config
from model.encoder import Encoder
from model.errors import ConfigError
from model.pretrained import load_pretrained
from model.tokenizer import Tokenizer


def head_of(task: str, labels: int, pooling: str) -> dict[str, Any]:
    """The head's configuration; tags are given token by token, so nothing is pooled for them."""
    return {"kind": task, "labels": labels, **({} if task == "tagging" else {"pooling": pooling})}


def start(base: Source, tokenizer: Tokenizer, head: dict[str, Any], dropout: float | None) -> Encoder:
    """The encoder to train: an artifact's with a fresh head, a foreign checkpoint's, or a fresh one by configuration.

    Its length is the tokenizer's. Raises ConfigError if the tokenizer has tokens that it has not.
    """
    if base.artifact is not None:
        found = load_model(base.path)
        model = Encoder(found.config.changed(head=head))
        model.load_state_dict({name: value for name, value in found.state_dict().items() if not name.startswith("head.")}, strict=False)
    elif base.path.is_file():
        model = Encoder(_read(base.path, tokenizer, head))
    else:
        model = load_pretrained(base.path, head)
    if model.config.vocabulary < tokenizer.vocabulary:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocabulary:,} tokens, the base only {model.config.vocabulary:,}.",
            "Give the tokenizer that belongs to it.",
        )
    changes = {"max_length": tokenizer.max_length, **({} if dropout is None else {"dropout": dropout})}
    changed = Encoder(model.config.changed(**changes))  # settings that have no weights
    changed.load_state_dict(model.state_dict())
    return changed


def _read(path: Path, tokenizer: Tokenizer, head: dict[str, Any]) -> EncoderConfig:
    """The configuration in a JSON file; vocabulary and length are the tokenizer's, the head is the task's."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", "Give an encoder configuration; `compress options` lists its slots.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no JSON object.", "Give an encoder configuration; `compress options` lists its slots.")
    given = {"vocabulary": tokenizer.vocabulary, "max_length": tokenizer.max_length, "head": head}
    return read_config({**values, **given}, f"encoder configuration {path}")
