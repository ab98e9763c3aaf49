"""A tiny exported model made by hand: the mean of the tokens' embeddings, then one linear; and the same in numpy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from model.artifact import seal
from model.tokenizer import open_tokenizer

LABELS = ("bad", "fine", "good")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", ".", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
LENGTH = 12
CONFIG = {
    "vocabulary": len(VOCABULARY),
    "width": 4,
    "token_types": 2,
    "layers": [{"attention": {"heads": 1, "head_width": 4}, "feedforward": {"kind": "mlp", "neurons": 4}}],
    "head": {"labels": len(LABELS)},
    "max_length": LENGTH,
}

_random = np.random.default_rng(7)
TABLE, TYPES, WEIGHT, BIAS = (_random.normal(size=size).astype(np.float32) for size in ((len(VOCABULARY), 4), (2, 4), (4, 3), (3,)))


def reference(ids: list[int], types: list[int] | None = None) -> np.ndarray:
    """Logits [labels] of one text without padding; `types` where the graph takes them."""
    embedded = TABLE[ids] + (0 if types is None else TYPES[types])
    return embedded.mean(axis=0) @ WEIGHT + BIAS


def write_graph(file: Path, *, types: bool = False, inputs: dict[str, str] | None = None, output: str = "logits") -> None:
    """`inputs` and `output` rename what the graph takes and gives."""
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    called = {name: (inputs or {}).get(name, name) for name in names}
    typed = [helper.make_node("Gather", ["type_table", called.get("token_type_ids", "")], ["typed"])]
    typed.append(helper.make_node("Add", ["token", "typed"], ["x"]))
    nodes = [
        helper.make_node("Gather", ["table", called["input_ids"]], ["token"]),
        *(typed if types else [helper.make_node("Identity", ["token"], ["x"])]),
        helper.make_node("Cast", [called["attention_mask"]], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "one"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weight", "bias"], [output]),
    ]
    constants = {"table": TABLE, "weight": WEIGHT, "bias": BIAS, "last": np.array([-1]), "one": np.array([1])}
    constants |= {"type_table": TYPES} if types else {}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(called[name], TensorProto.INT64, ["batch", "length"]) for name in names],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


def write_model(directory: Path, *, config: dict[str, Any] | None = None, **graph: Any) -> Path:
    """All of an exported model but its manifest."""
    directory.mkdir(parents=True)
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    open_tokenizer(directory, LENGTH).save(directory)
    (directory / "vocab.txt").unlink()
    (directory / "config.json").write_text(json.dumps({"model_type": "alambic", "alambic": CONFIG | (config or {})}), encoding="utf-8")
    write_graph(directory / "model.onnx", **graph)
    return directory


def write_artifact(directory: Path, *, labels: tuple[str, ...] = LABELS, data: dict[str, Any] | None = None, **model: Any) -> Path:
    """An exported model that can be opened; `data` is what its manifest knows of its training data."""
    write_model(directory, **model)
    seal(directory, kind="onnx", stage="export", options={}, task="classification", labels=list(labels), parents={}, data=data)
    return directory
