"""Attention as ONNX Runtime's own operator, for files that only ONNX Runtime loads: on a GPU its fused kernels hang on that operator.

`com.microsoft.Attention` takes the activations [B, S, W], the packed weights of q, k and v [W, 3A], their bias, and the mask as int32
[B, S]; it gives [B, S, A]. Shapes: B texts, S tokens, W width, A all heads together.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model.attention import DenseAttention
from model.build import Model
from model.encoder import Encoder
from model.errors import ConfigError
from model.slots import BETWEEN_TOKENS


class OrtAttention(nn.Module):
    """What a DenseAttention computes, as one node in an exported graph; it runs in such a graph alone."""

    def __init__(self, dense: DenseAttention) -> None:
        super().__init__()
        self.heads = dense.heads
        self.qkv = dense.qkv
        self.output = dense.output

    def forward(self, x: Tensor, bias: Tensor, positions: Any, kernel: str, pool: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """`x` and the result are [B*S, W]; `bias`, [B, 1, 1, S], is 0 where there is a token; with `pool` the result is [B, W]."""
        batch, length, width = bias.shape[0], bias.shape[-1], self.output.in_features
        mask = (bias[:, 0, 0, :] == 0).to(torch.int32)
        mixed: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::Attention",
            [x.view(batch, length, -1), self.qkv.weight.t(), self.qkv.bias, mask],
            attrs={"num_heads": self.heads, "mask_filter_value": -10000.0},
            dtype=x.dtype,
            shape=(batch, length, width),
            version=1,
        )
        y: Tensor = self.output(mixed.reshape(-1, width) if pool is None else pool(mixed))
        return y


def with_ort_attention(model: Model) -> Encoder:
    """A copy of `model` for export, its attention in OrtAttention; raises ConfigError for what the operator cannot compute."""
    if not isinstance(model, Encoder):
        raise ConfigError(f"A {model.config.kind} model has no attention.", "Export with --attention standard.")
    if found := list(_beyond(model)):
        raise ConfigError(
            f"ONNX Runtime's operator Attention has no {', '.join(dict.fromkeys(found))}.", "Export with --attention standard."
        )
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, DenseAttention):
            model.set_submodule(name, OrtAttention(module))
    return model


def _beyond(model: Encoder) -> Any:
    """What `model` has and the operator has not."""
    for positions in (model.config.positions, *(layer.positions for layer in model.config.layers if layer.positions)):
        if positions.kind in BETWEEN_TOKENS:
            yield f"{positions.kind} positions"
    for layer in model.layers:
        attention: Any = layer.get_submodule("attention")
        if type(attention) is not DenseAttention:
            yield f"{type(attention).__name__}"
        elif not isinstance(attention.qkv, nn.Linear):
            yield "int8 weights"
        elif attention.prefix is not None:
            yield "prefix"
        elif attention.query_norm is not None:
            yield "norm of queries and keys"
        elif attention.qkv.out_features != 3 * attention.heads * attention.head_width:
            yield "shared keys and values"
