"""Every kind of attention against loops over pairs of tokens, and the laws that all of them keep."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from model import attention_window, kernels, slots
from model.attention import ATTENTIONS
from model.attention_window import drawn
from model.errors import ConfigError
from model.kernels import KERNELS
from model.masks import attention_bias
from model.positions_relative import RELATIONS
from tests.model.tiny import batch, shake, tiny_encoder
from tests.reference import attention as oracle

HEADS = {"heads": 4, "head_width": 6}
KINDS = {
    "dense": slots.DenseAttention(**HEADS),
    "window": slots.WindowAttention(**HEADS, window=4, global_tokens=2),
    "window wide": slots.WindowAttention(**HEADS, window=40, global_tokens=0),
    "strided": slots.StridedAttention(**HEADS, stride=5),
    "fixed": slots.FixedAttention(**HEADS, stride=5, summary=2),
    "bigbird": slots.BigBirdAttention(**HEADS, block=4, global_blocks=1, random_blocks=2),
    "bigbird global": slots.BigBirdAttention(**HEADS, block=2, global_blocks=3, random_blocks=1),
    "bigbird local": slots.BigBirdAttention(**HEADS, block=3, global_blocks=0, random_blocks=0),
    "linformer": slots.LinformerAttention(**HEADS, length=64, landmarks=5),
    "landmark": slots.LandmarkAttention(**HEADS, landmarks=7),
}
POSITIONS = {
    "none": slots.NoPositions(),
    "rotary": slots.RotaryPositions(base=100.0),
    "alibi": slots.AlibiPositions(),
    "t5": slots.BucketPositions(buckets=12, distance=9),
    "relative": slots.RelativePositions(distance=3),
}
POSSIBLE = [
    (kind, positions)
    for kind, positions in itertools.product(KINDS, POSITIONS)
    if KINDS[kind].kind not in slots.MIXING or positions in ("none", "rotary")
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def double(tensor):
    return tensor.detach().double().numpy()


def build(attention, positions=POSITIONS["none"], width=10):
    made = ATTENTIONS[attention.kind](attention, width, dropout=0.1).eval()
    relation = RELATIONS[positions.kind](positions, attention)
    shake(made), shake(relation, seed=1)
    return made, relation


def sees(attention):
    match attention:
        case slots.WindowAttention():
            return oracle.window(attention.window, attention.global_tokens)
        case slots.StridedAttention():
            return oracle.strided(attention.stride)
        case slots.FixedAttention():
            return oracle.fixed(attention.stride, attention.summary)
        case slots.BigBirdAttention():
            return oracle.bigbird(attention.block, attention.global_blocks, lambda row: draws(row, attention.random_blocks))
    return oracle.dense()


def draws(row, count):
    return [int(drawn(torch.tensor(row), number)) for number in range(count)]


def expected(made, relation, attention, positions, x):
    """The whole module on one text x [tokens, width] without padding, by the oracle."""
    weight, bias = double(made.qkv.weight), double(made.qkv.bias)
    rows = double(x) @ weight.T + bias
    heads, keys, width = attention.heads, attention.keys, attention.head_width
    parts = np.split(rows, [heads * width, (heads + keys) * width], axis=1)
    q, k, v = (part.reshape(len(x), -1, width).swapaxes(0, 1) for part in parts)
    if attention.query_key_norm:
        q, k = (
            part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-6) * double(norm.weight)
            for part, norm in ((q, made.query_norm), (k, made.key_norm))
        )
    k, v = (np.stack([part[head * keys // heads] for head in range(heads)]) for part in (k, v))
    added = None
    match positions:
        case slots.RotaryPositions():
            frequency = positions.base ** (-2 * np.arange(width // 2) / width)
            q, k = oracle.rotate(q, frequency), oracle.rotate(k, frequency)
        case slots.AlibiPositions():
            added = oracle.alibi(heads)
        case slots.BucketPositions():
            table = double(relation.buckets)

            def added(head, i, j):
                return table[oracle.t5_bucket(j - i, positions.buckets, positions.distance), head]

        case slots.RelativePositions():
            added = oracle.relative(q, double(relation.keys))
    if attention.kind == "linformer":
        mixed = oracle.linformer(q, k, v, *(double(part)[:, : len(x)] for part in made.projections))
    elif attention.kind == "landmark":
        rows = oracle.segments(len(x), attention.landmarks)
        mixed = oracle.linformer(q, k, v, rows, rows)
    else:
        mixed = oracle.attention(q, k, v, sees(attention), added)
    return mixed.swapaxes(0, 1).reshape(len(x), -1) @ double(made.output.weight).T + double(made.output.bias)


@pytest.mark.parametrize(("kind", "place"), POSSIBLE)
def test_each_kind_with_each_position_agrees_with_loops(kind, place, monkeypatch):
    monkeypatch.setattr(attention_window, "SMALLEST_BLOCK", 2)
    attention, positions = KINDS[kind], POSITIONS[place]
    made, relation = build(attention, positions)
    lengths = [23, 1, 8]  # more than two blocks, one token, two blocks
    x, mask = torch.randn(3, 23, 10), (torch.arange(23) < torch.tensor(lengths)[:, None]).float()
    for kernel in KERNELS:
        found = made(x.flatten(0, 1), attention_bias(mask), relation, kernel).view(3, 23, 10)
        for text, length in enumerate(lengths):
            right = expected(made, relation, attention, positions, x[text, :length])
            np.testing.assert_allclose(double(found[text, :length]), right, atol=1e-5, err_msg=f"{kernel}, {length} tokens")


@pytest.mark.parametrize("keys", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_keys_and_normed_queries_agree_with_loops(kind, keys):
    attention = KINDS[kind].model_copy(update={"key_value_heads": keys, "query_key_norm": True})
    made, relation = build(attention)
    x = torch.randn(9, 10)
    assert made.qkv.out_features == (4 + 2 * keys) * 6
    for kernel in KERNELS:
        found = made(x, attention_bias(torch.ones(1, 9)), relation, kernel)
        np.testing.assert_allclose(double(found), expected(made, relation, attention, POSITIONS["none"], x), atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "window", "fixed", "landmark"])
@pytest.mark.parametrize("length", [kernels.SHORT // 2, kernels.SHORT + 30])
def test_bf16_learns_what_fp32_learns_whichever_way_back_is_taken(kind, length):
    made, relation = build(KINDS[kind])
    bias = attention_bias((torch.arange(length) < torch.tensor([length, 3])[:, None]).float())
    x = torch.randn(2 * length, 10, requires_grad=True)
    gradients = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made(x, bias, relation, "sdpa").float().view(2, length, 10)[:, :3].square().sum().backward()
        gradients.append(x.grad.clone())
        x.grad = None
    right, found = gradients
    assert torch.linalg.vector_norm(found - right) < 0.03 * torch.linalg.vector_norm(right)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 70), size=st.integers(1, 20), first=st.integers(0, 20), block=st.sampled_from([1, 4, 16]))
def test_windows_of_any_size_see_what_they_should(length, size, first, block):
    """Values that name their token show which tokens a query saw."""
    attention = slots.WindowAttention(heads=1, head_width=length, window=2 * size, global_tokens=first)
    made, relation = build(attention)
    made.block = max(size, block)
    zeros, names = torch.zeros(1, 1, length, length), torch.eye(length)[None, None]
    seen = made.mix(zeros, zeros, names, attention_bias(torch.ones(1, length)), relation, "eager")[0, 0] > 0
    right = oracle.window(2 * size, first)
    assert seen.tolist() == [[right(i, j) for j in range(length)] for i in range(length)]


@pytest.mark.parametrize(
    ("wide", "length"),
    [
        (slots.WindowAttention(**HEADS, window=80, global_tokens=3), 40),
        (slots.WindowAttention(**HEADS, window=2, global_tokens=40), 40),
        (slots.StridedAttention(**HEADS, stride=40), 40),
        (slots.FixedAttention(**HEADS, stride=8, summary=8), 40),
        (slots.BigBirdAttention(**HEADS, block=20, random_blocks=0), 40),
        (slots.LandmarkAttention(**HEADS, landmarks=40), 40),
    ],
)
@pytest.mark.parametrize("place", ["none", "rotary"])
def test_what_reaches_over_the_whole_text_is_dense(wide, length, place):
    made, relation = build(wide, POSITIONS[place])
    dense, _ = build(KINDS["dense"])
    dense.load_state_dict(made.state_dict())
    x, mask = torch.randn(3 * length, 10), (torch.arange(length) < torch.tensor([length, 1, 27])[:, None]).float()
    bias = attention_bias(mask)
    for kernel in KERNELS:
        found, right = (module(x, bias, relation, kernel).view(3, length, 10) for module in (made, dense))
        assert torch.allclose(found * mask[..., None], right * mask[..., None], atol=1e-5)


def test_linformer_with_a_landmark_a_token_is_dense():
    made, relation = build(slots.LinformerAttention(**HEADS, length=12, landmarks=12))
    dense, _ = build(KINDS["dense"])
    dense.load_state_dict({name: tensor for name, tensor in made.state_dict().items() if name != "projections"})
    with torch.no_grad():
        made.projections.copy_(torch.eye(12).expand(2, 12, 12))
    x, bias = torch.randn(12, 10), attention_bias(torch.ones(1, 12))
    assert torch.allclose(made(x, bias, relation, "sdpa"), dense(x, bias, relation, "sdpa"), atol=1e-5)


def test_linformer_past_its_length_is_refused():
    made, relation = build(slots.LinformerAttention(**HEADS, length=8, landmarks=4))
    with pytest.raises(ConfigError, match="A text of 9 tokens, but this linformer attention is made for 8") as error:
        made(torch.randn(9, 10), attention_bias(torch.ones(1, 9)), relation, "sdpa")
    assert "landmark attention" in error.value.hint


@given(row=st.integers(0, 2000), number=st.integers(0, 5))
def test_random_blocks_are_early_ones_and_always_the_same(row, number):
    block = int(drawn(torch.tensor(row), number))
    assert 0 <= block < 2 * row + 2
    assert drawn(torch.arange(2001), number)[row] == block


def test_random_blocks_are_spread():
    rows = torch.arange(200, 400)
    chosen = torch.stack([drawn(rows, number) for number in range(3)])
    shares = torch.histc(chosen / (2 * rows + 2), bins=4, min=0, max=1) / chosen.numel()
    assert (shares - 0.25).abs().max() < 0.06
    assert (chosen[0] == chosen[1]).float().mean() < 0.05


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if hasattr(ATTENTIONS[KINDS[kind].kind], "visible")])
def test_flex_attention_sees_the_same_pattern(kind, monkeypatch):
    """FlexAttention runs compiled on a GPU; here its own reference form runs, with the same pattern."""
    monkeypatch.setattr(kernels, "FLEX_DEVICES", ("cpu",))
    used = []
    monkeypatch.setattr(kernels, "_flex_attention", lambda device, real=kernels._flex_attention: used.append(device) or real(device))
    made, relation = build(KINDS[kind], POSITIONS["rotary"])
    x, mask = torch.randn(46, 10), (torch.arange(23) < torch.tensor([23, 9])[:, None]).float()
    with torch.no_grad():
        found = made(x, attention_bias(mask), relation, "flex").view(2, 23, 10)
    right = made(x, attention_bias(mask), relation, "eager").view(2, 23, 10)
    assert used == ["cpu"] and torch.allclose(found * mask[..., None], right * mask[..., None], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_long_text_is_length_by_length(kind):
    """The largest tensor of a kind that is not dense grows no faster than length^1.5."""
    made, relation = build(KINDS[kind].model_copy(update={"length": 4096} if kind == "linformer" else {}), width=8)
    stride = {"strided": 45, "fixed": 45}.get(kind)
    if stride:
        made.stride = stride
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made_of = function(*args, **(kwargs or {}))
            if isinstance(made_of, torch.Tensor):
                largest = max(largest, made_of.untyped_storage().nbytes() // made_of.element_size())
            return made_of

    length = 2048
    with torch.no_grad(), Watch():
        made(torch.randn(length, 8), attention_bias(torch.ones(1, length)), relation, "eager")
    assert (largest >= 4 * length**2) == (kind == "dense")
    assert kind == "dense" or largest <= 4 * 200 * length


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_in_bfloat16_and_every_parameter_is_reached(kind):
    positions = {"kind": "rotary"} if KINDS[kind].kind in slots.MIXING else {"kind": "t5"}
    attention = KINDS[kind].model_dump() | {"key_value_heads": 2, "query_key_norm": True}
    encoder = tiny_encoder(
        max_length=40,
        vocabulary=6,
        positions=positions,
        layers={"count": 2, "attention": attention, "feedforward": {"kind": "mlp", "neurons": 16}},
    ).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    ids, mask = batch([40, 4, 33, 2], vocabulary=6)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(encoder(ids, mask).float(), torch.tensor([0, 1, 2, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < losses[0] / 1.5
    unreached = {name for name, parameter in encoder.named_parameters() if parameter.grad is None or not parameter.grad.abs().sum()}
    assert not unreached - {"embeddings.tokens.weight"}
