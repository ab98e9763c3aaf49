"""Fine-tune a base on labelled text: the teacher, or a small model trained without one."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from compress.bases import configured, generator_for, head_of, start
from compress.config import TrainOptions
from compress.data import Data
from compress.evaluation import measure
from compress.losses import supervised
from compress.masking import masking_for
from compress.prefixes import start_from_tokens, with_prefix
from compress.progress import bar, say
from compress.sources import Source
from compress.stage import Result, Workspace
from compress.students import inherit, layer_map
from compress.tasks import labels_of, trainable
from compress.training import prepare, tokenize, train
from compress.vocabularies import moved, own_tokenizer, read_vocabulary, texts_of
from model.build import Model, as_encoder
from model.checkpoint import save_model
from model.conversion import convert_attention, read_attention, reshaped
from model.errors import ConfigError
from model.tokenizer import Tokenizer, open_tokenizer


def run(options: TrainOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    task = trainable(data, options.task)
    labels = labels_of(task, data)
    _check_prefix(options, sources["base"])
    if "generator" in sources and task != "replaced":
        raise ConfigError(f"--generator is given, but the task is {task}: nothing is replaced.", "Leave it out, or give --task replaced.")
    if data.unlabelled and options.vocabulary is None:
        what = f"--unlabelled {','.join(options.unlabelled)} is text for a vocabulary here, but none is made."
        raise ConfigError(what, "Give --vocabulary, or train on that text first: `compress train TEXT --task masked …`.")
    prepare(options)
    model, tokenizer = _begin(options, sources, head_of(task, len(labels), options.pooling), data, workspace)
    if options.depth is not None:
        whole = as_encoder(model, sources["base"].path, "to choose among")
        model = inherit(whole, layer_map(options.depth, len(whole.config.layers)))
    if options.attention:
        kinds = [read_attention(text) for text in options.attention]
        model = convert_attention(as_encoder(model, sources["base"].path, "with attention"), kinds)
    model = reshaped(model, None, options.early_pooling, options.positions_after_norm, options.activation)
    tokenizer = replace(tokenizer, typed=model.config.typed)
    corpus = tokenize(tokenizer, data.splits["train"], task, labels)
    if task == "regression":  # start from the mean, which takes many small steps to reach
        torch.nn.init.constant_(model.get_submodule("head.output").get_parameter("bias"), float(corpus.labels.mean()))
    if options.train_texts:
        corpus = corpus.subset(options.train_texts, options.seed)
    if corpus.lesson is not None:
        settings: dict[str, Any] = {"share": options.masking, "seed": options.seed}
        generator = generator_for(sources["generator"], tokenizer) if "generator" in sources else None
        lesson = masking_for(task, tokenizer, corpus.encodings, **settings, generator=generator)
        corpus = replace(corpus, lesson=lesson)
    if options.prefix:
        model = with_prefix(as_encoder(model, sources["base"].path, "with a prefix"), options.prefix)
        first = corpus.subset(options.batch_size, options.seed)
        start_from_tokens(model, first.batch(list(range(len(first)))), options.seed)
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    say(f"  training {size / 1e6:.1f} M parameters on {len(corpus):,} texts for {options.epochs:g} passes")
    with bar("training") as progress:
        trained = train(model, corpus, supervised(task), options, workspace.work, progress)
    save_model(model, workspace.artifact, labels, sources["base"].digest if options.prefix else "")
    tokenizer.save(workspace.artifact)
    validation = tokenize(tokenizer, data.splits["validation"], task, labels)
    metrics = measure(model, validation if corpus.lesson is None else replace(validation, lesson=corpus.lesson), labels)
    return Result(task, labels, {**metrics, "trained_parameters": size, "training": trained}, "base" if options.prefix else "")


def _check_prefix(options: TrainOptions, base: Source) -> None:
    """Raise ConfigError if a prefix is asked for where it has no backbone, or none that it could be found with again."""
    if not options.prefix:
        return
    if base.path.is_file():
        what = (
            f"--prefix {options.prefix} steers a backbone that has learned something, but {base.path} is a configuration without weights."
        )
        raise ConfigError(what, "Give a model as --base, or train all of it (without --prefix).")
    other = [
        *([f"--depth {options.depth}"] if options.depth is not None else []),
        *([f"--attention {','.join(options.attention)}"] if options.attention else []),
        *(["--early-pooling"] * options.early_pooling),
        *(["--positions-after-norm"] * options.positions_after_norm),
        *([f"--activation {options.activation}"] if options.activation else []),
    ]
    if other:
        what = f"--prefix and {' and '.join(other)} together: the backbone would not be the base any more."
        raise ConfigError(what, "Convert the base first (`compress train --attention …`), then train the prefix on that.")
    if options.vocabulary is not None:
        what = f"--prefix and --vocabulary {options.vocabulary} together: the backbone would not be the base any more."
        raise ConfigError(what, "Change the base's vocabulary first (`compress train --vocabulary …`), then train the prefix on that.")


def _begin(
    options: TrainOptions, sources: Mapping[str, Source], head: dict[str, Any], data: Data, workspace: Workspace
) -> tuple[Model, Tokenizer]:
    """The base with its tokenizer, or with one trained on the texts, for which a base with weights gets fitting embeddings."""
    base, given = sources["base"], sources.get("tokenizer")
    if options.vocabulary is None:
        tokenizer = open_tokenizer((given or base).path, options.max_length)
        return start(base, tokenizer, head, options.dropout), tokenizer
    if given is not None:
        raise ConfigError(
            f"--vocabulary {options.vocabulary} trains a tokenizer, and --tokenizer {given.path} brings one.", "Give one of the two."
        )
    theirs = None
    if base.path.is_file():  # which is read before a vocabulary is trained for nothing
        configured(base.path, read_vocabulary(options.vocabulary)[1], options.max_length, head)
    else:
        theirs = open_tokenizer(base.path, options.max_length)
    more = data.unlabelled.texts if data.unlabelled else ()
    read = chain(texts_of(data.splits["train"]), more)
    ours = own_tokenizer(options.vocabulary, read, workspace.work / "vocabulary", options.max_length, theirs)
    say(f"  a vocabulary of {ours.vocabulary:,} pieces made for {len(data.splits['train']) + len(more):,} texts")
    if theirs is None:
        return start(base, ours, head, options.dropout), ours
    return moved(start(base, theirs, head, options.dropout), ours, theirs), ours
