"""Prefix tuning: learned keys and values in every layer of a frozen encoder (Li and Liang 2021).

Shapes: B texts, S tokens, H heads, G heads of keys and values, D head width, P keys of a prefix.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.training import Inputs, model_inputs
from model.encoder import Encoder
from model.errors import ConfigError

WHOLE = "Train all of the model (without --prefix), or choose another base."


def with_prefix(encoder: Encoder, length: int) -> Encoder:
    """`encoder` with `length` fresh keys and values in each layer; all else but its head is frozen.

    Raises ConfigError for an encoder that has no place for them: only dense attention lets every token see the same keys.
    """
    config = encoder.config
    if config.quantization:
        raise ConfigError("The base is quantized: what its layers give cannot be steered by a prefix.", "Give the model it was made from.")
    if config.norm.kind == "batchnorm":
        raise ConfigError("The base has batchnorm, whose averages move in training: it cannot be a frozen backbone.", WHOLE)
    layers = []
    for number, layer in enumerate(config.layers):
        if layer.attention.kind != "dense":
            what = f"Layer {number} of the base has {layer.attention.kind} attention, where not every token can see a prefix."
            raise ConfigError(what, WHOLE)
        if layer.attention.prefix:
            raise ConfigError(f"The base has a prefix of {layer.attention.prefix} already.", "Give the backbone that it was trained on.")
        layers.append({**layer.model_dump(), "attention": {**layer.attention.model_dump(), "prefix": length}})
    prefixed = Encoder(config.changed(layers=layers))
    prefixed.load_state_dict({**prefixed.state_dict(), **encoder.state_dict()})
    for name, parameter in prefixed.named_parameters():
        parameter.requires_grad_(name.startswith("head.") or name.endswith(".prefix"))
    return prefixed


@torch.no_grad()
def start_from_tokens(encoder: Encoder, inputs: Inputs, seed: int) -> None:
    """Set the prefixes to keys and values of tokens of a batch, drawn by `seed`, in place (Li and Liang 2021, §7.5: real words).

    What the encoder then sees is something that it knows; from random numbers it learns more slowly.
    """
    seen: list[Tensor] = []
    layers: Any = encoder.layers
    hooks = [layer.attention.qkv.register_forward_hook(lambda module, given, found: seen.append(found)) for layer in layers]
    before = encoder.training
    try:
        encoder.eval()(**model_inputs(inputs))
    finally:
        for hook in hooks:
            hook.remove()
        encoder.train(before)
    tokens = inputs["attention_mask"].flatten().nonzero()[:, 0].numpy()
    for layer, packed in zip(layers, seen, strict=True):
        attention = layer.attention
        length = attention.prefix.shape[2]
        chosen = np.random.default_rng(seed).choice(tokens, length, replace=length > len(tokens))
        heads = packed[torch.from_numpy(chosen)].view(length, -1, attention.head_width).transpose(0, 1)  # [H + 2 G, P, D]
        keys, values = heads[attention.heads :].chunk(2)
        if attention.key_norm is not None:
            keys = attention.key_norm(keys)
        attention.prefix.copy_(torch.stack((keys, values)))
