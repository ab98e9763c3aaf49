"""What a model starts from: an artifact, a checkpoint of another maker, or a configuration, with a head for the task; or with its own."""

from pathlib import Path
from typing import Any

from compress.sources import Source, configuration
from compress.tasks import PRETRAINING, TASKS
from model.build import Model, build
from model.checkpoint import load_encoder, load_model
from model.encoder import Encoder
from model.errors import ConfigError
from model.kinds import ModelConfig, read_model
from model.pretrained import has_head, load_pretrained, longest, own_head
from model.tokenizer import Tokenizer, open_tokenizer


def head_of(task: str, labels: int, pooling: str) -> dict[str, Any]:
    """The head's configuration; tags are given token by token, so nothing is pooled for them."""
    return {"kind": task, "labels": labels, **({"pooling": pooling} if "pooling" in TASKS[task].head.model_fields else {})}


def start(base: Source, tokenizer: Tokenizer, head: dict[str, Any], dropout: float | None) -> Model:
    """The model to train: an artifact's with a fresh head, a foreign checkpoint's, or a fresh one by configuration.

    Pre-training goes on with the base's own head, where it has one of that kind.
    Its length is the tokenizer's. Raises ConfigError if the tokenizer has tokens that it has not.
    """
    if base.artifact is not None:
        found = load_model(base.path)
        if own := head["kind"] in PRETRAINING and found.config.head.kind == head["kind"]:
            head = found.config.head.model_dump()
        model = build(found.config.changed(head=head))
        kept = {name: value for name, value in found.state_dict().items() if own or not name.startswith("head.")}
        model.load_state_dict(kept, strict=False)
    elif base.path.is_file():
        model = build(configured(base.path, tokenizer.vocabulary, tokenizer.max_length, head))
    else:
        model = load_pretrained(base.path, head, kept=head["kind"] in PRETRAINING and has_head(base.path, head["kind"]))
    _check_tokens(model.config, tokenizer)
    changes = {"max_length": tokenizer.max_length, **({} if dropout is None else {"dropout": dropout})}
    changed = build(model.config.changed(**changes))  # settings that have no weights
    changed.load_state_dict(model.state_dict())
    return changed


def open_whole(source: Source, backbone: Path | None = None) -> tuple[Model, list[str]]:
    """A model with its own head, and its labels: a PyTorch artifact (`backbone` as in `load_model`), or a checkpoint of another maker.

    Raises ConfigError for a checkpoint without a head, or that our encoder cannot be.
    """
    if source.artifact is not None:
        return load_model(source.path, backbone), source.artifact.manifest.labels
    task, labels = own_head(source.path)
    model = load_pretrained(source.path, {"kind": task, "labels": len(labels)}, kept=True, max_length=longest(source.path))
    _check_tokens(model.config, open_tokenizer(source.path, model.config.max_length))
    return model, labels


def _check_tokens(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the tokenizer has tokens that the model has not."""
    if config.vocabulary < tokenizer.vocabulary:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocabulary:,} tokens, the base only {config.vocabulary:,}.",
            "Give the tokenizer that belongs to it.",
        )


def generator_for(source: Source, tokenizer: Tokenizer) -> Encoder:
    """The masked language model at `source`, an artifact or a checkpoint; raises ConfigError if it is none or reads other tokens."""
    if source.artifact is not None and source.artifact.manifest.task != "masked":
        what = f"{source.path} is a model for {source.artifact.manifest.task}: it cannot fill in words."
        raise ConfigError(what, "Train a generator with `compress train --task masked`.")
    if source.artifact is None and (source.path.is_file() or not has_head(source.path, "masked")):
        raise ConfigError(f"{source.path} has no masked language model.", "Train a generator with `compress train --task masked`.")
    if open_tokenizer(source.path, tokenizer.max_length).digest != tokenizer.digest:
        what = f"The generator {source.path} has a tokenizer of its own."
        raise ConfigError(what, "Both must read the same tokens: train one with this tokenizer.")
    return (
        load_encoder(source.path, "that fill in words") if source.artifact else load_pretrained(source.path, {"kind": "masked"}, kept=True)
    )


def configured(path: Path, vocabulary: int, max_length: int, head: dict[str, Any]) -> ModelConfig:
    """The configuration in a JSON file; vocabulary and length are a tokenizer's, the head is the task's. ConfigError if it cannot be."""
    given = {"vocabulary": vocabulary, "max_length": max_length, "head": head}
    return read_model({**configuration(path), **given}, f"model configuration {path}")
