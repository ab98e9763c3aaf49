"""Attention within a window, and its sparse relative BigBird: blocks of queries, each with the keys that it may see.

Shapes: B texts, H heads, S tokens, N blocks of b tokens, K keys a block, D head width. Nothing here is S × S.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model import slots
from model.attention_base import Attention, Relation, gathered, padded, places
from model.kernels import HIDDEN, KERNELS, flex, has_flex

SMALLEST_BLOCK = 16  # below, products of matrices are too small to be fast


class WindowAttention(Attention):
    """A token sees `radius` tokens on either side, and the first tokens; these see all (Beltagy et al. 2020, §3.1 and §3.2)."""

    in_blocks = True

    def __init__(self, attention: slots.WindowAttention | slots.BigBirdAttention, width: int, dropout: float) -> None:
        super().__init__(attention, width, dropout)
        self._measure(attention)

    def _measure(self, attention: slots.WindowAttention | slots.BigBirdAttention) -> None:
        assert isinstance(attention, slots.WindowAttention)
        self.radius, self.first = attention.window // 2, attention.global_tokens
        self.block = max(self.radius, SMALLEST_BLOCK)

    def near(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether a key at `there` is within the window of a query at `here`."""
        return (here - there).abs() <= self.radius

    def visible(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether a query at `here` sees a key at `there`, padding apart."""
        return self.near(here, there) | (here < self.first) | (there < self.first)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D]."""
        if has_flex(kernel, q) and not self.dropped and not positions.adds:
            return flex(q, k, v, bias, self.visible)
        length, first, block, attend = q.shape[2], self.first, self.block, KERNELS[kernel]
        # A text shorter than the first tokens is padded to them.
        rows = (length + block - 1) // block + max(first - 1, 0) // block
        queries = torch.unflatten(padded(q, rows * block - length), 2, (rows, block))
        place = places(rows * block, q).view(rows, block)
        there, hidden = self._keys(place, length)
        keys, values, by_key = (gathered(part, there) for part in (k, v, bias.transpose(-1, -2)))
        inside, around = place[:1].t(), there[:1, : block + 2 * self.radius]
        band = F.pad(torch.where(self.near(inside, around), 0.0, HIDDEN), (0, there.shape[1] - around.shape[1]))
        added = (by_key.squeeze(-1) + hidden)[..., None, :] + band  # [B, 1, N, b, K]
        by_place = positions.bias(queries, place[..., None], there[:, None, :])
        mixed = attend(queries, keys, values, added if by_place is None else added + by_place, self.dropped).flatten(2, 3)
        if first:
            # The first tokens look at everything: a few rows of dense attention.
            top = queries.flatten(2, 3)[:, :, :first]
            by_place = positions.bias(top, places(first, q)[:, None], places(length, q)[None, :])
            seeing_all = attend(top, k, v, bias if by_place is None else bias + by_place, self.dropped)
            mixed = torch.cat((seeing_all, mixed[:, :, first:]), dim=2)
        return mixed[:, :, :length]

    def _keys(self, place: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Where the keys of each block are, [N, K], and 0 or HIDDEN for each: the surroundings of the block first, `place` [N, b]."""
        around = place[:, :1] + torch.arange(-self.radius, self.block + self.radius, device=place.device)
        # A first token is seen as such; in the surroundings it would count twice.
        beyond = (around < self.first) | (around >= length)
        first = places(self.first, place).expand(place.shape[0], -1)
        return torch.cat((around, first), dim=1), torch.cat((_hidden(beyond), _hidden(first >= length)), dim=1)


class BigBirdAttention(WindowAttention):
    """A window of three blocks, global blocks, and blocks drawn at random (Zaheer et al. 2020, §2 and appendix D).

    What is drawn for a block depends on nothing but its number, so that a text's answer does not depend on its neighbours in a batch.
    """

    def _measure(self, attention: slots.WindowAttention | slots.BigBirdAttention) -> None:
        assert isinstance(attention, slots.BigBirdAttention)
        self.block = self.radius = attention.block
        self.random_blocks = attention.random_blocks
        self.first = attention.global_blocks * self.block

    def near(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether the two are in the same block or in neighbours."""
        return (_block(here, self.block) - _block(there, self.block)).abs() <= 1

    def visible(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether a query at `here` sees a key at `there`, padding apart."""
        seen = super().visible(here, there)
        for number in range(self.random_blocks):
            seen = seen | (drawn(_block(here, self.block), number) == _block(there, self.block))
        return seen

    def _keys(self, place: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Where the keys of each block are, [N, K], and 0 or HIDDEN for each: the neighbours, the global and the drawn blocks."""
        there, hidden = super()._keys(place, length)
        row = places(place.shape[0], place)
        chosen: list[Tensor] = []
        for number in range(self.random_blocks):
            block = drawn(row, number)
            keys = block[:, None] * self.block + places(self.block, place)
            twice = (block - row).abs() <= 1
            for other in chosen:
                twice = twice | (block == other)
            chosen.append(block)
            there = torch.cat((there, keys), dim=1)
            hidden = torch.cat((hidden, _hidden(twice[:, None] | (keys < self.first) | (keys >= length))), dim=1)
        return there, hidden


def drawn(row: Tensor, number: int) -> Tensor:
    """The `number`th block that is drawn for block `row`: any of the first 2·row + 2, so that most are there however short the text."""
    prime = 2147483647
    seed = (row * 31 + number + 1) * 48271 % prime
    return seed * seed % prime * 69621 % prime % (2 * row + 2)


def _block(place: Tensor, size: int) -> Tensor:
    return torch.div(place, size, rounding_mode="floor")


def _hidden(where: Tensor) -> Tensor:
    return torch.where(where, HIDDEN, 0.0)
