"""A tiny encoder, calibrated and frozen to int8."""

from typing import Any

from compress.quantization import calibrate, freeze, linears, observed
from model.encoder import Encoder
from tests.model.tiny import batch, tiny_encoder


def quantized(scheme: str = "cpu", **changes: Any) -> Encoder:
    """Every linear but the head's and, for the CPU, the token table."""
    model = tiny_encoder(**changes)
    names = linears(model)
    watched = observed(model, names, scheme)
    calibrate(watched, [dict(zip(("input_ids", "attention_mask"), batch([9, 4, 12], seed=seed), strict=True)) for seed in range(4)])
    return freeze(watched, names, embeddings="int8" if scheme == "cpu" else "fp32", scheme=scheme)
