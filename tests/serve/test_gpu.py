"""Bound and fixed-shape predictors on the CPU against the plain one; what is asked of a GPU session, by fakes: nothing runs on a GPU."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ArtifactError, ConfigError, EnvironmentProblem
from serve.gpu import GraphPredictor, cuda_settings, open_gpu_predictor, open_plain_graph, tensorrt_settings
from serve.predictor import open_predictor, scores
from tests.serve.tiny_graph import CONFIG, LABELS, write_artifact

TEXTS = ["good film.", "", "bad", "a " * 50, "film film good", "x"]
TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


@pytest.fixture(scope="module")
def plain(artifact):
    return open_predictor(artifact)


@pytest.fixture(scope="module")
def fixed(plain):
    """Fixed shapes as of captured graphs, on the CPU."""
    inner = (plain.session, plain.inputs, plain.tokenizer, plain.labels, "cpu", "fp32")
    return GraphPredictor(*inner, engine="ort-cuda-graph", batches=(1, 4), lengths=(4, 8, 12))


@given(st.lists(st.text("go bad.", max_size=30), min_size=1, max_size=9))
def test_bound_and_padded_runs_give_the_plain_answers(plain, fixed, artifact, texts):
    expected = plain.logits(plain.encode(texts))
    bound = open_gpu_predictor(artifact, "ort-iobinding", "cpu")
    np.testing.assert_allclose(bound.logits(bound.encode(texts)), expected, atol=1e-6)
    np.testing.assert_allclose(fixed.logits(fixed.encode(texts)), expected, atol=1e-6)
    assert len(fixed.buckets) <= 6


def test_each_bucket_has_a_graph_of_its_own_and_keeps_its_memory(plain, fixed, monkeypatch):
    asked = []

    class Options(onnxruntime.RunOptions):
        def add_run_config_entry(self, key, value):
            asked.append((key, value))
            super().add_run_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "RunOptions", Options)
    fixed.buckets.clear()
    for _ in range(2):
        for text in ("a", "good film. good film."):
            fixed.logits(fixed.encode([text]))
    assert asked == [("gpu_graph_id", "1"), ("gpu_graph_id", "2")]
    assert list(fixed.buckets) == [(1, 4), (1, 8)]


def test_a_bucket_is_not_shared_by_two_threads_at_once(plain, fixed):
    rows = [text for text in ("good", "bad", "film", "x") for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: fixed.logits(fixed.encode([text]))[0], rows))
    np.testing.assert_allclose(found, scores(plain, rows), atol=1e-6)


def test_a_text_beyond_the_largest_bucket(fixed):
    ids = np.ones((1, 13), np.int64)
    with pytest.raises(ConfigError, match="There is no bucket for 13 tokens; the largest has 12"):
        fixed.logits({"input_ids": ids, "attention_mask": ids})


def test_device_time_is_a_time(fixed, artifact):
    bound = open_gpu_predictor(artifact, "ort-iobinding", "cpu")
    for predictor in (fixed, bound):
        assert 0 < predictor.device_seconds(predictor.encode(["good film"])) < 10


def test_a_graph_without_a_manifest(artifact):
    bare = open_plain_graph(artifact, LABELS, CONFIG["max_length"], "ort-iobinding")
    assert (bare.engine, bare.labels) == ("ort-iobinding", LABELS)
    np.testing.assert_allclose(scores(bare, TEXTS), scores(open_predictor(artifact), TEXTS), atol=1e-6)


# What a GPU session is asked for


class Session(onnxruntime.InferenceSession):
    """A session of the GPU build on a machine as `really` says; what it was asked for is in `asked`."""

    really: list[str]
    asked: list[object]
    fails = ""

    def __init__(self, graph, options, providers):
        type(self).asked = providers
        if self.fails:
            raise RuntimeError(self.fails)
        super().__init__(graph, options, providers=[CPU])

    def get_providers(self):
        return self.really


@pytest.fixture
def gpu(monkeypatch):
    """A build of ONNX Runtime with everything, on a machine where all of it loads."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(Session, "really", [CUDA, CPU], raising=False)
    return Session


def test_fp32_on_cuda_is_fp32_and_tf32_is_asked_for(artifact, gpu):
    assert open_gpu_predictor(artifact, "ort").precision == "fp32"
    assert gpu.asked == [(CUDA, {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}), CPU]
    assert open_gpu_predictor(artifact, "ort-iobinding", precision="tf32").precision == "tf32"
    assert gpu.asked[0][1]["use_tf32"] == "1"


def test_captured_graphs_are_asked_for_and_cover_the_models_lengths(artifact, gpu):
    predictor = open_gpu_predictor(artifact, "ort-cuda-graph")
    assert gpu.asked[0][1]["enable_cuda_graph"] == "1"
    assert (predictor.engine, predictor.provider, predictor.lengths) == ("ort-cuda-graph", "cuda", (CONFIG["max_length"],))


def test_a_graph_that_cannot_be_captured_says_what_to_do(artifact, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "fails", "This session cannot use the graph capture feature as requested by the user")
    with pytest.raises(ConfigError, match="cannot use the graph capture") as caught:
        open_gpu_predictor(artifact, "ort-cuda-graph")
    assert "`compress audit` names those that are not" in caught.value.hint
    monkeypatch.setattr(gpu, "fails", "no such operator")
    with pytest.raises(ArtifactError, match="no such operator"):
        open_gpu_predictor(artifact, "ort-cuda-graph")


