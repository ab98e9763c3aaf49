"""The predictor against the same model in numpy; laws of batching; what a session really uses; what is refused."""

import importlib.metadata
import importlib.util

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ArtifactError, ConfigError, EnvironmentProblem
from serve.predictor import batches, open_predictor, predict, scores, unsealed_predictor
from serve.sessions import import_onnxruntime
from serve.tasks import probabilities
from tests.serve.tiny_graph import LABELS, LENGTH, reference, write_artifact, write_graph, write_model

TEXTS = ["good film.", "", "bad", "a " * 50, "film film good", "Ünïcode good", "x"]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("tiny") / "onnx")


@pytest.fixture(scope="module")
def predictor(artifact):
    return open_predictor(artifact)


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    return open_predictor(write_artifact(tmp_path_factory.mktemp("tiny") / "onnx", types=True))


def test_it_says_what_it_is(predictor):
    assert (predictor.labels, predictor.engine, predictor.provider, predictor.precision) == (LABELS, "ort", "cpu", "fp32")


def test_logits_are_those_of_the_model(predictor):
    batch = predictor.encode(TEXTS)
    assert set(batch) == {"input_ids", "attention_mask"}
    found = predictor.logits(batch)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), len(LABELS)))
    expected = [reference(encoding.ids) for encoding in predictor.tokenizer.ids(TEXTS)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_texts_are_cut_at_the_models_length(predictor):
    assert predictor.encode(["a " * 50])["input_ids"].shape == (1, LENGTH)


def test_types_are_fed_to_graphs_that_take_them(typed):
    assert typed.inputs == {"input_ids", "attention_mask", "token_type_ids"}
    encodings = typed.tokenizer.ids(["good", "a"], ["bad film", "b"])
    expected = [reference(encoding.ids, encoding.types) for encoding in encodings]
    np.testing.assert_allclose(scores(typed, ["good", "a"], ["bad film", "b"]), expected, atol=1e-6)
    single = [reference(encoding.ids, [0] * len(encoding.ids)) for encoding in typed.tokenizer.ids(TEXTS)]
    np.testing.assert_allclose(scores(typed, TEXTS), single, atol=1e-6)


def test_types_are_kept_from_graphs_that_do_not_take_them(predictor):
    expected = [reference(encoding.ids) for encoding in predictor.tokenizer.ids(["good", "a"], ["bad film", "b"])]
    np.testing.assert_allclose(scores(predictor, ["good", "a"], ["bad film", "b"]), expected, atol=1e-6)


@given(st.lists(st.text("go bad.", max_size=30), max_size=9), st.integers(1, 4))
def test_batches_and_order_change_nothing(predictor, texts, batch_size):
    alone = [scores(predictor, [text])[0] for text in texts]
    np.testing.assert_allclose(scores(predictor, texts, batch_size=batch_size), np.reshape(alone, (-1, 3)), atol=1e-6)


@given(st.lists(st.text("go bad.", max_size=30), min_size=1, max_size=9), st.integers(1, 400))
def test_long_texts_are_run_fewer_at_a_time(predictor, texts, most):
    expected = scores(predictor, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.predictor.LARGEST", most)
        np.testing.assert_allclose(scores(predictor, texts), expected, atol=1e-6)
        for batch in batches(predictor, texts):
            rows, tokens = batch["input_ids"].shape
            assert rows == 1 or rows * tokens**2 <= most


def test_predictions_name_the_likeliest_label(predictor):
    found = predict(predictor, TEXTS)
    assert len(found) == len(TEXTS)
    for prediction, logits in zip(found, scores(predictor, TEXTS), strict=True):
        expected = np.exp(logits) / np.exp(logits).sum()
        assert prediction.label == LABELS[logits.argmax()]
        assert tuple(prediction.probabilities) == LABELS
        assert list(prediction.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert prediction.probability == max(prediction.probabilities.values())


def test_no_texts_no_predictions(predictor):
    assert predict(predictor, []) == []
    assert scores(predictor, []).shape == (0, len(LABELS))


def test_probabilities_of_large_logits():
    found = probabilities(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32))
    assert found.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_precision_is_what_the_model_was_quantized_to(tmp_path):
    directory = write_model(tmp_path / "onnx", config={"quantization": {"linears": [], "embeddings": True}})
    assert unsealed_predictor(directory, LABELS).precision == "int8"


def test_threads_are_those_asked_for(artifact):
    options = open_predictor(artifact, threads=2).session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


# What is refused


def test_damage_is_found(tmp_path):
    directory = write_artifact(tmp_path / "onnx")
    content = bytearray((directory / "model.onnx").read_bytes())
    content[-1] ^= 1
    (directory / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged"):
        open_predictor(directory)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            {"inputs": {"attention_mask": "padding"}},
            r"takes input_ids, padding, where input_ids, attention_mask\[, token_type_ids\] were expected",
        ),
        ({"types": True, "inputs": {"token_type_ids": "segments"}}, "takes attention_mask, input_ids, segments, where"),
        ({"output": "embedding"}, "gives embedding, where its one output should be logits"),
    ],
    ids=["missing", "unknown", "no logits"],
)
def test_graphs_of_another_making(tmp_path, graph, message):
    directory = write_model(tmp_path / "onnx")
    write_graph(directory / "model.onnx", **graph)
    with pytest.raises(ArtifactError, match=message) as caught:
        unsealed_predictor(directory, LABELS)
    assert caught.value.hint == "Make it with `compress export`."


