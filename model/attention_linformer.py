"""Attention to few mixtures of all tokens: learned ones up to a longest text (Linformer), or averages over parts of the text.

Shapes: B texts, H heads, S tokens, L landmarks, D head width. Cost grows with S · L.
"""

import torch
from torch import Tensor, nn

from model import slots
from model.attention_base import Attention, Relation, places
from model.errors import ConfigError
from model.kernels import HIDDEN, KERNELS


class LinformerAttention(Attention):
    """Keys and values projected along the length, by matrices that the heads share (Wang et al. 2020, §4)."""

    def __init__(self, attention: slots.LinformerAttention, width: int, dropout: float) -> None:
        super().__init__(attention, width, dropout)
        self.projections = nn.Parameter(torch.empty(2, attention.landmarks, attention.length))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D]; raises ConfigError if S is more than the projections have columns for."""
        length, longest = q.shape[2], self.projections.shape[-1]
        if not torch.compiler.is_exporting() and length > longest:
            raise ConfigError(
                f"A text of {length} tokens, but this linformer attention is made for {longest}.",
                "Cut the texts (max_length), or train with a longer `length`, or with landmark attention, which has no longest text.",
            )
        mask = bias.exp().transpose(-1, -2)  # 1 where there is a token, 0 where there is padding
        keys, values = (self.projections[number, :, :length] @ (part * mask) for number, part in enumerate((k, v)))
        return KERNELS[kernel](q, keys, values, None, self.dropped)


class LandmarkAttention(Attention):
    """Keys and values averaged over equal parts of each text, as many as there are landmarks (or tokens, if these are fewer).

    Wang et al. 2020, §4 (general projections) with the segments of Xiong et al. 2021, §3.2. Up to L tokens this is dense attention.
    """

    def __init__(self, attention: slots.LandmarkAttention, width: int, dropout: float) -> None:
        super().__init__(attention, width, dropout)
        self.landmarks = attention.landmarks

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D]."""
        mask = bias.exp()  # [B, 1, 1, S]
        tokens = mask.sum(dim=-1, keepdim=True).clamp(min=1.0).long()
        part = torch.div(places(q.shape[2], q) * self.landmarks, tokens, rounding_mode="floor")
        members = (part == places(self.landmarks, q)[:, None]) * mask  # [B, 1, L, S]
        count = members.sum(dim=-1, keepdim=True)
        mean = members / count.clamp(min=1.0)
        empty = torch.where(count > 0, 0.0, HIDDEN).transpose(-1, -2)
        return KERNELS[kernel](q, mean @ k, mean @ v, empty, self.dropped)
