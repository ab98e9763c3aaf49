"""Fake quantization against plain arithmetic, and frozen modules against what was trained."""

import numpy as np
import pytest
import torch

from compress.quantization import FakeQuantizedLinear, calibrate, freeze, linears, observed
from model.checkpoint import load_model, save_model
from model.errors import ConfigError
from model.quantized import QuantizedEmbedding, QuantizedLinear
from tests.model.tiny import batch, tiny_encoder

ALL = tuple(
    f"layers.{layer}.{part}" for layer in (0, 1) for part in ("attention.qkv", "attention.output", "feedforward.up", "feedforward.down")
)


def texts(count=6):
    found = []
    for seed in range(count):
        ids, mask = batch([9, 4, 12], seed=seed)
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def calibrated():
    model = observed(tiny_encoder(), ALL)
    calibrate(model, texts())
    return model.eval()


def signal_db(expected, found):
    return 10 * np.log10(float((expected**2).sum() / ((expected - found) ** 2).sum()))


def test_every_linear_but_the_head_and_what_is_kept():
    model = tiny_encoder()
    assert linears(model) == ALL
    assert linears(model, ("layers.0.feedforward.down",)) == tuple(name for name in ALL if name != "layers.0.feedforward.down")
    with pytest.raises(ConfigError, match=r"There is no linear layers.9.up to keep") as error:
        linears(model, ("layers.9.up",))
    assert "layers.0.attention.qkv" in error.value.hint


def test_watching_changes_neither_the_model_nor_its_answers():
    model = tiny_encoder()
    one = texts(1)[0]
    with torch.no_grad():
        before = model(**one)
        watched = observed(model, ALL)
        calibrate(watched, texts())
        assert torch.equal(model(**one), before)
        for fake in (module for module in watched.modules() if isinstance(module, FakeQuantizedLinear)):
            fake.activation.disable_fake_quant()
            fake.rounds = False
        assert torch.allclose(watched(**one), before, atol=1e-6)


def test_the_range_is_that_of_what_was_seen():
    linear = FakeQuantizedLinear(4, 2)
    x = torch.tensor([[-1.0, 0.0, 2.0, 4.0]])
    linear.activation.disable_fake_quant()
    for _ in range(3):
        linear(x)
    scale, zero_point = linear.activation.calculate_qparams()
    assert float(scale) == pytest.approx(5 / 255) and int(zero_point) == 51


def test_fake_rounding_is_rounding():
    """Against numpy: x to uint8 and back, each row of the weights to int8 and back."""
    linear = FakeQuantizedLinear(16, 5)
    x = torch.randn(40, 16)
    linear.activation.disable_fake_quant()
    linear(x)
    linear.activation.enable_fake_quant()
    linear.activation.disable_observer()
    scale, zero_point = (float(value) for value in linear.activation.calculate_qparams())
    rounded = (np.clip(np.round(x.numpy() / scale) + zero_point, 0, 255) - zero_point) * scale
    weight = linear.weight.detach().numpy()
    rows = np.abs(weight).max(1, keepdims=True) / 127
    expected = rounded @ (np.clip(np.round(weight / rows), -127, 127) * rows).T + linear.bias.detach().numpy()
    assert np.allclose(linear(x).detach().numpy(), expected, atol=2e-5)


def test_gradients_pass_through_the_rounding():
    model = calibrated().train()
    one = texts(1)[0]
    model(**one).sum().backward()
    for name in ALL:
        gradient = model.get_submodule(name).weight.grad
        assert gradient is not None and float(gradient.abs().sum()) > 0


def test_the_frozen_model_is_the_trained_one():
    model = calibrated()
    for fake in (module for module in model.modules() if isinstance(module, FakeQuantizedLinear)):
        fake.activation.disable_observer()
    frozen = freeze(model, ALL, embeddings="fp32")
    assert all(isinstance(frozen.get_submodule(name), QuantizedLinear) for name in ALL)
    with torch.no_grad():
        for one in texts(3):
            assert signal_db(model(**one), frozen(**one)) > 60


def test_int8_stays_near_fp32_and_reloads_as_it_was(tmp_path):
    model = tiny_encoder()
    frozen = freeze(calibrated(), ALL, embeddings="int8")
    assert isinstance(frozen.embeddings.tokens, QuantizedEmbedding)
    assert frozen.config.quantization is not None and frozen.config.quantization.linears == ALL
    save_model(frozen, tmp_path, ["a", "b", "c"])
    again = load_model(tmp_path)
    with torch.no_grad():
        one = texts(1)[0]
        assert torch.equal(again(**one), frozen(**one))
        assert signal_db(model(**one), frozen(**one)) > 20


def test_a_text_answers_alike_alone_and_among_others():
    frozen = freeze(calibrated(), ALL, embeddings="int8")
    ids, mask = batch([12, 5])
    with torch.no_grad():
        together = frozen(ids, mask)[1]
        alone = frozen(ids[1:, :5], mask[1:, :5])[0]
    assert torch.allclose(together, alone, atol=1e-6)
