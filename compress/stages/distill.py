"""Teach a smaller student what the teacher knows.

The student starts from layers of the teacher's own (all of their heads and neurons, or those that matter most to the teacher), from
those of a base of its own, or it is a student that is there already and goes on. One without layers starts from a table of tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from compress.bases import head_of, start
from compress.config import DistillOptions
from compress.data import Data
from compress.evaluation import measure
from compress.grouping import group, group_counts
from compress.importance import taylor
from compress.losses import supervised
from compress.progress import bar, say
from compress.pruning import check_heads, counts, kept_words, prune_by
from compress.sources import Source, place_of, student_values
from compress.stage import Result, Workspace
from compress.students import from_table, inherit, layer_map
from compress.tasks import labels_agree
from compress.teachers import Teacher, open_teachers
from compress.teaching import Texts, lessons, refuse_tokens, texts_for
from compress.training import prepare, tokenize, train
from compress.vocabularies import moved, own_tokenizer, texts_of
from model.build import Model, as_encoder, build
from model.checkpoint import load_model, save_model
from model.config import EncoderConfig
from model.conversion import convert_attention, read_attention, reshaped
from model.encoder import Encoder
from model.errors import ConfigError
from model.kinds import read_model
from model.tokenizer import Tokenizer, open_tokenizer


def run(options: DistillOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    teachers = open_teachers(sources, data)
    teacher = teachers[0]
    prepare(options)
    texts = texts_for(options, data, teacher.task, teacher.labels, teacher.path, sources.get("generator"))
    student, tokenizer, layers, whose = _student(teacher, sources, texts, data, options)
    if options.attention:
        kinds = [read_attention(text) for text in options.attention]
        student = convert_attention(as_encoder(student, "The student", "with attention"), kinds)
    if options.vocabulary is not None:
        refuse_tokens(teacher.task, options)
        read = chain(texts_of(data.splits["train"]), *texts.others)
        ours = own_tokenizer(options.vocabulary, read, workspace.work / "vocabulary", options.max_length, tokenizer)
        student, tokenizer = moved(student, ours, tokenizer), replace(ours, typed=tokenizer.typed)
        say(f"  a vocabulary of its own: {tokenizer.vocabulary:,} pieces")
    student = reshaped(student, options.pooling, options.early_pooling, options.positions_after_norm, options.activation)
    corpus, objective = lessons(student, tokenizer, teachers, texts, options)
    what = f"student of {whose} layers {', '.join(map(str, layers))}" if layers else f"{student.config.kind} student"
    say(f"  a {what} learns on {len(corpus):,} texts for {options.epochs:g} passes")
    with bar("distilling") as progress:
        trained = train(student, corpus, objective, options, workspace.work, progress)
    save_model(student, workspace.artifact, teacher.labels)
    tokenizer.save(workspace.artifact)
    metrics = measure(student, tokenize(tokenizer, data.splits["validation"], teacher.task, teacher.labels), teacher.labels)
    return Result(teacher.task, teacher.labels, {**metrics, "training": trained, "student_layers": layers})


def _student(
    teacher: Teacher, sources: Mapping[str, Source], texts: Texts, data: Data, options: DistillOptions
) -> tuple[Model, Tokenizer, list[int], str]:
    """The student, its tokenizer, the layers that it starts from (none of a student that has no layers), and whose they are."""
    base, student = sources.get("base"), sources.get("student")
    if base and student and student.artifact:
        raise ConfigError("Both --base and --student are given.", "A student starts from one of them: leave the other out.")
    if (base or student) and (options.heads or options.neurons or options.key_value_heads):
        which = "--base" if base else "--student"
        chosen = "--heads, --neurons and --key-value-heads choose among the teacher's own"
        raise ConfigError(f"{chosen}; {which} is given.", "Use `compress prune` afterwards.")
    if student and student.artifact is None:
        return *_of_tables(student, teacher, base, options), [], ""
    if student:
        return *_going_on(student, place_of(sources), data, options), "its own"
    if base:
        tokenizer = open_tokenizer(base.path, options.max_length)
        started = start(base, tokenizer, head_of(teacher.task, len(teacher.labels), "mean"), options.dropout)
        model = as_encoder(started, base.path, "to start from")
        layers = layer_map(options.depth, len(model.config.layers))
        return inherit(model, layers, options.dropout), replace(tokenizer, typed=model.config.typed), layers, "its base's"
    if teacher.model is None:
        raise ConfigError(
            f"{teacher.path} can teach, but our encoder cannot be it, so that no student can start from its layers.",
            "Give the student a base of its own: --base minilm.",
        )
    layers = layer_map(options.depth, len(teacher.model.config.layers), options.teacher_layers)
    model = inherit(teacher.model, layers, options.dropout)
    tokenizer = open_tokenizer(teacher.path, options.max_length, typed=model.config.typed)
    if options.heads or options.neurons or options.key_value_heads:
        model = _smaller(model, teacher.model, layers, tokenizer, texts, options)
    return model, tokenizer, layers, "the teacher's"


def _going_on(source: Source, backbone: Path | None, data: Data, options: DistillOptions) -> tuple[Model, Tokenizer, list[int]]:
    """A student that is there already; its depth is its own."""
    manifest = source.model.manifest
    labels_agree(manifest.labels, data, manifest.task)
    found = load_model(source.path, backbone)
    if found.config.quantization:
        raise ConfigError(f"{source.path} is quantized already.", "Give the student that it was made from.")
    if not isinstance(found, Encoder):
        again = build(found.config if options.dropout is None else found.config.changed(dropout=options.dropout))
        again.load_state_dict(found.state_dict())
        return again, open_tokenizer(source.path, options.max_length), []
    layers = list(range(len(found.config.layers)))
    model = inherit(found, layers, options.dropout)
    return model, open_tokenizer(source.path, options.max_length, typed=model.config.typed), layers


def _of_tables(source: Source, teacher: Teacher, base: Source | None, options: DistillOptions) -> tuple[Model, Tokenizer]:
    """A student without layers; its token rows begin with those of the base, or of the teacher, where that shows them."""
    tokenizer = open_tokenizer((base or teacher).path, options.max_length)
    head = head_of(teacher.task, len(teacher.labels), "mean")
    given: dict[str, Any] = {"vocabulary": tokenizer.vocabulary, "max_length": tokenizer.max_length, "head": head}
    if options.dropout is not None:
        given["dropout"] = options.dropout
    if teacher.task == "embedding" and teacher.model:
        given["vector"] = teacher.model.config.vector_width
    config = read_model({**student_values(source), **given}, f"student {source.name}")
    if isinstance(config, EncoderConfig):
        raise ConfigError(f"{source.name} is the configuration of an encoder.", "Give it to `compress train` and the result as --base.")
    origin = teacher.model if base is None else as_encoder(start(base, tokenizer, head, None), base.path, "to start from")
    rows = None if origin is None else origin.embeddings.tokens(torch.arange(tokenizer.vocabulary)).detach()
    return from_table(config, rows), tokenizer


def _smaller(student: Encoder, teacher: Encoder, layers: list[int], tokenizer: Tokenizer, texts: Texts, options: DistillOptions) -> Encoder:
    """`student` with the heads and neurons that matter most in the `teacher` itself, scored on labelled texts with its own loss."""
    heads = counts(options.heads, [layer.attention.heads for layer in student.config.layers], "heads")
    check_heads(student.config, heads)
    keys = group_counts(options.key_value_heads, student.config, heads)
    neurons = counts(options.neurons, [layer.feedforward.neurons for layer in student.config.layers], "neurons", least=0)
    scored = tokenize(tokenizer, texts.part, texts.task, texts.labels).subset(options.scoring_texts, options.seed)
    with bar("scoring the teacher's heads and neurons") as progress:
        importance = taylor(teacher, scored.passing(options.batch_size, progress), supervised(texts.task))
    smaller = prune_by(student, [importance[layer] for layer in layers], heads, neurons, options.allocation)
    smaller = group(smaller, keys)
    say(f"  starts with {kept_words(smaller.config)}")
    return smaller
