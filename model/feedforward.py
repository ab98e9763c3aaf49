"""The slot of feed-forward networks, over the last axis of [.., W], with `neurons` in the middle."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import slots

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


class Mlp(nn.Module):
    """down(activation(up(x))) (Vaswani et al. 2017, §3.3)."""

    def __init__(self, feedforward: slots.Mlp, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[feedforward.activation]
        self.up = nn.Linear(width, feedforward.neurons)
        self.down = nn.Linear(feedforward.neurons, width)

    def forward(self, x: Tensor) -> Tensor:
        """[.., W] to [.., W]."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class Glu(nn.Module):
    """down(activation(gate(x)) * up(x)): GLU, GeGLU, SwiGLU (Shazeer 2020)."""

    def __init__(self, feedforward: slots.Glu, width: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[feedforward.activation]
        self.gate = nn.Linear(width, feedforward.neurons)
        self.up = nn.Linear(width, feedforward.neurons)
        self.down = nn.Linear(feedforward.neurons, width)

    def forward(self, x: Tensor) -> Tensor:
        """[.., W] to [.., W]."""
        y: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return y


FEEDFORWARDS: dict[str, type[nn.Module]] = {"mlp": Mlp, "glu": Glu}
