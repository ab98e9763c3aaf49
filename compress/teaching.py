"""A teacher, a corpus and a stage's options → the corpus with the teacher's answers and the objective: for distill, prune and quantize."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.config import Distillation
from compress.distillation import Along, objective, teacher_answers
from compress.losses import supervised
from compress.progress import bar
from compress.students import layer_map
from compress.training import Corpus, Inputs, Objective, in_turn, model_inputs, tokenize
from model.encoder import Encoder
from model.errors import ConfigError
from model.tokenizer import Tokenizer, open_tokenizer


def lessons(
    student: Encoder, teacher: Encoder | None, corpus: Corpus, options: Distillation, work: Path, heard: Corpus | None = None
) -> tuple[Corpus, Objective]:
    """The corpus to learn from and the objective; without a teacher, the data's labels alone.

    The teacher runs once over the corpus and its answers are kept in `work`; what is compared for each token needs it to run along.
    `heard`: the same texts as the teacher reads them, where its tokenizer is another. Raises ConfigError if the widths differ while hidden
    states are compared, if tokens are to be compared across tokenizers, or if no loss has a weight.
    """
    task = student.config.head.kind
    if teacher is None:
        return corpus, supervised(task)
    layers = layer_map(len(student.config.layers), len(teacher.config.layers), options.teacher_layers)
    if options.hidden and student.config.width != teacher.config.width:
        raise ConfigError(
            f"The student is {student.config.width} wide and the teacher {teacher.config.width}: their states cannot be compared.",
            "Give --hidden 0.",
        )
    _check_weights(task, options)
    bf16 = options.precision == "bf16"
    if heard is not None:
        refuse_tokens(task, options)
    if task == "tagging" or (options.hidden_states == "tokens" and options.hidden):
        teacher.eval().to(options.device)

        @torch.no_grad()
        def along(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
            logits, states = teacher.states(**model_inputs(inputs))
            return logits, [states[layer] for layer in layers]

        return corpus, _objective(options, task, along)
    with bar("the teacher answers") as progress:
        answers = in_turn(lambda: teacher_answers(teacher, heard or corpus, layers, work / "answers.safetensors", progress, bf16=bf16))
    return replace(corpus, columns=answers), _objective(options, task)


def answered(student: Encoder, corpus: Corpus, options: Distillation, ask: Callable[[], dict[str, Tensor]]) -> tuple[Corpus, Objective]:
    """`lessons` of a teacher that gives answers alone, once it is asked.

    Raises ConfigError if hidden states are to be compared, or no loss has a weight.
    """
    task = student.config.head.kind
    if options.hidden:
        raise ConfigError("This teacher shows no hidden states.", "Give --hidden 0.")
    _check_weights(task, options)
    return replace(corpus, columns=in_turn(ask)), _objective(options, task)


def refuse_tokens(task: str, options: Distillation) -> None:
    """Raise ConfigError if something is to be compared token by token, for a student and a teacher that do not have the same tokens."""
    if task == "tagging" or (options.hidden_states == "tokens" and options.hidden):
        raise ConfigError(
            "Tokens are to be compared, but the student and the teacher have tokenizers of their own.",
            "Give --hidden-states pooled; a tagger needs its teacher's tokenizer: leave out --base and --vocabulary.",
        )


def _check_weights(task: str, options: Distillation) -> None:
    if task == "embedding" and options.hard:
        raise ConfigError("An embedding learns from its teacher's vectors, not from labels.", "Give --hard 0.")
    if not options.soft + options.hard + options.hidden:
        raise ConfigError("--soft, --hard and --hidden are all 0: there is nothing to learn from.", "Give at least one of them a weight.")


def as_heard(path: Path, model: Encoder, corpus: Corpus, split: Any, labels: Sequence[str], options: Distillation) -> Corpus | None:
    """`corpus`, which is made of `split`, as the teacher `model` of the directory `path` reads it; None if it reads the same tokens."""
    tokenizer = open_tokenizer(path, options.max_length, typed=model.config.typed)
    if tokenizer.digest == corpus.tokenizer.digest:
        return None
    return material(tokenizer, split, model.config.head.kind, labels, taught=True)


def material(tokenizer: Tokenizer, split: Any, task: str, labels: Sequence[str], *, taught: bool) -> Corpus:
    """What to learn from; `taught` embeddings learn from every text by itself, since the teacher's vector is all that they need."""
    if task != "embedding" or not taught:
        return tokenize(tokenizer, split, task, labels)
    texts = [*split["text"][:], *split["text_b"][:]]
    return Corpus(tokenizer, tokenizer.ids(texts), torch.zeros(len(texts)))


def _objective(options: Distillation, task: str, along: Along | None = None) -> Objective:
    weights = {"soft": options.soft, "hard": options.hard, "hidden": options.hidden, "temperature": options.temperature}
    return objective(**weights, along=along, task=task)
