"""Every kind of module in an exported graph, against PyTorch, over lengths around its windows and blocks."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.audit import audit
from export.graph import export_graph, opset_for
from export.ort_attention import with_ort_attention
from tests.export.test_export import Session
from tests.model.tiny import batch, tiny_encoder

LONGEST = 70
HEADS = {"heads": 4, "head_width": 6}
ATTENTIONS = {
    "window": {"kind": "window", "window": 32, "global_tokens": 3, "key_value_heads": 2},
    "sparse_strided": {"kind": "sparse_strided", "stride": 8, "query_key_norm": True},
    "sparse_fixed": {"kind": "sparse_fixed", "stride": 8, "summary": 2},
    "sparse_bigbird": {"kind": "sparse_bigbird", "block": 8, "random_blocks": 1},
    "linformer": {"kind": "linformer", "length": LONGEST, "landmarks": 6, "key_value_heads": 1},
    "landmark": {"kind": "landmark", "landmarks": 8},
}
POSITIONS = {  # with each kind of attention, one that it may have
    "window": {"kind": "alibi"},
    "sparse_strided": {"kind": "t5", "buckets": 8, "distance": 12},
    "sparse_fixed": {"kind": "relative", "distance": 5},
    "sparse_bigbird": {"kind": "rotary", "extension": {"kind": "yarn", "factor": 2, "length": 16}},
    "linformer": {"kind": "learned", "length": 20},
    "landmark": {"kind": "sinusoidal"},
}
LENGTHS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 65, LONGEST]


def assert_agrees(encoder, file: Path) -> None:
    export_graph(encoder, file, opset=opset_for(encoder), pairs=False)
    session = Session(file)
    for longest in LENGTHS:
        ids, mask = batch([longest, 1, max(1, longest // 2)], seed=longest)
        found = session.logits({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, encoder(ids, mask).numpy(), atol=1e-4, err_msg=f"length {longest}")
    assert "SkipLayerNormalization" not in audit(file).operators


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_each_attention_with_a_kind_of_positions(kind, tmp_path):
    layers = {"count": 1, "attention": {**HEADS, **ATTENTIONS[kind]}, "feedforward": {"kind": "mlp", "neurons": 8}}
    assert_agrees(tiny_encoder(max_length=LONGEST, positions=POSITIONS[kind], layers=layers), tmp_path / "model.onnx")


@pytest.mark.parametrize("kind", ["window", "sparse_strided", "sparse_fixed", "sparse_bigbird"])
def test_graphs_for_long_texts_mix_few_heads_at_once(kind, tmp_path):
    layers = {"count": 1, "attention": {**HEADS, **ATTENTIONS[kind]}, "feedforward": {"kind": "mlp", "neurons": 8}}
    encoder = tiny_encoder(max_length=LONGEST, positions={"kind": "rotary"}, layers=layers)
    softmaxes = []
    for heads in (None, 2):
        encoder.layers[0].attention.at_once = heads
        assert_agrees(encoder, tmp_path / "model.onnx")
        softmaxes.append(sum(node.op_type == "Softmax" for node in onnx.load(tmp_path / "model.onnx").graph.node))
    assert softmaxes[1] == 2 * softmaxes[0]
    assert [tiny_encoder(max_length=length, layers=layers).layers[0].attention.at_once for length in (2048, 2049)] == [None, 2]


def test_what_is_left_in_one_encoder(tmp_path):
    """Batch norm, factorised embeddings, GLU, a base that grows with the text, no first norm; pre-norm."""
    window = {**HEADS, "kind": "window", "window": 8, "global_tokens": 0}
    layer = {"attention": window, "feedforward": {"kind": "glu", "neurons": 9, "activation": "sigmoid"}}
    encoder = tiny_encoder(
        max_length=LONGEST,
        positions={"kind": "rotary", "extension": {"kind": "dynamic", "factor": 2, "length": 16}},
        norm={"kind": "batchnorm"},
        norm_first=True,
        embedding_width=10,
        layers=[{**layer, "attention_norm": False}, {**layer, "attention": HEADS}],
    )
    assert_agrees(encoder, tmp_path / "model.onnx")


@pytest.mark.parametrize(("form", "most"), [(lambda model: model, 28), (with_ort_attention, 12)], ids=["standard", "ort"])
def test_dense_layers_cost_few_nodes(form, most, tmp_path):
    """After ONNX Runtime's own optimisation; each node costs a microsecond at batch 1."""
    nodes = []
    for count in (1, 2):
        layers = {"count": count, "attention": HEADS, "feedforward": {"kind": "mlp", "neurons": 8}}
        export_graph(form(tiny_encoder(layers=layers)), tmp_path / "model.onnx", opset=20, pairs=False)
        nodes.append(audit(tmp_path / "model.onnx").nodes)
    assert nodes[1] - nodes[0] <= most
