"""Prefixes in dense attention: against loops over pairs of tokens, over padding, kernels, pruning and an exported graph."""

import numpy as np
import pytest
import torch

from compress.prefixes import start_from_tokens, with_prefix
from compress.pruning import prune
from export.audit import audit
from export.graph import export_graph, opset_for
from export.ort_attention import with_ort_attention
from export.parity import compare
from export.plan import plan_of
from export.plan import problems as broken
from model import slots
from model.conversion import convert_attention
from model.errors import ConfigError
from model.kernels import KERNELS
from model.masks import attention_bias
from model.pretrained import to_transformers
from tests.export.test_export import Session
from tests.model.test_attention import POSITIONS, build, double
from tests.model.tiny import batch, tiny_encoder
from tests.reference import attention as oracle

DENSE = {"count": 2, "attention": {"heads": 4, "head_width": 6, "prefix": 3}, "feedforward": {"kind": "mlp", "neurons": 8}}


@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize("place", ["none", "alibi", "rotary", "relative"])
def test_agrees_with_loops(keys, place):
    torch.manual_seed(0)
    attention = slots.DenseAttention(heads=4, head_width=6, key_value_heads=keys, prefix=5)
    made, relation = build(attention, POSITIONS[place])
    lengths = [11, 1, 4]
    x, mask = torch.randn(3, 11, 10), (torch.arange(11) < torch.tensor(lengths)[:, None]).float()
    own = [np.stack([part[head * keys // 4] for head in range(4)]) for part in double(made.prefix)]
    for kernel in KERNELS:
        found = made(x.flatten(0, 1), attention_bias(mask), relation, kernel).view(3, 11, 10)
        for text, length in enumerate(lengths):
            rows = double(x[text, :length]) @ double(made.qkv.weight).T + double(made.qkv.bias)
            parts = np.split(rows, [24, (4 + keys) * 6], axis=1)
            q, k, v = (part.reshape(length, -1, 6).swapaxes(0, 1) for part in parts)
            k, v = (np.stack([part[head * keys // 4] for head in range(4)]) for part in (k, v))
            if place == "rotary":
                frequency = POSITIONS[place].base ** (-2 * np.arange(3) / 6)
                q, k = oracle.rotate(q, frequency), oracle.rotate(k, frequency)
            bias = {"alibi": oracle.alibi(4), "relative": oracle.relative(q, double(relation.keys)) if place == "relative" else None}
            mixed = oracle.prefixed(q, k, v, *own, bias.get(place)).swapaxes(0, 1).reshape(length, -1)
            right = mixed @ double(made.output.weight).T + double(made.output.bias)
            np.testing.assert_allclose(double(found[text, :length]), right, atol=1e-5, err_msg=f"{kernel}, {length} tokens")


def test_only_prefix_and_head_are_trained():
    base = tiny_encoder()
    model = with_prefix(base, 3)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"layers.0.attention.prefix", "layers.1.attention.prefix", "head.output.weight", "head.output.bias"}
    assert model.layers[1].attention.prefix.shape == (2, 2, 3, 6)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in base.state_dict().items())


@pytest.mark.parametrize("normed", [False, True])
def test_a_prefix_starts_as_keys_and_values_of_tokens(normed):
    layers = {**DENSE, "attention": {"heads": 4, "key_value_heads": 2, "query_key_norm": normed}}
    model = with_prefix(tiny_encoder(layers=layers), 4)
    ids, mask = batch([5, 2, 9])
    kept = {}

    def keep(module, given, found):
        kept["packed"] = found

    hook = model.layers[0].attention.qkv.register_forward_hook(keep)
    start_from_tokens(model, {"input_ids": ids, "attention_mask": mask}, seed=1)
    hook.remove()
    attention = model.layers[0].attention
    keys, values = attention.prefix
    real = mask.flatten().bool()
    packed = kept["packed"][real].view(int(real.sum()), 8, 6)
    for number in range(4):
        tokens = [row for row in range(len(packed)) if torch.equal(packed[row, 6:], values[:, number])]
        assert tokens
        key = packed[tokens[0], 4:6]
        assert torch.allclose(keys[:, number], attention.key_norm(key) if normed else key)
    before = attention.prefix.clone()
    start_from_tokens(model, {"input_ids": ids, "attention_mask": mask}, seed=1)
    assert torch.equal(attention.prefix, before)


@pytest.mark.parametrize("positions", ["none", "rotary", "t5", "relative"])
def test_exports_with_the_prefix_inside(tmp_path, positions):
    model = tiny_encoder(layers=DENSE, positions={"kind": positions})
    export_graph(model, tmp_path / "model.onnx", opset=opset_for(model), pairs=False)
    session = Session(tmp_path / "model.onnx")
    assert session.inputs == {"input_ids", "attention_mask"}
    assert compare(model, session, pairs=False).difference < 1e-5
    assert not [problem for problem in broken(plan_of(model.config), audit(tmp_path / "model.onnx")) if problem.broken]


def test_padding_changes_nothing_and_pruning_cuts_the_prefix():
    model = tiny_encoder(layers=DENSE)
    ids, mask = batch([9, 4])
    with torch.no_grad():
        assert torch.allclose(model(ids, mask)[1], model(ids[1:, :4], mask[1:, :4])[0], atol=1e-5)
        smaller = prune(model, [[1, 3], [0, 1, 2, 3]], [list(range(8))] * 2).eval()
        assert torch.equal(smaller.layers[0].attention.prefix, model.layers[0].attention.prefix[:, [1, 3]])
        for head in (0, 2):
            model.layers[0].attention.output.weight[:, head * 6 : head * 6 + 6] = 0
        assert torch.allclose(smaller(ids, mask), model(ids, mask), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": {**DENSE, "attention": {"heads": 4, "kind": "window", "window": 4}}}, "Layer 0 of the base has window attention"),
        ({"layers": {**DENSE, "attention": {"heads": 4, "kind": "landmark"}}}, "Layer 0 of the base has landmark attention"),
        ({"layers": DENSE}, "The base has a prefix of 3 already"),
        ({"norm": {"kind": "batchnorm"}}, "The base has batchnorm, whose averages move in training"),
    ],
    ids=["window", "landmark", "twice", "batchnorm"],
)
def test_where_a_prefix_makes_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        with_prefix(tiny_encoder(**changes), 2)
    assert error.value.hint


def test_what_has_no_place_for_a_prefix_says_so():
    model = tiny_encoder(layers={**DENSE, "attention": {"heads": 4, "prefix": 2}})
    with pytest.raises(ConfigError, match="ONNX Runtime's operator Attention has no prefix"):
        with_ort_attention(model)
    with pytest.raises(ConfigError, match="This encoder is no BERT: it has a prefix"):
        to_transformers(model)
    with pytest.raises(ConfigError, match="The encoder has a prefix, which other attention has no place for"):
        convert_attention(model, [{"kind": "window", "window": 4}])
    with pytest.raises(ConfigError, match=r"layers\.0\.attention\.window\.prefix: Extra inputs are not permitted"):
        tiny_encoder(layers={**DENSE, "attention": {"kind": "window", "heads": 4, "prefix": 2}})