def test_as_many_logits_as_labels(tmp_path):
    with pytest.raises(ArtifactError, match="gives 3 logits a text, but its manifest has 2 labels"):
        open_predictor(write_artifact(tmp_path / "onnx", labels=("no", "yes")))


def test_a_graph_that_onnxruntime_cannot_run(tmp_path):
    directory = write_model(tmp_path / "onnx")
    (directory / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match=r"ONNX Runtime [\d.]+ cannot run .*model\.onnx: .*INVALID_PROTOBUF") as caught:
        unsealed_predictor(directory, LABELS)
    assert "Export the model again" in caught.value.hint


def test_an_unknown_provider(artifact):
    with pytest.raises(ConfigError, match=r"There is no provider 'tpu'\. Choose one of cpu, cuda"):
        open_predictor(artifact, "tpu")


# CUDA


def test_cuda_of_a_build_without_it(artifact, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(EnvironmentProblem, match=r"CUDA was asked for, but this build of ONNX Runtime .* has only the CPU") as caught:
        open_predictor(artifact, "cuda")
    assert "pip install 'alambic[gpu]'" in caught.value.hint
    assert "--allow-fallback" in caught.value.hint
    assert open_predictor(artifact, "cuda", allow_fallback=True).provider == "cpu"


class Session(onnxruntime.InferenceSession):
    """A session of the GPU build on a machine as `really` says; what it was asked for is in `asked`."""

    really: list[str]
    asked: list[str]

    def __init__(self, graph, options, providers):
        type(self).asked = providers
        print("EP Error: no libcublas")  # as ONNX Runtime does, on stdout
        super().__init__(graph, options, providers=[CPU])

    def get_providers(self):
        return self.really


@pytest.fixture
def gpu_build(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("preloaded"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)


def test_a_silent_fall_back_is_an_error(artifact, gpu_build, monkeypatch, capsys):
    monkeypatch.setattr(Session, "really", [CPU], raising=False)
    with pytest.raises(EnvironmentProblem, match=r"could not load it and would run on the CPU\.") as caught:
        open_predictor(artifact, "cuda")
    assert "CUDA 13 and cuDNN 9" in caught.value.hint
    assert Session.asked == [CUDA, CPU]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "preloaded" in printed.err
    assert "no libcublas" in printed.err
    assert open_predictor(artifact, "cuda", allow_fallback=True).provider == "cpu"


def test_cuda_that_works(artifact, gpu_build, monkeypatch, capsys):
    monkeypatch.setattr(Session, "really", [CUDA, CPU], raising=False)
    assert open_predictor(artifact, "cuda").provider == "cuda"
    monkeypatch.setattr(Session, "really", [CPU])
    assert open_predictor(artifact, "cpu").provider == "cpu"
    assert Session.asked == [CPU]
    assert "preloaded" not in capsys.readouterr().err.split("EP Error")[-1]


# The package itself


def test_both_packages_are_an_error(artifact, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.31.1")
    with pytest.raises(EnvironmentProblem, match="onnxruntime and onnxruntime-gpu are both installed") as caught:
        open_predictor(artifact)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in caught.value.hint


def test_no_package_is_an_error(artifact, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="needs ONNX Runtime, which is not installed") as caught:
        open_predictor(artifact)
    assert "'alambic[cpu]'" in caught.value.hint
    assert "'alambic[gpu]'" in caught.value.hint


def test_one_package_is_right():
    assert import_onnxruntime() is onnxruntime
