"""Graphs for one text against the model as it is trained."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.audit import audit
from export.first_token import one_query
from export.folding import fold
from export.graph import export_graph
from export.one_text import OneTextAttention, OneTextFirstTokenAttention, OneTextSharedAttention, one_text
from export.parity import compare
from export.plan import gate, plan_of
from model.build import build
from model.kinds import StaticConfig
from tests.export.test_export import Session
from tests.export.tiny_int8 import quantized
from tests.model.tiny import batch, tiny_encoder

FORMS = {
    "plain": {},
    "norm first, the first token": {"norm_first": True, "head": {"labels": 3, "pooling": "cls"}},
    "means pooled early": {"early_pooling": True},
    "the first token pooled early": {"early_pooling": True, "head": {"labels": 3, "pooling": "cls"}},
    "tags": {"head": {"kind": "tagging", "labels": 3}},
    "one head, and one pooled early": {
        "layers": {"count": 2, "attention": {"heads": 1, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 8}},
        "early_pooling": True,
    },
    "folded": {"early_pooling": True, "positions_after_norm": True},
    "no network": {
        "early_pooling": True,
        "layers": {"count": 2, "attention": {"heads": 4}, "feedforward": [{"kind": "none"}, {"kind": "mlp", "neurons": 8}]},
    },
    "one head": {
        "early_pooling": True,
        "layers": {"count": 2, "attention": {"heads": 1, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 8}},
    },
}
CLS = {"labels": 3, "pooling": "cls"}


def sharing(*keys):
    """Layers of four heads that share so many heads of keys and values."""
    network = {"kind": "mlp", "neurons": 8}
    return [{"attention": {"heads": 4, "head_width": 6, "key_value_heads": count}, "feedforward": network} for count in keys]


SHARED = {
    "all heads share one": {"layers": sharing(1, 1)},
    "and are pooled early": {"layers": sharing(1, 1), "early_pooling": True},
    "folded": {"layers": sharing(1, 1), "early_pooling": True, "head": CLS, "positions_after_norm": True},
    "the first token, groups of two": {"layers": sharing(1, 2), "early_pooling": True, "head": CLS},
}


@given(st.sampled_from(sorted(FORMS)), st.integers(1, 16))
@torch.no_grad()
def test_it_gives_the_same_for_one_text(name, length):
    model = tiny_encoder(**FORMS[name])
    ids, mask = batch([length], seed=length)
    alone = one_text(fold(model, "fp32") if name == "folded" else model)
    assert all(isinstance(layer.attention, OneTextAttention) for layer in alone.layers)
    assert torch.allclose(alone(ids), model(ids, mask), atol=1e-5)


@given(st.sampled_from(sorted(SHARED)), st.integers(1, 16))
@torch.no_grad()
def test_heads_that_share_keys_give_the_same_for_one_text(name, length):
    model = tiny_encoder(**SHARED[name])
    ids, mask = batch([length], seed=length)
    late = one_query(model)
    alone = one_text(fold(late, "fp32") if name == "folded" else late)
    last = OneTextFirstTokenAttention if late is not model else OneTextSharedAttention
    assert [type(layer.attention) for layer in alone.layers] == [OneTextSharedAttention, last]
    assert torch.allclose(alone(ids), model(ids, mask), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": {"kind": "rotary"}},
        {"positions": {"kind": "alibi"}},
        {"layers": sharing(2, 2)},
        {"layers": {"count": 2, "attention": {"heads": 4, "prefix": 2}, "feedforward": {"kind": "mlp", "neurons": 8}}},
        {"layers": {"count": 2, "attention": {"kind": "window", "heads": 4, "window": 4}, "feedforward": {"kind": "mlp", "neurons": 8}}},
    ],
    ids=["rotary", "alibi", "fewer keys", "prefix", "window"],
)
def test_other_attention_stays_as_it_is(changes):
    model = tiny_encoder(**changes)
    assert [type(layer.attention) for layer in one_text(model).layers] == [type(layer.attention) for layer in model.layers]
    table = build(StaticConfig(vocabulary=9, head={"labels": 2}))
    assert one_text(table) is table


def test_its_graph_copies_no_heads(tmp_path):
    model = fold(quantized(**FORMS["folded"]), "int8")
    found = {}
    for name, written in (("before", model), ("after", one_text(model))):
        export_graph(written, tmp_path / name, opset=20, pairs=False, single=True)
        found[name] = audit(tmp_path / name)
    gate(plan_of(model.config, folded=True), found["after"], tmp_path / "after")
    assert found["after"].count("Transpose") <= found["before"].count("Transpose") - 4 and found["after"].count("FusedMatMul") == 4
    assert compare(model, Session(tmp_path / "after"), pairs=False, single=True).signal_db > 30


def test_the_graph_of_heads_that_share_keys_copies_nothing(tmp_path):
    model = quantized(**SHARED["folded"])
    written, file = one_text(fold(one_query(model), "int8")), tmp_path / "single"
    export_graph(written, file, opset=20, pairs=False, single=True)
    found = audit(file)
    gate(plan_of(model.config, folded=True, one_query=True), found, file)
    assert found.count("Transpose") == 0 and found.integer == 8
    assert compare(fold(model, "int8"), Session(file), pairs=False, single=True).signal_db > 30
