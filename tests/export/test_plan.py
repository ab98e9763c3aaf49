"""What a configuration promises of its graph, and each promise broken on purpose."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import graph
from export.audit import Audit, Linear, as_written, audit
from export.graph import export_graph, opset_for
from export.half import to_half
from export.ort_attention import with_ort_attention
from export.parity import batches
from export.plan import Plan, gate, plan_of, problems
from export.profile_run import Node, Profile
from model import attention
from model.errors import GateError
from tests.export.tiny_int8 import quantized
from tests.model.tiny import tiny_config, tiny_encoder

ROTARY = {"positions": {"kind": "rotary"}, "norm": {"kind": "rmsnorm"}, "norm_first": True}


def layers(shared=None, **feedforward):
    return {"layers": {"count": 2, "attention": {"heads": 2, "head_width": 6, "key_value_heads": shared}, "feedforward": feedforward}}


def refused(file, model, opset=None):
    """What the gate says of `model` exported to `file`."""
    export_graph(model, file, opset=opset or opset_for(model), pairs=False)
    with pytest.raises(GateError) as error:
        gate(plan_of(model.config), audit(file), file)
    assert error.value.exit_code == 3 and error.value.hint.startswith("Nothing was written. ")
    return error.value


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (quantized, {}),
        (quantized, ROTARY),
        (quantized, {"early_pooling": True}),
        (quantized, layers(kind="glu", neurons=12)),
        (quantized, layers(kind="none")),
        (quantized, layers(kind="mlp", neurons=12, shared=1)),
        (tiny_encoder, {"norm_first": True, "positions": {"kind": "none"}}),
        (tiny_encoder, layers(kind="glu", neurons=12, activation="gelu")),
        (tiny_encoder, layers(kind="mlp", neurons=12, activation="silu")),
    ],
)
def test_the_exporter_keeps_its_promises(tmp_path, make, changes):
    model = make(**changes)
    export_graph(model, tmp_path / "model.onnx", opset=opset_for(model), pairs=False)
    found, plan = audit(tmp_path / "model.onnx"), plan_of(model.config)
    gate(plan, found, tmp_path / "model.onnx")
    assert problems(plan, found) == [] and found.integer == plan.integer
    assert found.nodes > plan.nodes - 40  # a limit that nothing can reach would hold nothing


def test_a_plan_is_what_the_configuration_says():
    assert plan_of(tiny_config()) == Plan(0, {"gelu": 2}, {"layernorm": 5}, 2, 0, 92)
    plan = plan_of(quantized(**ROTARY).config, attention="ort")
    assert (plan.integer, plan.norms, plan.scores, plan.attention) == (8, {"rmsnorm": 6}, 0, 2)
    assert plan_of(tiny_config(**layers(kind="mlp", neurons=4, activation="relu"))).activations == {}
    assert plan_of(tiny_config(positions={"kind": "alibi"})).nodes is None  # nobody has counted them


def test_lost_integer_biases(tmp_path, monkeypatch):
    """The silent trap: a graph full of QuantizeLinear in which nothing runs as integers."""
    monkeypatch.setattr(graph, "_integer_biases", lambda model: None)
    error = refused(tmp_path / "model.onnx", quantized())
    assert "8 quantized linears run in float because of a float bias, where QGemm wants int32" in error.message
    assert (
        "layers.0.attention.qkv, layers.0.attention.output, layers.0.feedforward.up, layers.0.feedforward.down and 4 more" in error.message
    )
    assert "Only 0 of 8 quantized linears run as integers." in error.message
    assert "install the pinned one" in error.hint


def test_gelu_in_pieces(tmp_path):
    error = refused(tmp_path / "model.onnx", tiny_encoder(), opset=18)
    assert "Only 0 of 2 gelu activations are one node." in error.message and "leave --opset out" in error.hint


def test_a_norm_in_pieces(tmp_path):
    error = refused(tmp_path / "model.onnx", tiny_encoder(norm={"kind": "rmsnorm"}), opset=20)
    assert "Only 0 of 5 norms (rmsnorm) are one node; the others came apart." in error.message
    assert "Below opset 23 RMSNorm comes apart: leave --opset out." in error.hint


def test_layer_norms_in_pieces():
    plan = plan_of(tiny_config())
    found = Audit({"LayerNormalization": 3, "Gelu": 2, "FusedMatMul": 2})
    assert [problem.message for problem in problems(plan, found)] == ["Only 3 of 5 norms (layernorm) are one node; the others came apart."]


def test_a_scale_beside_its_product(tmp_path, monkeypatch):
    def unfused(q, k, v, bias, dropout):
        scores = (q @ k.transpose(-1, -2) + bias) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1) @ v

    monkeypatch.setitem(attention.KERNELS, "eager", unfused)
    error = refused(tmp_path / "model.onnx", tiny_encoder())
    assert "Only 0 of 2 products of queries and keys are one node with their scale." in error.message


def test_a_slow_fusion(tmp_path):
    """A post-norm residual in three dimensions: what ONNX Runtime fuses into the slow node."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", 8]) for name in "xy")
    constants = {"g": np.ones(8, np.float32), "z": np.zeros(8, np.float32), "w": np.eye(8, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "z"], ["p"]),
        helper.make_node("Add", ["x", "p"], ["a"]),
        helper.make_node("LayerNormalization", ["a", "g", "z"], ["y"], axis=-1),
    ]
    made = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(array, name) for name, array in constants.items()])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "slow.onnx")
    found = audit(tmp_path / "slow.onnx")
    nothing = Plan(0, {}, {}, 0, 0, None)
    with pytest.raises(GateError, match="1 residual was fused into SkipLayerNormalization, which is slower on the CPU than its parts."):
        gate(nothing, found, tmp_path / "slow.onnx")
    assert not problems(nothing, found, provider="cuda")  # there it is fast


