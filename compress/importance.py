"""How much each head and each FFN neuron matters: first-order Taylor scores (Michel et al. 2019, §4.1; Molchanov et al. 2017)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.training import Inputs, Objective
from model.encoder import Encoder


@dataclass(frozen=True)
class Importance:
    """Scores of one layer: `heads` [h] and `neurons` [n], none of a layer without a network; larger matters more."""

    heads: Tensor
    neurons: Tensor


def taylor(model: Encoder, batches: Iterable[Inputs], objective: Objective) -> list[Importance]:
    """Score every head and neuron of `model` by |∂loss/∂gate| at gate = 1, summed over `batches`.

    A gate multiplies what a head (or neuron) hands to the projection after it; the derivative is the first-order estimate of what the
    loss would change if it were closed. The model is left as it was.
    """
    model.eval()
    widths = [layer.attention.head_width for layer in model.config.layers]
    gates = [
        (torch.ones(layer.attention.heads, requires_grad=True), torch.ones(layer.feedforward.neurons, requires_grad=True))
        for layer in model.config.layers
    ]
    scores = [(torch.zeros_like(heads), torch.zeros_like(neurons)) for heads, neurons in gates]
    hooks = []
    modules: Any = model.layers
    for layer, (heads, neurons), width in zip(modules, gates, widths, strict=True):

        def gate_heads(_: Any, inputs: tuple[Tensor], gate: Tensor = heads, width: int = width) -> tuple[Tensor]:
            return (inputs[0] * gate.repeat_interleave(width),)

        def gate_neurons(_: Any, inputs: tuple[Tensor], gate: Tensor = neurons) -> tuple[Tensor]:
            return (inputs[0] * gate,)

        hooks.append(layer.attention.output.register_forward_pre_hook(gate_heads))
        if layer.feedforward is not None:
            hooks.append(layer.feedforward.down.register_forward_pre_hook(gate_neurons))
    flat = [gate for pair in gates for gate in pair]
    try:
        for inputs in batches:
            gradients = torch.autograd.grad(objective(model, inputs), flat, allow_unused=True, materialize_grads=True)
            for total, gradient in zip((score for pair in scores for score in pair), gradients, strict=True):
                total += gradient.abs()
    finally:
        for hook in hooks:
            hook.remove()
    return [Importance(heads, neurons) for heads, neurons in scores]
