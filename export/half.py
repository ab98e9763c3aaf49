"""An exported graph in fp16: whatever would leave fp16's range over the scan stays in fp32, and so do inputs and outputs.

fp16 ends at 65,504 (IEEE 754-2008, binary16). The scan runs the fp32 graph and looks at every tensor in it; real texts may go beyond
what was scanned, hence the margin. Nothing else would find them here: on the CPU ONNX Runtime computes an fp16 file in fp32.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, shape_inference

from model.errors import ConfigError
from model.tokenizer import Batch

LIMIT = 65504.0
MARGIN = 4.0


def to_half(file: Path, batches: Iterable[Batch]) -> list[str]:
    """Rewrite the fp32 graph in `file` as fp16 and return the names of the nodes that stay in fp32, those that touch a large tensor.

    `batches` are what the scan runs. Raises ConfigError if the graph has quantized parts.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(file)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise ConfigError("A quantized model cannot be exported in fp16.", "Export the model that it was quantized from.")
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    wide = {name for name, most in ranges(model, batches).items() if most * MARGIN > LIMIT}
    kept = [node.name for node in model.graph.node if wide & {*node.input, *node.output}]
    half = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    del half.graph.value_info[:]
    _join(half)
    _sort(half)
    onnx.checker.check_model(half)
    file.write_bytes(half.SerializeToString(deterministic=True))
    return kept


def _join(model: ModelProto) -> None:
    """Let fp32 nodes that follow each other hand on fp32: the converter puts a cast to fp16 and one back between them."""
    graph = model.graph
    casts = {node.output[0]: (node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast"}
    straight = {
        name: casts[source][0]
        for name, (source, kind) in casts.items()
        if kind == TensorProto.FLOAT and source in casts and casts[source][1] == TensorProto.FLOAT16
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = straight.get(name, name)
    for _ in range(2):  # the casts back, then the casts that only those had read
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]:
            graph.node.remove(node)


def _sort(model: ModelProto) -> None:
    """Put every node after those that it needs: the casts around fp32 nodes were appended."""
    graph = model.graph
    waiting, known = list(graph.node), {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    ordered = []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        waiting = [node for node in waiting if not known.issuperset(node.input)]
        known.update(name for node in ready for name in node.output)
        ordered += ready
    del graph.node[:]
    graph.node.extend(ordered)


def ranges(model: ModelProto, batches: Iterable[Batch]) -> dict[str, float]:
    """The largest magnitude of every float32 tensor of `model`: weights and, over `batches`, activations (infinite if one is no number)."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {
        name: float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0))
        for name, tensor in constants.items()
        if tensor.data_type == TensorProto.FLOAT
    }
    watched = ModelProto()
    watched.CopyFrom(model)
    typed = {value.name: value.type.tensor_type.elem_type for value in shape_inference.infer_shapes(model).graph.value_info}
    names = [name for node in model.graph.node for name in node.output if typed.get(name, TensorProto.FLOAT) == TensorProto.FLOAT]
    outputs = {value.name for value in model.graph.output}
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # else tensors are fused away
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    takes = {entry.name for entry in session.get_inputs()}
    for batch in batches:
        for name, array in zip(names, session.run(names, {key: value for key, value in batch.items() if key in takes}), strict=True):
            most = float(np.abs(array).max(initial=0))
            found[name] = max(found.get(name, 0.0), most if np.isfinite(most) else np.inf)
    return found
