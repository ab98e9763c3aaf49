"""The attention of a graph for one text: three axes instead of four, and shares pooled before values.

ONNX Runtime multiplies heads that lie side by side in rows, [S, H, D], as they are; with an axis of texts before them queries, keys and
values are copied first. Where the last layer pools early, pooling the shares of all queries leaves one row a head to multiply. Where all
heads share one head of keys and values, the queries of all tokens and heads are rows of one product, and nothing is copied at all.

Shapes: S tokens, W width, H heads, G heads of keys and values, N = H / G, D head width.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from export.first_token import GroupedFirstTokenAttention
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


class OneTextSharedAttention(nn.Module):
    """The same where all heads share one head of keys and values."""

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__()
        self.heads, self.head_width = dense.heads, dense.head_width
        self.qkv, self.output = dense.qkv, dense.output

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """[S, W] to [S, W], or with `pool` ([H, S, S] to [H, S]) to [1, W]."""
        q, k, v = self.qkv(x).split((self.heads * self.head_width, self.head_width, self.head_width), dim=1)
        shares = (q.reshape(-1, self.head_width) @ k.t() * self.head_width**-0.5).softmax(dim=-1)  # [S*H, S]
        if pool is not None:
            shares = pool(shares.view(-1, self.heads, shares.shape[1]).transpose(0, 1))  # [H, S]
        y: Tensor = self.output((shares @ v).reshape(-1, self.heads * self.head_width))
        return y


class OneTextFirstTokenAttention(nn.Module):
    """What a GroupedFirstTokenAttention gives for one text without padding."""

    def __init__(self, grouped: GroupedFirstTokenAttention) -> None:
        super().__init__()
        self.heads, self.groups, self.head_width = grouped.heads, grouped.groups, grouped.head_width
        self.queries, self.shared, self.output = grouped.queries, grouped.shared, grouped.output

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """[S, W] to [1, W]."""
        q, packed = self.queries(x.view(1, -1, x.shape[1])[:, 0]), self.shared(x)  # a slice would be a copy more: the layer pools so too
        if self.groups == 1:  # rows as they are
            q, (k, v) = q.view(-1, self.head_width), packed.chunk(2, dim=1)
        else:
            q = q.view(self.groups, -1, self.head_width)  # [G, N, D]
            parts = packed.view(-1, 2 * self.groups, self.head_width).chunk(2, dim=1)
            k, v = (part.transpose(0, 1) for part in parts)  # [G, S, D]
        mixed = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        y: Tensor = self.output(mixed.reshape(1, -1))
        return y


def one_text(model: Model) -> Model:
    """A copy of `model` for a graph of one text, its attention in these forms wherever it is dense and knows of no distances."""
    if not isinstance(model, Encoder):
        return model
    model = copy.deepcopy(model)
    for number, config in enumerate(model.config.layers):
        between = (config.positions or model.config.positions).kind in BETWEEN_TOKENS
        attention: Any = model.layers[number].get_submodule("attention")
        if not between and (made := _form(attention)) is not None:
            model.set_submodule(f"layers.{number}.attention", made.eval())
    return model


def _form(attention: nn.Module) -> nn.Module | None:
    if isinstance(attention, GroupedFirstTokenAttention):
        return OneTextFirstTokenAttention(attention)
    if not isinstance(attention, DenseAttention) or attention.prefix is not None or attention.query_norm is not None:
        return None
    if attention.keys == attention.heads:
        return OneTextAttention(attention)
    return OneTextSharedAttention(attention) if attention.keys == 1 else None
