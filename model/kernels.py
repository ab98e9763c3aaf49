"""The kernels that compute softmax(q kᵀ / √D + bias) v: a run-time choice that never changes results.

Shapes: B texts, H heads, S tokens, Q queries, K keys, D head width; `…` are axes that a kind of attention has in between, and over
which nothing is summed.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

HIDDEN = -1e4  # added to a score: exp(-10,000) is exactly 0 in every float type, and a text without a token still gives finite numbers
SHORT = 128  # keys: up to here plain operators are 2 to 8 times as fast in training in bf16 as PyTorch's fused kernel for the CPU
FLEX_DEVICES = ("cuda",)  # elsewhere FlexAttention is slower than blocks, or not there


def _eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    # In this order ONNX Runtime makes one FusedMatMul of the transposition, the product and the scale.
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return F.dropout((scores if bias is None else scores + bias).softmax(dim=-1), dropout) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    if q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        return _eager(q, k, v, bias, dropout)
    bias = None if bias is None else bias.to(q.dtype)
    if q.ndim > 4:  # the fused kernels know four axes
        shape = q.shape[:2]
        if bias is not None and bias.shape[:2] != (1, 1):
            bias = bias.expand(*shape, *bias.shape[2:])
        bias = None if bias is None else bias.flatten(0, 1)
        mixed = F.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=bias, dropout_p=dropout)
        return torch.unflatten(mixed, 0, shape)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]] = {"eager": _eager, "sdpa": _sdpa, "flex": _sdpa}
"""By name; each takes q […, Q, D], k and v […, K, D], a bias that can be broadcast to […, Q, K] or none, and a share of dropout.

`flex` is FlexAttention (`flex`) where a pattern of blocks is to be had and the device has it, and otherwise `sdpa`.
"""


def sizes(bias: Tensor) -> tuple[int, int]:
    """B and S of what an attention bias [B, 0 or 1, 1, S] is for, as sizes of a view.

    S is -1 where B is a plain number, as in a graph for one text at a time, which then need not compute it.
    """
    batch = bias.shape[0]
    return batch, -1 if isinstance(batch, int) else bias.shape[-1]


def has_flex(kernel: str, q: Tensor) -> bool:
    """Whether FlexAttention was asked for and is to be had where `q` lies."""
    return kernel == "flex" and q.device.type in FLEX_DEVICES


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, visible: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Attention of q, k, v [B, H, S, D] to the keys that are `visible` from a query (by places) and not hidden by `bias` [B, 1, 1, S].

    Blocks in which nothing is visible cost nothing.
    """
    hidden = bias[:, 0, 0] < 0

    def seen(batch: Tensor, head: Tensor, here: Tensor, there: Tensor) -> Tensor:
        # A token that is padding sees itself: a row without a key would be no number.
        return (visible(here, there) & ~hidden[batch, there]) | (here == there)

    attend, block_mask = _flex_attention(q.device.type)
    mask = block_mask(seen, q.shape[0], None, q.shape[2], q.shape[2], device=q.device)
    mixed: Tensor = attend(q, k, v, block_mask=mask)
    return mixed


@cache
def _flex_attention(device: str) -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if device == "cpu":
        return flex_attention, create_block_mask
    return torch.compile(flex_attention, dynamic=True), torch.compile(create_block_mask, dynamic=True)
