"""Folded encoders against the unfolded ones, and graphs without a mask against those with one."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.quantization import linears
from export.audit import audit
from export.first_token import FirstTokenAttention, GroupedFirstTokenAttention, one_query
from export.folding import clamp, clamps, fold
from export.graph import export_graph, opset_for
from export.parity import compare
from export.plan import gate, plan_of
from export.sharing import share_weights
from model.errors import ConfigError
from tests.export.test_export import Session
from tests.export.tiny_int8 import quantized
from tests.model.tiny import batch, tiny_encoder

LAYER = {"attention": {"heads": 4, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 16}}
CLS = {"labels": 3, "pooling": "cls"}
RELU = [{**LAYER, "feedforward": {"kind": "mlp", "neurons": 16, "activation": "relu"}}] * 2
FOLDS = {
    "learned": {"positions_after_norm": True, "token_types": 2},
    "early": {"positions_after_norm": True, "early_pooling": True},
    "early cls": {"positions_after_norm": True, "early_pooling": True, "head": {"labels": 3, "pooling": "cls"}},
    "sinusoidal, narrow": {"positions_after_norm": True, "positions": {"kind": "sinusoidal"}, "embedding_width": 10},
    "rotary": {"positions": {"kind": "rotary"}, "norm": {"kind": "rmsnorm"}},
    "norm first": {"positions_after_norm": True, "norm_first": True, "layers": [{**LAYER, "attention_norm": False}, LAYER]},
    "no order, one layer": {"positions": {"kind": "none"}, "layers": [LAYER]},
}


@given(st.sampled_from(sorted(FOLDS)), st.lists(st.integers(1, 16), min_size=1, max_size=4))
@torch.no_grad()
def test_a_folded_encoder_gives_the_same_whatever_the_lengths(name, lengths):
    model = tiny_encoder(**FOLDS[name])
    ids, mask = batch(lengths, seed=sum(lengths))
    folded = fold(model, "fp32")
    assert torch.allclose(folded(ids, mask), model(ids, mask), atol=1e-5)
    assert torch.allclose(folded(ids), model(ids, torch.ones_like(ids)), atol=1e-5)


@pytest.mark.parametrize(("storage", "signal"), [("fp16", 60.0), ("int8", 30.0)])
@torch.no_grad()
def test_smaller_tables_are_near(storage, signal):
    model = tiny_encoder(**FOLDS["early"])
    ids, mask = batch([16, 9, 2, 1])
    noise = fold(model, storage)(ids, mask) - model(ids, mask)
    assert 10 * torch.log10(model(ids, mask).square().sum() / noise.square().sum()) > signal


@torch.no_grad()
def test_an_int8_model_leaves_its_first_projection_to_the_table():
    model = tiny_encoder(**FOLDS["early"])
    assert "layers.0.attention.qkv" not in linears(model) and "layers.0.attention.qkv" in linears(tiny_encoder())
    frozen = quantized(**FOLDS["early"])
    ids, mask = batch([11, 5])
    assert torch.allclose(fold(frozen, "fp32")(ids, mask), frozen(ids, mask), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{}, {"norm_first": True, "positions_after_norm": True}, {"positions": {"kind": "learned", "length": 8}, "positions_after_norm": True}],
)
def test_what_no_token_knows_by_itself_cannot_be_folded(changes):
    with pytest.raises(ConfigError, match="The first projection cannot be folded into the embeddings") as error:
        fold(tiny_encoder(**changes), "fp32")
    assert "--positions-after-norm" in error.value.hint


@pytest.mark.parametrize("name", ["early", "rotary"])
def test_the_folded_graphs_keep_parity_and_plan_with_a_mask_and_without(tmp_path, name):
    model = quantized(**FOLDS[name])
    folded = fold(model, "int8")
    signal = {}
    for single in (False, True):
        file = tmp_path / f"{single}.onnx"
        export_graph(folded, file, opset=opset_for(model), pairs=False, single=single)
        found = audit(file)
        gate(plan_of(model.config, folded=True), found, file)
        assert found.integer == 7 and ("attention_mask" in Session(file).inputs) != single
        signal[single] = compare(folded, Session(file), pairs=False, single=single).signal_db
    assert min(signal.values()) > 30
    assert audit(tmp_path / "True.onnx").nodes < audit(tmp_path / "False.onnx").nodes - 10


@torch.no_grad()
def test_a_relu_before_zero_point_zero_is_the_quantizers_lower_end(tmp_path):
    model = quantized(layers=RELU)
    clamped = clamp(model)
    assert len(clamps(model)) == 2 and not clamps(clamped) and not clamps(quantized())
    for lengths in ([2], [16, 3, 1]):
        ids, mask = batch(lengths)
        assert torch.equal(clamped(ids, mask), model(ids, mask))
    file = tmp_path / "model.onnx"
    export_graph(clamped, file, opset=20, pairs=False)
    found = audit(file)
    gate(plan_of(model.config), found, file)
    assert found.integer == 8 and "Relu" not in found.operators
    assert compare(model, Session(file), pairs=False).signal_db > 30
    assert not clamps(quantized("tensorrt", layers=RELU))  # whose bytes go below zero
    model.layers[0].feedforward.down.zero_point = 3
    assert clamps(model) == [model.layers[1].feedforward]


def test_a_second_graph_finds_its_weights_in_the_first(tmp_path):
    model = tiny_encoder(vocabulary=400, token_types=2)
    whole, single = tmp_path / "model.onnx", tmp_path / "single.onnx"
    export_graph(model, whole, opset=20, pairs=True)
    export_graph(model, single, opset=20, pairs=True, single=True)
    before = single.stat().st_size
    shared = share_weights(single, whole)
    assert shared > 400 * 24 * 4 and single.stat().st_size < before - 0.95 * shared
    assert Session(single).inputs == {"input_ids", "token_type_ids"}
    assert compare(model, Session(single), pairs=True, single=True).difference < 1e-5
    onnx.checker.check_model(str(single))


def test_without_a_mask_nothing_is_padding():
    ids, mask = batch([9])
    twice = ids.repeat(2, 1)
    for changes in (
        {},
        {"positions": {"kind": "alibi"}},
        {"layers": [{**LAYER, "attention": {"heads": 2, "head_width": 6, "prefix": 3}}]},
        {"layers": [{**LAYER, "attention": {"kind": "window", "window": 4, "heads": 4}}]},
        {"norm": {"kind": "batchnorm"}},
        {"head": {"kind": "tagging", "labels": 3}},
        {"positions": {"kind": "rotary", "extension": {"kind": "dynamic", "length": 4}}},
    ):
        model = tiny_encoder(**changes)
        for kernel in ("sdpa", "eager"):
            model.kernel = kernel
            with torch.no_grad():
                np.testing.assert_allclose(model(twice).numpy(), model(twice, mask.repeat(2, 1)).numpy(), atol=1e-5)


@given(st.sampled_from(({}, {"norm_first": True}, {"positions": {"kind": "none"}})), st.lists(st.integers(1, 16), min_size=1, max_size=4))
@torch.no_grad()
def test_one_query_needs_neither_keys_nor_values_token_by_token(changes, lengths):
    model = tiny_encoder(early_pooling=True, head=CLS, **changes)
    late = one_query(model)
    assert type(late.layers[-1].attention) is FirstTokenAttention
    ids, mask = batch(lengths, seed=sum(lengths))
    assert torch.allclose(late(ids, mask), model(ids, mask), atol=1e-5)
    assert torch.allclose(late(ids), model(ids, torch.ones_like(ids)), atol=1e-5)


@given(st.sampled_from((1, 2)), st.lists(st.integers(1, 16), min_size=1, max_size=4))
@torch.no_grad()
def test_one_query_of_heads_that_share_their_keys(keys, lengths):
    layers = [LAYER, {**LAYER, "attention": {"heads": 4, "head_width": 6, "key_value_heads": keys}}]
    model = tiny_encoder(early_pooling=True, head=CLS, layers=layers)
    late = one_query(model)
    assert type(late.layers[-1].attention) is GroupedFirstTokenAttention
    ids, mask = batch(lengths, seed=sum(lengths))
    assert torch.allclose(late(ids, mask), model(ids, mask), atol=1e-5)
    assert torch.allclose(late(ids), model(ids, torch.ones_like(ids)), atol=1e-5)


def test_only_a_last_layer_that_keeps_the_first_token_is_changed():
    for changes in ({}, {"early_pooling": True}, {"head": CLS}):
        model = tiny_encoder(**changes)
        assert one_query(model) is model
    for changes in ({"positions": {"kind": "rotary"}}, {"positions": {"kind": "alibi"}}):
        model = tiny_encoder(early_pooling=True, head=CLS, **changes)
        assert one_query(model) is model


def test_the_graphs_of_one_query_keep_parity_and_plan(tmp_path):
    model = quantized(early_pooling=True, head=CLS)
    late = one_query(model)
    for single in (False, True):
        file = tmp_path / f"{single}.onnx"
        export_graph(late, file, opset=20, pairs=False, single=single)
        found = audit(file)
        gate(plan_of(model.config, one_query=True), found, file)
        assert found.integer == 8  # all of its linears: of the last one's rows those for queries
        assert compare(late, Session(file), pairs=False, single=single).signal_db > 30
