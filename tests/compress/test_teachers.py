"""Teachers of other makers: as one of ours, head and all, where our encoder can be it; by their answers alone where it cannot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from click.testing import CliRunner

from compress.cli import cli
from compress.data import load_data
from compress.sources import open_source
from compress.teachers import foreign_ask, open_teacher
from model.artifact import open_artifact
from model.errors import AlambicError, ConfigError, DataError
from tests.compress.chain import SMALL, write_data, write_encoder, write_tokenizer
from tests.model.tiny import shake

TEXTS = ["good film", "a dull and awful scene", "the plot was great"]
SIZES = {"vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}


def write_teacher(folder: Path, *, known: bool) -> torch.nn.Module:
    """A random classifier of transformers whose labels stand the other way round; `known`: of a family that we read."""
    write_tokenizer(folder)
    labels = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    if known:
        model = hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=90, dim=24, n_layers=2, n_heads=4, hidden_dim=40, **labels)
        )
    else:
        model = hf.MPNetForSequenceClassification(hf.MPNetConfig(**SIZES, **labels))
    shake(model)
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    write_data(folder / "data")
    write_encoder(folder / "encoder.json", layers=2)
    return folder


def distill(folder: Path, teacher: Path, *arguments: object, out: str) -> None:
    command = ["distill", teacher, "--data", folder / "data", "--train-texts", 48, *SMALL, *arguments, "--out", folder / out]
    done = CliRunner().invoke(cli, [str(argument) for argument in command], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output


def test_a_family_that_we_read_becomes_one_of_ours(folder):
    model = write_teacher(folder / "distilbert", known=True)
    teacher = open_teacher(open_source(str(folder / "distilbert")), load_data(str(folder / "data")))
    assert (teacher.task, teacher.labels) == ("classification", ["bad", "good"])
    ids = torch.randint(5, 60, (3, 9))
    assert torch.allclose(teacher.model(ids, torch.ones_like(ids)), model(ids).logits[:, [1, 0]], atol=1e-5)
    distill(folder, folder / "distilbert", "--depth", 1, out="own")
    manifest = open_artifact(folder / "own").manifest
    assert manifest.labels == ["bad", "good"] and manifest.metrics["student_layers"] == [1]


def test_any_other_teaches_by_its_answers(folder):
    model = write_teacher(folder / "mpnet", known=False)
    teacher = open_teacher(open_source(str(folder / "mpnet")), load_data(str(folder / "data")))
    assert teacher.model is None
    found = foreign_ask(teacher, TEXTS, None, 24)([0, 1, 2])["teacher_logits"]
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "mpnet")
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(text, return_tensors="pt")).logits[0, [1, 0]]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    write_tokenizer(folder / "base")
    hf.BertModel(hf.BertConfig(**SIZES, max_position_embeddings=32)).save_pretrained(folder / "base")
    distill(folder, folder / "mpnet", "--base", folder / "base", "--hidden", 0, "--depth", 1, out="taught")
    manifest = open_artifact(folder / "taught").manifest
    assert manifest.labels == ["bad", "good"] and set(manifest.parents) == {"base", "teacher"}
    with pytest.raises(ConfigError, match=r"can teach, but our encoder cannot be it.* --base minilm"):
        distill(folder, folder / "mpnet", "--hidden", 0, out="x")
    with pytest.raises(ConfigError, match=r"This teacher shows no hidden states. Give --hidden 0"):
        distill(folder, folder / "mpnet", "--base", folder / "base", out="x")


def test_a_student_with_a_base_of_its_own_learns_from_our_teacher(folder):
    write_teacher(folder / "again", known=True)
    distill(folder, folder / "again", "--depth", 2, out="teacher")
    distill(folder, folder / "teacher", "--base", folder / "again", "--depth", 1, out="student")
    assert open_artifact(folder / "student").manifest.metrics["student_layers"] == [1]
    tokens = ("--hidden-states", "tokens")
    distill(folder, folder / "teacher", "--base", folder / "again", *tokens, out="alike")  # the same tokenizer
    file = folder / "again" / "tokenizer.json"
    rules = json.loads(file.read_text())
    rules["model"]["vocab"]["more"] = len(rules["model"]["vocab"])
    file.write_text(json.dumps(rules))
    with pytest.raises(ConfigError, match="Tokens are to be compared, but the student and the teacher have tokenizers of their own"):
        distill(folder, folder / "teacher", "--base", folder / "again", *tokens, out="y")


def test_other_labels_are_refused(folder):
    write_teacher(folder / "other", known=True)
    path = folder / "other" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    with pytest.raises(DataError, match=r"The labels of .* \(LABEL_0, LABEL_1\) are not those of data \(bad, good\)") as error:
        open_teacher(open_source(str(folder / "other")), load_data(str(folder / "data")))
    assert "id2label" in error.value.hint
    with pytest.raises(AlambicError):
        distill(folder, folder / "encoder.json", out="x")
