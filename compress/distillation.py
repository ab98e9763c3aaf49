"""What a student learns from its teacher: probabilities, labels, hidden states (Hinton et al. 2015; Sun et al. 2019; Jiao et al. 2020)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.answers import STATE
from compress.losses import HARD, SOFT
from compress.training import Inputs, Objective, model_inputs
from model.errors import ConfigError

Along = Callable[[Inputs], tuple[Tensor, list[Tensor]]]


def pooled(state: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: [B, S, W] and [B, S] → [B, W]; the state of a layer that pools by itself, [B, W], stays."""
    if state.ndim == 2:
        return state
    weights = mask.to(state.dtype).unsqueeze(-1)
    return (state * weights).sum(1) / weights.sum(1)


def teacher_answers(teacher: Any, inputs: Inputs, layers: list[int], *, bf16: bool = False) -> dict[str, Tensor]:
    """What the teacher says of a batch: `teacher_logits` [B, labels] and a `teacher_state_L` [B, W] of each layer L, mean-pooled.

    bf16: compute in bfloat16.
    """
    with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=bf16):
        logits, states = teacher.states(**model_inputs(inputs))
    kept = {f"{STATE}{layer}": pooled(states[layer].float(), inputs["attention_mask"]) for layer in layers}
    return {"teacher_logits": logits.float(), **kept}


def hidden_loss(state: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the variance of the target, so that the weight means the same for every layer and teacher. Same shapes."""
    return F.mse_loss(state, target) / target.var().clamp_min(1e-6)


def _labelled(task: str, logits: Tensor, inputs: Inputs) -> Tensor:
    """The loss against the labels; a text without one (`labelled` [B] is False) adds nothing to the mean over the batch."""
    if "labelled" not in inputs:
        return HARD[task](logits, inputs["labels"])
    rows = inputs["labelled"].nonzero()[:, 0]
    if not len(rows):
        return logits.new_zeros(())
    return HARD[task](logits[rows], inputs["labels"][rows]) * (len(rows) / len(logits))


def objective(
    *,
    soft: float,
    hard: float,
    hidden: float,
    temperature: float,
    along: Along | None = None,
    task: str = "classification",
    bridge: nn.Module | None = None,
) -> Objective:
    """The weighted sum of the losses of `task`, as a function of a student and a batch that carries the teacher's answers.

    along: for the states of all tokens: gives the teacher's logits and its mapped states [B, S, W] for a batch; without it, the
    pooled states of the batch are compared. bridge: maps a pooled state of the student to the teacher's width, and is trained with it;
    without it, student and teacher must be of one width where `hidden` is not 0.
    """

    def loss(model: Any, inputs: Inputs) -> Tensor:
        logits, states = model.states(**model_inputs(inputs))
        mask = inputs["attention_mask"]
        if along is not None:
            teacher_logits, teacher_states = along(inputs)
            real = mask.bool()
            if any(state.ndim == 2 for state in (*states, *teacher_states)):
                raise ConfigError(
                    "The states of all tokens are to be compared, but with early pooling the last layer has one state a text.",
                    "Give --hidden-states pooled, or distill without --early-pooling.",
                )
            pairs = [(state[real], target[real]) for state, target in zip(states, teacher_states, strict=True)]
        else:
            teacher_logits = inputs["teacher_logits"]
            targets = inputs["teacher_states"].unbind(1) if hidden else ()
            pairs = [
                (pooled(state, mask) if bridge is None else bridge(pooled(state, mask)), target)
                for state, target in zip(states, targets, strict=bool(hidden))
            ]
        total: Tensor = logits.new_zeros((), dtype=torch.float32)
        if soft:
            taught = (logits, teacher_logits) if task != "tagging" else (logits[mask.bool()], teacher_logits[mask.bool()])
            total = total + soft * SOFT[task](taught[0].float(), taught[1].float(), temperature)
        if hard:
            total = total + hard * _labelled(task, logits.float(), inputs)
        if hidden:
            total = total + hidden * torch.stack([hidden_loss(state.float(), target.float()) for state, target in pairs]).mean()
        return total

    return loss if bridge is None else _Bridged(loss, bridge)


class _Bridged(nn.Module):
    """An objective with weights of its own (Jiao et al. 2020, §3.1, equation 8): what trains the student finds them here."""

    def __init__(self, loss: Objective, bridge: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.bridge = bridge

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        return self.loss(model, inputs)
