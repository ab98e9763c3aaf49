"""int8 for TensorRT: the form of the graph, its answers by ONNX Runtime's CPU, and what the gates make of it; no engine is built here."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from compress import ways
from compress.config import BenchmarkOptions
from compress.quantization import FakeQuantizedLinear
from compress.sources import Source
from export import graph, parity
from export.audit import as_written, audit
from export.graph import export_graph
from export.plan import elsewhere, gate, plan_of, problems
from model.artifact import open_artifact
from model.checkpoint import load_model, save_model
from model.errors import ConfigError, GateError
from model.quantized import QuantizedLinear
from tests.export.test_gpu_files import Session
from tests.export.tiny_int8 import quantized
from tests.model.tiny import batch
from tests.serve.tiny_graph import LABELS, write_artifact

OTHERS = {"norm": {"kind": "rmsnorm"}, "norm_first": True, "positions": {"kind": "rotary"}}


@pytest.fixture(scope="module")
def model():
    return quantized("tensorrt")


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    file = tmp_path_factory.mktemp("tensorrt") / "model.onnx"
    export_graph(model, file, opset=20, pairs=False)
    return file


def constants_of(graph):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_every_zero_point_is_an_int8_zero_and_every_bias_a_float(file):
    nodes, constants = onnx.load(file).graph.node, constants_of(onnx.load(file).graph)
    pairs = [node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 3 * 8  # an input's two and the weights' one for each linear, nothing for the biases
    for node in pairs:
        zero, scale = constants[node.input[2]], constants[node.input[1]]
        assert zero.dtype == np.int8 and not zero.any() and zero.shape == scale.shape and (scale > 0).all()
    gemms = [node for node in nodes if node.op_type == "Gemm"]
    assert len(gemms) == 9 and all(constants[node.input[2]].dtype == np.float32 for node in gemms)
    assert not [node.op_type for node in nodes if node.domain]  # TensorRT knows no com.microsoft
    assert constants["embeddings.tokens.weight"].dtype == np.float32


@pytest.mark.parametrize("changes", [{}, OTHERS])
def test_it_answers_as_pytorch(tmp_path, changes):
    model = quantized("tensorrt", **changes)
    export_graph(model, tmp_path / "model.onnx", opset=23 if changes else 20, pairs=False)
    assert parity.compare(model, Session(tmp_path / "model.onnx"), pairs=False).signal_db > 40


def test_a_linear_is_integer_arithmetic_around_zero():
    linear = torch.nn.Linear(13, 5)
    frozen = QuantizedLinear.from_linear(linear, 0.05, 0, "tensorrt")
    x = ((torch.randn(7, 13) * 4 / frozen.scale).round() + 0.2) * frozen.scale  # clear of the halves, some beyond the range
    bytes_in = np.clip(np.rint(x.double().numpy() / frozen.scale), -128, 127).astype(np.int64)
    sums = bytes_in @ frozen.weight.numpy().astype(np.int64).T
    expected = sums * frozen.scale * frozen.scales.double().numpy() + linear.bias.detach().double().numpy()
    np.testing.assert_allclose(frozen(x).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_ranges_are_symmetric_and_rounding_in_training_is_that_of_the_frozen_linear():
    fake = FakeQuantizedLinear(4, 2, "tensorrt")
    fake.activation.disable_fake_quant()
    fake(torch.tensor([[-1.0, 0.0, 2.0, 5.1]]))
    scale, zero_point = fake.activation.calculate_qparams()
    assert float(scale) == pytest.approx(5.1 / 127.5) and int(zero_point) == 0
    fake.activation.enable_fake_quant()
    fake.activation.disable_observer()
    frozen = QuantizedLinear.from_linear(fake, float(scale), 0, "tensorrt")
    x = torch.randn(9, 4) * 4
    torch.testing.assert_close(fake(x), frozen(x))


def test_the_scheme_is_kept_with_the_weights(model, tmp_path):
    save_model(model, tmp_path, ["a", "b", "c"])
    again = load_model(tmp_path)
    assert again.config.quantization.scheme == "tensorrt" and again.layers[0].feedforward.up.scheme == "tensorrt"
    ids, mask = batch([9, 4])
    with torch.no_grad():
        assert torch.equal(again(ids, mask), model(ids, mask))


def test_the_plan_promises_the_form_and_no_kernels_of_the_cpu(model, file):
    plan = plan_of(model.config)
    assert (plan.integer, plan.symmetric, plan.elsewhere, plan.scores, plan.nodes) == (0, 8, True, 0, None)
    gate(plan, as_written(file), file)
    ran = audit(file)
    assert (as_written(file).symmetric, ran.integer) == (8, 0)
    (note,) = elsewhere(plan, ran, "cpu")
    assert note.message.startswith("This is int8 for TensorRT: on cpu 8 of its 8 quantized linears run in float: layers.0.attention.qkv,")
    assert "ort-tensorrt" in note.hint and "--scheme cpu" in note.hint and not note.broken
    assert not list(elsewhere(plan_of(quantized().config), ran, "cpu"))


@pytest.mark.parametrize("lost", ["bias", "zero point", "type"])
def test_a_form_that_tensorrt_does_not_take_is_refused(model, file, tmp_path, lost):
    changed = onnx.load(file)
    constants = {tensor.name: tensor for tensor in changed.graph.initializer}
    gemm = next(node for node in changed.graph.node if node.op_type == "Gemm")
    quantize = next(node for node in changed.graph.node if node.op_type == "QuantizeLinear")
    if lost == "bias":
        tensor = constants[gemm.input[2]]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), tensor.name))
    else:
        wrong = np.array(7, np.int8) if lost == "zero point" else np.array(0, np.uint8)
        changed.graph.initializer.append(numpy_helper.from_array(wrong, "wrong"))
        quantize.input[2] = "wrong"
    onnx.save(changed, tmp_path / "model.onnx")
    with pytest.raises(GateError, match=r"Only 7 of 8 quantized linears are in the form that TensorRT runs as integers: int8 with zero"):
        gate(plan_of(model.config), as_written(tmp_path / "model.onnx"), tmp_path / "model.onnx")


def test_integer_biases_would_be_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_integer_biases", lambda model: None)  # what else it does is to write the zero points of weights
    export_graph(model, tmp_path / "model.onnx", opset=20, pairs=False)
    found = as_written(tmp_path / "model.onnx")
    assert next(problem.message for problem in problems(plan_of(model.config), found)).startswith("Only 0 of 8 quantized linears")


def exported(folder, **quantization):
    path = write_artifact(folder, config={"quantization": {"linears": ["layers.0.feedforward.up"], **quantization}} if quantization else {})
    return open_artifact(path)


def opened(artifact, *way, work):
    source = Source(artifact.path, artifact.path.name, artifact.digest, artifact)
    options = BenchmarkOptions(way=way, provider="cuda")
    return [one.way for one in ways.open_ways(options, {"model": source}, LABELS, work, pairs=False)]


def test_ways_of_an_exported_model(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "precision_of", lambda manifest: "int8")
    (way,) = opened(exported(tmp_path / "a", scheme="tensorrt"), "ort-tensorrt:int8", work=tmp_path)
    assert (way.engine, way.provider, way.precision, way.mode) == ("ort-tensorrt", "tensorrt", "int8", "TensorRT")
    assert way.factory == "serve.gpu:open_gpu_predictor" and way.arguments["way"] == "ort-tensorrt"
    said = r"b is int8 with uint8 activations, the CPU's scheme; TensorRT takes int8 around zero alone\."
    with pytest.raises(ConfigError, match=said) as error:
        opened(exported(tmp_path / "b", scheme="cpu"), "ort-tensorrt:int8", work=tmp_path)
    assert "Quantize the model with --scheme tensorrt" in error.value.hint
    monkeypatch.setattr(ways, "precision_of", lambda manifest: "fp32")
    found = opened(exported(tmp_path / "c"), "ort-tensorrt:fp16", "ort-tensorrt:bf16", "ort", work=tmp_path)
    assert [(way.engine, way.precision) for way in found] == [("ort-tensorrt", "fp16"), ("ort-tensorrt", "bf16"), ("ort", "fp32")]


def test_a_bias_and_its_type(file):
    kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer}
    assert TensorProto.INT32 not in kinds and TensorProto.UINT8 not in kinds
