"""The slot of attention, and the kernels that compute it; a kernel is a run-time choice and never changes results.

Shapes: B texts, S tokens, W width, H heads, D head width. Activations are flat, [B*S, W]: linears export as one Gemm with its bias,
and ONNX Runtime cannot fuse residuals into SkipLayerNormalization, which is slower than its parts.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from model import config


class Rotation(Protocol):
    """What attention asks of positions."""

    def rotate(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, S, D], turned by their position."""


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    # In this order ONNX Runtime makes one FusedMatMul of the transposition, the product and the scale.
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    return F.dropout(scores.softmax(dim=-1), dropout) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=dropout)


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {"eager": _eager, "sdpa": _sdpa}


class DenseAttention(nn.Module):
    """softmax(q kᵀ / √D + bias) v of every head, then a linear back to W (Vaswani et al. 2017, §3.2).

    `qkv` holds the rows of all query heads, then all key heads, then all value heads.
    """

    def __init__(self, attention: config.DenseAttention, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = attention.heads
        self.head_width = attention.head_width
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * self.heads * self.head_width)
        self.output = nn.Linear(self.heads * self.head_width, width)

    def forward(self, x: Tensor, bias: Tensor, positions: Rotation, kernel: str) -> Tensor:
        """`x` and the result are [B*S, W]; `bias`, [B, 1 or H, 1 or S, S], is added to the scores."""
        batch, length = bias.shape[0], bias.shape[-1]
        packed = self.qkv(x).view(batch, length, 3 * self.heads, self.head_width).transpose(1, 2)
        q, k, v = packed.split(self.heads, dim=1)  # each [B, H, S, D]
        q, k = positions.rotate(q, k)
        mixed = KERNELS[kernel](q, k, v, bias, self.dropout if self.training else 0.0)
        y: Tensor = self.output(mixed.transpose(1, 2).reshape(-1, self.heads * self.head_width))
        return y


ATTENTIONS: dict[str, type[DenseAttention]] = {"dense": DenseAttention}
