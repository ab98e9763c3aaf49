"""Losses by task: against the labels (hard), and against a teacher's outputs (soft).

Shapes: B texts, S tokens, L labels, W width. Outputs are [B, L], for tagging [B, S, L], for embedding [B, W], for
masked and replaced those of P places, [P, vocabulary] and [P, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.training import NO_TAG, Inputs, Objective, model_inputs


def divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from teacher to student at `temperature`, times its square (Hinton et al. 2015, §2). Both [B, L]."""
    student, target = (F.log_softmax(values / temperature, -1) for values in (logits, teacher))
    return F.kl_div(student, target, log_target=True, reduction="batchmean") * temperature**2


def decisions(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Binary cross entropy with the teacher's probability of each label at `temperature`, times its square. Both [B, L]."""
    return F.binary_cross_entropy_with_logits(logits / temperature, (teacher / temperature).sigmoid()) * temperature**2


def squares(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared error; a number has no temperature. Both [B, 1]."""
    return F.mse_loss(outputs, teacher)


def directions(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """One minus the cosine, of vectors of length 1. Both [B, W]."""
    return 1 - (outputs * teacher).sum(-1).mean()


def _cosines(outputs: Tensor, labels: Tensor) -> Tensor:
    # All first texts, then all second ones: see Corpus.batch. The loss is that of Reimers and Gurevych 2019, §3 (regression).
    first, second = outputs.chunk(2)
    return F.mse_loss((first * second).sum(-1), labels)


SOFT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "classification": divergence,
    "multilabel": decisions,
    "regression": squares,
    "tagging": divergence,
    "embedding": directions,
    "masked": divergence,
    "replaced": decisions,
}
HARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "classification": F.cross_entropy,
    "multilabel": F.binary_cross_entropy_with_logits,
    "regression": lambda outputs, labels: F.mse_loss(outputs[:, 0], labels),
    "tagging": lambda logits, labels: F.cross_entropy(logits.flatten(0, 1), labels.flatten().long(), ignore_index=NO_TAG),
    "embedding": _cosines,
    "masked": lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels)),  # of nothing: 0
    "replaced": lambda logits, labels: F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="sum") / max(1, len(labels)),
}


def supervised(task: str) -> Objective:
    """What a model learns from the data's labels alone."""
    loss = HARD[task]

    def objective(model: torch.nn.Module, inputs: Inputs) -> Tensor:
        return loss(model(**model_inputs(inputs)).float(), inputs["labels"])

    return objective
