"""Teachers of other makers: as one of ours, head and all, where our encoder can be it; by their answers alone where it cannot."""

import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import transformers as hf
from click.testing import CliRunner

from compress.cli import cli
from compress.config import DistillOptions
from compress.data import load_data
from compress.distillation import hidden_loss
from compress.losses import divergence
from compress.recipe import read_recipe
from compress.sources import numbered, open_source, several
from compress.students import inherit
from compress.teachers import foreign_ask, open_teacher, open_teachers
from compress.teaching import lessons, texts_for
from model.artifact import open_artifact
from model.errors import AlambicError, ConfigError, DataError
from model.tokenizer import open_tokenizer
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


@pytest.fixture
def ensemble(tmp_path):
    """Two random classifiers, one of a family that we read, as transformers runs them, and the data."""
    torch.manual_seed(3)
    models = [write_teacher(tmp_path / "first", known=True), write_teacher(tmp_path / "second", known=False)]
    write_data(tmp_path / "data")
    return tmp_path, models


def test_an_ensemble_teaches_the_mean_of_its_logits_and_the_states_of_the_first(ensemble):
    folder, models = ensemble
    data = load_data(str(folder / "data"))
    teachers = open_teachers({"also-1": open_source(str(folder / "second")), "teacher": open_source(str(folder / "first"))}, data)
    options = DistillOptions(max_length=32, train_texts=12, cache=str(folder / "cache"))
    texts = texts_for(options, data, "classification", ["bad", "good"], folder / "first")
    student = inherit(teachers[0].model, [1], 0.0)
    corpus, _ = lessons(student, open_tokenizer(folder / "first", 32, typed=student.config.typed), teachers, texts, options)
    rows = [7, 0, 11]
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "first")
    with torch.no_grad():
        given = tokenizer([texts.part["text"][row] for row in rows], padding=True, return_tensors="pt")
        said = [model(**given).logits[:, [1, 0]] for model in models]
        states = models[0](**given, output_hidden_states=True).hidden_states[-1]
    batch = corpus.batch(rows)
    torch.testing.assert_close(batch["teacher_logits"], (said[0] + said[1]) / 2, atol=1e-5, rtol=1e-5)
    mask = given["attention_mask"].unsqueeze(-1)
    torch.testing.assert_close(batch["teacher_states"][:, 0], (states * mask).sum(1) / mask.sum(1), atol=2e-3, rtol=2e-3)  # float16


def test_an_ensemble_that_runs_along_teaches_the_same(ensemble):
    folder, (model, _) = ensemble
    other = write_teacher(folder / "third", known=True)
    data = load_data(str(folder / "data"))
    teachers = open_teachers({"teacher": open_source(str(folder / "first")), "also-1": open_source(str(folder / "third"))}, data)
    options = DistillOptions(max_length=32, train_texts=12, hidden_states="tokens", hidden=1.0, temperature=3.0)
    texts = texts_for(options, data, "classification", ["bad", "good"], folder / "first")
    student = inherit(teachers[0].model, [1], 0.0)
    corpus, objective = lessons(student, open_tokenizer(folder / "first", 32, typed=student.config.typed), teachers, texts, options)
    batch = corpus.batch([3, 8])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        said, states = student.states(ids, mask)
        target = (model(ids, mask).logits + other(ids, mask).logits)[:, [1, 0]] / 2
        deepest = model(ids, mask, output_hidden_states=True).hidden_states[-1]
        expected = divergence(said, target, 3.0) + hidden_loss(states[0][mask.bool()], deepest[mask.bool()])
        torch.testing.assert_close(objective(student, batch), expected, atol=1e-5, rtol=1e-5)


def test_an_ensemble_from_the_command_line(ensemble):
    folder, _ = ensemble
    write_teacher(folder / "third", known=True)
    also = ("--also", folder / "second", "--also", folder / "third")
    distill(folder, folder / "first", *also, "--depth", 1, out="student")
    manifest = open_artifact(folder / "student").manifest
    assert set(manifest.parents) == {"teacher", "also-1", "also-2"}
    pruned = ["prune", folder / "student", "--data", folder / "data", "--heads", 1, *SMALL, *also, "--out", folder / "pruned"]
    with pytest.raises(ConfigError, match="--also names more teachers, but there is no first one. Give --teacher too"):
        CliRunner().invoke(cli, [str(argument) for argument in pruned], catch_exceptions=False, standalone_mode=False)
    with pytest.raises(ConfigError, match=r"Tokens are to be compared, but .*second teaches by its answers alone"):
        distill(folder, folder / "first", *also, "--hidden-states", "tokens", "--depth", 1, out="x")
    recipe = folder / "recipe.toml"
    stage = f'[[stage]]\nrun = "distill"\nteacher = "{folder / "first"}"\ndepth = 1\nout = "again"\nmax_length = 32\n'
    recipe.write_text(f'data = "{folder / "data"}"\n{stage}also = ["{folder / "second"}", "{folder / "third"}"]\n')
    assert read_recipe(str(recipe)).steps[0].sources == {
        "teacher": str(folder / "first"),
        "also-1": str(folder / "second"),
        "also-2": str(folder / "third"),
    }
    recipe.write_text(recipe.read_text().replace("also =", "base ="))
    with pytest.raises(ConfigError, match="stage 1: base is a list; distill takes one"):
        read_recipe(str(recipe))


def test_vectors_of_an_ensemble_are_of_one_width():
    teachers = [SimpleNamespace(task="embedding", model=SimpleNamespace(config=SimpleNamespace(vector_width=width))) for width in (24, 32)]
    with (
        mock.patch("compress.teachers.open_teacher", side_effect=teachers),
        pytest.raises(ConfigError, match="The teachers give vectors of 24 and 32 numbers. Give teachers of one width"),
    ):
        open_teachers({"teacher": mock.Mock(), "also-1": mock.Mock()}, mock.Mock())


def test_other_labels_are_refused(folder):
    write_teacher(folder / "other", known=True)
    path = folder / "other" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    with pytest.raises(DataError, match=r"The labels of .* \(LABEL_0, LABEL_1\) are not those of data \(bad, good\)") as error:
        open_teacher(open_source(str(folder / "other")), load_data(str(folder / "data")))
    assert "id2label" in error.value.hint
    with pytest.raises(AlambicError):
        distill(folder, folder / "encoder.json", out="x")


def test_the_teachers_of_an_ensemble_keep_their_order():
    roles = several("also", [f"runs/{number}" for number in range(12)])
    assert numbered("also", [*reversed(roles), "teacher", "also", "also-final"]) == list(roles)
