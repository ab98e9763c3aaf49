"""Models of tables: a bag against a loop in numpy, a folded convolution against torch's, laws of padding, and their files."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import parity, plan
from export.audit import audit
from export.graph import export_graph, opset_for
from model.build import as_encoder, as_run, build
from model.checkpoint import load_encoder, load_model, save_model
from model.convolution import folded
from model.errors import ConfigError
from model.kinds import StaticConfig, read_model
from serve.sessions import open_session
from tests.model.tiny import batch, shake
from tests.reference.tables import bag, convolution

SIZES = {"vocabulary": 50, "width": 10, "neurons": 12, "max_length": 16, "head": {"labels": 3}}
KINDS = {
    "tokens": {"kind": "static", "ngrams": []},
    "bigrams": {"kind": "static", "buckets": 37},
    "trigrams": {"kind": "static", "ngrams": [2, 3], "buckets": 64},
    "trigrams alone": {"kind": "static", "ngrams": [3], "buckets": 64},
    "convolution": {"kind": "convolution", "channels": 8},
    "five taps": {"kind": "convolution", "channels": 8, "taps": 5},
    "one tap": {"kind": "convolution", "channels": 8, "taps": 1},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def tiny(kind, **changes):
    model = build(read_model({**SIZES, **KINDS[kind], **changes}))
    shake(model)
    return model.eval()


def arrays(model):
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


SLOW = settings(max_examples=25)  # each runs models on several texts
texts = st.lists(st.lists(st.integers(1, 49), min_size=1, max_size=9), min_size=1, max_size=4)


def padded(rows, before=0, after=0):
    length = max(map(len, rows))
    ids = [[0] * before + row + [0] * (length - len(row) + after) for row in rows]
    mask = [[0] * before + [1] * len(row) + [0] * (length - len(row) + after) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind]["kind"] == "static"])
@SLOW
@given(rows=texts)
def test_a_bag_is_a_loop_over_tokens_and_ngrams(kind, rows):
    model = tiny(kind)
    expected = [bag(arrays(model), row, vocabulary=50, ngrams=model.config.ngrams, buckets=model.config.buckets) for row in rows]
    np.testing.assert_allclose(model(*padded(rows)).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind]["kind"] == "convolution"])
@SLOW
@given(rows=texts)
def test_a_convolution_is_a_loop_over_windows_folded_or_not(kind, rows):
    model = tiny(kind)
    expected = [convolution(arrays(model), row) for row in rows]
    np.testing.assert_allclose(model(*padded(rows)).detach().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(folded(model)(*padded(rows)).detach().numpy(), expected, atol=1e-5)


def test_folded_taps_are_torchs_convolution():
    model = tiny("five taps")
    ids, mask = batch([9])
    x = model.tokens(ids).transpose(1, 2)
    expected = torch.nn.functional.conv1d(x, model.taps.weight, padding=2).transpose(1, 2)
    assert torch.allclose(folded(model)._looked_up(ids, mask > 0), expected, atol=1e-6)


@every_kind
@SLOW
@given(rows=texts, before=st.integers(0, 3), after=st.integers(0, 3))
def test_neither_padding_nor_neighbours_change_an_answer(kind, rows, before, after):
    for model in (tiny(kind), as_run(tiny(kind))):
        together = model(*padded(rows, before, after))
        alone = torch.cat([model(*padded([row])) for row in rows])
        assert torch.allclose(together, alone, atol=1e-6)


@every_kind
def test_without_a_mask_nothing_is_padding(kind):
    for model in (tiny(kind), as_run(tiny(kind))):
        ids, mask = batch([7, 7])
        assert torch.allclose(model(ids), model(ids, mask), atol=1e-6)
    model = tiny(kind, token_dropout=0.5).train()
    assert torch.isfinite(model(ids)).all()


@every_kind
def test_a_text_without_tokens_has_an_answer(kind):
    found = as_run(tiny(kind))(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long))
    assert torch.isfinite(found).all()


@every_kind
def test_the_state_is_what_the_answer_is_made_from(kind):
    model = tiny(kind)
    logits, (state,) = model.states(*batch([5, 3]))
    assert state.shape == (2, 12) and torch.allclose(model.head.output(state), logits, atol=1e-6)


@every_kind
def test_tokens_are_left_out_in_training_alone(kind):
    model = tiny(kind, token_dropout=0.5, dropout=0.0)
    ids, mask = batch([9, 9, 9])
    assert torch.equal(model(ids, mask), model(ids, mask))
    model.train()
    assert not torch.equal(model(ids, mask), model(ids, mask))


@every_kind
@pytest.mark.parametrize("stored", ["fp32", "fp16", "int8"])
def test_files_give_the_same_in_every_way_of_storing_the_table(kind, stored, tmp_path):
    from compress.quantization import freeze

    whole = as_run(tiny(kind))
    model = freeze(whole, (), embeddings=stored)
    ids, mask = batch([13, 2, 7])
    assert torch.allclose(model(ids, mask), whole(ids, mask), atol={"fp32": 0, "fp16": 5e-3, "int8": 5e-2}[stored])
    export_graph(model, tmp_path / "model.onnx", opset=opset_for(model), pairs=False)
    session, _ = open_session(tmp_path / "model.onnx", "cpu")

    class Ort:
        def logits(self, given):
            return session.run(None, dict(given))[0]

    found = parity.compare(model, Ort(), pairs=False)  # lengths 1, odd and longest
    assert found.difference < 1e-5 and found.shapes > 10
    plan.gate(plan.plan_of(model.config), audit(tmp_path / "model.onnx"), tmp_path / "model.onnx")
    export_graph(model, tmp_path / "single.onnx", opset=opset_for(model), pairs=False, single=True)
    alone, _ = open_session(tmp_path / "single.onnx", "cpu")
    assert [entry.name for entry in alone.get_inputs()] == ["input_ids"]
    assert audit(tmp_path / "single.onnx").nodes < audit(tmp_path / "model.onnx").nodes
    for length in (1, 2, 7, 16):
        one = ids[:1, :length] if length <= 13 else batch([16])[0]
        assert torch.allclose(torch.from_numpy(alone.run(None, {"input_ids": one.numpy()})[0]), model(one), atol=1e-5)
    save_model(model, tmp_path, ["a", "b", "c"])
    again = load_model(tmp_path)
    assert again.config == model.config and torch.equal(again(ids, mask), model(ids, mask))


def test_vectors_have_their_own_width_and_length_one(tmp_path):
    model = tiny("bigrams", head={"kind": "embedding"}, vector=7)
    vectors = model(*batch([5, 3]))
    assert vectors.shape == (2, 7) and model.config.vector_width == 7
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=False)
    plan.gate(plan.plan_of(model.config), audit(tmp_path / "model.onnx"), tmp_path / "model.onnx")


def test_ngrams_that_were_never_seen_say_nothing():
    model = build(read_model({**SIZES, **KINDS["bigrams"]}))
    assert not model.rows.weight[50:].any() and model.rows.weight[:50].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "statick"}, r"there is no kind of model 'statick'"),
        ({"head": {"kind": "tagging", "labels": 3}}, r"a static model gives one answer for a text and none for its tokens: tagging needs"),
        ({"head": {"labels": 3, "pooling": "cls"}}, r"a static model has its own pooling and hidden layer"),
        ({"ngrams": [1]}, r"ngrams.0: Input should be greater than or equal to 2 \(got 1\)"),
        ({"kind": "convolution", "taps": 4}, r"taps: 4 taps have no one in the middle: choose an odd number"),
        ({"layers": []}, r"layers: Extra inputs are not permitted"),
    ],
)
def test_a_configuration_that_cannot_be_says_why(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_model({**SIZES, "kind": "static", **changes})
    assert "options" in error.value.hint or "static, convolution" in error.value.hint


def test_only_an_encoder_has_layers(tmp_path):
    model = tiny("bigrams")
    save_model(model, tmp_path, ["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"is a static model, which has no layers to be pruned") as error:
        load_encoder(tmp_path, "to be pruned")
    assert error.value.hint == "Give an encoder."
    with pytest.raises(ConfigError, match="here is a convolution model, which has no layers at all"):
        as_encoder(tiny("convolution"), "here", "at all")
    with pytest.raises(ConfigError, match="a static model has no token types"):
        model(*batch([3]), batch([3])[1])


def test_an_older_file_says_in_its_own_way_that_its_table_is_int8():
    values = {**SIZES, "kind": "static", "quantization": {"embeddings": True}}
    config = read_model(values)
    assert isinstance(config, StaticConfig) and config.quantization.embeddings == "int8" and config.quantization.integers
    assert not read_model({**values, "quantization": {"embeddings": "fp16"}}).quantization.integers
