"""Tiny encoders with weights large enough to matter, and batches for them."""

from typing import Any

import torch
from torch import Tensor

from model.config import EncoderConfig, read_config
from model.encoder import Encoder


def tiny_config(**changes: Any) -> EncoderConfig:
    """Width 24, two layers whose heads and neurons differ, three labels."""
    layers = [
        {"attention": {"heads": heads, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": neurons}}
        for heads, neurons in ((4, 32), (2, 20))
    ]
    values = {
        "vocabulary": 50,
        "width": 24,
        "positions": {"kind": "learned", "length": 16},
        "layers": layers,
        "head": {"labels": 3},
        "max_length": 16,
    }
    return read_config({**values, **changes})


def tiny_encoder(**changes: Any) -> Encoder:
    """In eval mode; every parameter drawn anew, biases and norms too."""
    encoder = Encoder(tiny_config(**changes))
    shake(encoder)
    return encoder.eval()


def shake(module: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew: a normal of deviation 0.3, around 1 for the weights of norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            if name.lower().endswith("norm.weight"):
                parameter.add_(1.0)


def batch(lengths: list[int], vocabulary: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of these lengths, padded right with id 0."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, vocabulary, mask.shape, generator=generator) * mask, mask
