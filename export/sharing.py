"""One graph's weights kept in another's file: a second graph of the same model then costs its nodes alone.

An ONNX graph may say of a tensor that its bytes lie in another file, from an offset on; that file may be any, a graph with its weights
inside included. ONNX Runtime maps it into memory.
"""

from pathlib import Path

import onnx
from onnx import TensorProto

LEAST = 1024  # bytes: smaller tensors stay where they are


def share_weights(graph: Path, holder: Path) -> int:
    """Let `graph` find its weights in `holder`, a file beside it, wherever that has the same bytes; gives the bytes that are shared."""
    model, content = onnx.load(graph), holder.read_bytes()
    shared = 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        place = content.find(tensor.raw_data) if size >= LEAST else -1
        if place < 0:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", holder.name), ("offset", place), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        shared += size
    graph.write_bytes(model.SerializeToString(deterministic=True))
    return shared
