import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_model, read_model_config, save_model, write_config
from model.errors import AlambicError, ArtifactError, ConfigError
from tests.model.test_quantized import frozen_encoder
from tests.model.tiny import batch, tiny_config, tiny_encoder

LABELS = ["négatif", "neutral", "positive"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tiny_encoder(), tmp_path, LABELS)
    return tmp_path


@pytest.mark.parametrize("build", [tiny_encoder, frozen_encoder, lambda: tiny_encoder(positions={"kind": "rotary"}, norm_first=True)])
def test_what_is_saved_comes_back(tmp_path, build):
    encoder = build()
    save_model(encoder, tmp_path, LABELS)
    again = load_model(tmp_path)
    assert again.config == encoder.config and not again.training
    assert all(tensor.device.type == "cpu" for tensor in again.state_dict().values())
    ids, mask = batch([9, 4])
    assert torch.equal(again(ids, mask), encoder(ids, mask))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in encoder.parameters()]


def test_equal_weights_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(frozen_encoder(), tmp_path / name, LABELS)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_loading_draws_no_random_numbers(saved):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_model(saved)
    assert torch.equal(torch.rand(1), expected)


def test_views_are_saved_too(tmp_path):
    encoder = tiny_encoder()
    down = encoder.layers[0].feedforward.down
    down.weight = torch.nn.Parameter(torch.randn(24, 64)[:, ::2])
    save_model(encoder, tmp_path, LABELS)
    assert torch.equal(load_model(tmp_path).layers[0].feedforward.down.weight, down.weight)


def test_the_config_speaks_to_transformers_too(tmp_path):
    write_config(tmp_path, tiny_config(), LABELS, "bert")
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert values["model_type"] == "bert" and values["num_labels"] == 3
    assert values["id2label"] == {"0": "négatif", "1": "neutral", "2": "positive"} and values["label2id"]["positive"] == 2
    assert read_model_config(tmp_path) == tiny_config()


def test_labels_must_be_as_many_as_outputs(tmp_path):
    with pytest.raises(ConfigError, match=r"There are 2 labels \(yes, no\), but the head has 3 outputs"):
        write_config(tmp_path, tiny_config(), ["yes", "no"], "alambic")


NAME = "layers.0.attention.qkv.weight"
DAMAGES = [
    (lambda tensors: tensors.pop(NAME), f"{NAME} is missing"),
    (lambda tensors: tensors.update(extra=torch.zeros(1)), "extra is unknown"),
    (lambda tensors: tensors.update({NAME: torch.zeros(3, 24)}), rf"{NAME} is float32 \[3, 24\] instead of float32 \[72, 24\]"),
    (lambda tensors: tensors.update({NAME: tensors[NAME].half()}), rf"{NAME} is float16 \[72, 24\] instead of float32 \[72, 24\]"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_tensor_that_does_not_fit_is_named(saved, damage, message):
    tensors = load_file(saved / "model.safetensors")
    damage(tensors)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ArtifactError, match=f"does not fit its config.json: {message}"):
        load_model(saved)


FILES = [
    ("model.safetensors", None, "model.safetensors cannot be read"),
    ("model.safetensors", b"\x10\x00", "model.safetensors cannot be read"),
    ("config.json", None, "config.json cannot be read"),
    ("config.json", b"{", "config.json cannot be read"),
    ("config.json", b"\xff\xfe", "config.json cannot be read"),
    ("config.json", b"[]", "holds a list, not a JSON object"),
    ("config.json", b'{"model_type": "bert"}', "has no part 'alambic': this is not a model of ours"),
    ("config.json", b'{"alambic": {"width": 0}}', r"Impossible model configuration in .*width: .*greater than or equal to 1"),
]


@pytest.mark.parametrize(("file", "content", "message"), FILES)
def test_a_file_that_cannot_be_read_is_named(saved, file, content, message):
    if content is None:
        (saved / file).unlink()
    else:
        (saved / file).write_bytes(content)
    with pytest.raises(AlambicError, match=message):
        load_model(saved)
