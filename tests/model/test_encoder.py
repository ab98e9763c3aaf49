import itertools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from model.encoder import Encoder
from model.errors import ConfigError
from model.kernels import KERNELS
from model.positions import POSITIONS
from tests.model.tiny import batch, tiny_config, tiny_encoder

LEARNED = {"kind": "learned", "length": 16}
GLU_LAYERS = {"count": 2, "attention": {"heads": 3, "head_width": 4}, "feedforward": {"kind": "glu", "neurons": 10}}
HALF = {"layers": {"count": 2, "attention": {"heads": 4}, "feedforward": [{"kind": "none"}, {"kind": "mlp", "neurons": 10}]}}
COMBINATIONS = [
    {"positions": positions, "norm": {"kind": norm}, "norm_first": norm_first, **layers, "head": {"labels": 3, "pooling": pooling}}
    for positions, norm, norm_first, layers, pooling in itertools.product(
        (LEARNED, {"kind": "rotary"}, {"kind": "none"}),
        ("layernorm", "rmsnorm"),
        (False, True),
        ({}, {"layers": GLU_LAYERS}),
        ("mean", "cls"),
    )
]
COMBINATIONS += [
    {**HALF, "norm": {"kind": norm}, "norm_first": norm_first} for norm in ("layernorm", "rmsnorm") for norm_first in (False, True)
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("changes", COMBINATIONS)
def test_kernels_padding_and_neighbours_change_nothing(changes):
    encoder = tiny_encoder(**changes)
    lengths = [16, 1, 7, 3]
    ids, mask = batch(lengths)
    together = encoder(ids, mask)
    encoder.kernel = "eager"
    assert torch.allclose(encoder(ids, mask), together, atol=1e-5)
    for row, length in enumerate(lengths):
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert torch.allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize("changes", COMBINATIONS)
def test_gradients_reach_every_parameter(changes):
    encoder = tiny_encoder(**changes, token_types=2, vocabulary=3)
    ids, mask = torch.tensor([[0, 1, 2] * 5 + [1]]), torch.ones(1, 16)
    for kernel in KERNELS:
        encoder.kernel = kernel
        encoder.zero_grad()
        F.cross_entropy(encoder(ids, mask, ids % 2), torch.tensor([1])).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{kernel}: nothing reaches {name}"


@pytest.mark.parametrize("kind", POSITIONS)
def test_only_positions_know_the_order(kind):
    encoder = tiny_encoder(positions={"kind": kind} | ({"length": 16} if kind == "learned" else {}))
    ids, mask = batch([9])
    other = ids[:, [0, 4, 2, 3, 1, 5, 6, 7, 8]]
    blind = torch.allclose(encoder(ids, mask), encoder(other, mask), atol=1e-5)
    assert blind == (kind == "none")


def test_states_are_one_a_layer_and_lead_to_the_logits():
    encoder = tiny_encoder(norm_first=True)
    ids, mask = batch([5, 2])
    logits, states = encoder.states(ids, mask)
    assert [state.shape for state in states] == [(2, 5, 24)] * 2
    assert torch.equal(logits, encoder(ids, mask))
    assert torch.allclose(encoder.head(encoder.norm(states[-1]), mask.float()), logits)
    shorter = Encoder(encoder.config.changed(layers=encoder.config.layers[:1])).eval()
    shorter.load_state_dict({name: tensor for name, tensor in encoder.state_dict().items() if not name.startswith("layers.1.")})
    assert torch.equal(shorter.states(ids, mask)[1][0], states[0])


def test_types_left_out_are_type_zero():
    encoder = tiny_encoder(token_types=2)
    ids, mask = batch([6, 3])
    assert torch.allclose(encoder(ids, mask), encoder(ids, mask, torch.zeros_like(ids)), atol=1e-6)
    assert not torch.allclose(encoder(ids, mask), encoder(ids, mask, torch.ones_like(ids)), atol=1e-3)


def test_types_are_refused_where_there_are_none():
    ids, mask = batch([3])
    with pytest.raises(ConfigError, match="token_type_ids were given, but this encoder has no token types"):
        tiny_encoder()(ids, mask, ids)


def test_a_text_without_tokens_stays_finite():
    for pooling, kernel in itertools.product(("mean", "cls"), KERNELS):
        encoder = tiny_encoder(head={"labels": 3, "pooling": pooling})
        encoder.kernel = kernel
        assert encoder(torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4)).isfinite().all()


