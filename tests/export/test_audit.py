"""What an audit reads from optimised graphs, each trap built by hand, and what a profile reads from ONNX Runtime's events."""

import itertools
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.audit import Audit, audit, read_graph
from export.graph import export_graph
from export.profile_run import Node, profile, read_events
from model.errors import EnvironmentProblem
from tests.export.tiny_int8 import quantized
from tests.model.tiny import tiny_encoder


def save(file, nodes, *, inputs=("x",), kind=TensorProto.FLOAT, **constants):
    """A graph from `inputs` [b, 8] to y, with `constants` as its initializers."""
    given = [helper.make_tensor_value_info(name, kind, ["b", 8]) for name in inputs]
    made = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    return file


def linear(zero, weights, bias=None, between=()):
    """Q → DQ → Gemm of a quantized linear, and what stands `between` it and the next Q → DQ, if there is one."""
    scale, rows = np.float32(0.05), np.full(8, 0.01, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["up.weight", "rows", "wz"], ["w"], axis=0),
        helper.make_node("Gemm", ["d", "w", *(["b"] if bias is not None else [])], ["g"], transB=1),
    ]
    last = "g"
    for name in between:
        nodes.append(helper.make_node(name, [last], [name]))
        last = name
    if between:
        nodes += [
            helper.make_node("QuantizeLinear", [last, "s", "z"], ["q2"]),
            helper.make_node("DequantizeLinear", ["q2", "s", "z"], ["y"]),
        ]
    else:
        nodes[-1].output[0] = "y"
    constants = {"s": scale, "z": zero, "up.weight": weights, "rows": rows, "wz": np.zeros(8, weights.dtype)}
    return nodes, constants | ({} if bias is None else {"b": bias})


UINT8, INT8 = np.uint8(128), np.int8(0)
WEIGHTS = np.eye(8, dtype=np.int8)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, ""),
        ({"bias": np.ones(8, np.float32)}, "a float bias, where QGemm wants"),
        ({"between": ["Relu"]}, "an activation that was fused in before"),
    ],
)
def test_a_float_linear_says_what_is_to_blame(tmp_path, arguments, why):
    nodes, constants = linear(UINT8, WEIGHTS, **arguments)
    (found,) = audit(save(tmp_path / "model.onnx", nodes, **constants)).linears
    assert (found.name, found.integer, found.stored) == ("up", not why, True)
    assert found.why.startswith(why)


@pytest.mark.parametrize(
    ("zero", "weights", "why"),
    [
        (UINT8, WEIGHTS.astype(np.uint8), "weights that are not int8"),
        (INT8, WEIGHTS, "inputs that are not uint8"),
        (UINT8, WEIGHTS, "a form for which"),
    ],
)
def test_what_is_to_blame_in_a_graph_that_was_left_as_it_is(tmp_path, zero, weights, why):
    """As another version of ONNX Runtime might leave it."""
    nodes, constants = linear(zero, weights)
    (found,) = read_graph(onnx.load(save(tmp_path / "model.onnx", nodes, **constants)).graph).linears
    assert found.why.startswith(why)


def test_an_input_that_is_not_quantized_is_to_blame(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w.weight", "rows", "wz"], ["w"], axis=0),
        helper.make_node("Gemm", ["x", "w"], ["y"], transB=1),
    ]
    constants = {"w.weight": np.eye(8, dtype=np.int8), "rows": np.ones(8, np.float32), "wz": np.zeros(8, np.int8)}
    (found,) = audit(save(tmp_path / "model.onnx", nodes, **constants)).linears
    assert (found.operator, found.why) == ("Gemm", "inputs that are not quantized")


def test_float_weights_are_no_mishap_and_cuda_that_is_not_to_be_had_is_an_error(tmp_path):
    export_graph(tiny_encoder(), tmp_path / "model.onnx", opset=20, pairs=False)
    with pytest.raises(EnvironmentProblem, match="CUDA was asked for"):
        profile(tmp_path / "model.onnx", vocabulary=50, longest=16, provider="cuda")
    found = audit(tmp_path / "model.onnx")
    assert (found.integer, found.float) == (0, 9) and {linear.why for linear in found.linears} == {"float weights"}
    assert not any(linear.stored for linear in found.linears)
    assert [linear.name for linear in found.linears][-2:] == ["layers.1.feedforward.down", "head.output"]
    assert found.fusions == {"Gelu": 2, "FusedMatMul": 2, "LayerNormalization": 5}
    assert found.casts == found.operators["Cast"] and not found.copies and not found.tables


