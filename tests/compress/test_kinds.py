"""Pruning and quantization of encoders whose attention is not plain."""

import pytest
import torch

from compress.importance import Importance, taylor
from compress.pruning import check_heads, prune, prune_by
from compress.quantization import calibrate, freeze, linears, observed
from model.errors import ConfigError
from tests.model.tiny import batch, tiny_encoder

KINDS = {
    "window": ({"kind": "window", "window": 4}, {"kind": "alibi"}),
    "shared keys": ({"key_value_heads": 1, "query_key_norm": True}, {"kind": "rotary"}),
    "own keys": ({"key_value_heads": 4}, {"kind": "t5", "buckets": 8, "distance": 6}),
    "sparse": ({"kind": "sparse_strided", "stride": 4}, {"kind": "relative", "distance": 2}),
    "bigbird": ({"kind": "sparse_bigbird", "block": 4}, {"kind": "sinusoidal"}),
    "linformer": ({"kind": "linformer", "length": 16, "landmarks": 3}, {"kind": "learned", "length": 16}),
    "landmark": ({"kind": "landmark", "landmarks": 3}, {"kind": "none"}),
}


def build(kind):
    attention, positions = KINDS[kind]
    layers = {"count": 2, "attention": {"heads": 4, **attention}, "feedforward": {"kind": "glu", "neurons": 8}}
    return tiny_encoder(positions=positions, layers=layers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_encoder_is_the_masked_one(kind):
    model = build(kind)
    ids, mask = batch([13, 2, 7])
    whole = [[list(range(4))] * 2, [list(range(8))] * 2]
    assert torch.equal(prune(model, *whole).eval()(ids, mask), model(ids, mask))
    heads, neurons = [[1, 2], [0, 3]], [[0, 4, 7], list(range(8))]
    smaller = prune(model, heads, neurons).eval()
    with torch.no_grad():
        for layer, kept_heads, kept_neurons in zip(model.layers, heads, neurons, strict=True):
            for head in set(range(4)) - set(kept_heads):
                layer.attention.output.weight[:, head * 6 : head * 6 + 6] = 0
            for neuron in set(range(8)) - set(kept_neurons):
                layer.feedforward.down.weight[:, neuron] = 0
    assert torch.allclose(smaller(ids, mask), model(ids, mask), atol=1e-5)


def test_heads_in_groups_are_scored_but_not_pruned():
    layers = {"count": 1, "attention": {"heads": 4, "key_value_heads": 2}, "feedforward": {"kind": "mlp", "neurons": 8}}
    model = tiny_encoder(layers=layers)
    ids, mask = batch([5, 3])

    def loss(model, inputs):
        return model(ids, mask).square().sum()

    importance = taylor(model, [{"input_ids": ids, "attention_mask": mask}], loss)
    assert isinstance(importance[0], Importance) and (importance[0].heads > 0).all()
    fewer = prune_by(model, importance, [4], [5], "uniform")
    assert fewer.config.layers[0].feedforward.neurons == 5 and fewer.config.layers[0].attention == model.config.layers[0].attention
    with pytest.raises(ConfigError, match="Layer 0 has 4 heads in groups of 2 that share their keys; a group cannot lose a head") as error:
        check_heads(model.config, [2])
    assert "neurons only" in error.value.hint


@pytest.mark.parametrize("kind", KINDS)
def test_linears_of_every_kind_become_int8(kind):
    model = build(kind)
    watched = observed(model, linears(model))
    ids, mask = batch([13, 2, 7])
    calibrate(watched, [{"input_ids": ids, "attention_mask": mask}])
    frozen = freeze(watched, linears(model), embeddings="int8")
    difference = (frozen(ids, mask) - model(ids, mask)).norm() / model(ids, mask).norm()
    assert len(frozen.config.quantization.linears) == 10 and 0 < difference < 0.25
