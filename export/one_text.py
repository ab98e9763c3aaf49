"""The attention of a graph for one text: three axes instead of four, and shares pooled before values.

ONNX Runtime multiplies heads that lie side by side in rows, [S, H, D], as they are; with an axis of texts before them queries, keys and
values are copied first. Where the last layer pools early, pooling the shares of all queries leaves one row a head to multiply.

Shapes: S tokens, W width, H heads, D head width.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from model.attention import DenseAttention
from model.attention_base import Relation
from model.build import Model
from model.encoder import Encoder
from model.slots import BETWEEN_TOKENS


class OneTextAttention(nn.Module):
    """What a DenseAttention gives for one text without padding."""

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__()
        self.heads, self.head_width = dense.heads, dense.head_width
        self.qkv, self.output = dense.qkv, dense.output

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """[S, W] to [S, W], or with `pool` ([H, S, S] to [H, S]) to [1, W]."""
        packed = self.qkv(x)
        if self.heads == 1 and pool is None:  # rows as they are, [S, D]
            q, k, v = packed.chunk(3, dim=1)
        else:
            parts = packed.view(-1, 3 * self.heads, self.head_width).chunk(3, dim=1)
            q, k, v = (part.transpose(0, 1) for part in parts)  # [H, S, D]
        shares = (q @ k.transpose(-2, -1) * self.head_width**-0.5).softmax(dim=-1)
        mixed = (shares if pool is None else pool(shares)[:, None]) @ v
        rows = mixed if mixed.ndim == 2 else mixed.transpose(0, 1).reshape(-1, self.heads * self.head_width)
        y: Tensor = self.output(rows)
        return y


def one_text(model: Model) -> Model:
    """A copy of `model` for a graph of one text, with OneTextAttention wherever attention is dense and knows of no distances."""
    if not isinstance(model, Encoder):
        return model
    model = copy.deepcopy(model)
    for number, config in enumerate(model.config.layers):
        attention: Any = model.layers[number].get_submodule("attention")
        between = (config.positions or model.config.positions).kind in BETWEEN_TOKENS
        if between or not isinstance(attention, DenseAttention) or attention.keys != attention.heads:
            continue
        if attention.prefix is None and attention.query_norm is None:
            model.set_submodule(f"layers.{number}.attention", OneTextAttention(attention).eval())
    return model
