"""Heads and FFN neurons removed for good: the weights are cut, not masked. A layer that keeps no neuron has no network any more."""

from typing import Any

import torch
from torch import Tensor

from compress.importance import Importance
from model.config import EncoderConfig
from model.encoder import Encoder
from model.errors import ConfigError
from model.norms import BatchNorm
from model.slots import AttentionHeads


def counts(wanted: tuple[int, ...], present: list[int], what: str, least: int = 1) -> list[int]:
    """How many `what` to keep in each layer, at least `least`; raises ConfigError if that cannot be."""
    kept = list(present) if not wanted else list(wanted) * len(present) if len(wanted) == 1 else list(wanted)
    if len(kept) != len(present):
        raise ConfigError(f"{len(kept)} numbers of {what} for {len(present)} layers.", "Give one number, or one for each layer.")
    for layer, (keep, have) in enumerate(zip(kept, present, strict=True)):
        if not min(least, have) <= keep <= have:
            hint = f"Give a number between {least} and {have}." if have else "Give a number for each layer, and 0 for that one."
            raise ConfigError(f"Layer {layer} has {have} {what}; {keep} cannot be kept.", hint)
    return kept


def choose(scores: list[Tensor], keep: list[int], allocation: str) -> list[list[int]]:
    """The indices to keep in each layer, in rising order.

    `uniform`: the best `keep[l]` of layer l. `global`: the best sum(keep) of all, each layer's scores first divided by their norm
    (Molchanov et al. 2017, §2.2), at least one a layer, but none of a layer that is to keep none.
    """
    if allocation == "uniform":
        return [sorted(score.argsort(descending=True, stable=True)[:count].tolist()) for score, count in zip(scores, keep, strict=True)]
    normed = [score / score.norm().clamp_min(1e-12) for score in scores]
    best = [int(score.argmax()) if count else None for score, count in zip(scores, keep, strict=True)]
    rest = sorted(
        (-float(value), layer, index)
        for layer, score in enumerate(normed)
        for index, value in enumerate(score)
        if keep[layer] and index != best[layer]
    )
    chosen = [[] if index is None else [index] for index in best]
    for _, layer, index in rest[: sum(keep) - len([count for count in keep if count])]:
        chosen[layer].append(index)
    return [sorted(indices) for indices in chosen]


def check_heads(config: EncoderConfig, keep: list[int]) -> None:
    """Raise ConfigError if so many heads a layer cannot be kept because heads share their keys in groups (all in one group may)."""
    for number, (layer, kept) in enumerate(zip(config.layers, keep, strict=True)):
        heads, keys = layer.attention.heads, layer.attention.keys
        if keys not in (1, heads) and kept != heads:
            raise ConfigError(
                f"Layer {number} has {heads} heads in groups of {heads // keys} that share their keys; a group cannot lose a head.",
                "Prune its neurons only (leave --heads out).",
            )


def prune(model: Encoder, heads: list[list[int]], neurons: list[list[int]]) -> Encoder:
    """A smaller encoder with only the given heads and neurons of each layer; keeping all of them gives the same model.

    Without neurons a layer has no network, and one norm for two.
    """
    check_heads(model.config, [len(kept) for kept in heads])
    layers = []
    for layer, kept_heads, kept_neurons in zip(model.config.layers, heads, neurons, strict=True):
        attention = {**layer.attention.model_dump(), "heads": len(kept_heads)}
        if layer.attention.keys == layer.attention.heads:
            attention["key_value_heads"] = None  # each head keeps its own
        feedforward = {**layer.feedforward.model_dump(), "neurons": len(kept_neurons)} if kept_neurons else {"kind": "none"}
        layers.append({**layer.model_dump(), "attention": attention, "feedforward": feedforward})
    smaller = Encoder(model.config.changed(layers=layers))
    weights = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers":
            number = int(parts[1])
            if parts[2].startswith("feedforward") and not neurons[number]:
                continue
            value = _cut(value, parts[2:], heads[number], neurons[number], model.config.layers[number].attention)
        weights[name] = value.clone()
    smaller.load_state_dict(weights)
    for before, after in zip(model.layers, smaller.layers, strict=True):
        if before.feedforward is not None and after.feedforward is None and not model.config.norm_first:
            _merge(before.attention_norm, before.feedforward_norm, after.attention_norm)
    return smaller


def _merge(first: Any, second: Any, norm: Any) -> None:
    """Set `norm` to what `second` makes of `first` (in place), for rows whose features have a deviation of 1 and are alike.

    Between norms in a row there is an affine map; only the second's divisor hangs on the row, and it is taken at its expectation.
    """
    if isinstance(first, BatchNorm):
        return  # its averages are of what came from the network
    bias = torch.zeros_like(first.weight) if getattr(first, "bias", None) is None else first.bias
    with torch.no_grad():
        weight = second.weight / (first.weight.square().mean() + bias.var(correction=0)).sqrt()
        norm.weight.copy_(first.weight * weight)
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_((bias - bias.mean()) * weight + second.bias)


def prune_by(model: Encoder, importance: list[Importance], heads: list[int], neurons: list[int], allocation: str) -> Encoder:
    """`prune` to the given counts a layer by `importance`."""
    return prune(
        model,
        choose([layer.heads for layer in importance], heads, allocation),
        choose([layer.neurons for layer in importance], neurons, allocation),
    )


def kept_words(config: EncoderConfig) -> str:
    """The heads and neurons of each layer, and where heads share their keys and values how many of these there are."""
    parts = []
    for layer in config.layers:
        attention = layer.attention
        shared = "" if attention.keys == attention.heads else f" that share {attention.keys} of keys and values"
        parts.append(f"{attention.heads} heads{shared} × {layer.feedforward.neurons} neurons")
    return ", ".join(parts)


def _cut(value: Tensor, name: list[str], heads: list[int], neurons: list[int], attention: AttentionHeads) -> Tensor:
    """The rows or columns of one parameter that the kept heads and neurons use."""
    width = attention.head_width
    columns = torch.tensor([head * width + offset for head in heads for offset in range(width)])
    match name:
        case ["attention", "qkv", _]:
            sizes = [count * width for count in (attention.heads, attention.keys, attention.keys)]
            queries, keys, values = torch.split_with_sizes(value, sizes)
            own = attention.keys == attention.heads
            return torch.cat((queries[columns], keys[columns] if own else keys, values[columns] if own else values))
        case ["attention", "prefix"]:
            return value[:, heads] if attention.keys == attention.heads else value
        case ["attention", "output", "weight"]:
            return value[:, columns]
        case ["positions", "slopes"]:
            return value[heads]
        case ["positions", "buckets"]:
            return value[:, heads]
        case ["feedforward", "up" | "gate", _]:
            return value[neurons]
        case ["feedforward", "down", "weight"]:
            return value[:, neurons]
    return value