def test_tensorrt_has_profiles_and_caches(artifact, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "really", [TENSORRT, CUDA, CPU])
    predictor = open_gpu_predictor(artifact, "ort-tensorrt", precision="bf16", cache=tmp_path / "engines")
    (name, settings), *rest = gpu.asked
    assert (name, rest, predictor.provider, predictor.precision) == (TENSORRT, [CUDA, CPU], "tensorrt", "bf16")
    assert settings["trt_bf16_enable"] == settings["trt_engine_cache_enable"] == "1"
    assert settings["trt_profile_max_shapes"] == "input_ids:128x512,attention_mask:128x512"
    assert Path(settings["trt_engine_cache_path"]).is_dir()
    typed = write_artifact(tmp_path / "pairs", types=True, data={"pairs": True})
    open_gpu_predictor(typed, "ort-tensorrt", cache=tmp_path / "engines")
    assert "token_type_ids:1x1" in gpu.asked[0][1]["trt_profile_min_shapes"]


def test_tensorrt_that_did_not_load_is_an_error(artifact, gpu, tmp_path):
    with pytest.raises(EnvironmentProblem, match="TensorRT was asked for, but ONNX Runtime could not load it") as caught:
        open_gpu_predictor(artifact, "ort-tensorrt", cache=tmp_path)
    assert "TensorRT 10" in caught.value.hint


def test_int8_on_cuda_is_refused_with_the_reason(tmp_path, gpu, monkeypatch):
    directory = write_artifact(tmp_path / "onnx", config={"quantization": {"linears": ["layers.0.feedforward.up"], "embeddings": False}})
    for way in ("ort", "ort-cuda-graph"):
        with pytest.raises(ConfigError, match=r"is int8, for which ONNX Runtime's CUDA provider has no kernels: .* with copies\."):
            open_gpu_predictor(directory, way)
    monkeypatch.setattr(gpu, "really", [TENSORRT, CUDA, CPU])
    gpu.asked = None
    said = "with uint8 activations and zero points, the CPU's scheme; TensorRT takes int8 around zero"
    with pytest.raises(ConfigError, match=said) as caught:
        open_gpu_predictor(directory, "ort-tensorrt", cache=tmp_path / "engines")
    assert "quantized with --scheme tensorrt" in caught.value.hint and gpu.asked is None  # no engine was built for it
    monkeypatch.setattr(gpu, "really", [CPU])
    assert open_predictor(directory).precision == "int8"


def test_int8_by_tensorrt_takes_its_own_scheme_alone(artifact, tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "really", [TENSORRT, CUDA, CPU])
    quantization = {"scheme": "tensorrt", "linears": ["layers.0.feedforward.up"], "embeddings": False}
    symmetric = write_artifact(tmp_path / "onnx", config={"quantization": quantization})
    for precision in ("int8", ""):
        predictor = open_gpu_predictor(symmetric, "ort-tensorrt", precision=precision, cache=tmp_path / "engines")
        assert (predictor.provider, predictor.precision) == ("tensorrt", "int8")
        assert gpu.asked[0][1]["trt_int8_enable"] == gpu.asked[0][1]["trt_fp16_enable"] == "1"
    with pytest.raises(ConfigError, match=r"is exported in int8 and cannot run in bf16 by the way ort-tensorrt\."):
        open_gpu_predictor(symmetric, "ort-tensorrt", precision="bf16", cache=tmp_path / "engines")
    gpu.asked = None
    with pytest.raises(ConfigError, match=r"is exported in fp32 and cannot run in int8 by the way ort-tensorrt\.") as caught:
        open_gpu_predictor(artifact, "ort-tensorrt", precision="int8", cache=tmp_path / "engines")
    assert "--scheme tensorrt" in caught.value.hint and gpu.asked is None
    monkeypatch.setattr(gpu, "really", [CUDA, CPU])
    with pytest.raises(ConfigError, match="is int8, for which ONNX Runtime's CUDA provider has no kernels"):
        open_gpu_predictor(symmetric, "ort")
    with pytest.raises(EnvironmentProblem, match="TensorRT was asked for"):
        open_gpu_predictor(symmetric, "ort-tensorrt", precision="int8", cache=tmp_path / "engines")
    monkeypatch.setattr(gpu, "really", [CPU])
    assert open_predictor(symmetric).precision == "int8"


def test_a_table_in_int8_is_nothing_that_tensorrt_computes_in_int8(tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(gpu, "really", [TENSORRT, CUDA, CPU])
    table = write_artifact(tmp_path / "onnx", config={"quantization": {"linears": [], "embeddings": True}})
    open_gpu_predictor(table, "ort-tensorrt", cache=tmp_path / "engines")
    assert "trt_int8_enable" not in gpu.asked[0][1]


def test_a_file_runs_in_its_own_precision(artifact, tmp_path):
    with pytest.raises(ConfigError, match=r"is exported in fp32 and cannot run in fp16 by the way ort\. Export it with --precision fp16"):
        open_gpu_predictor(artifact, "ort", "cpu", "fp16")
    half = write_artifact(tmp_path / "half")
    values = json.loads((half / "config.json").read_bytes())
    assert values.get("dtype") is None
    with pytest.raises(ConfigError, match="There is no way ort-magic"):
        open_gpu_predictor(artifact, "ort-magic", "cpu")


def test_settings_are_strings_as_onnxruntime_wants_them(tmp_path):
    for settings in (cuda_settings("tf32", graphs=True), tensorrt_settings("fp16", tmp_path, ("input_ids",))):
        assert all(isinstance(value, str) for value in settings.values())
