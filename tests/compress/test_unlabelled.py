"""Text without labels: read, split, cleaned of what is measured on; learnt from through the teacher; the stages that take it."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from compress.cli import cli
from compress.data import load_data
from compress.distillation import objective
from compress.losses import supervised
from compress.unlabelled import load_unlabelled, split_sentences
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ArtifactError, ConfigError, DataError
from tests.compress.chain import SMALL, write_data, write_texts
from tests.model.tiny import batch, tiny_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unlabelled")
    write_data(folder / "data")
    write_texts(folder / "more.jsonl", 300, seed=9)
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return load_data(str(folder / "data"))


def write(path: Path, *texts: str) -> str:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def test_what_is_measured_on_and_what_is_there_already_is_left_out(data, tmp_path):
    measured, known = data.splits["test"]["text"][0], data.splits["train"]["text"][0]
    file = write(tmp_path / "more.txt", "A new one!", f"  {measured.upper()} !!", known.replace(" ", ",  "), "a new one", "", "another")
    found = load_unlabelled([file], data)
    assert found.texts == ("A new one!", "another")
    assert found.dropped == {"in validation or test": 1, "in train": 1, "twice": 1}
    assert found.words() == "2 texts without labels from more (left out: 1 in validation or test, 1 in train, 1 twice)"


def test_formats_columns_folders_and_sets(data, tmp_path, monkeypatch):
    rows = [{"text": "one", "text_b": "two", "body": "three", "label": "x"}, {"text": "four", "text_b": None, "body": "five"}]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    write(tmp_path / "lines.txt", "six")
    (tmp_path / "test.csv").write_text("text\nmeasured elsewhere\n")
    assert load_unlabelled([str(tmp_path / "rows.jsonl.gz")], data).texts == ("one", "four", "two")
    assert load_unlabelled([str(tmp_path / "rows.jsonl.gz")], data, column="body").texts == ("three", "five")
    assert set(load_unlabelled([str(tmp_path)], data).texts) == {"one", "two", "four", "six"}
    write(tmp_path / "unlabelled.txt", "seven")
    found = load_unlabelled([str(tmp_path), str(tmp_path / "lines.txt")], data)
    assert found.texts == ("seven", "six") and found.names == (f"{tmp_path.name}/unlabelled", "lines")
    assert load_unlabelled(["intents-en"], data).names == ("intents-en",)


def test_the_digest_is_of_the_texts_wherever_they_lie(data, tmp_path):
    (tmp_path / "a").mkdir()
    one = load_unlabelled([write(tmp_path / "x.txt", "one", "two")], data)
    other = load_unlabelled([write(tmp_path / "a" / "x.txt", "one", "", "two", "one")], data)
    assert one.digest == other.digest != load_unlabelled([write(tmp_path / "y.txt", "two", "one")], data).digest
    few = load_unlabelled([str(tmp_path / "x.txt")], data, most=1, seed=1)
    assert len(few.texts) == 1 and few.texts[0] in one.texts


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lambda folder: write(folder / "e.txt", "", " "), "e.txt is empty", "a text a line"),
        (lambda folder: str(folder / "none.txt"), "There is no file, folder or built-in set", "Give a path"),
        (lambda folder: write(folder / "t.csv", "a,b", "1,2"), r"t.csv has no column with text; it has: a, b", "--unlabelled-text COLUMN"),
        (lambda folder: str(folder), "has no text for --unlabelled; it has: nothing", "Known: .txt .csv"),
        (
            lambda folder: write(folder / "j.jsonl", '{"text": null}'),
            "j: no text is left that data does not have already",
            "Give other text",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_one_clear_line(data, tmp_path, make, message, hint):
    with pytest.raises(DataError, match=message) as error:
        load_unlabelled([make(tmp_path)], data)
    assert hint in error.value.hint


def test_text_that_the_data_have_already_is_refused(data, folder):
    with pytest.raises(DataError, match=r"data/train: no text is left that data does not have already \(3\d\d in train\)"):
        load_unlabelled([str(folder / "data")], data)
    with pytest.raises(DataError, match=r"has no column 'body'; it has: text, label"):
        load_unlabelled([str(folder / "more.jsonl")], data, column="body")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It was good. Was it? Yes!", ["It was good.", "Was it?", "Yes!"]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("Mr. Smith met J. Doe at 3.5 p.m. today. Good.", ["Mr. Smith met J. Doe at 3.5 p.m. today.", "Good."]),
        ("One line<br /><br />another\nand more", ["One line", "another", "and more"]),
        ("Il a dit : « Non. » Elle aussi… Écoutez ! Fin", ["Il a dit : « Non. »", "Elle aussi…", "Écoutez !", "Fin"]),
        ("很好。不错！", ["很好。", "不错！"]),
        ("no end . and no capital . here", ["no end . and no capital . here"]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(max_size=80))
def test_splitting_loses_no_letter(text):
    letters = "".join(char for char in text if char.isalnum())
    pieces = "".join(split_sentences(text.replace("<", "")))
    assert "".join(char for char in pieces if char.isalnum()) == letters


def test_hard_losses_weigh_labelled_texts_alone():
    model = tiny_encoder()
    ids, mask = batch([5, 3, 7], seed=0)
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1]), "teacher_logits": torch.zeros(3, 3)}
    hard = objective(soft=0.0, hard=1.0, hidden=0.0, temperature=1.0)
    with torch.no_grad():
        both = float(hard(model, {**inputs, "labelled": torch.tensor([True, False, True])}))
        none = float(hard(model, {**inputs, "labelled": torch.zeros(3, dtype=torch.bool)}))
        rows = [0, 2]
        alone = {"input_ids": ids[rows], "attention_mask": mask[rows], "labels": inputs["labels"][rows]}
        assert both == pytest.approx(2 / 3 * float(supervised("classification")(model, alone)), abs=1e-6) and none == 0


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return done.stderr


@pytest.fixture(scope="module")
def teacher(house) -> Path:
    return house / "teacher"


def test_distill_prune_and_quantize_take_it_and_share_the_answers(teacher, folder, tmp_path):
    given_texts = ("--data", folder / "data", "--unlabelled", folder / "more.jsonl", *SMALL)
    said = run("distill", teacher, *given_texts, "--hard", 0.5, "--out", tmp_path / "student", "--cache", tmp_path / "cache")
    assert "texts without labels from more (left out: " in said
    manifest = open_artifact(tmp_path / "student").manifest
    more = manifest.data["unlabelled"]
    assert more["names"] == ["more"] and "unlabelled" not in manifest.options
    counted = manifest.data["counts"]["train"] + more["texts"]
    assert f"learns on {counted:,} texts" in said and manifest.metrics["training"]["steps"] == -(-counted // 16)
    assert f"and {more['texts']} texts without labels" in (tmp_path / "student" / "README.md").read_text()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(made) == 2  # the labelled texts and the others
    cut = ("--teacher", teacher, "--heads", 2, "--neurons", 12, "--cache", tmp_path / "cache")
    run("prune", tmp_path / "student", *given_texts, *cut, "--out", tmp_path / "pruned")
    qat = ("--teacher", teacher, "--method", "qat", "--cache", tmp_path / "cache")
    run("quantize", tmp_path / "pruned", *given_texts, *qat, "--out", tmp_path / "quantized")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == made
    again = run("distill", teacher, *given_texts, "--hard", 0.5, "--out", tmp_path / "student")
    assert "up to date" in again
    cold = run("distill", teacher, *given_texts, "--hard", 0.5, "--out", tmp_path / "cold", "--cache", tmp_path / "other")
    assert "up to date" not in cold and open_artifact(tmp_path / "cold").digest == manifest.digest


def test_other_text_is_another_artifact(teacher, folder, tmp_path):
    base = ("distill", teacher, "--data", folder / "data", "--epochs", 0.1, *SMALL, "--out", tmp_path / "student")
    run(*base, "--unlabelled", folder / "more.jsonl")
    with pytest.raises(ArtifactError, match="made otherwise .*data.unlabelled"):
        run(*base, "--unlabelled", folder / "more.jsonl", "--unlabelled-texts", 50)


def test_calibration_needs_no_teacher_but_training_does(house, folder, tmp_path):
    given_texts = ("--data", folder / "data", "--unlabelled", folder / "more.jsonl", "--max-length", 24)
    run("quantize", house / "pruned", *given_texts, "--out", tmp_path / "quantized")
    assert open_artifact(tmp_path / "quantized").manifest.data["unlabelled"]["texts"] > 200
    with pytest.raises(ConfigError, match="Text without labels teaches through a teacher alone. Give --teacher"):
        run("prune", house / "student", *given_texts, "--heads", 2, "--out", tmp_path / "pruned")


def test_pairs_are_refused(house, folder, tmp_path):
    rows = [json.dumps({"text": f"good {number}", "text_b": "film", "label": "good" if number % 2 else "bad"}) for number in range(60)]
    pairs = write(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(DataError, match="pairs is a set of pairs; text without labels comes alone. Leave out --unlabelled"):
        run("distill", house / "teacher", "--data", pairs, "--unlabelled", folder / "more.jsonl", "--out", tmp_path / "x")


def test_one_recipe_distills_prunes_recovers_and_distills_on(teacher, folder, tmp_path):
    taught = f'teacher = "{teacher}"\nunlabelled = ["{folder / "more.jsonl"}"]\nbatch_size = 16\nmax_length = 24\nthreads = 1\n'
    stages = [
        f'run = "distill"\nout = "student"\ndepth = 2\nheads = [3, 2]\nneurons = 16\nepochs = 2\n{taught}',
        f'run = "prune"\nout = "pruned"\nmodel = "student"\nheads = 1\nneurons = 8\nepochs = 1.5\n{taught}',
        f'run = "distill"\nout = "further"\nstudent = "pruned"\nepochs = 0.5\n{taught}',
        'run = "quantize"\nout = "quantized"\nmodel = "further"\n',
        'run = "export"\nout = "onnx"\nmodel = "quantized"\n',
    ]
    file = tmp_path / "chain.toml"
    file.write_text(f'data = "{folder / "data"}"\n' + "".join(f"[[stage]]\n{stage}" for stage in stages))
    run("run", file, "--out", tmp_path / "runs")
    shapes = {}
    for name in ("student", "pruned", "further"):
        layers = load_model(tmp_path / "runs" / name).config.layers
        shapes[name] = [(layer.attention.heads, layer.feedforward.neurons) for layer in layers]
    assert shapes == {"student": [(3, 16), (2, 16)], "pruned": [(1, 8)] * 2, "further": [(1, 8)] * 2}
    manifest = open_artifact(tmp_path / "runs" / "further").manifest
    assert manifest.parents["student"] == open_artifact(tmp_path / "runs" / "pruned").digest
    assert manifest.metrics["student_layers"] == [0, 1]
