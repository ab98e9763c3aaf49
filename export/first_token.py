"""The attention of a last layer of which the first token alone is kept: one query, and neither keys nor values token by token.

Projecting is linear. A score q · (Wx + b) is Wᵀq · x + q · b, of which the last is the same for all tokens, and softmax loses it. Values
are a sum of tokens with shares s whose sum is 1: Σ s (Wx + b) = W Σ sx + b. So both projections are of one row a head and text.

Shapes: B texts, S tokens, W width, H heads, D head width.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from model.attention import DenseAttention
from model.attention_base import Relation
from model.encoder import Encoder
from model.kernels import sizes
from model.quantized import QuantizedLinear
from model.slots import BETWEEN_TOKENS


class FirstTokenAttention(nn.Module):
    """What a DenseAttention gives for the first token of each text."""

    keys: Tensor  # [H, D, W]
    values: Tensor  # [H, W, D]
    value_bias: Tensor  # [H, 1, D]

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__()
        self.heads, self.head_width = dense.heads, dense.head_width
        part: Any = dense.qkv
        weight = part.weight.float() * part.scales[:, None] if isinstance(part, QuantizedLinear) else part.weight
        (query, key, value), (bias, _, value_bias) = weight.detach().chunk(3), part.bias.detach().chunk(3)
        scale = self.head_width**-0.5
        self.queries: nn.Module
        if isinstance(part, QuantizedLinear):  # its rows for queries as they are, a quarter of the bytes
            self.queries = QuantizedLinear(query.shape[1], query.shape[0], part.scheme)
            self.queries.weight, self.queries.scales = part.weight.chunk(3)[0].clone(), part.scales.chunk(3)[0] * scale
            self.queries.bias, self.queries.scale, self.queries.zero_point = bias * scale, part.scale, part.zero_point
        else:
            self.queries = nn.Linear(query.shape[1], query.shape[0])
            self.queries.load_state_dict({"weight": query * scale, "bias": bias * scale})
        self.register_buffer("keys", key.view(self.heads, self.head_width, -1).contiguous())
        self.register_buffer("values", value.view(self.heads, self.head_width, -1).transpose(1, 2).contiguous())
        self.register_buffer("value_bias", value_bias.view(self.heads, 1, self.head_width).contiguous())
        self.output = dense.output

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """`x` is [B*S, W], `bias` [B, 0 or 1, 1, S]; the result [B, W]."""
        tokens = x.view(*sizes(bias), x.shape[1])
        q = self.queries(tokens[:, 0]).view(-1, self.heads, self.head_width).transpose(0, 1)  # [H, B, D]
        scores = (q @ self.keys).transpose(0, 1) @ tokens.transpose(1, 2)  # [B, H, S]
        shares = (scores + bias[:, 0] if bias.shape[1] else scores).softmax(dim=-1)
        mixed = (shares @ tokens).transpose(0, 1) @ self.values + self.value_bias  # [H, B, D]
        y: Tensor = self.output(mixed.transpose(0, 1).reshape(-1, self.heads * self.head_width))
        return y


def one_query(model: Encoder) -> Encoder:
    """A copy of `model` for export with FirstTokenAttention in its last layer; `model` itself where it keeps more than the first token."""
    config = model.config
    attention: Any = model.layers[-1].get_submodule("attention")
    positions = config.layers[-1].positions or config.positions
    if not config.early_pooling or getattr(config.head, "pooling", "") != "cls" or positions.kind in BETWEEN_TOKENS:
        return model
    if not isinstance(attention, DenseAttention) or attention.keys != attention.heads:
        return model
    if attention.prefix is not None or attention.query_norm is not None:
        return model
    model = copy.deepcopy(model)
    model.set_submodule(f"layers.{len(config.layers) - 1}.attention", FirstTokenAttention(attention).eval())
    return model
