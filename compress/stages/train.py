"""Fine-tune a base on labelled text: the teacher, or a small model trained without one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.config import TrainOptions
from compress.data import Data
from compress.distillation import classification
from compress.evaluation import measure
from compress.progress import bar, say
from compress.sources import Source
from compress.stage import Result, Workspace
from compress.tasks import trainable
from compress.training import prepare, tokenize, train
from model.artifact import Artifact
from model.checkpoint import load_model, save_model
from model.config import EncoderConfig, read_config
from model.encoder import Encoder
from model.errors import ConfigError
from model.pretrained import load_pretrained
from model.tokenizer import Tokenizer, open_tokenizer


def run(options: TrainOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    trainable(data)
    prepare(options)
    base, tokenizer_source = sources["base"], sources.get("tokenizer")
    tokenizer = open_tokenizer((tokenizer_source or base).path, options.max_length)
    model = _start(base, tokenizer, len(data.labels), options)
    corpus = tokenize(tokenizer, data.splits["train"])
    if options.train_texts:
        corpus = corpus.subset(options.train_texts, options.seed)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    say(f"  training {size:.1f} M parameters on {len(corpus):,} texts for {options.epochs:g} passes")
    with bar("training") as progress:
        trained = train(model, corpus, classification, options, workspace.work, progress)
    save_model(model, workspace.artifact, list(data.labels))
    tokenizer.save(workspace.artifact)
    metrics = measure(model, tokenize(tokenizer, data.splits["validation"]))
    return Result(data.task, list(data.labels), {**metrics, "training": trained})


def _start(base: Source, tokenizer: Tokenizer, labels: int, options: TrainOptions) -> Encoder:
    """The encoder to train: an artifact's with a fresh head, a foreign checkpoint's, or a fresh one by configuration."""
    head = {"labels": labels, "pooling": options.pooling}
    if isinstance(base.artifact, Artifact):
        found = load_model(base.path)
        model = Encoder(found.config.changed(head=head))
        model.load_state_dict({name: value for name, value in found.state_dict().items() if not name.startswith("head.")}, strict=False)
    elif base.path.is_file():
        model = Encoder(_read(base.path, tokenizer, head, options))
    else:
        model = load_pretrained(base.path, labels, options.pooling)
    if model.config.vocabulary < tokenizer.vocabulary:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocabulary:,} tokens, the base only {model.config.vocabulary:,}.",
            "Give the tokenizer that belongs to it.",
        )
    changes = {"max_length": options.max_length, **({} if options.dropout is None else {"dropout": options.dropout})}
    return _changed(model, changes)


def _changed(model: Encoder, changes: dict[str, Any]) -> Encoder:
    """`model` with settings changed that have no weights."""
    changed = Encoder(model.config.changed(**changes))
    changed.load_state_dict(model.state_dict())
    return changed


def _read(path: Path, tokenizer: Tokenizer, head: dict[str, Any], options: TrainOptions) -> EncoderConfig:
    """The configuration in a JSON file; vocabulary, head and length are the tokenizer's, the data's and the options'."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", "Give an encoder configuration; `compress options` lists its slots.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no JSON object.", "Give an encoder configuration; `compress options` lists its slots.")
    given = {"vocabulary": tokenizer.vocabulary, "max_length": options.max_length, "head": head}
    return read_config({**values, **given}, f"encoder configuration {path}")
