"""Early pooling against arithmetic text by text, and the laws that hold for every encoder."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from model.conversion import rebuilt
from model.encoder import Encoder
from model.errors import ConfigError
from tests.model.tiny import batch, tiny_config, tiny_encoder

FORMS = list(itertools.product((False, True), ("mean", "cls")))


def pooling(norm_first=False, kind="mean", **changes) -> Encoder:
    return tiny_encoder(early_pooling=True, norm_first=norm_first, head={"labels": 3, "pooling": kind}, **changes)


def alone(encoder: Encoder, ids: torch.Tensor) -> torch.Tensor:
    """The logits [3] of one text [S] without padding, its last layer computed head by head, what is pooled averaged by hand."""
    mask, config = torch.ones(1, len(ids)), encoder.config
    shallow = Encoder(config.changed(early_pooling=False)).eval()
    shallow.load_state_dict(encoder.state_dict())
    x = shallow.states(ids[None], mask)[1][-2][0]
    layer, heads, width = encoder.layers[-1], config.layers[-1].attention.heads, config.layers[-1].attention.head_width
    q, k, v = layer.attention.qkv(layer.attention_norm(x) if config.norm_first else x).split(heads * width, dim=1)
    parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
    mixed = torch.cat([(q[:, part] @ k[:, part].T / width**0.5).softmax(-1) @ v[:, part] for part in parts], dim=1)
    pool = (lambda rows: rows.mean(0)) if config.head.pooling == "mean" else (lambda rows: rows[0])
    y = pool(x) + layer.attention.output(pool(mixed))
    if config.norm_first:
        y = encoder.norm(y + layer.feedforward(layer.feedforward_norm(y)))
    else:
        y = layer.attention_norm(y)
        y = layer.feedforward_norm(y + layer.feedforward(y))
    return encoder.head.output(y)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=4), st.sampled_from(FORMS), st.sampled_from(("eager", "sdpa")))
@torch.no_grad()
def test_it_is_what_it_says_whatever_the_padding(lengths, form, kernel):
    encoder = pooling(*form)
    encoder.kernel = kernel
    ids, mask = batch(lengths, seed=sum(lengths))
    found = encoder(ids, mask)
    for row, length in enumerate(lengths):
        assert torch.allclose(found[row], alone(encoder, ids[row, :length]), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_states_end_in_one_row_a_text(form):
    encoder = pooling(*form)
    ids, mask = batch([5, 2])
    logits, states = encoder.states(ids, mask)
    assert [state.shape for state in states] == [(2, 5, 24), (2, 24)]
    assert torch.equal(encoder.head(encoder.norm(states[-1]), mask.float()), logits)


@pytest.mark.parametrize("form", FORMS)
def test_a_last_layer_that_adds_nothing_pools_as_the_head_would(form):
    """Post-norm means of normed rows are not normed means, so norms are identities here."""
    encoder = pooling(*form, token_types=2)
    late = rebuilt(encoder, early_pooling=False)
    for model in (encoder, late):
        model.layers[1].attention_norm = model.layers[1].feedforward_norm = model.norm = torch.nn.Identity()
        torch.nn.init.zeros_(model.layers[1].feedforward.down.weight)
    ids, mask = batch([9, 1, 4])
    for types in (None, ids % 2):
        assert torch.allclose(encoder(ids, mask, types), late(ids, mask, types), atol=1e-5)


def test_weights_carry_over_by_name():
    late = tiny_encoder()
    early = rebuilt(late, early_pooling=True)
    assert early.config == late.config.changed(early_pooling=True) and not early.training
    assert all(torch.equal(tensor, early.state_dict()[name]) for name, tensor in late.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_checkpointing_changes_no_gradient_and_gradients_reach_every_parameter(form):
    gradients = []
    for checkpointing in (False, True):
        encoder = pooling(*form, dropout=0.0).train()
        encoder.checkpointing = checkpointing
        F.cross_entropy(encoder(*batch([16, 3])), torch.tensor([0, 2])).backward()
        gradients.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
        assert all(gradient.abs().sum() > 0 for gradient in gradients[-1].values())
    assert all(torch.allclose(gradient, gradients[1][name], atol=1e-6) for name, gradient in gradients[0].items())


def test_a_text_without_tokens_stays_finite():
    for form in FORMS:
        assert pooling(*form)(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4)).isfinite().all()


def test_an_embedding_is_pooled_early_too():
    encoder = tiny_encoder(early_pooling=True, head={"kind": "embedding"})
    assert torch.allclose(encoder(*batch([6, 2])).norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"kind": "tagging", "labels": 3}}, "a tagging head answers for each token: leave it out"),
        ({"norm": {"kind": "batchnorm"}}, "batchnorm: choose another norm"),
        (
            {"layers": {"count": 1, "attention": {"kind": "window", "heads": 4}, "feedforward": {"kind": "mlp", "neurons": 8}}},
            "but the last layer has window: leave it out, or make that layer dense",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match="early_pooling") as error:
        tiny_config(early_pooling=True, **changes)
    assert message in error.value.message and "compress options" in error.value.hint
