"""The slot of positions, as far as they are added to the token embeddings; model/positions_relative.py has those that act in layers.

Shapes: B texts, S tokens, W width.
"""

import torch
from torch import Tensor, nn

from model import slots


class NoPositions(nn.Module):
    """Nothing is added: no notion of order, or one that the layers have."""

    def __init__(self, positions: slots.Slot, width: int, length: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        """Add what the position says, and `offset` [W] if there is one, to the token embeddings `x` [B, S, W]; `mask` is [B, S]."""
        return x if offset is None else x + offset


class LearnedPositions(NoPositions):
    """A learned vector a position (Devlin et al. 2018, §3); `length` is that of the longest text."""

    def __init__(self, positions: slots.LearnedPositions, width: int, length: int) -> None:
        super().__init__(positions, width, length)
        self.weight = nn.Parameter(torch.empty(positions.length, width))
        self.stretches = length > positions.length

    def forward(self, x: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        """`x` [B, S, W] plus the first S rows of the table, or, for a text longer than the table, the table stretched to the text."""
        # The offset joins the whole table before the slice: in an exported graph both are constants and become one.
        table = self.weight if offset is None else self.weight + offset
        if self.stretches or (not torch.compiler.is_exporting() and x.shape[1] > len(table)):
            return x + _stretched(table, x.new_ones(x.shape[:2]) if mask is None else mask)
        return x + table[: x.shape[1]]


def _stretched(table: Tensor, mask: Tensor) -> Tensor:
    """A row [W] for every token of `mask` [B, S]: by each text's own length, so that its neighbours in the batch do not matter."""
    last = len(table) - 1
    tokens = mask.sum(dim=1, keepdim=True)
    place = torch.arange(mask.shape[1], device=mask.device) * (last / (tokens - 1).clamp(min=max(last, 1)))
    below = place.floor().long().clamp(max=last)  # padding would lie past the end
    share = (place - below).clamp(max=1.0)[..., None]
    return table[below] * (1 - share) + table[(below + 1).clamp(max=last)] * share


class SinusoidalPositions(NoPositions):
    """Sines in the even, cosines in the odd coordinates (Vaswani et al. 2017, §3.5)."""

    table: Tensor

    def __init__(self, positions: slots.SinusoidalPositions, width: int, length: int) -> None:
        super().__init__(positions, width, length)
        self.base, self.scale, self.width = positions.base, positions.scale, width
        self.register_buffer("table", self._rows(length), persistent=False)

    def _rows(self, length: int) -> Tensor:
        frequency = self.base ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return self.scale * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()

    def forward(self, x: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        """`x` [B, S, W] plus a row for each of the S positions."""
        table = self.table
        if not torch.compiler.is_exporting() and x.shape[1] > len(table):
            table = self._rows(x.shape[1]).to(x.device)
        return x + (table if offset is None else table + offset)[: x.shape[1]]


POSITIONS: dict[str, type[NoPositions]] = {
    "none": NoPositions,
    "learned": LearnedPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": NoPositions,
    "alibi": NoPositions,
    "t5": NoPositions,
    "relative": NoPositions,
}
