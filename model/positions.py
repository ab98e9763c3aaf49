"""The slot of positions: how a token knows where it stands.

A kind may add to the token embeddings (`embed`) or turn queries and keys (`rotate`). One that adds to the attention scores would
join the attention bias, which attention takes as it is handed in.

Shapes: B texts, S tokens, W width, H heads, D head width.
"""

import torch
from torch import Tensor, nn

from model import config


class NoPositions(nn.Module):
    """No notion of order: what every kind does unless it says otherwise."""

    def __init__(self, positions: config.Slot, width: int) -> None:
        super().__init__()

    def embed(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """Add what the position says, and `offset` [W] if there is one, to the token embeddings `x` [B, S, W]."""
        return x if offset is None else x + offset

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, S, D], turned by their position."""
        return q, k


class LearnedPositions(NoPositions):
    """A learned vector a position, added to the token embeddings (Devlin et al. 2018, §3)."""

    def __init__(self, positions: config.LearnedPositions, width: int) -> None:
        super().__init__(positions, width)
        self.weight = nn.Parameter(torch.empty(positions.length, width))

    def embed(self, x: Tensor, offset: Tensor | None) -> Tensor:
        """`x` [B, S, W] plus the first S rows of the table; S is at most the table's length."""
        # The offset joins the whole table before the slice: in an exported graph both are constants and become one.
        table = self.weight if offset is None else self.weight + offset
        return x + table[: x.shape[1]]


class RotaryPositions(NoPositions):
    """Pairs of coordinates (i, i + D/2) turned by the angle position / base^(2i/D) (Su et al. 2021, §3.2.2)."""

    def __init__(self, positions: config.RotaryPositions, width: int) -> None:
        super().__init__(positions, width)
        self.base = positions.base

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, S, D], each pair of coordinates turned; D is even."""
        length, width = q.shape[-2:]
        # The sign of the sine is in the frequencies, so that one product with the halves exchanged is enough.
        frequency = self.base ** (-torch.arange(0, width, 2, device=q.device, dtype=torch.float32) / width)
        place = torch.arange(length, device=q.device, dtype=torch.float32)[:, None]
        cos = torch.cos(place * torch.cat((frequency, frequency)))
        sin = torch.sin(place * torch.cat((-frequency, frequency)))
        return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((second, first), dim=-1) * sin).to(x.dtype)


POSITIONS: dict[str, type[NoPositions]] = {"learned": LearnedPositions, "rotary": RotaryPositions, "none": NoPositions}
