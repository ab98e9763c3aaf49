"""Prefix tuning through the stages: only the prefix is kept, its backbone is found again by its digest, moved or not."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from compress.cli import cli
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ArtifactError, ConfigError
from serve.predictor import open_predictor, scores
from tests.compress.chain import SMALL
from tests.compress.test_teachers import SIZES
from tests.compress.test_teachers import write_teacher as write_foreign

TEXTS = ["good film", "a dull and awful scene", "the plot was great"]
TUNED = (*SMALL, "--learning-rate", "2e-2")


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return done.stdout


@pytest.fixture(scope="module")
def tuned(house, tmp_path_factory) -> Path:
    """Folder with `backbone`, a copy of the small chain's teacher, and `prefix`, trained on it."""
    folder = tmp_path_factory.mktemp("prefix")
    shutil.copytree(house / "teacher", folder / "backbone")
    run("train", house / "data", "--base", folder / "backbone", "--prefix", 3, "--epochs", 2, *TUNED, "--out", folder / "prefix")
    return folder


def test_only_prefix_and_head_are_saved(tuned, house):
    artifact = open_artifact(tuned / "prefix")
    layers = {f"layers.{number}.attention.prefix" for number in range(4)}
    saved = load_file(tuned / "prefix" / "model.safetensors")
    assert set(saved) == layers | {"head.output.weight", "head.output.bias"}
    assert artifact.manifest.parents["base"] == open_artifact(house / "teacher").digest
    metrics = artifact.manifest.metrics
    assert metrics["trained_parameters"] == sum(tensor.numel() for tensor in saved.values()) < metrics["parameters"] / 10
    assert metrics["validation"]["accuracy"] > 0.9
    model, backbone = load_model(tuned / "prefix"), load_model(tuned / "backbone").state_dict()
    found = model.state_dict()
    assert all(torch.equal(found[name], saved[name] if name in saved else backbone[name]) for name in found)
    run("train", house / "data", "--base", house / "teacher", "--prefix", 3, "--epochs", 2, *TUNED, "--out", tuned / "again")
    assert open_artifact(tuned / "again").digest == artifact.digest  # wherever the backbone lies


def test_the_chain_goes_on_from_it(tuned, house):
    run("export", tuned / "prefix", "--out", tuned / "onnx")
    expected = scores(open_torch_predictor(tuned / "prefix", "torch"), TEXTS)
    assert abs(scores(open_predictor(tuned / "onnx"), TEXTS) - expected).max() < 1e-4
    data = ("--data", house / "data", *SMALL)
    run("distill", tuned / "prefix", "--depth", 2, *data, "--train-texts", 64, "--out", tuned / "student")
    student = load_model(tuned / "student")  # whole: it has a prefix of its own
    assert student.layers[1].attention.prefix.shape == (2, 4, 3, 8)
    assert "embeddings.tokens.weight" in load_file(tuned / "student" / "model.safetensors")
    run("prune", tuned / "student", *data, "--heads", 2, "--neurons", 12, "--train-texts", 32, "--out", tuned / "pruned")
    run("quantize", tuned / "pruned", *data, "--out", tuned / "quantized")
    run("export", tuned / "quantized", "--out", tuned / "small")
    assert scores(open_predictor(tuned / "small"), TEXTS).shape == (3, 2)


def test_a_backbone_that_moved_is_named(tuned, house, tmp_path):
    together = tmp_path / "together"
    for name in ("prefix", "backbone"):
        shutil.copytree(tuned / name, together / name)
    hidden = tuned / "elsewhere"
    (tuned / "backbone").rename(hidden)
    try:
        load_model(together / "prefix")  # beside each other as they were
        with pytest.raises(ArtifactError, match=r"is a prefix without its backbone [0-9a-f]{12}…: there is nothing at .*backbone") as error:
            run("export", tuned / "prefix", "--out", tmp_path / "x")
        assert "--backbone" in error.value.hint
        run("export", tuned / "prefix", "--backbone", hidden, "--out", tmp_path / "onnx")
        assert set(open_artifact(tmp_path / "onnx").manifest.parents) == {"model"}
        found = run("predict", tuned / "prefix", "good film", "--backbone", hidden)
        assert found == run("predict", tmp_path / "onnx", "good film")
        shutil.copytree(house / "student", tuned / "backbone")
        with pytest.raises(ArtifactError, match="is a prefix of the backbone .* but at .*backbone is "):
            load_model(tuned / "prefix")
        shutil.rmtree(tuned / "backbone")
    finally:
        hidden.rename(tuned / "backbone")


def test_a_backbone_of_another_maker(tuned, house):
    write_foreign(tuned / "foreign", known=True)
    run("train", house / "data", "--base", tuned / "foreign", "--prefix", 2, "--train-texts", 32, *TUNED, "--out", tuned / "distil")
    assert len(load_file(tuned / "distil" / "model.safetensors")) == 4
    run("export", tuned / "distil", "--out", tuned / "distil-onnx")
    assert SIZES["hidden_size"] == load_model(tuned / "distil").config.width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--base", "encoder.json", "--tokenizer", "tokenizer"), "encoder.json is a configuration without weights"),
        (("--base", "teacher", "--attention", "window:4"), "--prefix and --attention window:4 together"),
        (("--base", "teacher", "--depth", "2", "--activation", "relu"), "--prefix and --depth 2 and --activation relu together"),
        (("--base", "quantized"), "The base is quantized: what its layers give cannot be steered by a prefix"),
    ],
    ids=["no weights", "converted", "of another form", "quantized"],
)
def test_what_is_no_backbone(house, tmp_path, arguments, message):
    given = [house / value if (house / value).exists() else value for value in arguments]
    with pytest.raises(ConfigError, match=message) as error:
        run("train", house / "data", *given, "--prefix", 2, *SMALL, "--out", tmp_path / "x")
    assert error.value.hint and not (tmp_path / "x").exists()


def test_a_backbone_for_nothing_is_refused(tuned, house, tmp_path):
    with pytest.raises(ConfigError, match="Nothing here is a prefix of --backbone .*: all are whole"):
        run("export", house / "teacher", "--backbone", tuned / "backbone", "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="Nothing here is a prefix of --backbone .*: model needs "):
        run("export", tuned / "prefix", "--backbone", house / "student", "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="has no backbone: it is whole"):
        run("predict", house / "onnx", "good", "--backbone", tuned / "backbone")
