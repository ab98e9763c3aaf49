"""Models of transformers: as they are, and through our exporter."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

from compress.config import BenchmarkOptions
from compress.sources import open_source
from compress.ways import open_ways, read_way
from export.foreign import export_foreign, foreign_labels, open_foreign, pooling_of
from model.errors import ConfigError, EnvironmentProblem
from model.pretrained import longest
from serve.gpu import open_plain_graph
from serve.predictor import scores
from tests.compress.chain import write_tokenizer

TEXTS = ["the film was good", "awful", "a very very dull plot and music", ""]
LABELS = ("bad", "good")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny BertForSequenceClassification, with its pooler, as save_pretrained writes it."""
    folder = write_tokenizer(tmp_path_factory.mktemp("foreign") / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
    config = BertConfig(vocab_size=200, num_labels=2, id2label=dict(enumerate(LABELS)), initializer_range=0.3, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def graph(directory, tmp_path_factory):
    return export_foreign(directory, tmp_path_factory.mktemp("graph") / "out")


def test_it_runs_as_transformers_runs_it_and_its_export_agrees(directory, graph):
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    eager = open_foreign(directory, LABELS)
    batch = eager.encode(TEXTS)
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    np.testing.assert_allclose(eager.logits(batch), expected, atol=1e-6)
    exported = open_plain_graph(graph.parent, LABELS, longest(directory), "ort-iobinding")
    np.testing.assert_allclose(scores(exported, TEXTS), expected, atol=1e-5)
    assert (eager.engine, exported.engine) == ("transformers", "ort-iobinding")


def test_pairs_have_their_types(directory):
    eager = open_foreign(directory, LABELS)
    assert eager.encode(["good"], ["bad film"])["token_type_ids"].max() == 1


def test_device_time_and_bf16_on_the_cpu(directory):
    half = open_foreign(directory, LABELS, precision="bf16")
    batch = half.encode(TEXTS)
    np.testing.assert_allclose(half.logits(batch), open_foreign(directory, LABELS).logits(batch), atol=0.1)
    assert 0 < half.device_seconds(batch) < 10


@pytest.mark.parametrize(
    ("names", "wanted", "said"),
    [
        (["bad", "good"], ["good", "bad"], ["bad", "good"]),
        (["LABEL_0", "LABEL_1"], ["bad", "good"], ["bad", "good"]),
        (["LABEL_0", "LABEL_1"], ["bad", "fine", "good"], "knows the classes LABEL_0, LABEL_1, but the data has bad, fine, good"),
        (["no", "yes"], ["bad", "good"], "knows the classes no, yes, but the data has bad, good"),
    ],
)
def test_its_classes_are_those_of_the_data(tmp_path, names, wanted, said):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(names))}))
    if isinstance(said, list):
        assert foreign_labels(tmp_path, wanted) == said
    else:
        with pytest.raises(ConfigError, match=said):
            foreign_labels(tmp_path, wanted)


