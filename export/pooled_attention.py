"""The attention of a last layer that pools early, in fewer products: values are projected after they are pooled.

What is pooled is a weighted sum of tokens, and projecting is linear: with the shares s that tokens have in a text's pooled row, whose sum
is 1, Σ s (Wx + b) = W Σ sx + b, so that values are projected once a head and text instead of once a token. Where the first token alone
is kept (cls) there is one query, and keys need not be projected either: q · (Wx + b) = Wᵀq · x + q · b, of which the last is the same for
all tokens, and softmax loses it.

Shapes: B texts, S tokens, W width, H heads, D head width.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from model.attention import DenseAttention
from model.attention_base import Relation, places
from model.encoder import Encoder
from model.kernels import sizes
from model.quantized import QuantizedLinear


class PooledAttention(nn.Module):
    """What a DenseAttention gives with a pooling of means; `qkv` is left with the rows of queries and keys."""

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__()
        self.heads, self.head_width = dense.heads, dense.head_width
        self.qkv = _first(dense.qkv, 2 * self.heads * self.head_width)
        weight, bias = _weights(dense.qkv)
        own = self.heads * self.head_width
        self.register_buffer("values", weight[2 * own :].view(self.heads, self.head_width, -1).transpose(1, 2).contiguous())  # [H, W, D]
        self.register_buffer("value_bias", bias[2 * own :].view(self.heads, 1, self.head_width).contiguous())
        self.output = dense.output

    values: Tensor
    value_bias: Tensor

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """`x` is [B*S, W], `bias` [B, 0 or 1, 1, S]; the result [B, W]."""
        packed = self.qkv(x).view(*sizes(bias), 2 * self.heads, self.head_width).transpose(1, 2)
        q, k = packed.chunk(2, dim=1)  # [B, H, S, D]
        q, k = positions.rotate(q, k, bias)
        place = places(q.shape[2], q)
        added = positions.bias(q, place[:, None], place[None, :])
        scores = q @ k.transpose(-1, -2) * self.head_width**-0.5
        scores = scores if added is None else scores + added
        shares = pool((scores + bias if bias.shape[1] else scores).softmax(dim=-1))  # [B, H, S]
        return self._projected(shares @ x.view(*sizes(bias), x.shape[1]))

    def _projected(self, mixed: Tensor) -> Tensor:
        """Pooled tokens [B, H, W], a row a head, to [B, W]."""
        found = (mixed.transpose(0, 1) @ self.values + self.value_bias).transpose(0, 1)  # [B, H, D]
        y: Tensor = self.output(found.reshape(-1, self.heads * self.head_width))
        return y


class FirstTokenAttention(PooledAttention):
    """What a DenseAttention gives for the first token: one query, and neither keys nor values are projected token by token."""

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__(dense)
        own = self.heads * self.head_width
        weight, bias = _weights(dense.qkv)
        self.qkv = nn.Identity()
        self.queries = nn.Linear(weight.shape[1], own)
        self.queries.load_state_dict({"weight": weight[:own] * self.head_width**-0.5, "bias": bias[:own] * self.head_width**-0.5})
        self.register_buffer("keys", weight[own : 2 * own].view(self.heads, self.head_width, -1).contiguous())  # [H, D, W]

    keys: Tensor

    def forward(self, x: Tensor, bias: Tensor, positions: Relation, kernel: str, pool: Callable[[Tensor], Tensor]) -> Tensor:
        """As that of PooledAttention."""
        tokens = x.view(*sizes(bias), x.shape[1])  # [B, S, W]
        q = self.queries(tokens[:, 0]).view(-1, self.heads, self.head_width).transpose(0, 1)  # [H, B, D]
        scores = (q @ self.keys).transpose(0, 1) @ tokens.transpose(1, 2)  # [B, H, S]
        shares = (scores + bias[:, 0] if bias.shape[1] else scores).softmax(dim=-1)
        return self._projected(shares @ tokens)


def pool_first(model: Encoder) -> Encoder:
    """A copy of `model` for export whose last attention projects pooled tokens; `model` itself where it does not pool early."""
    config = model.config
    attention: Any = model.layers[-1].get_submodule("attention")
    if not config.early_pooling or not isinstance(attention, DenseAttention) or attention.keys != attention.heads:
        return model
    if attention.prefix is not None or attention.query_norm is not None:
        return model
    positions = config.layers[-1].positions or config.positions
    one = getattr(config.head, "pooling", "") == "cls" and positions.kind in ("learned", "sinusoidal", "none")
    model = copy.deepcopy(model)
    model.set_submodule(f"layers.{len(config.layers) - 1}.attention", (FirstTokenAttention if one else PooledAttention)(attention).eval())
    return model


def _weights(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights and bias of a linear as they are, or as they were before they became integers."""
    part: Any = linear
    weight = part.weight.float() * part.scales[:, None] if isinstance(part, QuantizedLinear) else part.weight
    return weight.detach(), part.bias.detach()


def _first(linear: nn.Module, count: int) -> Any:
    """The linear that gives only the first `count` outputs."""
    part: Any = linear
    inputs = part.weight.shape[1]
    made: Any = QuantizedLinear(inputs, count) if isinstance(part, QuantizedLinear) else nn.Linear(inputs, count)
    if isinstance(part, QuantizedLinear):
        made.scheme, made.scale, made.zero_point, made.scales = part.scheme, part.scale, part.zero_point, part.scales[:count].clone()
        made.weight, made.bias = part.weight[:count].clone(), part.bias[:count].clone()
    else:
        made.load_state_dict({"weight": part.weight[:count], "bias": part.bias[:count]})
    return made
