"""What ONNX Runtime will really run: read from its own optimised graph, not from ours.

A linear is a product with constant weights. It runs as integers only in certain operators; a graph full of QuantizeLinear may still
compute in float, slower than before, and nothing says so. `export.plan` says what was promised, `export.profile_run` what it costs.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from serve.sessions import open_session

# Operator → where its weights stand among its inputs.
INTEGER = {
    "QGemm": 3,
    "QLinearMatMul": 3,
    "MatMulIntegerToFloat": 1,
    "MatMulInteger": 1,
    "DynamicQuantizeMatMul": 1,
    "QAttention": 1,
}
FLOAT = {"Gemm": 1, "FusedGemm": 1, "MatMul": 1, "FusedMatMul": 1, "Attention": 1}

SKIPS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
ATTENTION = ("Attention", "MultiHeadAttention", "PackedAttention", "GroupQueryAttention", "QAttention")
FUSIONS = (
    "Gelu",
    "BiasGelu",
    "FastGelu",
    "QuickGelu",
    "FusedMatMul",
    "FusedGemm",
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "RMSNormalization",
    "EmbedLayerNormalization",
    *SKIPS,
    *ATTENTION,
)
COPIES = ("MemcpyToHost", "MemcpyFromHost")
LARGE = 4096  # elements: a table, not a vector of scales


@dataclass(frozen=True)
class Linear:
    """A linear as it is run: the `name` of its module, its `node` and `operator`, and of a float one what is to blame (`why`).

    `stored` tells whether its weights are integers: then float was not what anybody wanted. `symmetric`: inputs and weights are int8
    around zero and the bias is float, the form in which TensorRT runs it as integers.
    """

    name: str
    node: str
    operator: str
    integer: bool
    stored: bool
    why: str = ""
    symmetric: bool = False


@dataclass(frozen=True)
class Audit:
    """The optimised graph: `operators` by name, the `linears`, and the `tables` that every run dequantizes whole."""

    operators: Mapping[str, int]
    linears: tuple[Linear, ...] = ()
    tables: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        """Nodes in all: at batch 1 each costs some microseconds."""
        return sum(self.operators.values())

    @property
    def integer(self) -> int:
        """Linears that run as integers."""
        return sum(linear.integer for linear in self.linears)

    @property
    def float(self) -> int:
        """Linears that run in float."""
        return len(self.linears) - self.integer

    @property
    def symmetric(self) -> int:
        """Linears in the form that TensorRT runs as integers."""
        return sum(linear.symmetric for linear in self.linears)

    @property
    def casts(self) -> int:
        """Nodes that change a type."""
        return self.count("Cast")

    @property
    def copies(self) -> int:
        """Copies between the memories of host and device."""
        return self.count(*COPIES)

    @property
    def fusions(self) -> dict[str, int]:
        """Nodes that stand for several, by operator."""
        return {name: self.operators[name] for name in FUSIONS if name in self.operators}

    def count(self, *operators: str) -> int:
        """Nodes of any of these operators."""
        return sum(self.operators.get(name, 0) for name in operators)


def audit(file: Path, provider: str = "cpu") -> Audit:
    """Optimise the graph in `file` as a session of ONNX Runtime on `provider` does, and look; raises as `open_session` does."""
    with tempfile.TemporaryDirectory() as folder:
        open_session(file, provider, record=Path(folder))[0].end_profiling()
        return read_graph(onnx.load(Path(folder) / "optimized.onnx", load_external_data=False).graph)


def as_written(file: Path) -> Audit:
    """The graph in `file` before anybody optimises it: all that can be said here of a file for another machine."""
    return read_graph(onnx.load(file, load_external_data=False).graph)


def read_graph(graph: GraphProto) -> Audit:
    """Count and judge the nodes of a graph."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    dequantized = {
        node.output[0]: constants[node.input[0]] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    linears = []
    for node in graph.node:
        place = INTEGER.get(node.op_type, FLOAT.get(node.op_type))
        weights = None if place is None or place >= len(node.input) else node.input[place]
        tensor = weights and (constants.get(weights) or dequantized.get(weights))
        if tensor:
            integer, stored = node.op_type in INTEGER, weights in dequantized
            why = "" if integer else _why(node, tensor, constants, makers) if stored else "float weights"
            name = tensor.name.partition(".weight")[0] if ".weight" in tensor.name else node.name
            symmetric = stored and not integer and _symmetric(node, constants, makers)
            linears.append(Linear(name, node.name, node.op_type, integer, stored or integer, why, symmetric))
    readers = {name for node in graph.node if node.op_type == "Gather" for name in node.input[:1]}
    tables = tuple(tensor.name for output, tensor in dequantized.items() if output in readers and prod(tensor.dims) >= LARGE)
    return Audit(dict(sorted(Counter(node.op_type for node in graph.node).items())), tuple(linears), tables)


def _symmetric(node: NodeProto, constants: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> bool:
    """Whether a product of two DequantizeLinear has int8 around zero on both sides, and a float bias if any."""
    sides = [makers.get(name) for name in node.input[:2]]
    quantize = makers.get(sides[0].input[0]) if sides[0] else None
    if any(part is None or not part.op_type.endswith("quantizeLinear") or len(part.input) < 3 for part in sides):
        return False
    zeros = [constants.get(part.input[2]) for part in (*sides, quantize) if part and len(part.input) > 2]
    plain = len(zeros) == 3 and all(zero and zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any() for zero in zeros)
    bias = constants.get(node.input[2]) if len(node.input) > 2 else None
    return plain and (len(node.input) < 3 or bool(bias and bias.data_type == TensorProto.FLOAT))


def _why(node: NodeProto, weights: TensorProto, constants: Mapping[str, TensorProto], makers: Mapping[str, NodeProto]) -> str:
    """Why a linear with integer weights was left in float: the first of the known reasons that holds."""
    activation = makers.get(node.input[0])
    if activation is None or activation.op_type != "DequantizeLinear":
        return "inputs that are not quantized"
    if weights.data_type != TensorProto.INT8:
        return "weights that are not int8"
    zero = constants.get(activation.input[2]) if len(activation.input) > 2 else None
    if zero is None or zero.data_type != TensorProto.UINT8:
        return "inputs that are not uint8 with a zero point in writing"
    if node.op_type == "FusedGemm":
        return "an activation that was fused in before"
    if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in constants:
        return "a float bias, where QGemm wants int32 with the scale of the products"
    return "a form for which ONNX Runtime has no integer kernel"
