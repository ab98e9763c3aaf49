"""Norms, feed-forward networks and embeddings against their formulas; what cannot be configured; what changes nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model import slots
from model.conversion import convert_attention, read_attention
from model.errors import ConfigError
from model.feedforward import ACTIVATIONS, FEEDFORWARDS
from model.norms import NORMS
from tests.model.tiny import batch, shake, tiny_config, tiny_encoder
from tests.reference import attention as pairs
from tests.reference import encoder as oracle

LAYER = {"attention": {"heads": 4, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 8}}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def double(tensor):
    return tensor.detach().double().numpy()


def test_norms_are_their_formulas():
    x = torch.randn(7, 12) * 3
    layernorm, rmsnorm = NORMS["layernorm"](slots.LayerNorm(eps=1e-3), 12), NORMS["rmsnorm"](slots.RmsNorm(eps=1e-3), 12)
    shake(layernorm), shake(rmsnorm, seed=1)
    weight, bias = double(layernorm.weight), double(layernorm.bias)
    np.testing.assert_allclose(double(layernorm(x)), oracle.layernorm(double(x), weight, bias, 1e-3), atol=1e-6)
    np.testing.assert_allclose(double(rmsnorm(x)), oracle.rmsnorm(double(x), double(rmsnorm.weight), 1e-3), atol=1e-6)


def test_batchnorm_does_not_see_padding():
    norm = NORMS["batchnorm"](slots.BatchNorm(eps=1e-3, momentum=0.25), 5)
    shake(norm)
    x, mask = torch.randn(9, 5) * 3, [1, 1, 1, 0, 1, 1, 0, 0, 1]
    x[3] = 1e6
    expected, mean, variance = pairs.batchnorm(double(x), mask, double(norm.weight), double(norm.bias), 1e-3)
    found = norm.train()(x, torch.tensor(mask, dtype=torch.float32))
    np.testing.assert_allclose(double(found)[np.array(mask) == 1], expected[np.array(mask) == 1], atol=1e-5)
    np.testing.assert_allclose(double(norm.running_mean), mean / 4, atol=1e-6)
    np.testing.assert_allclose(double(norm.running_var), 0.75 + variance * 6 / 5 / 4, atol=1e-5)
    plain = torch.nn.BatchNorm1d(5, eps=1e-3)
    plain.load_state_dict({**norm.state_dict(), "num_batches_tracked": torch.tensor(1)})
    assert torch.allclose(norm.eval()(x, torch.ones(9)), plain.eval()(x), atol=1e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", FEEDFORWARDS)
def test_feedforwards_are_their_formulas(kind, activation):
    slot = {"mlp": slots.Mlp, "glu": slots.Glu}[kind](neurons=9, activation=activation)
    feedforward = FEEDFORWARDS[kind](slot, 6)
    shake(feedforward)
    x = torch.randn(5, 6)

    def linear(name, y):
        module = feedforward.get_submodule(name)
        return y @ double(module.weight).T + double(module.bias)

    activate = getattr(oracle, activation)
    middle = activate(linear("gate", double(x))) * linear("up", double(x)) if kind == "glu" else activate(linear("up", double(x)))
    np.testing.assert_allclose(double(feedforward(x)), linear("down", middle), atol=1e-6)


def test_factorised_embeddings_are_a_table_and_a_product():
    encoder = tiny_encoder(embedding_width=7, token_types=2, max_length=16)
    ids, mask = batch([9, 4])
    made = encoder.embeddings
    x = F.embedding(ids, made.tokens.weight) + made.types.weight[0] + made.positions.weight[:9]
    x = F.layer_norm(x, (7,), made.norm.weight, made.norm.bias, 1e-12) @ made.projection.weight.T + made.projection.bias
    assert torch.allclose(made(ids, mask.float(), None), x.flatten(0, 1), atol=1e-5)
    assert made.tokens.weight.shape == (50, 7) and encoder(ids, mask).shape == (2, 3)


def test_token_dropout_leaves_out_whole_tokens_but_never_the_first_and_only_in_training():
    encoder = tiny_encoder(token_dropout=0.5, dropout=0.0, positions={"kind": "none"})
    ids = torch.full((64, 16), 3)
    made, mask = encoder.embeddings, torch.ones(64, 16)
    whole = made(ids, mask, None).view(64, 16, -1)
    assert torch.equal(whole, whole[:1, :1].expand_as(whole))
    dropped = (made.train()(ids, mask, None).view(64, 16, -1) != whole).any(-1)
    assert not dropped[:, 0].any() and 0.4 < dropped[:, 1:].float().mean() < 0.6


@pytest.mark.parametrize("changes", [{}, {"norm_first": True, "positions": {"kind": "t5"}, "layers": {**LAYER, "count": 2}}])
def test_checkpointing_gives_the_same_loss_and_gradients(changes):
    encoder = tiny_encoder(dropout=0.2, **changes).train()
    ids, mask = batch([12, 5])
    found = []
    for encoder.checkpointing in (False, True):
        torch.manual_seed(1)
        encoder.zero_grad()
        loss = F.cross_entropy(encoder(ids, mask), torch.tensor([0, 2]))
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in encoder.parameters())])
    assert all(torch.allclose(plain, again, atol=1e-6) for plain, again in zip(*found, strict=True))


def test_checkpointing_batchnorm_is_refused():
    encoder = tiny_encoder(norm={"kind": "batchnorm"}).train()
    encoder.checkpointing = True
    with pytest.raises(ConfigError, match="batchnorm cannot be trained with gradient checkpointing"):
        encoder(*batch([3]))


@pytest.mark.parametrize("norm_first", [False, True])
def test_batchnorm_trains_and_padding_changes_nothing(norm_first):
    encoder = tiny_encoder(norm={"kind": "batchnorm"}, norm_first=norm_first, dropout=0.0).train()
    ids, mask = batch([9, 4])
    wide = [F.pad(tensor, (0, 5)) for tensor in (ids, mask)]
    assert torch.allclose(encoder(ids, mask), encoder(*wide), atol=1e-4)
    encoder.eval()
    alone = encoder(ids[1:, :4], mask[1:, :4])
    assert torch.allclose(alone[0], encoder(ids, mask)[1], atol=1e-4)


IMPOSSIBLE = [
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 5}}},
        "5 heads do not divide a width of 24: choose a divisor, or give head_width",
    ),
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "key_value_heads": 3}}},
        "3 key_value_heads do not divide 4 heads: choose a divisor of 4",
    ),
    ({"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "kind": "window", "window": 0}}}, r"window: Input should be .* \(got 0\)"),
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "kind": "window", "window": 7}}},
        r"window: Input should be a multiple of 2 \(got 7\)",
    ),
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "kind": "linformer", "length": 8}}},
        "layer 0 has linformer attention for 8 tokens, but max_length is 16: lower max_length",
    ),
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "kind": "landmark"}}, "positions": {"kind": "alibi"}},
        "layer 0 has landmark attention, whose keys are mixtures of tokens at no distance that alibi positions could see",
    ),
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "kind": "sparse_fixed", "stride": 4, "summary": 5}}},
        "summary is 5, but a block has only 4 tokens: choose at most stride",
    ),
    (
        {"layers": {**LAYER, "count": 1, "attention": {"heads": 8}}, "positions": {"kind": "rotary"}},
        "heads of width 3, but rotary positions turn pairs",
    ),
    ({"positions": {"kind": "sinusoidal"}, "embedding_width": 7}, "sinusoidal positions come in pairs, but the embeddings are 7 wide"),
    ({"positions": {"kind": "t5", "buckets": 32, "distance": 8}}, "distance is 8, but the 8 shortest have a bucket each: give more than 8"),
    (
        {"layers": [{**LAYER, "positions": {"kind": "learned"}}]},
        "layer 0 has learned positions of its own, but a layer can only have rotary",
    ),
    ({"layers": {**LAYER, "count": 0}}, "layers: Tuple should have at least 1 item"),
    ({"layers": {**LAYER, "count": 1, "attention": {"heads": 4, "kind": "hyena"}}}, "'hyena' .*'dense', 'window', 'sparse_strided'"),
]


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE)
def test_what_cannot_be_is_one_clear_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        tiny_config(**changes)
    assert "\n" not in error.value.message and "compress options" in error.value.hint


def test_kinds_take_turns_and_heads_share_the_width():
    window = {"kind": "window", "heads": 4, "window": 8}
    config = tiny_config(layers={"count": 5, "attention": [{"heads": 8}, window, window], "feedforward": LAYER["feedforward"]})
    assert [layer.attention.kind for layer in config.layers] == ["dense", "window", "window", "dense", "window"]
    assert [layer.attention.head_width for layer in config.layers] == [3, 6, 6, 3, 6]
    assert config == tiny_config(**config.model_dump())


@pytest.mark.parametrize("kind", ["window:32", "sparse_strided:16", "sparse_fixed:16", "landmark:16"])
def test_another_attention_that_sees_everything_gives_the_same_logits(kind):
    encoder = tiny_encoder()
    given = read_attention(kind) | ({"summary": 16} if "fixed" in kind else {})
    converted = convert_attention(encoder, [given])
    assert {layer.attention.kind for layer in converted.config.layers} == {kind.partition(":")[0]}
    assert [layer.attention.heads for layer in converted.config.layers] == [4, 2]
    ids, mask = batch([16, 3, 9])
    assert torch.allclose(converted(ids, mask), encoder(ids, mask), atol=1e-5)


def test_conversion_takes_kinds_in_turn_and_keeps_what_carries_over():
    encoder = tiny_encoder()
    converted = convert_attention(encoder, [read_attention("dense"), read_attention("linformer:4")], max_length=40)
    assert [layer.attention.kind for layer in converted.config.layers] == ["dense", "linformer"]
    assert converted.config.layers[1].attention.length == converted.config.max_length == 40
    old, new = encoder.state_dict(), converted.state_dict()
    assert new.keys() - old.keys() == {"layers.1.attention.projections"}
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert converted(*batch([40, 20])).isfinite().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [("hyena", "There is no attention 'hyena'"), ("dense:3", "dense takes no size"), ("window:wide", "window takes window")],
)
def test_attention_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_attention(text)
