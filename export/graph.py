"""An encoder as an ONNX graph: torch.export, then the rewrites that let ONNX Runtime run it well.

Inputs `input_ids`, `attention_mask` (and `token_type_ids` for pairs), int64 [batch, length], both dynamic; a graph for one text at a time
takes no `attention_mask`, and its batch is 1. Output `logits`, float32 [batch, labels], for tagging [batch, length, labels], or
`embedding` [batch, width]. Standard operators only.
"""

import io
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from model.build import Model
from model.encoder import Encoder
from serve.tasks import OUTPUTS

OPSET = 20  # below, GELU becomes a pattern that ONNX Runtime does not fuse
OPSET_RMSNORM = 23  # from here on RMSNorm is one operator


def opset_for(model: Model) -> int:
    """The lowest operator set in which every part of `model` is one operator that ONNX Runtime runs fast."""
    if not isinstance(model, Encoder):
        return OPSET
    config = model.config
    rmsnorm = config.norm.kind == "rmsnorm" or any(layer.attention.query_key_norm for layer in config.layers)
    return OPSET_RMSNORM if rmsnorm else OPSET


def export_graph(model: Model, file: Path, *, opset: int, pairs: bool, single: bool = False) -> None:
    """Write `model` to `file`, with every weight inside; the same model gives the same bytes. `single`: for one text at a time."""
    inputs = ("input_ids", *(() if single else ("attention_mask",)), *(("token_type_ids",) if pairs else ()))
    output, longest = OUTPUTS[model.config.head.kind], model.config.max_length
    export_module(model, file, opset=opset, inputs=inputs, output=output, longest=longest, single=single)


def export_module(
    module: nn.Module, file: Path, *, opset: int, inputs: Sequence[str], output: str, longest: int, single: bool = False
) -> None:
    """`export_graph` for any module that takes `inputs`, int64 [batch, length] of at most `longest` tokens, and gives one tensor."""
    length = longest  # as long as can be: a text of one block would be taken for a rule
    example = {name: torch.ones(1 if single else 2, length, dtype=torch.int64) for name in inputs}
    axes = {1: torch.export.Dim("length", min=2, max=longest)} | ({} if single else {0: torch.export.Dim("batch", min=1, max=65536)})
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations
            program = torch.onnx.export(
                module.eval(),
                (),
                kwargs=example,
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=["the_output"],
                dynamic_shapes=dict.fromkeys(inputs, axes),
                verbose=False,
            )
            assert program is not None
            graph = program.model_proto
    finally:
        quiet.setLevel(level)
    _call_output(graph, output)
    _integer_biases(graph)
    _anonymous(graph)
    onnx.checker.check_model(graph, full_check=True)
    file.write_bytes(graph.SerializeToString(deterministic=True))


def _call_output(model: ModelProto, name: str) -> None:
    """Give the graph's one output `name`, which the exporter may have given to a value inside."""
    graph = model.graph
    renamed = {graph.output[0].name: name, name: f"{name}_inside"}
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]
        node.output[:] = [renamed.get(value, value) for value in node.output]
    graph.output[0].name = name


def _integer_biases(model: ModelProto) -> None:
    """Give the Gemms of quantized linears an int32 bias with the scale of their products, and every zero point in writing.

    Only then does ONNX Runtime run them as QGemm; with a float bias or an implied zero point they silently stay float. TensorRT, whose
    activations are int8, wants the float bias: there the zero points alone are written.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def dequantized(name: str) -> NodeProto | None:
        node = makers.get(name)
        while node is not None and node.op_type in ("Transpose", "Identity"):
            node = makers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    nodes: list[NodeProto] = []
    stems: set[str] = set()
    for node in graph.node:
        activation, weight = (dequantized(name) for name in node.input[:2]) if node.op_type == "Gemm" else (None, None)
        if activation is not None and weight is not None and (len(node.input) == 2 or node.input[2] in constants):
            stem = node.input[2] if len(node.input) > 2 else f"{node.output[0]}_bias"
            if stem in stems:  # the exporter keeps one of two equal biases, whose linears have scales of their own
                stem = f"{node.output[0]}_bias"
            stems.add(stem)
            if len(weight.input) == 2:
                rows = constants[weight.input[1]].dims
                graph.initializer.append(numpy_helper.from_array(np.zeros(rows, np.int8), f"{stem}_weight_zero"))
                weight.input.append(f"{stem}_weight_zero")
            if constants[activation.input[2]].data_type == TensorProto.INT8:
                nodes.append(node)
                continue
            scale_x, scale_w = (numpy_helper.to_array(constants[part.input[1]]) for part in (activation, weight))
            scale = (scale_x.astype(np.float64) * scale_w.astype(np.float64).reshape(-1)).astype(np.float32)
            if len(node.input) == 2:  # the exporter leaves out a bias of zeros
                node.input.append(stem)
                bias = np.zeros_like(scale)
            else:
                bias = numpy_helper.to_array(constants[node.input[2]])
            limits = np.iinfo(np.int32)
            integers = np.clip(np.round(bias / scale.astype(np.float64)), limits.min, limits.max).astype(np.int32)
            parts: dict[str, np.ndarray] = {"int32": integers, "scale": scale, "zero": np.zeros_like(integers)}
            graph.initializer.extend(numpy_helper.from_array(array, f"{stem}_{name}") for name, array in parts.items())
            inputs = [f"{stem}_int32", f"{stem}_scale", f"{stem}_zero"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{stem}_dequantized"], axis=0))
            node.input[2] = f"{stem}_dequantized"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept: list[TensorProto] = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _anonymous(model: ModelProto) -> None:
    """Drop what the exporter notes about the source (stack traces with paths): it differs between machines and helps nobody."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
