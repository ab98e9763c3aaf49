"""Several models in one graph against each of them by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import parity
from export.audit import audit
from export.ensemble import Ensemble, ensemble
from export.graph import export_graph
from export.plan import gate, plan_of, together
from model.build import as_run, build
from model.kinds import ConvolutionConfig, StaticConfig
from tests.export.test_export import Session
from tests.export.tiny_int8 import quantized
from tests.model.tiny import batch, tiny_encoder

TABLES = {"vocabulary": 60, "width": 12, "neurons": 8, "max_length": 16, "head": {"labels": 3}}


def members():
    """An encoder, a convolution and a bag of tokens that read the same tokens."""
    torch.manual_seed(3)
    encoder = tiny_encoder()
    tables = TABLES | {"vocabulary": encoder.config.vocabulary, "max_length": encoder.config.max_length}
    made = (build(ConvolutionConfig.model_validate(tables)), build(StaticConfig.model_validate(tables)))
    return [encoder, *(as_run(model.eval()).eval() for model in made)]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=5), st.integers(1, 3))
@torch.no_grad()
def test_it_gives_the_mean(lengths, count):
    used = members()[:count]
    ids, mask = batch(lengths)
    apart = torch.stack([model(ids, mask).double() for model in used])
    assert torch.allclose(ensemble(used)(ids, mask).double(), apart.mean(0), atol=1e-6)


def test_of_one_it_is_that_one():
    (model, *_) = members()
    assert ensemble([model]) is model and together([plan_of(model.config)]) == plan_of(model.config)


@pytest.mark.parametrize("single", [False, True])
def test_its_graph_gives_the_same_and_runs_as_planned(tmp_path, single):
    used = members()
    model = Ensemble(used)
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=False, single=single)
    found = parity.compare(model, Session(tmp_path / "model.onnx"), pairs=False, single=single)
    assert found.difference < 1e-5 and found.shapes >= 5
    gate(together([plan_of(one.config) for one in used]), audit(tmp_path / "model.onnx"), tmp_path / "model.onnx")


def test_types_of_tokens_are_for_those_that_know_them(tmp_path):
    _, *tables = members()
    encoder = tiny_encoder(token_types=2)
    model = Ensemble([*tables, encoder])
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=True)
    assert parity.compare(model, Session(tmp_path / "model.onnx"), pairs=True).difference < 1e-5
    ids, mask = batch([9, 4])
    types = torch.zeros_like(ids)
    types[:, 3:] = 1
    assert not torch.allclose(model(ids, mask, types), model(ids, mask))


def test_integers_are_promised_of_all_together_even_of_twins(tmp_path):
    """Of equal biases the exporter keeps one."""
    one, other = quantized(), quantized()
    model = Ensemble([one, other])
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=False)
    assert parity.compare(model, Session(tmp_path / "model.onnx"), pairs=False).signal_db > 25
    plan, found = together([plan_of(one.config), plan_of(other.config)]), audit(tmp_path / "model.onnx")
    assert plan.integer == 2 * plan_of(one.config).integer == found.integer > 0
    gate(plan, found, tmp_path / "model.onnx")


def test_a_limit_is_known_where_all_have_one_and_norms_are_counted_by_kind():
    unknown = plan_of(tiny_encoder(positions={"kind": "alibi"}).config)
    table, plain = plan_of(StaticConfig.model_validate(TABLES)), plan_of(tiny_encoder().config)
    assert unknown.nodes is None and together([plain, unknown]).nodes is None
    assert together([table, plain]).nodes == table.nodes + plain.nodes + 2
    other = plan_of(tiny_encoder(norm={"kind": "rmsnorm"}).config)
    assert together([table, plain, other]).norms == plain.norms | other.norms and len(plain.norms | other.norms) == 2