def test_more_nodes_than_expected(tmp_path):
    model = tiny_encoder()
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=False)
    plan = replace(plan_of(model.config), nodes=50)
    with pytest.raises(GateError, match=r"There are 62 nodes where 50 at most were expected."):
        gate(plan, audit(tmp_path / "model.onnx"), tmp_path / "model.onnx")


def test_attention_of_some_layers_only():
    plan = plan_of(tiny_config(), attention="ort")
    operators = {"LayerNormalization": 5, "Gelu": 2, "Attention": 1}
    assert [problem.message for problem in problems(plan, Audit(operators))] == ["Only 1 of 2 layers have their attention in one node."]
    assert problems(plan, Audit(operators | {"Attention": 0, "MultiHeadAttention": 2})) == []


def test_a_file_for_gpus_is_judged_as_it_was_written(tmp_path):
    """ONNX Runtime's CPU would take fp16 apart: GELU and softmax have no kernels there."""
    assert plan_of(tiny_config(**layers(kind="glu", neurons=4)), precision="fp16").activations == {}
    model = tiny_encoder()
    export_graph(with_ort_attention(model), tmp_path / "model.onnx", opset=20, pairs=False)
    to_half(tmp_path / "model.onnx", batches(model.config, pairs=False))
    plan = plan_of(model.config, attention="ort", precision="fp16")
    assert (plan.attention, plan.scores, plan.nodes) == (2, 0, None)
    gate(plan, as_written(tmp_path / "model.onnx"), tmp_path / "model.onnx")
    assert problems(plan, audit(tmp_path / "model.onnx"))


def test_one_linear_of_many():
    plan = replace(plan_of(tiny_config()), integer=2)
    linears = (
        Linear("layers.0.attention.qkv", "n", "QGemm", True, True),
        Linear("layers.0.feedforward.up", "m", "FusedGemm", False, True, "an activation that was fused in before"),
        Linear("head.output", "h", "Gemm", False, False, "float weights"),
    )
    found = problems(plan, Audit({"LayerNormalization": 5, "Gelu": 2, "FusedMatMul": 2}, linears))
    assert [problem.message for problem in found] == [
        "1 quantized linear runs in float because of an activation that was fused in before: layers.0.feedforward.up.",
        "Only 1 of 2 quantized linears run as integers.",
    ]


WHOLE = {"LayerNormalization": 5, "Gelu": 2, "FusedMatMul": 2}


def profiled(provider, *nodes):
    return Profile(provider, ((1, 16),), (1.0,), tuple(Node(f"n{number}", *node, (1.0,)) for number, node in enumerate(nodes)))


def test_int8_on_cuda_falls_back_and_copies():
    found = Audit({**WHOLE, "MemcpyToHost": 1, "MemcpyFromHost": 2})
    where = profiled(
        "cuda",
        ("QGemm", "cpu", "uint8", "int8"),
        ("Gelu", "cuda", "fp32", "fp32"),
        ("Shape", "cpu", "int64", "int64"),
        ("QGemm", "cpu", "uint8", "int8"),
    )
    fallen, copies = problems(plan_of(tiny_config()), found, where, "cuda")
    assert (fallen.message, fallen.broken) == ("2 nodes fell back to the CPU: QGemm × 2.", True)
    assert "without int8 for this provider" in fallen.hint
    assert (copies.message, copies.broken) == ("3 copies between host and device in every run.", False)


def test_what_costs_without_having_been_promised():
    casts = profiled("cpu", ("Cast", "cpu", "fp16", "fp32"), ("Cast", "cpu", "int64", "fp32"))
    found = problems(plan_of(tiny_config()), Audit(WHOLE, tables=("embeddings.tokens.weight",)), casts)
    assert [problem.message for problem in found] == [
        "Every run dequantizes embeddings.tokens.weight as a whole before it gathers a few rows.",
        "1 cast turns one width of floats into another in every run.",
    ]
    assert not any(problem.broken for problem in found)
