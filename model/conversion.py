"""An encoder in another configuration, with the weights that carry over.

One kind of attention for another is after Beltagy et al. 2020, §5 (dense to window for long documents).
"""

from collections.abc import Sequence
from typing import Any

import torch

from model.build import Model, as_encoder
from model.encoder import Encoder, normed
from model.errors import ConfigError
from model.positions import LearnedPositions

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
TOKENS = 1024  # among which the effect of a position is averaged
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


def with_positions_after_norm(encoder: Encoder) -> Encoder:
    """`encoder` with its positions added after the norm of the embeddings, as near to what it was as a table of positions can be.

    The place of a token moves its normed embedding by much the same, whatever the token: a learned position becomes the mean of that over
    TOKENS rows of the vocabulary. Raises ConfigError for positions that are not added.
    """
    made = rebuilt(encoder, positions_after_norm=True)
    before: Any = encoder.embeddings
    after: Any = made.embeddings
    if encoder.config.positions_after_norm or not isinstance(before.positions, LearnedPositions):
        return made
    rows = before.tokens(torch.linspace(0, encoder.config.vocabulary - 1, min(TOKENS, encoder.config.vocabulary)).long())
    if before.types is not None:
        rows = rows + before.types.weight[0]
    with torch.no_grad():
        ones = torch.ones(1, len(rows))
        alone = normed(before.norm, rows, ones).mean(dim=0)
        for place, weight in enumerate(before.positions.weight):
            after.positions.weight[place] = normed(before.norm, rows + weight, ones).mean(dim=0) - alone
    return made


def with_activation(encoder: Encoder, activation: str) -> Encoder:
    """`encoder` with another activation in every layer's feed-forward network, and the weights that it has."""
    layers = [layer.model_dump() for layer in encoder.config.layers]
    for layer in layers:
        if layer["feedforward"]["kind"] != "none":
            layer["feedforward"]["activation"] = activation
    return rebuilt(encoder, layers=layers)


def reshaped(model: Model, pooling: str | None, early_pooling: bool, positions_after_norm: bool, activation: str | None) -> Model:
    """`model` in a form that answers sooner, as far as one is asked for, with the weights that it has; only an encoder has another.

    Raises ConfigError for a form that cannot be.
    """
    if not (pooling or early_pooling or positions_after_norm or activation):
        return model
    encoder = as_encoder(model, "This", "of another form")
    if pooling:
        encoder = rebuilt(encoder, head={**encoder.config.head.model_dump(), "pooling": pooling})
    if early_pooling:
        encoder = rebuilt(encoder, early_pooling=True)
    if positions_after_norm:
        encoder = with_positions_after_norm(encoder)
    return encoder if activation is None else with_activation(encoder, activation)


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
