"""Teach a shallower student what the teacher knows; it starts from the teacher's own layers, or from those of a base of its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.bases import head_of, start
from compress.config import DistillOptions
from compress.data import Data
from compress.evaluation import measure
from compress.progress import bar, say
from compress.sources import Source, place_of
from compress.stage import Result, Workspace
from compress.students import inherit, layer_map
from compress.teachers import Teacher, foreign_answers, open_teacher
from compress.teaching import answered, lessons, material, refuse_tokens
from compress.training import Corpus, Objective, drawn, prepare, tokenize, train
from compress.vocabularies import moved, own_tokenizer, texts_of
from model.checkpoint import save_model
from model.conversion import convert_attention, read_attention
from model.encoder import Encoder
from model.errors import ConfigError
from model.tokenizer import Tokenizer, open_tokenizer


def run(options: DistillOptions, sources: Mapping[str, Source], data: Data, workspace: Workspace) -> Result:
    """See compress.stage."""
    teacher = open_teacher(sources["teacher"], data, place_of(sources))
    prepare(options)
    student, tokenizer, layers = _student(teacher, sources.get("base"), options)
    if options.attention:
        student = convert_attention(student, [read_attention(text) for text in options.attention])
    own = "base" not in sources
    if options.vocabulary is not None:
        refuse_tokens(teacher.task, options)
        ours = own_tokenizer(options.vocabulary, texts_of(data.splits["train"]), workspace.work / "vocabulary", options.max_length)
        student, tokenizer, own = moved(student, ours, tokenizer), replace(ours, typed=tokenizer.typed), False
        say(f"  a vocabulary of its own: {tokenizer.vocabulary:,} pieces")
    part = drawn(data.splits["train"], options.train_texts, options.seed)
    corpus = material(tokenizer, part, teacher.task, teacher.labels, taught=True)
    whose = "its base's" if "base" in sources else "the teacher's"
    say(f"  a student of {whose} layers {', '.join(map(str, layers))} learns on {len(corpus):,} texts for {options.epochs:g} passes")
    corpus, objective = _lessons(student, teacher, corpus, part, options, workspace.work, own=own)
    with bar("distilling") as progress:
        trained = train(student, corpus, objective, options, workspace.work, progress)
    save_model(student, workspace.artifact, teacher.labels)
    tokenizer.save(workspace.artifact)
    metrics = measure(student, tokenize(tokenizer, data.splits["validation"], teacher.task, teacher.labels), teacher.labels)
    return Result(teacher.task, teacher.labels, {**metrics, "training": trained, "student_layers": layers})


def _student(teacher: Teacher, base: Source | None, options: DistillOptions) -> tuple[Encoder, Tokenizer, list[int]]:
    """The student, its tokenizer, and the layers that it starts from."""
    if base is not None:
        tokenizer = open_tokenizer(base.path, options.max_length)
        model = start(base, tokenizer, head_of(teacher.task, len(teacher.labels), "mean"), options.dropout)
        layers = layer_map(options.depth, len(model.config.layers))
        return inherit(model, layers, options.dropout), replace(tokenizer, typed=model.config.typed), layers
    if teacher.model is None:
        raise ConfigError(
            f"{teacher.path} can teach, but our encoder cannot be it, so that no student can start from its layers.",
            "Give the student a base of its own: --base minilm.",
        )
    layers = layer_map(options.depth, len(teacher.model.config.layers), options.teacher_layers)
    student = inherit(teacher.model, layers, options.dropout)
    return student, open_tokenizer(teacher.path, options.max_length, typed=student.config.typed), layers


def _lessons(
    student: Encoder, teacher: Teacher, corpus: Corpus, part: Any, options: DistillOptions, work: Path, *, own: bool
) -> tuple[Corpus, Objective]:
    """The corpus with the teacher's answers, and the objective; `own`: the teacher reads the student's tokens."""
    if teacher.model is not None:
        heard = None
        if not own:
            theirs = open_tokenizer(teacher.path, options.max_length, typed=teacher.model.config.typed)
            heard = material(theirs, part, teacher.task, teacher.labels, taught=True)
        return lessons(student, teacher.model, corpus, options, work, heard)
    pairs = part["text_b"][:] if "text_b" in part.column_names else None

    def ask() -> dict[str, Tensor]:
        with bar("the teacher answers") as progress:
            return foreign_answers(teacher, part["text"][:], pairs, options.max_length, work / "answers.safetensors", progress)

    return answered(student, corpus, options, ask)
