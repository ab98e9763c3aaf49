"""Checkpoints of other makers with heads of their own: exported, asked and measured, against transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from datasets import Dataset

from compress.bases import open_whole
from compress.lessons import questions
from compress.sources import open_source
from export.foreign import export_foreign, foreign_labels, open_foreign
from model.artifact import open_artifact
from model.pretrained import longest, own_head
from serve.gpu import open_plain_graph
from serve.predictor import open_predictor, scores
from tests.compress.chain import BAD, GOOD, write_tokenizer
from tests.compress.test_cli import run
from tests.compress.test_pretraining import report
from tests.model.tiny import shake

SIZES = {"vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "pad_token_id": 0}
CHECKPOINTS = {
    "bert": (hf.BertForMaskedLM, {"max_position_embeddings": 32}),
    "bert-pretraining": (hf.BertForPreTraining, {"max_position_embeddings": 32}),
    "roberta": (hf.RobertaForMaskedLM, {"max_position_embeddings": 34, "type_vocab_size": 1}),
    "electra": (hf.ElectraForPreTraining, {"max_position_embeddings": 32, "embedding_size": 12}),
    "classifier": (hf.BertForSequenceClassification, {"max_position_embeddings": 32, "id2label": {0: "bad", 1: "good"}}),
    "mpnet": (hf.MPNetForMaskedLM, {"max_position_embeddings": 34}),
    "body": (hf.BertModel, {"max_position_embeddings": 32}),
}
TEXTS = {"masked": ["good [MASK] good bad", "[MASK] film was [MASK]"], "replaced": ["the film was dull", "good"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A directory for each of CHECKPOINTS, and data/ with plain text."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (kind, changes) in CHECKPOINTS.items():
        model = kind(kind.config_class(**{**SIZES, **changes}))
        shake(model)
        model.eval().save_pretrained(write_tokenizer(folder / name))
    (folder / "data").mkdir()
    for part in ("train", "validation", "test"):
        rows = [json.dumps({"text": f"the {good} film was {bad} {part}"}) + "\n" for good in GOOD for bad in BAD]
        (folder / "data" / f"{part}.jsonl").write_text("".join(rows))
    return folder


def said(folder: Path, name: str, batch: dict[str, np.ndarray]) -> np.ndarray:
    """What transformers' own model gives for a batch, [B, S, outputs]."""
    model = CHECKPOINTS[name][0].from_pretrained(folder / name).eval()
    with torch.no_grad():
        found = model(**{key: torch.as_tensor(batch[key]) for key in batch if key != "words"})
    logits = found.prediction_logits if name == "bert-pretraining" else found.logits
    return (logits if logits.ndim == 3 else logits[..., None]).numpy()


