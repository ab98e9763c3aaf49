"""Every family of checkpoints against transformers: tiny random models, states and logits within 1e-5."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from model.errors import ArtifactError, ConfigError
from model.pretrained import has_head, load_pretrained, pretrained_labels
from tests.model.tiny import batch, shake

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
DISTIL = {"vocab_size": 50, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 16}
MODERN = {**SIZES, "num_hidden_layers": 4, "max_position_embeddings": 64, "local_attention": 8, "pad_token_id": 0, "cls_token_id": 1}
MODERN |= {"sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
FAIRSEQ = {**SIZES, "max_position_embeddings": 18, "type_vocab_size": 1, "pad_token_id": 0}
# family, config, what its models are called
FAMILIES = {
    "bert": (hf.BertConfig, {**SIZES, "max_position_embeddings": 16}, "Bert"),
    "roberta": (hf.RobertaConfig, {**FAIRSEQ, "pad_token_id": 1}, "Roberta"),
    "xlm-roberta": (hf.XLMRobertaConfig, FAIRSEQ, "XLMRoberta"),
    "camembert": (hf.CamembertConfig, {**FAIRSEQ, "hidden_act": "relu", "layer_norm_eps": 1e-3}, "Camembert"),
    "distilbert": (hf.DistilBertConfig, DISTIL, "DistilBert"),
    "electra": (hf.ElectraConfig, {**SIZES, "embedding_size": 24, "max_position_embeddings": 16}, "Electra"),
    "electra-small": (hf.ElectraConfig, {**SIZES, "embedding_size": 12, "max_position_embeddings": 16}, "Electra"),
    "modernbert": (hf.ModernBertConfig, MODERN, "ModernBert"),
}


def tiny(name: str, kind: str = "Model", **changes: object) -> torch.nn.Module:
    config, sizes, stem = FAMILIES[name]
    model = getattr(hf, stem + kind)(config(**{**sizes, **changes}))
    shake(model)
    return model.eval()


def inputs(name: str):
    """Lengths around the window of ModernBERT (8); no token is the padding's, from which RoBERTa would count anew."""
    ids, mask = batch([16, 1, 7, 9])
    return ids.clamp(min=2) if "roberta" in name or name == "camembert" else ids, mask


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_those_of_transformers(tmp_path, name):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path, {"labels": 3})
    ids, mask = inputs(name)
    expected = model(ids, attention_mask=mask, output_hidden_states=True)
    with torch.no_grad():
        states = encoder.states(ids, mask)[1]
        last = encoder.norm(states[-1].flatten(0, 1)).view_as(states[-1]) if encoder.config.norm_first else states[-1]
    for ours, theirs in zip(states[:-1], expected.hidden_states[1:-1], strict=True):
        assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=1e-5)
    assert torch.allclose(last[mask.bool()], expected.last_hidden_state[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_classifiers_give_the_logits_of_transformers(tmp_path, name):
    model = tiny(name, "ForSequenceClassification", num_labels=5)
    model.save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path, {"labels": 5}, kept=True)
    ids, mask = inputs(name)
    assert torch.allclose(encoder(ids, mask), model(ids, attention_mask=mask).logits, atol=1e-5)
    assert pretrained_labels(tmp_path) == [f"LABEL_{number}" for number in range(5)]
    with pytest.raises(ConfigError, match="has 5 labels, but 9 are wanted"):
        load_pretrained(tmp_path, {"labels": 9}, kept=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_taggers_give_the_logits_of_transformers(tmp_path, name):
    model = tiny(name, "ForTokenClassification", num_labels=4)
    model.save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path, {"kind": "tagging", "labels": 4}, kept=True)
    ids, mask = inputs(name)
    assert torch.allclose(encoder(ids, mask)[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_kept_language_models_give_the_logits_of_transformers(tmp_path, name, tied):
    model = tiny(name, "ForMaskedLM", tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    assert has_head(tmp_path, "masked") and not has_head(tmp_path, "replaced")
    encoder = load_pretrained(tmp_path, {"kind": "masked"}, kept=True)
    assert encoder.config.head.tied == tied and ("head.table.weight" in encoder.state_dict()) != tied
    ids, mask = inputs(name)
    expected = model(ids, attention_mask=mask).logits
    with torch.no_grad():
        assert torch.allclose(encoder(ids, mask)[mask.bool()], expected[mask.bool()], atol=1e-5)
        places = torch.tensor([3, 17, 40])
        assert torch.allclose(encoder(ids, mask, places=places), encoder(ids, mask).flatten(0, 1)[places], atol=1e-6)


@pytest.mark.parametrize("name", ["electra", "electra-small"])
def test_kept_discriminators_give_the_logits_of_transformers(tmp_path, name):
    model = tiny(name, "ForPreTraining", hidden_act="relu")
    model.save_pretrained(tmp_path)
    assert has_head(tmp_path, "replaced") and not has_head(tmp_path, "masked")
    encoder = load_pretrained(tmp_path, {"kind": "replaced", "labels": 1}, kept=True)
    ids, mask = inputs(name)
    assert torch.allclose(encoder(ids, mask)[mask.bool()][:, 0], model(ids, attention_mask=mask).logits[mask.bool()], atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"classifier_pooling": "mean"}, {"classifier_bias": True, "norm_bias": True, "classifier_activation": "silu"}],
    ids=["mean", "biases"],
)
def test_the_head_of_modernbert_in_its_forms(tmp_path, changes):
    model = tiny("modernbert", "ForSequenceClassification", num_labels=3, **changes)
    model.save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path, {"labels": 3}, kept=True)
    ids, mask = inputs("modernbert")
    assert torch.allclose(encoder(ids, mask), model(ids, attention_mask=mask).logits, atol=1e-5)
    assert not has_head(tmp_path, "masked")


def test_a_language_model_of_modernbert_without_biases(tmp_path):
    model = tiny("modernbert", "ForMaskedLM", decoder_bias=False)
    model.save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path, {"kind": "masked"}, kept=True)
    ids, mask = inputs("modernbert")
    assert torch.allclose(encoder(ids, mask)[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_pretraining_are_left_out(tmp_path, name):
    model = tiny(name, "ForMaskedLM")
    model.save_pretrained(tmp_path)
    ids, mask = inputs(name)
    expected = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    found = load_pretrained(tmp_path, {"labels": 2}).states(ids, mask)[1][0]
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-5)


def test_positions_of_roberta_start_at_the_first_that_is_used(tmp_path):
    tiny("roberta").save_pretrained(tmp_path)
    encoder = load_pretrained(tmp_path, {"labels": 2})
    assert encoder.config.max_length == 16
    table = load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings.weight"]
    assert torch.equal(encoder.embeddings.positions.weight, table[2:])


def test_old_configs_of_modernbert_are_read(tmp_path):
    """transformers 4 wrote the bases and the period of global layers by themselves."""
    tiny(
        "modernbert",
        rope_parameters={
            "full_attention": {"rope_theta": 999.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 77.0, "rope_type": "default"},
        },
    ).save_pretrained(tmp_path)
    new = load_pretrained(tmp_path, {"labels": 2}).config
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["rope_parameters"], values["layer_types"]
    path.write_text(json.dumps({**values, "global_rope_theta": 999.0, "local_rope_theta": 77.0, "global_attn_every_n_layers": 3}))
    assert load_pretrained(tmp_path, {"labels": 2}).config == new
    assert [layer.attention.kind for layer in new.layers] == ["dense", "window", "window", "dense"]


def test_what_cannot_be_represented_is_named(tmp_path):
    tiny("modernbert", "ForSequenceClassification", classifier_activation="mish").save_pretrained(tmp_path / "modern")
    with pytest.raises(ConfigError, match="This modernbert has classifier_activation 'mish', which cannot be read"):
        load_pretrained(tmp_path / "modern", {"labels": 2}, kept=True)
    with pytest.raises(ConfigError, match="A modernbert has no head that is replaced"):
        load_pretrained(tmp_path / "modern", {"kind": "replaced", "labels": 1}, kept=True)
    tiny("bert", "ForMaskedLM").save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="has no classifier to keep: pooler.dense.weight is missing"):
        load_pretrained(tmp_path / "bert", {"labels": 2}, kept=True)
    values = {"model_type": "deberta-v2", "id2label": {"1": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="has model_type 'deberta-v2', which cannot be read; known: bert, roberta") as error:
        load_pretrained(tmp_path, {"labels": 2})
    assert "As a teacher any model of transformers will do" in error.value.hint
    with pytest.raises(ConfigError, match="names no labels"):
        pretrained_labels(tmp_path)


@pytest.mark.parametrize(("name", "feature", "value"), [("modernbert", "hidden_activation", "mish"), ("distilbert", "activation", "mish")])
def test_features_are_named_as_the_family_calls_them(tmp_path, name, feature, value):
    tiny(name).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), feature: value}))
    with pytest.raises(ConfigError, match=f"{name} has .* {value!r}, which cannot be read"):
        load_pretrained(tmp_path, {"labels": 2})


def test_a_missing_bias_is_an_error_where_the_family_has_biases(tmp_path):
    tiny("electra").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    name = "encoder.layer.0.intermediate.dense.bias"
    save_file({key: value for key, value in load_file(path).items() if key != name}, path)
    with pytest.raises(ArtifactError, match=f"has no tensor {name}"):
        load_pretrained(tmp_path, {"labels": 2})
