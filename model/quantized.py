"""Frozen modules: tables in fp16, and int8 in the form that ONNX Runtime's CPU provider or TensorRT computes with integers.

Weights are int8 with one scale a row, activations have one scale a tensor. For the CPU they are uint8 with a zero point (int8
activations or uint8 weights fall back to float or to slower kernels), for TensorRT int8 around zero, the only form that it takes. The
operators of `quantized_decomposed` compute the same in torch and become QuantizeLinear and DequantizeLinear when exported.
"""

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import Quantization
from model.errors import ConfigError

BYTES = {"cpu": (0, 255, torch.uint8), "tensorrt": (-128, 127, torch.int8)}  # of activations, by scheme: least, most, type


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` [R, C] as int8 [R, C] in -127..127 and float32 scales [R], so that int8 * scale ≈ weight."""
    scales = (weight.detach().abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny).float()
    return (weight.detach() / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


class QuantizedLinear(nn.Module):
    """A linear on activations of a byte (see BYTES for the two schemes) and int8 weights [out, in]; cannot be trained.

    `scale` and `zero_point` of the activations are plain numbers, because an exported graph needs them as constants; they travel in
    the state as `_extra_state`, a float64 tensor of the two.
    """

    weight: Tensor
    scales: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, scheme: str = "cpu") -> None:
        super().__init__()
        self.scheme = scheme
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        self.scale = 1.0
        self.zero_point = 0

    @classmethod
    def from_linear(cls, linear: nn.Linear, scale: float, zero_point: int, scheme: str = "cpu") -> "QuantizedLinear":
        """Freeze `linear`, whose input x is to be stored in a byte as round(x / scale) + zero_point, which is 0 for TensorRT."""
        quantized = cls(linear.in_features, linear.out_features, scheme)
        quantized.weight, quantized.scales = quantize_rows(linear.weight)
        if linear.bias is not None:
            quantized.bias = linear.bias.detach().clone()
        # As float32, the type of a scale in an ONNX graph: torch and the graph then divide by the same number.
        quantized.scale, quantized.zero_point = float(torch.tensor(scale, dtype=torch.float32)), zero_point
        return quantized

    def get_extra_state(self) -> Tensor:
        """Scale and zero point of the activations as float64 [2]."""
        return torch.tensor([self.scale, self.zero_point], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take scale and zero point from what `get_extra_state` gave."""
        self.scale, self.zero_point = float(state[0]), int(state[1])

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] to [.., out]."""
        ops = torch.ops.quantized_decomposed
        activation = (self.scale, self.zero_point, *BYTES[self.scheme])
        x = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *activation), *activation)
        weight = ops.dequantize_per_channel(self.weight, self.scales, None, 0, -127, 127, torch.int8)
        return F.linear(x, weight, self.bias)


class HalfEmbedding(nn.Module):
    """A table of float16 rows [V, W], widened after the gather; cannot be trained."""

    weight: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.float16))

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> "HalfEmbedding":
        """Freeze `embedding`; values beyond the range of float16 become its ends."""
        half = cls(embedding.num_embeddings, embedding.embedding_dim)
        most = torch.finfo(torch.float16).max
        half.weight = embedding.weight.detach().clamp(-most, most).half()
        return half

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [.., W] of `ids` [..]."""
        return F.embedding(ids, self.weight).float()


class QuantizedEmbedding(nn.Module):
    """A table of int8 rows [V, W], each with a float32 scale ([V, 1] in all); cannot be trained."""

    weight: Tensor
    scales: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(rows, 1))

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding) -> "QuantizedEmbedding":
        """Freeze `embedding`."""
        quantized = cls(embedding.num_embeddings, embedding.embedding_dim)
        quantized.weight, scales = quantize_rows(embedding.weight)
        quantized.scales = scales[:, None]
        return quantized

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [.., W] of `ids` [..]."""
        # Scaled after the gather: before it, an exported graph would dequantise the whole table in every run.
        return F.embedding(ids, self.weight).float() * F.embedding(ids, self.scales)


# How a table may be stored, besides fp32.
EMBEDDINGS: dict[str, type[QuantizedEmbedding] | type[HalfEmbedding]] = {"int8": QuantizedEmbedding, "fp16": HalfEmbedding}


def make_room(model: nn.Module, quantization: Quantization, table: str) -> None:
    """Put empty modules where `quantization` says, for a saved state to be loaded into; `table` is the name of the token table.

    Raises ConfigError for a linear that does not exist.
    """
    known = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name in quantization.linears:
        if name not in known:
            raise ConfigError(f"There is no linear module {name!r} to quantize.", f"The linear modules are: {', '.join(known)}.")
        model.set_submodule(name, QuantizedLinear(known[name].in_features, known[name].out_features, quantization.scheme))
    if quantization.embeddings in EMBEDDINGS:
        whole: Any = model.get_submodule(table)
        model.set_submodule(table, EMBEDDINGS[quantization.embeddings](whole.num_embeddings, whole.embedding_dim))