@pytest.mark.parametrize(
    ("name", "task"), [("bert", "masked"), ("bert-pretraining", "masked"), ("roberta", "masked"), ("electra", "replaced")]
)
def test_our_encoder_is_the_whole_model_head_and_all(folder, name, task):
    model, labels = open_whole(open_source(str(folder / name), "torch"))
    assert (model.config.head.kind, labels) == own_head(folder / name) == (task, ["replaced"] if task == "replaced" else [])
    ids = torch.randint(5, 80, (3, 32), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(32) < torch.tensor([32, 7, 1])[:, None]
    expected = said(folder, name, {"input_ids": ids, "attention_mask": mask.long()})
    np.testing.assert_allclose(model(ids, mask.long()).detach()[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize(("name", "task"), [("bert", "masked"), ("electra", "replaced")])
def test_exported_and_asked_as_they_are_they_say_what_transformers_says(capsys, folder, name, task):
    code, _, err = run(capsys, "export", folder / name, "--out", folder / f"{name}-onnx")
    assert code == 0, err
    manifest = open_artifact(folder / f"{name}-onnx").manifest
    onnx, eager = open_predictor(folder / f"{name}-onnx"), open_foreign(folder / name, manifest.labels, task=task)
    batch = eager.encode(TEXTS[task])
    expected, real = said(folder, name, batch), batch["attention_mask"].numpy().astype(bool)
    np.testing.assert_allclose(eager.logits(batch)[real], expected[real], atol=1e-5)
    np.testing.assert_allclose(onnx.logits(onnx.encode(TEXTS[task]))[real], expected[real], atol=1e-4)
    assert onnx.labels == eager.labels and len(eager.labels) == (90 if task == "masked" else 1)
    asked, answered = (json.loads(run(capsys, "predict", folder / there, TEXTS[task][0], "--json")[1]) for there in (name, f"{name}-onnx"))
    if task == "masked":
        place = int(batch["words"][0, 0])
        assert asked["masks"][0][0]["token"] == eager.labels[int(expected[0, place].argmax())]
        assert [guess["token"] for guess in asked["masks"][0]] == [guess["token"] for guess in answered["masks"][0]]
    else:
        assert asked["probabilities"] == pytest.approx(1 / (1 + np.exp(-expected[0, 1:5, 0])), abs=1e-5)
        assert answered["probabilities"] == pytest.approx(asked["probabilities"], abs=1e-4)


def test_a_classifier_whose_data_nobody_knows_takes_texts_and_pairs(capsys, folder):
    run(capsys, "export", folder / "classifier", "--out", folder / "classes")
    onnx, eager = open_predictor(folder / "classes"), open_foreign(folder / "classifier", ["bad", "good"])
    assert onnx.labels == ("bad", "good") and "token_type_ids" in onnx.inputs
    for texts, pairs in ((["good film"], None), (["good film", "a"], ["bad plot", "very good music"])):
        np.testing.assert_allclose(scores(onnx, texts, pairs), scores(eager, texts, pairs), atol=1e-4)
    assert run(capsys, "predict", folder / "classifier", "good film") == run(capsys, "predict", folder / "classes", "good film")


def test_a_benchmark_measures_models_of_any_family_as_transformers_runs_them(folder):
    found = report(folder, folder / "mpnet")
    assert (found["task"], [model["engine"] for model in found["models"]]) == ("masked", ["transformers", "ort"])
    assert [one["agreement"] for one in found["comparisons"]] == [1]
    rows = [json.loads(line) for line in (folder / "data" / "test.jsonl").read_text().splitlines()]
    right: list[bool] = []
    for lesson in questions("masked", Dataset.from_list(rows), [], {"mpnet": open_source(str(folder / "mpnet"))}, 0).truth:
        batch = {"input_ids": np.array([lesson.ids]), "attention_mask": np.ones((1, len(lesson.ids)), np.int64)}
        right += (said(folder, "mpnet", batch)[0, lesson.places].argmax(1) == np.array(lesson.right)).tolist()
    assert [model["quality"]["masked_accuracy"] for model in found["models"]] == pytest.approx([np.mean(right)] * 2)


def test_the_discriminator_as_transformers_has_it_is_exported_for_a_benchmark(folder, tmp_path):
    labels = foreign_labels(folder / "electra", ["replaced"], "replaced")
    graph = export_foreign(folder / "electra", tmp_path / "graph", "replaced")
    exported = open_plain_graph(graph.parent, labels, longest(folder / "electra"), task="replaced")
    eager = open_foreign(folder / "electra", labels, task="replaced")
    np.testing.assert_allclose(scores(exported, TEXTS["replaced"]), scores(eager, TEXTS["replaced"]), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "mpnet"), "has model_type 'mpnet', which cannot be read; known: bert, roberta"),
        (("export", "body"), "has no head of its own that is known here: its config.json names BertModel as its model"),
        (("export", "data"), "data has no manifest.json: it is no artifact"),
        (("prune", "bert", "--data", "data"), "bert is not an alambic artifact"),
        (("predict", "body", "good"), "has no head of its own that is known here: its config.json names BertModel as its model"),
        (("predict", "classifier", "--backbone", "bert", "good"), "classifier has no backbone: it is whole"),
        (("benchmark", "bert", "electra", "--data", "data"), "electra is no masked language model (…ForMaskedLM), by its config.json"),
        (("benchmark", "electra", "bert", "--data", "data"), "bert is no discriminator of ELECTRA (ElectraForPreTraining), by its config"),
        (("benchmark", "classifier", "--data", "data"), "data is a set for text, which is not trained here"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, folder, arguments, message):
    command, *rest = arguments
    places = [folder / value if (folder / value).is_dir() else value for value in rest]
    code, out, err = run(capsys, command, *places, *(() if command == "predict" else ("--out", folder / "never")))
    assert (code, out) == (2, "") and err.count("Error: ") == 1 == err.count("Hint: ") and message in err, err
    assert not list(folder.glob("never*"))
