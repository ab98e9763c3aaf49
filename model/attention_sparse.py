"""The factorised patterns of Sparse Transformers, in both directions and in one softmax: near keys, and keys a stride apart.

Shapes: B texts, H heads, S tokens in N rows of L (the stride), K keys a row, D head width. Nothing here is S × S: at a stride of about
√S, each token meets about √S keys of either sort.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model import slots
from model.attention_base import Attention, Relation, gathered, padded, places
from model.kernels import HIDDEN, KERNELS, flex, has_flex


class SparseAttention(Attention):
    """What the two patterns share: rows of `stride` tokens, and one softmax over two sorts of keys."""

    in_blocks = True
    stride: int

    def visible(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether a query at `here` sees a key at `there`, padding apart."""
        raise NotImplementedError

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D]."""
        if has_flex(kernel, q) and not self.dropped and not positions.adds:
            return flex(q, k, v, bias, self.visible)
        length = q.shape[2]
        rows = (length + self.stride - 1) // self.stride
        missing = rows * self.stride - length
        shape = (rows, self.stride)
        q, k, v = (torch.unflatten(padded(part, missing), 2, shape) for part in (q, k, v))  # [B, H, N, L, D]
        bias = torch.unflatten(padded(bias.transpose(-1, -2), missing, HIDDEN), 2, shape)  # [B, 1, N, L, 1], laid out like keys
        return self._mix(q, k, v, bias, positions, kernel).flatten(2, 3)[:, :, :length]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        raise NotImplementedError

    def _weights(self, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """One softmax over the scores of both sorts, [B, H, N, L, keys], as the weights of each."""
        weights = F.dropout(torch.cat((near, far), dim=-1).softmax(dim=-1), self.dropped)
        return weights[..., : near.shape[-1]], weights[..., near.shape[-1] :]


class StridedAttention(SparseAttention):
    """A token sees those fewer than `stride` away, and its column: those a multiple of `stride` away (Child et al. 2019, §4.2).

    The two sorts of keys are in two layouts, for which only FlexAttention has a kernel.
    """

    def __init__(self, attention: slots.StridedAttention, width: int, dropout: float) -> None:
        super().__init__(attention, width, dropout)
        self.stride = attention.stride

    def visible(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether a query at `here` sees a key at `there`, padding apart."""
        distance = (here - there).abs()
        return (distance < self.stride) | (distance % self.stride == 0)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        rows, stride = q.shape[2], self.stride
        row, column = places(rows, q), places(stride, q)
        around = torch.arange(1 - stride, 2 * stride - 1, device=q.device)
        there = row[:, None] * stride + around
        beyond = torch.where((there < 0) | (there >= rows * stride), HIDDEN, 0.0)
        band = torch.where((column[:, None] - around).abs() < stride, 0.0, HIDDEN)
        keys, values, hidden = (gathered(part.flatten(2, 3), there) for part in (k, v, bias))
        hidden = hidden + beyond[..., None] + band.t()
        near = _scores(q, keys, hidden, positions, column[None, :, None], around[None, None])
        # Its own place in the column is already among the near ones.
        own = torch.where(row[:, None] == row, HIDDEN, 0.0)
        queries, keys, hidden = (part.transpose(2, 3) for part in (q, k, bias))  # [B, H, L, N, D]
        steps = row * stride
        far = _scores(queries, keys, hidden, positions, steps[None, :, None], steps[None, None]) + own
        near, far = self._weights(near, far.transpose(2, 3))
        return near @ values + (far.transpose(2, 3) @ v.transpose(2, 3)).transpose(2, 3)


class FixedAttention(SparseAttention):
    """A token sees its own row, and the last `summary` tokens of every row (Child et al. 2019, §4.3)."""

    def __init__(self, attention: slots.FixedAttention, width: int, dropout: float) -> None:
        super().__init__(attention, width, dropout)
        self.stride, self.summary = attention.stride, attention.summary

    def visible(self, here: Tensor, there: Tensor) -> Tensor:
        """Whether a query at `here` sees a key at `there`, padding apart."""
        rows = [torch.div(place, self.stride, rounding_mode="floor") for place in (here, there)]
        return (rows[0] == rows[1]) | (there % self.stride >= self.stride - self.summary)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        # One layout for both sorts of keys: few far keys are copied to every row, and nothing as large as the scores is.
        rows = q.shape[2]
        row, place = places(rows, q), places(rows * self.stride, q).view(rows, self.stride)
        far = place[:, self.stride - self.summary :].flatten()
        there = torch.cat((place, far.expand(rows, -1)), dim=1)
        # The summaries of its own row are already among the near ones.
        twice = torch.where(row[:, None] == row.repeat_interleave(self.summary), HIDDEN, 0.0)
        keys, values, by_key = (gathered(part.flatten(2, 3), there) for part in (k, v, bias))
        added = (by_key.squeeze(-1) + F.pad(twice, (self.stride, 0)))[..., None, :]  # [B, 1, N, 1, K]
        by_place = positions.bias(q, place[..., None], there[:, None, :])
        return KERNELS[kernel](q, keys, values, added if by_place is None else added + by_place, self.dropped)


def _scores(q: Tensor, k: Tensor, bias: Tensor, positions: Relation, here: Tensor, there: Tensor) -> Tensor:
    """q kᵀ / √D with the bias of the keys […, K, 1 or Q] and of the places."""
    scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias.transpose(-1, -2)
    by_place = positions.bias(q, here, there)
    return scores if by_place is None else scores + by_place
