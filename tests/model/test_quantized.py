import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.encoder import Encoder
from model.errors import ConfigError
from model.quantized import QuantizedEmbedding, QuantizedLinear, quantize_rows
from tests.model.tiny import batch, shake, tiny_config, tiny_encoder
from tests.reference.encoder import integer_linear


@given(rows=st.integers(1, 9), seed=st.integers(0, 1000), scale=st.floats(1e-3, 0.1), zero_point=st.integers(0, 255))
def test_the_linear_agrees_with_integer_arithmetic(rows, seed, scale, zero_point):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(13, 5)
    shake(linear, seed)
    quantized = QuantizedLinear.from_linear(linear, scale, zero_point)
    x = torch.randn(rows, 13, generator=generator) * 3
    # A value that falls between two bytes may be rounded either way in float32: keep clear of the halves.
    x = ((x / quantized.scale).round() + 0.2) * quantized.scale
    parts = (quantized.weight.numpy(), quantized.scales.double().numpy(), quantized.bias.double().numpy())
    expected = integer_linear(x.double().numpy(), quantized.scale, zero_point, *parts)
    np.testing.assert_allclose(quantized(x).numpy(), expected, rtol=1e-4, atol=1e-4)


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 1000))
def test_rows_are_off_by_half_a_step_at_most(rows, columns, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10 ** torch.arange(rows)[:, None]
    int8, scales = quantize_rows(weight)
    assert int8.dtype == torch.int8 and scales.dtype == torch.float32 and int8.abs().max() <= 127
    assert ((int8 * scales[:, None] - weight).abs() <= scales[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_zero():
    int8, scales = quantize_rows(torch.zeros(2, 3))
    assert (int8 == 0).all() and scales.isfinite().all() and (scales > 0).all()


def test_the_embedding_gives_its_rows():
    embedding = nn.Embedding(20, 8)
    quantized = QuantizedEmbedding.from_embedding(embedding)
    ids = torch.tensor([[3, 19, 0], [7, 7, 1]])
    assert quantized(ids).shape == (2, 3, 8)
    assert ((quantized(ids) - embedding(ids)).abs() <= quantized.scales[ids] * 0.5001).all()


def frozen_encoder() -> Encoder:
    """A tiny encoder whose linears, but for the head, and embeddings are int8."""
    encoder = tiny_encoder()
    names = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and not name.startswith("head.")]
    for number, name in enumerate(names):
        encoder.set_submodule(name, QuantizedLinear.from_linear(encoder.get_submodule(name), 0.02 + 0.001 * number, 120 + number))
    encoder.set_submodule("embeddings.tokens", QuantizedEmbedding.from_embedding(encoder.embeddings.tokens))
    encoder.config = encoder.config.changed(quantization={"linears": names, "embeddings": True})
    return encoder


def test_the_state_carries_scales_and_zero_points():
    encoder = frozen_encoder()
    again = Encoder(encoder.config)
    again.load_state_dict(encoder.state_dict())
    layer = again.layers[1].feedforward.down
    assert (layer.scale, layer.zero_point) == (float(np.float32(0.027)), 127)
    ids, mask = batch([9, 4])
    assert torch.equal(again.eval()(ids, mask), encoder(ids, mask))


def test_nothing_of_it_is_trained():
    assert {name for name, _ in frozen_encoder().named_parameters() if "tokens" in name or "qkv" in name} == set()


def test_an_unknown_module_is_named():
    with pytest.raises(ConfigError, match=r"no linear module 'layers\.7\.qkv' to quantize") as caught:
        Encoder(tiny_config(quantization={"linears": ["layers.7.qkv"]}))
    assert "layers.0.attention.qkv" in caught.value.hint
