"""Heads that share their keys and values (Ainslie et al. 2023), made of heads that each have their own.

The keys of a group's heads, one under the other, are a matrix; its best approximation of one head's rank is U S Vᵀ (Yu et al. 2024,
"Effectively compress KV heads for LLM", there of what the projection gives). S Vᵀ are the keys that the heads share; U goes to their
queries, for q · (U k) = (Uᵀ q) · k. Values likewise, whose U goes to the projection after them. Biases need no rank: softmax loses that
of the keys, and the shares that values are added up with are 1 in sum, so their bias is the projection's.

Shapes: H heads of queries, G groups, N = H / G heads in one, D head width, W width.
"""

import torch
from torch import Tensor

from compress.pruning import counts
from model.config import EncoderConfig
from model.encoder import Encoder
from model.errors import ConfigError
from model.slots import Attention

ROTATED = ("rotary", "relative")  # positions that stand between a query and the projection of a key


def group_counts(wanted: tuple[int, ...], config: EncoderConfig, heads: list[int]) -> list[int | None]:
    """How many heads of keys and values each layer shall have once it has `heads`, None as it was; raises ConfigError if that cannot be."""
    if not wanted:
        return [None] * len(heads)
    attentions = [layer.attention for layer in config.layers]
    there = [kept if attention.keys == attention.heads else attention.keys for attention, kept in zip(attentions, heads, strict=True)]
    found: list[int | None] = []
    for number, keys in enumerate(counts(wanted, there, "key-value heads")):
        if heads[number] % keys:
            divisors = ", ".join(str(part) for part in range(1, there[number] + 1) if heads[number] % part == 0)
            raise ConfigError(
                f"{keys} key-value heads do not divide the {heads[number]} heads of layer {number}.", f"Give one of {divisors}."
            )
        positions = (config.layers[number].positions or config.positions).kind
        if keys != there[number] and (reason := _obstacle(attentions[number], positions)):
            hint = f"Leave --key-value-heads out, or give {there[number]} for that layer."
            raise ConfigError(f"The heads of layer {number} cannot be made to share keys and values: it has {reason}.", hint)
        found.append(keys if keys != there[number] else None)
    return found


def _obstacle(attention: Attention, positions: str) -> str:
    """What stands between keys or values and what comes after them, "" if nothing does."""
    if attention.kind != "dense":
        return f"{attention.kind} attention"
    if attention.prefix:
        return "a prefix"
    if attention.query_key_norm:
        return "a norm of its queries and keys"
    if positions in ROTATED:
        return f"{positions} positions"
    return "groups that share them already" if attention.keys < attention.heads else ""


def group(model: Encoder, shared: list[int | None]) -> Encoder:
    """An encoder whose heads share so many heads of keys and values in each layer, after `group_counts`; with None as many as before."""
    layers = [layer.model_dump() for layer in model.config.layers]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for number, (layer, keys) in enumerate(zip(layers, shared, strict=True)):
        if keys is not None:
            attention = layer["attention"]
            _share(weights, f"layers.{number}.attention", attention["heads"], attention["head_width"], keys)
            attention["key_value_heads"] = keys
    grouped = Encoder(model.config.changed(layers=layers))
    grouped.load_state_dict(weights)
    return grouped.train(model.training)


def _share(weights: dict[str, Tensor], name: str, heads: int, width: int, groups: int) -> None:
    """Replace the weights of one attention, in place."""
    qkv, output = f"{name}.qkv", f"{name}.output"
    queries, keys, values = weights[f"{qkv}.weight"].double().chunk(3)
    query_bias, _, value_bias = weights[f"{qkv}.bias"].double().chunk(3)
    after = weights[f"{output}.weight"].double()
    shared_keys, to_queries = _factors(keys, groups, width)
    shared_values, to_output = _factors(values, groups, width)
    queries = (to_queries.mT @ queries.view(heads, width, -1)).flatten(0, 1)
    query_bias = (to_queries.mT @ query_bias.view(heads, width, 1)).flatten()
    made = {
        f"{qkv}.weight": torch.cat((queries, shared_keys, shared_values)),
        f"{qkv}.bias": torch.cat((query_bias, query_bias.new_zeros(2 * groups * width))),
        f"{output}.weight": torch.einsum("whd,hde->whe", after.view(-1, heads, width), to_output).flatten(1),
        f"{output}.bias": weights[f"{output}.bias"].double() + after @ value_bias,
    }
    weights |= {key: value.float() for key, value in made.items()}


def _factors(rows: Tensor, groups: int, width: int) -> tuple[Tensor, Tensor]:
    """`rows` [H*D, W] as what the groups share, [G*D, W], and what makes each head's of it, [H, D, D].

    The second are as near to rotations as can be, so that what is shared is about as large as what a head had.
    """
    left, values, right = torch.linalg.svd(rows.view(groups, -1, rows.shape[1]), full_matrices=False)
    scale = (left.shape[1] / width) ** 0.5
    shared = values[:, :width, None] * right[:, :width] / scale
    return shared.flatten(0, 1), (left[:, :, :width] * scale).reshape(-1, width, width)