def test_what_is_no_classifier(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="is no classifier: its config.json names no classes"):
        foreign_labels(tmp_path, LABELS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": {"0": "bad", "1": "good"}}))
    with pytest.raises(ConfigError, match="transformers cannot load"):
        open_foreign(tmp_path, LABELS)


def test_cuda_without_a_gpu_is_an_error(directory, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match=r"CUDA was asked for, but PyTorch .* sees no GPU"):
        open_foreign(directory, LABELS, provider="cuda")
    with pytest.raises(ConfigError, match="fp16 is for GPUs"):
        open_foreign(directory, LABELS, precision="fp16")


def test_its_ways(directory, tmp_path):
    sources = {"bert": open_source(str(directory))}
    opened = open_ways(BenchmarkOptions(way=("transformers", "ort")), sources, LABELS, tmp_path, pairs=False)
    eager, exported = (one.way for one in opened)
    assert (eager.name, eager.factory, eager.arguments["labels"]) == ("bert-transformers", "export.foreign:open_foreign", list(LABELS))
    assert (exported.name, exported.mode) == ("bert-ort", "graph")
    assert open_plain_graph(**exported.arguments).labels == LABELS
    assert opened[0].facts["bytes"] > 1000 and opened[0].facts["digest"] == sources["bert"].digest
    with pytest.raises(ConfigError, match="the way torch is for artifacts of alambic"):
        open_ways(BenchmarkOptions(way=("torch",)), sources, LABELS, tmp_path, pairs=False)
    with pytest.raises(ConfigError, match="its export takes single texts, not pairs"):
        open_ways(BenchmarkOptions(way=("ort",)), sources, LABELS, tmp_path, pairs=True)


OTHERS = {"regression": ("SequenceClassification", 1), "multilabel": ("SequenceClassification", 3), "tagging": ("TokenClassification", 5)}


@pytest.mark.parametrize("task", [*OTHERS, "embedding"])
def test_other_tasks_as_transformers_runs_them_and_exported(tmp_path, task):
    folder = write_tokenizer(tmp_path / task)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
    head, count = OTHERS.get(task, ("", 2))
    config = BertConfig(vocab_size=200, num_labels=count, initializer_range=0.3, **sizes)
    model = getattr(transformers, f"BertFor{head}" if head else "BertModel")(config).eval()
    model.save_pretrained(folder)
    labels = {"regression": ["score"], "embedding": []}.get(task, [f"name {number}" for number in range(count)])
    assert foreign_labels(folder, labels, task) == labels
    eager = open_foreign(folder, labels, task=task)
    texts = TEXTS[:3]
    batch = eager.tokenize(texts, None)
    with torch.no_grad():
        given = model(**{name: batch[name] for name in batch if name != "words"})
    if task == "embedding":
        mask = batch["attention_mask"][:, :, None]
        pooled = (given.last_hidden_state * mask).sum(1) / mask.sum(1)
        expected = (pooled / pooled.norm(dim=1, keepdim=True)).numpy()
    else:
        expected = given.logits.numpy()
    np.testing.assert_allclose(eager.logits(batch), expected, atol=1e-6)
    graph = export_foreign(folder, tmp_path / "graph", task)
    exported = open_plain_graph(graph.parent, labels, longest(folder), task=task)
    np.testing.assert_allclose(scores(exported, texts), scores(eager, texts), atol=1e-4)
    ways = open_ways(
        BenchmarkOptions(way=("transformers", "ort")), {"bert": open_source(str(folder))}, labels, tmp_path, pairs=False, task=task
    )
    assert [one.way.arguments["task"] for one in ways] == [task, task]


def test_the_pooling_is_what_sentence_transformers_wrote(tmp_path):
    assert pooling_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert pooling_of(tmp_path) == "cls"
    file.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="asks for pooling_mode_max_tokens") as caught:
        pooling_of(tmp_path)
    assert "pooling_mode_mean_tokens, pooling_mode_cls_token" in caught.value.hint


def test_a_task_that_transformers_is_not_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="Models of transformers are not measured here for guessing"):
        foreign_labels(tmp_path, [], "guessing")


@pytest.mark.parametrize(
    ("text", "provider", "said"),
    [
        ("onnx", "cpu", "There is no way onnx to run a model"),
        ("ort:fp8", "cuda", "ort does not run in fp8"),
        ("ort:bf16", "cuda", r"ort does not run in bf16 \(its CUDA kernels for bf16 are few\)"),
        ("ort-cuda-graph:int8", "cuda", "on the CUDA provider int8 falls back to it, with copies"),
        ("ort-cuda-graph", "cpu", "The way ort-cuda-graph needs a GPU"),
        ("torch:tf32", "cpu", "The way torch:tf32 needs a GPU"),
        ("ort-tensorrt:int8", "cpu", "The way ort-tensorrt:int8 needs a GPU"),
    ],
)
def test_ways_that_do_not_exist_or_do_not_fit(text, provider, said):
    with pytest.raises(ConfigError, match=said):
        read_way(text, provider)


def test_ways_with_a_precision():
    assert read_way("ort-tensorrt:bf16", "cuda") == ("ort-tensorrt", "bf16")
    assert read_way("ort-tensorrt:int8", "cuda") == ("ort-tensorrt", "int8")
    assert read_way("torch", "cpu") == ("torch", "")
