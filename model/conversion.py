"""An encoder in another configuration, with the weights that carry over.

One kind of attention for another is after Beltagy et al. 2020, §5 (dense to window for long documents).
"""

from collections.abc import Sequence
from typing import Any

import torch

from model.encoder import Encoder
from model.errors import ConfigError

SIZES = {
    "dense": None,
    "window": "window",
    "sparse_strided": "stride",
    "sparse_fixed": "stride",
    "sparse_bigbird": "block",
    "linformer": "landmarks",
    "landmark": "landmarks",
}
"""Kind of attention → the parameter that says how far it reaches."""
SHARED = ("heads", "head_width", "key_value_heads", "query_key_norm")  # what every kind has


def read_attention(text: str) -> dict[str, Any]:
    """`KIND` or `KIND:SIZE` (such as `window:512`) as an attention slot without heads; raises ConfigError if that cannot be."""
    kind, _, size = text.partition(":")
    if kind not in SIZES:
        raise ConfigError(f"There is no attention {kind!r}.", f"Choose one of {', '.join(SIZES)}; a size is written as window:512.")
    parameter = SIZES[kind]
    if not size:
        return {"kind": kind}
    if parameter is None or not size.isdecimal():
        raise ConfigError(f"{text!r} is no attention: {kind} takes {parameter or 'no size'}.", "Write it as window:512, or as dense.")
    return {"kind": kind, parameter: int(size)}


def rebuilt(encoder: Encoder, **changes: Any) -> Encoder:
    """`encoder` with `changes` of its configuration that leave every weight what it is, such as early_pooling; raises ConfigError."""
    made = Encoder(encoder.config.changed(**changes))
    made.load_state_dict(encoder.state_dict())
    return made.train(encoder.training)


def convert_attention(encoder: Encoder, kinds: Sequence[dict[str, Any]], **changes: Any) -> Encoder:
    """`encoder` with the attention `kinds` (slots without heads) in its layers, taken in turn; `changes` are of its configuration.

    Heads and all weights that both kinds have are kept; what is new (Linformer's projections, further learned positions) is fresh.
    Raises ConfigError if a kind cannot be.
    """
    if encoder.config.quantization:
        raise ConfigError("The encoder is quantized: its attention cannot be changed any more.", "Give the model that it was made from.")
    if any(layer.attention.kind == "dense" and layer.attention.prefix for layer in encoder.config.layers):
        what = "The encoder has a prefix, which other attention has no place for."
        raise ConfigError(what, "Convert the backbone, then train a prefix on it.")
    layers = []
    for number, layer in enumerate(encoder.config.layers):
        given = kinds[number % len(kinds)]
        if given["kind"] == "linformer":
            given = {"length": changes.get("max_length", encoder.config.max_length), **given}
        kept = {name: getattr(layer.attention, name) for name in SHARED}
        layers.append({**layer.model_dump(), "attention": {**kept, **given}})
    converted = Encoder(encoder.config.changed(layers=layers, **changes))
    fresh = converted.state_dict()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if name in fresh and fresh[name].shape == tensor.shape:
                fresh[name].copy_(tensor)
    return converted.train(encoder.training)
