"""A teacher, a corpus and a stage's options → the corpus with the teacher's answers and the objective: for distill, prune and quantize."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from compress.config import Distillation
from compress.distillation import Along, classification, objective, teacher_answers
from compress.progress import bar
from compress.students import layer_map
from compress.training import Corpus, Inputs, Objective, model_inputs
from model.encoder import Encoder
from model.errors import ConfigError


def lessons(student: Encoder, teacher: Encoder | None, corpus: Corpus, options: Distillation, work: Path) -> tuple[Corpus, Objective]:
    """The corpus to learn from and the objective; without a teacher, the data's labels alone.

    The teacher runs once over the corpus and its answers are kept in `work`; only the states of all tokens need it to run along.
    Raises ConfigError if the widths differ while hidden states are compared, or no loss has a weight.
    """
    if teacher is None:
        return corpus, classification
    layers = layer_map(len(student.config.layers), len(teacher.config.layers), options.teacher_layers)
    if options.hidden and student.config.width != teacher.config.width:
        raise ConfigError(
            f"The student is {student.config.width} wide and the teacher {teacher.config.width}: their states cannot be compared.",
            "Give --hidden 0.",
        )
    if not options.soft + options.hard + options.hidden:
        raise ConfigError("--soft, --hard and --hidden are all 0: there is nothing to learn from.", "Give at least one of them a weight.")
    bf16 = options.precision == "bf16"
    if options.hidden_states == "tokens" and options.hidden:
        teacher.eval().to(options.device)

        @torch.no_grad()
        def along(inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
            logits, states = teacher.states(**model_inputs(inputs))
            return logits, [states[layer] for layer in layers]

        return corpus, _objective(options, along)
    with bar("the teacher answers") as progress:
        answers = teacher_answers(teacher, corpus, layers, work / "answers.safetensors", progress, bf16=bf16)
    return replace(corpus, columns=answers), _objective(options)


def _objective(options: Distillation, along: Along | None = None) -> Objective:
    return objective(soft=options.soft, hard=options.hard, hidden=options.hidden, temperature=options.temperature, along=along)