def test_a_table_that_is_dequantized_before_its_rows_are_gathered_is_found(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["tokens.weight", "s", "z"], ["table"]),
        helper.make_node("Gather", ["table", "x"], ["y"]),
    ]
    table = np.ones((1024, 8), np.int8)
    constants = {"tokens.weight": table, "s": np.float32(0.1), "z": np.int8(0)}
    graph = onnx.load(save(tmp_path / "model.onnx", nodes, kind=TensorProto.INT64, **constants)).graph
    assert read_graph(graph).tables == ("tokens.weight",)


def test_an_audit_counts_its_nodes():
    found = Audit({"Gemm": 2, "Add": 3, "MemcpyToHost": 1, "MemcpyFromHost": 2})
    assert (found.nodes, found.copies, found.count("Gemm", "Add", "Mul")) == (8, 3, 5)


def test_a_profile_names_every_node_of_the_optimised_graph(tmp_path):
    export_graph(quantized(), tmp_path / "model.onnx", opset=20, pairs=False)
    audited, profiled = profile(tmp_path / "model.onnx", vocabulary=50, longest=16, shapes=((1, 4), (2, 16), (2, 64)))
    assert profiled.shapes == ((1, 4), (2, 16))  # no longer than the model's longest, and none twice
    assert Counter(node.operator for node in profiled.nodes) == audited.operators
    assert {node.provider for node in profiled.nodes} == {"cpu"} == {profiled.provider}
    assert {node.precision for node in profiled.nodes if node.operator == "QGemm"} == {"int8"}
    assert {node.precision for node in profiled.nodes if node.operator == "LayerNormalization"} == {"fp32"}
    assert all(len(node.microseconds) == 2 for node in profiled.nodes) and len(profiled.runs) == 2
    assert {linear.node for linear in audited.linears} <= {node.name for node in profiled.nodes}
    assert not profiled.fallen and not any(node.widens for node in profiled.nodes)


def test_casts_between_widths_are_told_from_others():
    events = run_event(event("a", "Cast", given="float", made="float16"), event("b", "Cast", given="int64"), event("c", "Add"))
    assert [node.widens for node in read_events(events, [0])] == [True, False, False]


def event(name, operator, provider="CPUExecutionProvider", microseconds=1, given="float", made="float"):
    args = {"op_name": operator, "provider": provider, "input_type_shape": [{given: [1]}], "output_type_shape": [{made: [1]}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def run_event(*nodes):
    return [*nodes, {"cat": "Session", "name": "model_run", "dur": 9, "args": {}}]


def test_events_become_nodes_with_a_time_a_shape():
    cuda = "CUDAExecutionProvider"
    runs = [
        run_event(event("g", "Gemm", cuda, 900, "float16", "float16"), event("s", "Shape", made="int64")),  # warms
        run_event(event("g", "Gemm", cuda, 4, "float16", "float16"), event("s", "Shape", made="int64")),
        run_event(event("g", "Gemm", cuda, 6, "float16", "float16"), event("s", "Shape", made="int64")),
        run_event(event("g", "Gemm", cuda, 20, "float16", "float16"), event("s", "Shape", made="int64")),
    ]
    first, second = read_events([{"cat": "Session", "name": "session_initialization"}, *itertools.chain(*runs)], [None, 0, 0, 1])
    assert first == Node("g", "Gemm", "cuda", "fp16", "fp16", (5.0, 20.0))
    assert (second.provider, second.precision) == ("cpu", "int64")


def test_a_node_in_a_loop_is_the_sum_of_its_turns():
    (node,) = read_events(run_event(event("m", "Mul", microseconds=2), event("m", "Mul", microseconds=3)), [0])
    assert node.microseconds == (5.0,)
