"""Positions against the formulas of their papers, and past the length that they were trained for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.t5.modeling_t5 import T5Attention

from model import slots
from model.masks import attention_bias
from model.positions import POSITIONS
from model.positions_relative import AlibiPositions, RotaryPositions, _buckets
from tests.model.tiny import batch, shake, tiny_encoder
from tests.reference import attention as oracle

HEADS = slots.DenseAttention(heads=3, head_width=8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@given(length=st.integers(1, 40), shift=st.integers(0, 30), width=st.sampled_from([2, 6, 32]))
def test_rotary_products_depend_on_distance_alone(length, shift, width):
    rotary = RotaryPositions(slots.RotaryPositions(), HEADS)
    q, k = torch.randn(2, width)
    long = length + shift
    bias = torch.zeros(1, 1, 1, long)
    turned_q, turned_k = rotary.rotate(q.expand(1, 1, long, width), k.expand(1, 1, long, width), bias)
    assert torch.allclose(turned_q[0, 0, length - 1] @ turned_k[0, 0, 0], turned_q[0, 0, -1] @ turned_k[0, 0, shift], atol=1e-4)


EXTENSIONS = {
    "linear": ({"kind": "linear", "factor": 4.0}, {"factor": 4.0}),
    "dynamic": ({"kind": "dynamic", "factor": 2.0, "length": 16}, {"factor": 2.0}),
    "yarn": (
        {"kind": "yarn", "factor": 4.0, "length": 16, "fast": 4.0},
        {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0},
    ),
}


@pytest.mark.parametrize("kind", EXTENSIONS)
@pytest.mark.parametrize("length", [5, 16, 50])
def test_rotary_extensions_are_those_of_transformers(kind, length):
    ours, theirs = EXTENSIONS[kind]
    rotary = RotaryPositions(slots.RotaryPositions.model_validate({"base": 500.0, "extension": ours}), HEADS)
    rope = {"rope_type": kind, "rope_theta": 500.0, **theirs}
    model = LlamaConfig(hidden_size=24, num_attention_heads=3, head_dim=8, max_position_embeddings=16, rope_parameters=rope)
    frequency, sharpness = ROPE_INIT_FUNCTIONS[kind](model, torch.device("cpu"), seq_len=length)
    x = torch.randn(1, 3, length, 8)
    found, _ = rotary.rotate(x, x, torch.zeros(1, 1, 1, length))
    expected = oracle.rotate(x[0].double().numpy(), frequency.double().numpy(), sharpness)
    np.testing.assert_allclose(found[0].double().numpy(), expected, atol=2e-5)


def test_a_dynamic_base_is_each_texts_own():
    rotary = RotaryPositions(slots.RotaryPositions.model_validate({"extension": {"kind": "dynamic", "factor": 2, "length": 4}}), HEADS)
    x, mask = torch.randn(2, 3, 20, 8), (torch.arange(20) < torch.tensor([[20], [3]])).float()
    together, _ = rotary.rotate(x, x, attention_bias(mask))
    alone, _ = rotary.rotate(x[1:, :, :3], x[1:, :, :3], torch.zeros(1, 1, 1, 3))
    plain, _ = RotaryPositions(slots.RotaryPositions(), HEADS).rotate(x[1:, :, :3], x[1:, :, :3], torch.zeros(1, 1, 1, 3))
    assert torch.allclose(together[1, :, :3], alone[0]) and torch.allclose(alone, plain)


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (12, 9), (8, 20), (4, 2)])
def test_buckets_are_those_of_t5_and_of_the_formula(buckets, farthest):
    distance = torch.arange(-farthest, farthest + 1)
    found = _buckets(buckets, farthest)
    theirs = T5Attention._relative_position_bucket(distance, bidirectional=True, num_buckets=buckets, max_distance=farthest)
    assert found.tolist() == theirs.tolist() == [oracle.t5_bucket(int(d), buckets, farthest) for d in distance]


def test_alibi_slopes_of_eight_heads_are_the_papers():
    slopes = AlibiPositions(slots.AlibiPositions(), slots.DenseAttention(heads=8, head_width=4)).slopes
    assert slopes.tolist() == [1 / 2**power for power in range(1, 9)]


def test_sinusoids_are_the_papers_formula_past_their_table_too():
    sinusoidal = POSITIONS["sinusoidal"](slots.SinusoidalPositions(base=50.0, scale=0.5), 6, 4)
    expected = [[oracle.sinusoid(position, coordinate, 6, 50.0) / 2 for coordinate in range(6)] for position in range(9)]
    for length in (1, 4, 9):
        found = sinusoidal(torch.zeros(1, length, 6), None, torch.ones(1, length))
        np.testing.assert_allclose(found[0].numpy(), expected[:length], atol=1e-6)


@pytest.mark.parametrize("longest", [5, 30])
def test_learned_positions_are_stretched_to_each_text_that_is_longer(longest):
    learned = POSITIONS["learned"](slots.LearnedPositions(length=5), 4, longest)
    shake(learned)
    lengths = [17, 1, 5, 6]
    mask = (torch.arange(17) < torch.tensor(lengths)[:, None]).float()
    found = learned(torch.zeros(4, 17, 4), torch.full((4,), 2.0), mask)
    assert found.isfinite().all()
    for row, length in enumerate(lengths):
        expected = oracle.stretched(learned.weight.detach().double().numpy(), length) + 2
        np.testing.assert_allclose(found[row, :length].detach().numpy(), expected, atol=1e-5)


POSITIONED = [
    {"kind": "learned", "length": 8},
    {"kind": "sinusoidal"},
    {"kind": "rotary", "extension": {"kind": "dynamic", "factor": 2, "length": 8}},
    {"kind": "rotary", "extension": {"kind": "yarn", "factor": 2, "length": 8}},
    {"kind": "alibi"},
    {"kind": "t5", "buckets": 8, "distance": 6},
    {"kind": "relative", "distance": 3},
]


@pytest.mark.parametrize(
    "positions", POSITIONED, ids=lambda positions: "-".join((positions["kind"], positions.get("extension", {}).get("kind", "")))
)
def test_padding_and_neighbours_change_nothing_and_order_is_known(positions):
    encoder = tiny_encoder(positions=positions, max_length=30)
    lengths = [30, 1, 7, 12]
    ids, mask = batch(lengths)
    together = encoder(ids, mask)
    encoder.kernel = "eager"
    assert torch.allclose(encoder(ids, mask), together, atol=1e-5)
    for row, length in enumerate(lengths):
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    alone, _ = batch([9])
    other = alone.clone()
    other[0, [2, 6]] = alone[0, [6, 2]]
    assert not torch.allclose(encoder(alone, torch.ones(1, 9)), encoder(other, torch.ones(1, 9)), atol=1e-4)


def test_a_layer_may_have_rotary_positions_of_its_own():
    layer = {"attention": {"heads": 4, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 8}}
    own = {**layer, "positions": {"kind": "rotary", "base": 77.0}}
    encoder = tiny_encoder(positions={"kind": "rotary"}, layers=[layer, own])
    assert [made.positions.base for made in encoder.layers] == [10000.0, 77.0]
