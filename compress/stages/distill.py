"""Teach a shallower student what the teacher knows.

The student starts from layers of the teacher's own (all of their heads and neurons, or those that matter most to the teacher), from
those of a base of its own, or it is a student that is there already and goes on.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

from compress.bases import head_of, start
from compress.config import DistillOptions
from compress.data import Data
from compress.evaluation import measure
from compress.importance import taylor
from compress.losses import supervised
from compress.progress import bar, say
from compress.pruning import check_heads, counts, prune_by
from compress.sources import Source, place_of
from compress.stage import Result, Workspace
from compress.students import inherit, layer_map
from compress.tasks import labels_agree
from compress.teachers import Teacher, open_teacher
from compress.teaching import Texts, lessons, refuse_tokens, texts_for
from compress.training import prepare, tokenize, train
from compress.vocabularies import moved, own_tokenizer, texts_of
from model.checkpoint import load_model, save_model
from model.conversion import convert_attention, read_attention, reshaped
from model.encoder import Encoder
from model.errors import ConfigError
from model.tokenizer import Tokenizer, open_tokenizer


def run(options: DistillOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    teacher = open_teacher(sources["teacher"], data, place_of(sources))
    prepare(options)
    texts = texts_for(options, data, teacher.task, teacher.labels, teacher.path, sources.get("generator"))
    student, tokenizer, layers, whose = _student(teacher, sources, texts, data, options)
    if options.attention:
        student = convert_attention(student, [read_attention(text) for text in options.attention])
    if options.vocabulary is not None:
        refuse_tokens(teacher.task, options)
        read = chain(texts_of(data.splits["train"]), *texts.others)
        ours = own_tokenizer(options.vocabulary, read, workspace.work / "vocabulary", options.max_length)
        student, tokenizer = moved(student, ours, tokenizer), replace(ours, typed=tokenizer.typed)
        say(f"  a vocabulary of its own: {tokenizer.vocabulary:,} pieces")
    student = reshaped(student, options.early_pooling, options.positions_after_norm, options.activation)
    corpus, objective = lessons(student, tokenizer, teacher, texts, options)
    say(f"  a student of {whose} layers {', '.join(map(str, layers))} learns on {len(corpus):,} texts for {options.epochs:g} passes")
    with bar("distilling") as progress:
        trained = train(student, corpus, objective, options, workspace.work, progress)
    save_model(student, workspace.artifact, teacher.labels)
    tokenizer.save(workspace.artifact)
    metrics = measure(student, tokenize(tokenizer, data.splits["validation"], teacher.task, teacher.labels), teacher.labels)
    return Result(teacher.task, teacher.labels, {**metrics, "training": trained, "student_layers": layers})


def _student(
    teacher: Teacher, sources: Mapping[str, Source], texts: Texts, data: Data, options: DistillOptions
) -> tuple[Encoder, Tokenizer, list[int], str]:
    """The student, its tokenizer, the layers that it starts from, and whose they are."""
    base, student = sources.get("base"), sources.get("student")
    if base and student:
        raise ConfigError("Both --base and --student are given.", "A student starts from one of them: leave the other out.")
    if (base or student) and (options.heads or options.neurons):
        which = "--base" if base else "--student"
        raise ConfigError(f"--heads and --neurons choose among the teacher's own; {which} is given.", "Use `compress prune` afterwards.")
    if student:
        return *_going_on(student, place_of(sources), data, options), "its own"
    if base:
        tokenizer = open_tokenizer(base.path, options.max_length)
        model = start(base, tokenizer, head_of(teacher.task, len(teacher.labels), "mean"), options.dropout)
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
    if options.heads or options.neurons:
        model = _smaller(model, teacher.model, layers, tokenizer, texts, options)
    return model, tokenizer, layers, "the teacher's"


def _going_on(source: Source, backbone: Path | None, data: Data, options: DistillOptions) -> tuple[Encoder, Tokenizer, list[int]]:
    """A student that is there already; its depth is its own."""
    manifest = source.model.manifest
    labels_agree(manifest.labels, data, manifest.task)
    found = load_model(source.path, backbone)
    if found.config.quantization:
        raise ConfigError(f"{source.path} is quantized already.", "Give the student that it was made from.")
    layers = list(range(len(found.config.layers)))
    model = inherit(found, layers, options.dropout)
    return model, open_tokenizer(source.path, options.max_length, typed=model.config.typed), layers


def _smaller(student: Encoder, teacher: Encoder, layers: list[int], tokenizer: Tokenizer, texts: Texts, options: DistillOptions) -> Encoder:
    """`student` with the heads and neurons that matter most in the `teacher` itself, scored on labelled texts with its own loss."""
    heads = counts(options.heads, [layer.attention.heads for layer in student.config.layers], "heads")
    check_heads(student.config, heads)
    neurons = counts(options.neurons, [layer.feedforward.neurons for layer in student.config.layers], "neurons")
    scored = tokenize(tokenizer, texts.part, texts.task, texts.labels).subset(options.scoring_texts, options.seed)
    with bar("scoring the teacher's heads and neurons") as progress:
        importance = taylor(teacher, scored.passing(options.batch_size, progress), supervised(texts.task))
    smaller = prune_by(student, [importance[layer] for layer in layers], heads, neurons, options.allocation)
    kept = ", ".join(f"{layer.attention.heads} heads × {layer.feedforward.neurons} neurons" for layer in smaller.config.layers)
    say(f"  starts with {kept}")
    return smaller
