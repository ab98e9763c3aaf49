"""What ONNX Runtime will really run: read from its own optimised graph, not from ours.

A linear is a product with constant weights. It runs as integers only in certain operators; a graph full of QuantizeLinear may still
compute in float, slower than before, and nothing says so. Hence the gate.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime

from model.errors import GateError

INTEGER = ("QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QAttention")
FLOAT = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention")


@dataclass(frozen=True)
class Audit:
    """Counts of the optimised graph: `operators` by name, linears that run as `integer` and as `float`."""

    operators: dict[str, int]
    integer: int
    float: int

    @property
    def nodes(self) -> int:
        """Nodes in all: at batch 1 each costs some microseconds."""
        return sum(self.operators.values())


def audit(file: Path) -> Audit:
    """Optimise the graph in `file` as a CPU session of ONNX Runtime does, and count."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    constants = {tensor.name for tensor in graph.initializer}
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    operators = Counter(node.op_type for node in graph.node)
    integer = sum(node.op_type in INTEGER for node in graph.node)
    floating = sum(node.op_type in FLOAT and node.input[1] in constants | dequantized for node in graph.node)
    return Audit(dict(sorted(operators.items())), integer, floating)


def gate(found: Audit, *, integer: int, file: Path) -> None:
    """Raise GateError unless all of the `integer` linears that were quantized run as integers and no slow fusion came in."""
    if found.integer < integer:
        raise GateError(
            f"Only {found.integer} of {integer} quantized linears of {file.name} run as integers in ONNX Runtime {onnxruntime.__version__}.",
            "Another version of onnxruntime may have lost the fusion: install the pinned one (constraints.txt), or export without quantizing.",
        )
    if slow := found.operators.get("SkipLayerNormalization"):
        raise GateError(
            f"ONNX Runtime {onnxruntime.__version__} made {slow} SkipLayerNormalization nodes of {file.name}, which are slower than their parts.",
            "Install the pinned onnxruntime (constraints.txt).",
        )