def test_dropout_is_for_training():
    encoder = tiny_encoder(dropout=0.5)
    ids, mask = batch([8, 4])
    assert torch.equal(encoder(ids, mask), encoder(ids, mask))
    encoder.train()
    for kernel in KERNELS:
        encoder.kernel = kernel
        assert not torch.allclose(encoder(ids, mask), encoder(ids, mask), atol=1e-3)


def test_it_trains_under_bfloat16_autocast():
    for changes in ({}, {"norm": {"kind": "rmsnorm"}, "positions": {"kind": "rotary"}, "layers": GLU_LAYERS}):
        encoder = tiny_encoder(**changes).train()
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
        ids, mask = batch([9, 4, 16, 2])
        losses = []
        for _ in range(30):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(encoder(ids, mask).float(), torch.tensor([0, 1, 2, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-5:]) < losses[0] / 2


def test_fresh_weights_are_as_in_bert():
    encoder = Encoder(tiny_config(width=64, vocabulary=500, token_types=2))
    for name, parameter in encoder.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        elif parameter.numel() > 1000:
            assert 0.018 < parameter.std() < 0.022 and abs(parameter.mean()) < 0.003, name


def test_names_of_parameters():
    encoder = Encoder(tiny_config(token_types=2, layers={**GLU_LAYERS, "count": 1}, norm_first=True))
    linears = ("attention.qkv", "attention.output", "feedforward.up", "feedforward.gate", "feedforward.down")
    modules = [f"layers.0.{part}" for part in (*linears, "attention_norm", "feedforward_norm")] + ["embeddings.norm", "norm", "head.output"]
    tables = {f"embeddings.{table}.weight" for table in ("tokens", "types", "positions")}
    assert set(encoder.state_dict()) == tables | {f"{module}.{part}" for module in modules for part in ("weight", "bias")}


def exported(encoder: Encoder, path: str, opset: int) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """A session on the exported encoder, and the operators that ONNX Runtime runs."""
    axes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2, max=16)}
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        encoder, batch([16, 9]), path, dynamo=True, opset_version=opset, input_names=names, dynamic_shapes=(axes, axes), verbose=False
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{path}.optimized"
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return session, Counter(node.op_type for node in onnx.load(f"{path}.optimized").graph.node)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:# The axis name:UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("opset", "norm", "changes", "nodes"),
    [
        (20, "LayerNormalization", {}, 81),
        (23, "RMSNormalization", {"norm": {"kind": "rmsnorm"}, "positions": {"kind": "rotary"}, "norm_first": True}, 113),
    ],
)
def test_the_exported_graph_is_lean_and_agrees(tmp_path, opset, norm, changes, nodes):
    layer = {"attention": {"heads": 4, "head_width": 6}, "feedforward": {"kind": "mlp", "neurons": 32}}
    encoder = tiny_encoder(token_types=2, **changes, layers={**layer, "count": 3})
    session, operators = exported(encoder, str(tmp_path / "model.onnx"), opset)
    for lengths in ([1], [7], [16], [16, 1, 7], [1, 2], [5] * 9):
        ids, mask = batch(lengths, seed=sum(lengths))
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        np.testing.assert_allclose(found, encoder(ids, mask).detach().numpy(), atol=1e-5)
    assert "SkipLayerNormalization" not in operators
    assert operators["Gemm"] == 3 * 4 + 1 and operators["Gelu"] == 3 and operators[norm] == 7 + (norm == "RMSNormalization")
    assert operators.total() <= nodes  # each one costs a microsecond at batch 1
