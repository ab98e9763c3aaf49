"""What every kind of attention has: projections to queries, keys and values, positions, and the way back.

Shapes: B texts, S tokens, W width, H heads of queries, G heads of keys and values, D head width. Activations are flat, [B*S, W]:
linears export as one Gemm with its bias, and ONNX Runtime cannot fuse residuals into SkipLayerNormalization, which is slower than
its parts.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import slots
from model.kernels import sizes


class Relation(Protocol):
    """What attention asks of positions; see model/positions_relative.py."""

    @property
    def adds(self) -> bool: ...

    def rotate(self, q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]: ...

    def bias(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor | None: ...


class Attention(nn.Module):
    """Projects, lets a kind `mix`, and projects back to W (Vaswani et al. 2017, §3.2).

    `qkv` holds the rows of all query heads, then all key heads, then all value heads. `at_once`: in an exported graph, mix so many heads
    after the others, so that a long text needs the memory of these alone; for kinds `in_blocks`, whose memory that is.
    """

    in_blocks = False

    def __init__(self, attention: slots.AttentionHeads, width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.keys = attention.heads, attention.keys
        self.head_width = attention.head_width
        self.dropout = dropout
        self.at_once: int | None = None
        self.qkv = nn.Linear(width, (self.heads + 2 * self.keys) * self.head_width)
        self.query_norm = nn.RMSNorm(self.head_width, eps=1e-6) if attention.query_key_norm else None
        self.key_norm = nn.RMSNorm(self.head_width, eps=1e-6) if attention.query_key_norm else None
        self.output = nn.Linear(self.heads * self.head_width, width)

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`x` and the result are [B*S, W]; `bias` [B, 1, 1, S] is 0 where there is a token and -10,000 where there is padding;
        empty, [B, 0, 1, S], where dense attention meets no padding.

        With `pool` ([B, H, S, D] to [B, H, D]) the result is [B, W]: what is mixed is pooled before it is projected.
        """
        packed = self.qkv(x).view(*sizes(bias), self.heads + 2 * self.keys, self.head_width).transpose(1, 2)
        q, k, v = packed.split((self.heads, self.keys, self.keys), dim=1)  # [B, H or G, S, D]
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q.float()).to(v.dtype), self.key_norm(k.float()).to(v.dtype)
        q, k = positions.rotate(q, k, bias)
        if self.keys < self.heads:
            k, v = (part.repeat_interleave(self.heads // self.keys, dim=1) for part in (k, v))
        if self.in_blocks and self.at_once and not positions.adds and torch.compiler.is_exporting():
            groups = zip(*(part.split(self.at_once, dim=1) for part in (q, k, v)), strict=True)
            mixed = torch.cat([self.mix(q, k, v, bias, positions, kernel) for q, k, v in groups], dim=1)
        else:
            mixed = self.mix(q, k, v, bias, positions, kernel)
        rows = mixed.transpose(1, 2) if pool is None else pool(mixed)
        y: Tensor = self.output(rows.reshape(-1, self.heads * self.head_width))
        return y

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D] mixed for every query; what is added to scores comes from `bias` and `positions`."""
        raise NotImplementedError

    @property
    def dropped(self) -> float:
        """The share of attention weights that is dropped now."""
        return self.dropout if self.training else 0.0


def padded(x: Tensor, tokens: int, value: float = 0.0) -> Tensor:
    """`x` […, S, D] with `tokens` more of `value` at the end."""
    return F.pad(x, (0, 0, 0, tokens), value=value)


def gathered(x: Tensor, place: Tensor) -> Tensor:
    """The tokens of `x` [.., S, D] at `place` [N, K], [.., N, K, D]; for a place beyond the ends, the token at that end."""
    # One copy; in an exported graph one Gather, where slices and their concatenation would be six copies.
    return torch.unflatten(x.index_select(-2, place.clamp(0, x.shape[-2] - 1).flatten()), -2, place.shape)


def places(length: int, like: Tensor) -> Tensor:
    """0 … length - 1, on the device of `like`."""
    return torch.arange(length, device=like.device)
