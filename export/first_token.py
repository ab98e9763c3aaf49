"""The attention of a last layer of which the first token alone is kept: one query, and neither keys nor values token by token.

Projecting is linear. A score q · (Wx + b) is Wᵀq · x + q · b, of which the last is the same for all tokens, and softmax loses it. Values
are a sum of tokens with shares s whose sum is 1: Σ s (Wx + b) = W Σ sx + b. So both projections are of one row a head and text. Where
heads share keys and values there is less to gain: these few are projected token by token, as integers if the layer is int8.

Shapes: B texts, S tokens, W width, H heads, G heads of keys and values, N = H / G, D head width.
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
        (_, key, value), (_, _, value_bias) = weight.detach().chunk(3), part.bias.detach().chunk(3)
        self.queries = _rows(part, slice(self.heads * self.head_width), self.head_width**-0.5)
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


class GroupedFirstTokenAttention(nn.Module):
    """The same where heads share keys and values."""

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__()
        self.heads, self.groups, self.head_width = dense.heads, dense.keys, dense.head_width
        self.queries = _rows(dense.qkv, slice(self.heads * self.head_width), self.head_width**-0.5)
        self.shared = _rows(dense.qkv, slice(self.heads * self.head_width, None))
        self.output = dense.output

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """`x` is [B*S, W], `bias` [B, 0 or 1, 1, S]; the result [B, W]."""
        per_group = self.heads // self.groups
        q = self.queries(x.view(*sizes(bias), x.shape[1])[:, 0]).view(-1, self.groups, per_group, self.head_width)  # [B, G, N, D]
        k, v = self.shared(x).view(*sizes(bias), 2 * self.groups, self.head_width).transpose(1, 2).chunk(2, dim=1)  # [B, G, S, D]
        scores = q @ k.transpose(-2, -1)
        mixed = (scores + bias if bias.shape[1] else scores).softmax(dim=-1) @ v
        y: Tensor = self.output(mixed.reshape(-1, self.heads * self.head_width))
        return y


def _rows(linear: Any, rows: slice, scale: float = 1.0) -> nn.Module:
    """A linear of some `rows` of another, times `scale`; of an int8 one as they are, a quarter of the bytes."""
    bias = linear.bias.detach()[rows] * scale
    if isinstance(linear, QuantizedLinear):
        part = QuantizedLinear(linear.weight.shape[1], len(bias), linear.scheme)
        part.weight, part.scales, part.bias = linear.weight[rows].clone(), linear.scales[rows] * scale, bias
        part.scale, part.zero_point = linear.scale, linear.zero_point
        return part
    plain = nn.Linear(linear.in_features, len(bias))
    plain.load_state_dict({"weight": linear.weight.detach()[rows] * scale, "bias": bias})
    return plain


def one_query(model: Encoder) -> Encoder:
    """A copy of `model` for export with one query in its last layer; `model` itself where it keeps more than the first token."""
    config = model.config
    attention: Any = model.layers[-1].get_submodule("attention")
    positions = config.layers[-1].positions or config.positions
    if not config.early_pooling or getattr(config.head, "pooling", "") != "cls" or positions.kind in BETWEEN_TOKENS:
        return model
    if not isinstance(attention, DenseAttention) or attention.prefix is not None or attention.query_norm is not None:
        return model
    made = FirstTokenAttention if attention.keys == attention.heads else GroupedFirstTokenAttention
    model = copy.deepcopy(model)
    model.set_submodule(f"layers.{len(config.layers) - 1}.attention", made(attention).eval())
    return model
