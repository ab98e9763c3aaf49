"""Files for a GPU: fp16 with what would overflow in fp32, and attention as ONNX Runtime's own operator; both run on the CPU here."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.config import ExportOptions
from compress.sources import open_source
from compress.stage import STAGES, run_stage
from export import half, parity
from export.graph import export_graph
from export.half import LIMIT, ranges, to_half
from export.ort_attention import with_ort_attention
from export.torch_predictor import open_torch_predictor
from model.artifact import seal
from model.checkpoint import save_model
from model.encoder import Encoder
from model.errors import ConfigError
from model.tokenizer import open_tokenizer
from serve.predictor import open_predictor
from tests.model.tiny import tiny_encoder
from tests.serve.tiny_graph import VOCABULARY


class Session:
    """The least that parity needs."""

    def __init__(self, file):
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def logits(self, batch):
        takes = {entry.name for entry in self.session.get_inputs()}
        return self.session.run(None, {name: array for name, array in batch.items() if name in takes})[0]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The fp32 exports of a tiny model, "standard" and "ort", and of a "large" one."""
    folder = tmp_path_factory.mktemp("graphs")
    models = {"standard": tiny_encoder(), "ort": with_ort_attention(tiny_encoder()), "large": large(tiny_encoder())}
    for name, model in models.items():
        export_graph(model, folder / name, opset=20, pairs=False)
    return folder


@pytest.fixture
def written(graphs, tmp_path):
    """`written(name)`: a copy of one of the graphs, to be changed."""
    return lambda name: Path(shutil.copy(graphs / name, tmp_path / "model.onnx"))


def large(model):
    """`model` with a first hidden layer far beyond fp16, and the same answers but for the activation."""
    feedforward = model.layers[0].feedforward
    with torch.no_grad():
        for parameter in feedforward.up.parameters():
            parameter.mul_(3e4)
        feedforward.down.weight.div_(3e4)
    return model


@pytest.mark.parametrize("attention", ["standard", "ort"])
def test_fp16_answers_as_pytorch_and_takes_and_gives_what_fp32_does(written, attention):
    model = tiny_encoder()
    file = written(attention)
    assert parity.compare(model, Session(file), pairs=False).difference < 1e-5
    assert to_half(file, parity.batches(model.config, pairs=False)) == []
    assert parity.compare(model, Session(file), pairs=False).signal_db > 50
    graph = onnx.load(file).graph
    assert {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {
        "input_ids": TensorProto.INT64,
        "attention_mask": TensorProto.INT64,
        "logits": TensorProto.FLOAT,
    }
    assert not [tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]


def test_what_would_overflow_stays_fp32_from_one_large_tensor_to_the_next(written):
    model = large(tiny_encoder())
    file = written("large")
    kept = to_half(file, parity.batches(model.config, pairs=False))
    graph = onnx.load(file).graph
    assert Counter(node.op_type for node in graph.node if node.name in kept) == {"Gemm": 2, "Gelu": 1}
    between = {name for node in graph.node if node.name in kept for name in node.output}
    casts = [node for node in graph.node if node.op_type == "Cast" and set(node.input) & between]
    assert len(casts) == 1  # back to fp16 at the end alone
    assert parity.compare(model, Session(file), pairs=False).signal_db > 50


def test_a_machine_that_really_computes_in_fp16_needs_the_scan(written, monkeypatch):
    """ONNX's reference evaluator does; ONNX Runtime's CPU provider computes in fp32 and would not notice."""
    model = large(tiny_encoder())
    batch = parity.batch_of((2, 9), 50, 0, pairs=False)
    expected = model(*(torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))).detach().numpy()

    def answers(given):
        file = written("large")
        to_half(file, given)
        with np.errstate(all="ignore"):
            return ReferenceEvaluator(str(file)).run(None, batch)[0]

    assert np.abs(answers(parity.batches(model.config, pairs=False)) - expected).max() < 0.05
    monkeypatch.setattr(half, "ranges", lambda model, batches: {})
    assert not np.isfinite(answers([])).all()


def test_ranges_are_those_of_the_tensors(written):
    graph = onnx.load(written("large"))
    found = ranges(graph, parity.batches(tiny_encoder().config, pairs=False))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    assert found["layers.0.feedforward.up.weight"] == np.abs(weights["layers.0.feedforward.up.weight"]).max()
    assert sum(most > LIMIT for most in found.values()) == 2  # before the activation and after
    assert found["logits"] < 100


def test_one_attention_node_a_layer(written):
    graph = onnx.load(written("ort")).graph
    nodes = [node for node in graph.node if node.op_type == "Attention"]
    assert [node.domain for node in nodes] == ["com.microsoft"] * 2
    assert not [node for node in graph.node if node.op_type == "Softmax"]


def test_what_the_operator_has_not_is_refused():
    with pytest.raises(ConfigError, match="has no rotary positions") as caught:
        with_ort_attention(tiny_encoder(positions={"kind": "rotary"}))
    assert caught.value.hint == "Export with --attention standard."


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A tiny torch artifact with a tokenizer."""
    folder = tmp_path_factory.mktemp("torch") / "tiny"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    open_tokenizer(folder, 16).save(folder)
    (folder / "vocab.txt").unlink()
    save_model(tiny_encoder(vocabulary=len(VOCABULARY)), folder, ["a", "b", "c"])
    seal(folder, kind="torch", stage="train", options={}, task="classification", labels=["a", "b", "c"], parents={}, data=None)
    return folder


def test_the_stage_writes_fp16_that_says_so(artifact, tmp_path):
    source = {"model": open_source(str(artifact), "torch")}
    options = ExportOptions(precision="fp16", attention="ort")
    outcome = run_stage(STAGES["export"], options, source, None, tmp_path / "half")
    assert outcome.manifest.metrics["fp32_nodes"] == []
    assert json.loads((tmp_path / "half" / "config.json").read_bytes())["dtype"] == "float16"
    predictor = open_predictor(tmp_path / "half")
    assert predictor.precision == "fp16"
    exact = open_torch_predictor(artifact, "torch")
    texts = ["good film", "a"]
    np.testing.assert_allclose(predictor.logits(predictor.encode(texts)), exact.logits(exact.encode(texts)), atol=0.05)


def test_a_quantized_model_is_not_made_fp16(tmp_path):
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1])],
        [numpy_helper.from_array(np.array(1, np.float32), "s")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="A quantized model cannot be exported in fp16"):
        to_half(tmp_path / "model.onnx", [])
    model = tiny_encoder()
    config = model.config.changed(quantization={"linears": ["layers.0.attention.qkv"], "embeddings": False})
    with pytest.raises(ConfigError, match="has no int8 weights"):
        with_ort_attention(Encoder(config))
