"""A student in another form: positions after the norm, another activation."""

import pytest
import torch

from model.conversion import rebuilt, reshaped, with_activation, with_positions_after_norm
from model.errors import ConfigError
from tests.model.tiny import batch, tiny_config, tiny_encoder


@torch.no_grad()
def test_positions_after_the_norm_are_what_they_did_before_it_on_the_mean():
    encoder = tiny_encoder(token_types=2)
    converted = with_positions_after_norm(encoder)
    tables, place = encoder.embeddings, 3
    rows = [tables.tokens.weight[row] + tables.types.weight[0] for row in range(50)]
    moved = [tables.norm(row + tables.positions.weight[place]) - tables.norm(row) for row in rows]
    assert torch.allclose(converted.embeddings.positions.weight[place], torch.stack(moved).mean(0), atol=1e-5)
    ids, mask = batch([16, 16], seed=1)
    before, after, copied = (model.embeddings(ids, mask.float(), None) for model in (encoder, converted, naive(encoder)))
    assert (after - before).norm() < 0.8 * (copied - before).norm()


def naive(encoder):
    return rebuilt(encoder, positions_after_norm=True)


@torch.no_grad()
def test_they_are_added_to_normed_embeddings():
    encoder = tiny_encoder(positions_after_norm=True, token_types=2)
    ids, mask = batch([7, 2])
    tables = encoder.embeddings
    for types in (None, ids % 2):
        found = tables(ids, mask.float(), types).view(2, 7, 24)
        kind = tables.types.weight[types if types is not None else torch.zeros_like(ids)]
        assert torch.allclose(found, tables.norm(tables.tokens.weight[ids] + kind) + tables.positions.weight[:7], atol=1e-5)


def test_only_positions_that_are_added_can_be_added_after():
    with pytest.raises(ConfigError, match="positions_after_norm, but rotary positions are not added to embeddings") as error:
        tiny_config(positions={"kind": "rotary"}, positions_after_norm=True)
    assert "leave it out, or choose learned or sinusoidal" in error.value.message


def test_another_activation_keeps_the_weights():
    encoder = tiny_encoder()
    relu = with_activation(encoder, "relu")
    assert {layer.feedforward.activation for layer in relu.config.layers} == {"relu"}
    assert all(torch.equal(tensor, relu.state_dict()[name]) for name, tensor in encoder.state_dict().items())


def test_another_pooling_keeps_the_weights_and_a_tagger_has_none():
    encoder = tiny_encoder()
    first = reshaped(encoder, "cls", True, False, None)
    assert first.config.head.pooling == "cls" and first.config.early_pooling and not encoder.config.early_pooling
    assert all(torch.equal(tensor, first.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(ConfigError, match="pooling"):
        reshaped(tiny_encoder(head={"kind": "tagging", "labels": 3}), "cls", False, False, None)
