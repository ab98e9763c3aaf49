"""Heads that are made to share keys and values, against what they were and against numpy's own singular values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress.config import PruneOptions, read_options
from compress.grouping import group, group_counts
from compress.pruning import prune
from model.errors import ConfigError
from tests.model.tiny import batch, tiny_config, tiny_encoder

FORMS = ({}, {"norm_first": True}, {"positions": {"kind": "alibi"}}, {"early_pooling": True, "head": {"labels": 3, "pooling": "cls"}})
WIDTH = 6  # of a head


def parts(model, layer=0):
    """Queries, keys and values of a layer, [heads, D, W]; what its output makes of each head, [W, heads, D]."""
    attention = model.layers[layer].attention
    sizes = [count * WIDTH for count in (attention.heads, attention.keys, attention.keys)]
    rows = [part.view(-1, WIDTH, 24).double() for part in attention.qkv.weight.detach().split(sizes)]
    return *rows, attention.output.weight.detach().view(24, -1, WIDTH).double()


@given(st.sampled_from(FORMS), st.sampled_from((1, 2, 4)), st.integers(0, 99))
@torch.no_grad()
def test_what_has_the_rank_of_one_head_is_shared_exactly(form, groups, seed):
    model = tiny_encoder(**form)
    generator = torch.Generator().manual_seed(seed)
    for rows in model.layers[0].attention.qkv.weight.view(3, 4, WIDTH, 24)[1:]:
        for first in range(0, 4, 4 // groups):
            for head in range(first + 1, first + 4 // groups):
                rows[head] = torch.randn(WIDTH, WIDTH, generator=generator) @ rows[first]
    ids, mask = batch([5, 9, 2], seed=seed)
    shared = group(model, [groups, None])
    assert [layer.attention.keys for layer in shared.config.layers] == [groups, 2]
    np.testing.assert_allclose(shared(ids, mask).numpy(), model(ids, mask).numpy(), atol=2e-4)


@given(st.sampled_from((1, 2, 4)))
def test_no_shared_head_could_lose_less(groups):
    """What is lost of a group's keys, and of its values, is the rest of their singular values (Eckart and Young 1936)."""
    model = tiny_encoder()
    queries, keys, values, after = parts(model)
    new_queries, shared_keys, shared_values, new_after = parts(group(model, [groups, None]))
    to_keys = (new_queries @ torch.linalg.pinv(queries)).mT  # what makes each head's keys of the shared ones, seen in its queries
    to_values = torch.linalg.pinv(after.transpose(0, 1)) @ new_after.transpose(0, 1)
    for own, shared, made_of in ((keys, shared_keys, to_keys), (values, shared_values, to_values)):
        made = made_of @ shared.repeat_interleave(4 // groups, dim=0)
        for rows, others in zip(own.view(groups, -1, 24).numpy(), made.reshape(groups, -1, 24).numpy(), strict=True):
            rest = np.linalg.svd(rows, compute_uv=False)[WIDTH:]
            np.testing.assert_allclose(np.linalg.norm(rows - others), np.linalg.norm(rest), rtol=1e-4, atol=1e-4)


def test_pruned_heads_share_and_what_nobody_asked_for_stays():
    model = tiny_encoder()
    cut = group(prune(model, [[0, 3], [0, 1]], [[1, 2], list(range(20))]), [1, None])
    assert [layer.attention.key_value_heads for layer in cut.config.layers] == [1, None]
    assert cut.layers[0].attention.qkv.weight.shape == (4 * WIDTH, 24)
    same = group(model, [None, None])
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())


def test_numbers_of_groups():
    config = tiny_config()
    assert group_counts((), config, [4, 2]) == [None, None]
    assert group_counts((1,), config, [4, 2]) == [1, 1]
    assert group_counts((4, 1), config, [4, 2]) == [None, 1]
    assert group_counts((2, 1), config, [2, 1]) == [None, None]
    shared = {"heads": 4, "head_width": 6, "key_value_heads": 2}
    layer = {"attention": shared, "feedforward": {"kind": "mlp", "neurons": 8}}
    assert group_counts((2,), tiny_config(layers=[layer]), [4]) == [None]
    for said, wanted, changes in (
        ("3 numbers of key-value heads for 2 layers", (1, 1, 1), {}),
        ("3 key-value heads do not divide the 4 heads of layer 0", (3, 1), {}),
        ("Layer 1 has 2 key-value heads; 4 cannot be kept", (4,), {}),
        ("Layer 0 has 4 key-value heads; 0 cannot be kept", (0, 1), {}),
        ("groups that share them already", (1,), {"layers": [layer]}),
        ("rotary positions", (1,), {"positions": {"kind": "rotary"}}),
        ("relative positions", (1,), {"positions": {"kind": "relative"}}),
        ("a prefix", (1,), {"layers": [{**layer, "attention": {"heads": 4, "head_width": 6, "prefix": 2}}]}),
        ("window attention", (1,), {"layers": [{**layer, "attention": {"heads": 4, "head_width": 6, "kind": "window", "window": 4}}]}),
        ("a norm of its queries", (1,), {"layers": [{**layer, "attention": {"heads": 4, "head_width": 6, "query_key_norm": True}}]}),
    ):
        config = tiny_config(**changes)
        with pytest.raises(ConfigError, match=said):
            group_counts(wanted, config, [layer.attention.heads for layer in config.layers])
    with pytest.raises(ConfigError, match="give allocation uniform"):
        read_options(PruneOptions, {"key_value_heads": 1, "allocation": "global"}, "prune")
