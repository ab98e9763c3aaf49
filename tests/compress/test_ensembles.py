"""Two students in one file, by the command: what it says, what it is made of, and which cannot be together."""

import json

import numpy as np
import pytest

from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from serve.predictor import SINGLE, open_predictor, scores
from tests.compress.test_small_students import FAST, invoke, refused

TEXTS = ("a great great film", "the plot was dull and the music was grim", "it was", "")


@pytest.fixture(scope="module")
def beside(house, tmp_path_factory):
    """A folder with an int8 convolution of the same teacher, and its ensemble with an int8 encoder."""
    folder = tmp_path_factory.mktemp("beside")
    invoke("distill", house / "teacher", "--student", "convolution:16:8", "--data", house / "data", *FAST, "--out", folder / "convolution")
    invoke("quantize", folder / "convolution", "--data", house / "data", "--max-length", 24, "--out", folder / "quantized")
    invoke("export", house / "quantized", "--ensemble", folder / "quantized", "--out", folder / "both")
    return folder


def test_the_file_says_what_both_say_on_average(house, beside):
    apart = [scores(open_torch_predictor(path / "quantized", "torch"), TEXTS) for path in (house, beside)]
    predictor = open_predictor(beside / "both")
    assert np.abs(scores(predictor, TEXTS) - np.mean(apart, axis=0)).max() < 0.05 and predictor.precision == "int8"
    ones = [predictor.logits(predictor.encode([text]))[0] for text in TEXTS]
    assert (beside / "both" / SINGLE).is_file() and np.abs(ones - np.mean(apart, axis=0)).max() < 0.05


def test_it_knows_what_it_is_made_of(house, beside):
    manifest = open_artifact(beside / "both").manifest
    digests = [open_artifact(path / "quantized").digest for path in (house, beside)]
    assert [manifest.parents["model"], manifest.parents["ensemble-1"]] == digests
    parts = [open_artifact(path / "quantized").manifest.metrics["parameters"] for path in (house, beside)]
    assert manifest.metrics["parameters"] == sum(parts) and "validation" not in manifest.metrics
    assert f"the mean of what it and `{digests[1][:12]}` say" in (beside / "both" / "README.md").read_text()
    assert digests[1][:12] in invoke("inspect", beside / "both").stdout
    found = json.loads(invoke("audit", beside / "both", "--json").stdout)
    alone = json.loads(invoke("audit", house / "onnx", "--json").stdout)
    assert found["counts"]["layers"] == alone["counts"]["layers"] and found["plan"]["integer"] == alone["plan"]["integer"]
    assert invoke("predict", beside / "both", TEXTS[0]).stdout.startswith("good")


def test_the_order_is_part_of_it_and_the_same_command_makes_the_same(house, beside, tmp_path):
    before = open_artifact(beside / "both").digest
    invoke("export", house / "quantized", "--ensemble", beside / "quantized", "--out", tmp_path / "again")
    invoke("export", beside / "quantized", "--ensemble", house / "quantized", "--out", tmp_path / "other")
    assert open_artifact(tmp_path / "again").digest == before != open_artifact(tmp_path / "other").digest
    pair = [scores(open_predictor(path), TEXTS) for path in (beside / "both", tmp_path / "other")]
    assert np.allclose(*pair, atol=1e-3)


def test_what_cannot_be_together_is_refused_in_one_line(house, beside, tmp_path):
    out = ("--out", tmp_path / "out")
    error = refused("export", house / "quantized", "--ensemble", house / "onnx", *out)
    assert "is an exported model (of export)" in error.message
    given = ("--data", house / "data", *FAST[:-4], "--epochs", "0.1")
    invoke("distill", house / "teacher", "--student", "static:8", "--vocabulary", "unigram:50", *given, "--out", tmp_path / "own")
    error = refused("export", house / "quantized", "--ensemble", tmp_path / "own", *out)
    assert "does not read the tokens that" in error.message and "--vocabulary" in error.hint
    rows = [json.loads(line) for line in (house / "data" / "train.jsonl").read_text().splitlines()]
    renamed = [json.dumps({**row, "label": {"good": "yes", "bad": "no"}[row["label"]]}) for row in rows]
    (tmp_path / "renamed.jsonl").write_text("\n".join(renamed) + "\n")
    base = ("--base", house / "encoder.json", "--tokenizer", house / "tokenizer")
    invoke("train", tmp_path / "renamed.jsonl", *base, *given[2:], "--out", tmp_path / "renamed")
    error = refused("export", house / "quantized", "--ensemble", tmp_path / "renamed", *out)
    assert "has other labels (no, yes) than" in error.message
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_tags_have_no_mean(house, tmp_path):
    rows = [{"tokens": ["a", "good", str(number)], "tags": ["O", "B-X", "O"]} for number in range(60)]
    (tmp_path / "tags.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    base = ("--base", house / "encoder.json", "--tokenizer", house / "tokenizer")
    invoke("train", tmp_path / "tags.jsonl", *base, *FAST[:-4], "--epochs", "0.2", "--out", tmp_path / "tagger")
    error = refused("export", tmp_path / "tagger", "--ensemble", tmp_path / "tagger", "--out", tmp_path / "out")
    assert error.message == "Of the outputs of models for tagging there is no mean."
