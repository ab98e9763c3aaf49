"""What a student starts from: heads and neurons chosen in the teacher, a student that is there; teachers of other makers in every stage."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from compress.cli import cli
from compress.data import load_data
from compress.importance import taylor
from compress.losses import supervised
from compress.training import tokenize
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ConfigError, DataError
from model.tokenizer import open_tokenizer
from tests.compress.chain import SMALL
from tests.compress.test_teachers import write_teacher

STILL = (*SMALL[:-1], "1e-9", "--epochs", "0.05")  # one step that moves nothing


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return done.stderr


def test_the_heads_and_neurons_are_those_that_matter_most_in_the_teacher(house, tmp_path):
    shape = ("--depth", 2, "--teacher-layers", "1,3", "--heads", "3,1", "--neurons", "10")
    said = run("distill", house / "teacher", "--data", house / "data", *shape, *STILL, "--out", tmp_path / "student")
    assert "starts with 3 heads × 10 neurons, 1 heads × 10 neurons" in said
    teacher, student = load_model(house / "teacher"), load_model(tmp_path / "student")
    part = load_data(str(house / "data")).splits["train"]
    corpus = tokenize(open_tokenizer(house / "teacher", 24), part, "classification", ["bad", "good"])
    scores = taylor(teacher, corpus.passing(16, lambda *_: None), supervised("classification"))
    for place, (layer, heads) in enumerate(((1, 3), (3, 1))):
        kept = sorted(scores[layer].heads.argsort(descending=True)[:heads].tolist())
        columns = [8 * head + offset for head in kept for offset in range(8)]
        expected = teacher.layers[layer].attention.output.weight[:, columns]
        assert torch.allclose(student.layers[place].attention.output.weight, expected, atol=1e-6)
        neurons = sorted(scores[layer].neurons.argsort(descending=True)[:10].tolist())
        assert torch.allclose(
            student.layers[place].feedforward.down.weight, teacher.layers[layer].feedforward.down.weight[:, neurons], atol=1e-6
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--heads", "5"), "Layer 0 has 4 heads; 5 cannot be kept"),
        (("--heads", "2,2,2"), "3 numbers of heads for 2 layers"),
        (("--heads", "2", "--key-value-heads", "4"), "Layer 0 has 2 key-value heads; 4 cannot be kept. Give a number between 1 and 2"),
        (("--student", "STUDENT", "--key-value-heads", "1"), "choose among the teacher's own; --student is given"),
        (("--base", "BASE", "--heads", "2"), "choose among the teacher's own; --base is given. Use `compress prune` afterwards"),
        (("--student", "STUDENT", "--neurons", "2"), "choose among the teacher's own; --student is given"),
        (("--student", "STUDENT", "--base", "BASE"), "Both --base and --student are given. A student starts from one of them"),
        (("--student", "QUANTIZED"), "is quantized already. Give the student that it was made from"),
    ],
    ids=str,
)
def test_a_start_that_cannot_be_is_refused(house, tmp_path, given, message):
    places = {"BASE": house / "teacher", "STUDENT": house / "student", "QUANTIZED": house / "quantized"}
    arguments = [places.get(value, value) for value in given]
    with pytest.raises(ConfigError, match=message):
        run("distill", house / "teacher", "--data", house / "data", *arguments, *STILL, "--out", tmp_path / "x")


def test_a_student_goes_on_from_where_it_is(house, tmp_path):
    on = ("distill", house / "teacher", "--student", house / "pruned", "--data", house / "data")
    run(*on, *STILL, "--out", tmp_path / "still")
    before, after = (load_model(path).state_dict() for path in (house / "pruned", tmp_path / "still"))
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in before.items())
    card = (tmp_path / "still" / "README.md").read_text()
    assert (
        f"pruned (heads and FFN neurons removed) and recovered on data with the teacher `{open_artifact(house / 'teacher').digest[:12]}`"
        in card
    )


def test_a_model_without_a_teacher_has_the_form_of_a_student(house, tmp_path):
    form = ("--depth", 2, "--early-pooling", "--positions-after-norm", "--activation", "relu")
    run("train", house / "data", "--base", house / "teacher", *form, *STILL, "--out", tmp_path / "alone")
    base, alone = load_model(house / "teacher"), load_model(tmp_path / "alone")
    for own, theirs in zip(alone.layers, (base.layers[1], base.layers[3]), strict=True):
        assert torch.allclose(own.attention.output.weight, theirs.attention.output.weight, atol=1e-6)
    assert [layer.feedforward.activation for layer in alone.config.layers] == ["relu", "relu"]
    assert alone.config.early_pooling and alone.config.positions_after_norm
    cut = ("--heads", 2, "--neurons", 12)
    run("prune", tmp_path / "alone", "--data", house / "data", *cut, *STILL, "--out", tmp_path / "cut")
    made = open_artifact(tmp_path / "cut").manifest
    assert [layer.attention.heads for layer in load_model(tmp_path / "cut").config.layers] == [2, 2]
    assert not any("teacher" in parents for parents in (made.parents, *(known["parents"] for known in made.ancestors.values())))
    with pytest.raises(ConfigError, match="A model of 5 layers cannot be made of one of 4"):
        run("train", house / "data", "--base", house / "teacher", "--depth", 5, *STILL, "--out", tmp_path / "x")


def test_a_classifier_of_transformers_teaches_in_every_stage(house, tmp_path):
    """Of a family that our encoder cannot be: by its answers, which are kept."""
    write_teacher(tmp_path / "mpnet", known=False)
    taught = ("--teacher", tmp_path / "mpnet", "--data", house / "data", "--hidden", 0, "--cache", tmp_path / "cache", *SMALL)
    run("prune", house / "student", *taught, "--heads", 2, "--neurons", 12, "--out", tmp_path / "pruned")
    run("quantize", tmp_path / "pruned", *taught, "--method", "qat", "--out", tmp_path / "quantized")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    assert set(open_artifact(tmp_path / "quantized").manifest.parents) == {"model", "teacher"}


def test_a_teacher_of_other_labels_is_refused_in_every_stage(house, tmp_path):
    rows = [json.dumps({"text": f"good film {number}", "label": ("fine", "dull", "good")[number % 3]}) for number in range(90)]
    other = Path(tmp_path / "other.jsonl")
    other.write_text("\n".join(rows) + "\n")
    with pytest.raises(
        DataError, match="The classes of the model are not those of other: only the model has bad; only the data have dull, fine"
    ):
        run("distill", house / "teacher", "--data", other, *SMALL, "--out", tmp_path / "x")
    write_teacher(tmp_path / "hf", known=True)
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    with pytest.raises(DataError, match=r"The labels of .* \(LABEL_0, LABEL_1\) are not those of data \(bad, good\)"):
        run("prune", house / "student", "--teacher", tmp_path / "hf", "--data", house / "data", *SMALL, "--out", tmp_path / "x")
