"""Students without layers through the whole chain, on tiny data: taught and from labels alone, quantized, exported, asked."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from compress.cli import cli
from compress.distillation import objective
from compress.sources import open_sources, student_values
from compress.students import DEVIATION, components
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import AlambicError, ConfigError
from serve.predictor import open_predictor, scores
from tests.compress.chain import SMALL
from tests.model.tiny import batch, tiny_encoder

FAST = (*SMALL[:-2], "--epochs", "6", "--learning-rate", "1e-2")
STUDENTS = ("static:16", "convolution:16")


class Killed(Exception):
    """Stands for a kill."""


def invoke(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)


def refused(*arguments):
    with pytest.raises(AlambicError) as error:
        invoke(*arguments)
    return error.value


def accuracy(folder):
    return open_artifact(folder).manifest.metrics["validation"]["accuracy"]


@pytest.fixture(scope="module", params=STUDENTS)
def small(request, house, tmp_path_factory):
    """A folder with a student of this kind, its int8 form and its file."""
    folder = tmp_path_factory.mktemp("small")
    taught = ("--student", request.param, "--data", house / "data", *FAST)
    invoke("distill", house / "teacher", *taught, "--out", folder / "student")
    invoke("quantize", folder / "student", "--data", house / "data", "--max-length", 24, "--out", folder / "quantized")
    invoke("export", folder / "quantized", "--out", folder / "onnx")
    return folder


def test_a_student_without_layers_learns_and_goes_through_the_chain(small, house):
    texts = [json.loads(line)["text"] for line in (house / "data" / "test.jsonl").read_text().splitlines()][:20]
    assert all(accuracy(small / name) > 0.85 for name in ("student", "quantized", "onnx"))
    torch_scores = scores(open_torch_predictor(small / "quantized", "torch"), texts)
    predictor = open_predictor(small / "onnx")
    assert np.allclose(scores(predictor, texts), torch_scores, atol=1e-5) and predictor.precision == "int8"
    whole = scores(open_torch_predictor(small / "student", "torch"), texts)
    assert np.abs(whole - torch_scores).max() < 0.2
    manifest = open_artifact(small / "onnx").manifest
    assert manifest.metrics["integer_linears"] == {"integer": 0, "total": 0}
    assert sorted(known["stage"] for known in manifest.ancestors.values()).count("distill") == 1


def test_it_can_be_asked_inspected_and_audited(small):
    assert invoke("predict", small / "onnx", "a great great film").stdout.startswith("good")
    assert "distill" in invoke("inspect", small / "student").stdout
    assert invoke("audit", small / "onnx").exit_code == 0
    assert json.loads(invoke("audit", small / "onnx", "--json").stdout)["counts"]["layers"] == 0


def test_what_only_an_encoder_can_is_refused_in_one_line(small, house, tmp_path):
    given = ("--data", house / "data", "--out", tmp_path / "out")
    error = refused("prune", small / "student", "--heads", "2", *given)
    assert "which has no layers to be pruned." in error.message
    assert "which has no layers to be taught by." in refused("distill", small / "student", *given).message
    error = refused("quantize", small / "student", "--method", "qat", *given)
    assert "no linears of layers to make int8" in error.message and error.hint == "Leave --method and --scheme out."
    error = refused("export", small / "student", "--attention", "ort", "--out", tmp_path / "out")
    assert "model has no attention." in error.message
    with pytest.raises(ConfigError, match="has no layers that transformers knows"):
        open_torch_predictor(small / "student", "transformers")


def test_the_same_command_gives_the_same_digest_and_a_kill_changes_nothing(house, tmp_path, monkeypatch):
    from compress import training

    command = ("distill", house / "teacher", "--student", "static:8", "--data", house / "data", *FAST, "--checkpoint-every", 7)
    invoke(*command, "--out", tmp_path / "whole")

    steps = training._Told.on_step_end

    def struck(told, arguments, state, control, **rest):
        steps(told, arguments, state, control, **rest)
        if state.global_step == 20:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(training._Told, "on_step_end", struck)
        invoke(*command, "--out", tmp_path / "again")
    assert (tmp_path / "again.partial" / "work" / "checkpoint-14").exists()
    invoke(*command, "--out", tmp_path / "again")
    assert open_artifact(tmp_path / "again").digest == open_artifact(tmp_path / "whole").digest


@pytest.mark.parametrize("kind", ["static", "convolution"])
def test_it_learns_from_labels_alone_by_a_configuration(house, tmp_path, kind):
    (tmp_path / "model.json").write_text(json.dumps({"kind": kind, "width": 12, "neurons": 16}))
    base = ("--base", tmp_path / "model.json", "--tokenizer", house / "tokenizer")
    invoke("train", house / "data", *base, *FAST, "--out", tmp_path / "model")
    config = load_model(tmp_path / "model").config
    assert (config.kind, config.width, config.dropout) == (kind, 12, 0.1) and accuracy(tmp_path / "model") > 0.85
    error = refused("train", house / "data", *base, "--attention", "window:4", *FAST, "--out", tmp_path / "other")
    assert "has no layers with attention." in error.message


def test_a_student_by_a_file_has_its_own_base_and_vocabulary(house, tmp_path):
    (tmp_path / "student.json").write_text(json.dumps({"kind": "static", "width": 40, "ngrams": [2, 3], "buckets": 100}))
    given = ("--student", tmp_path / "student.json", "--base", house / "student", "--data", house / "data", *FAST)
    invoke("distill", house / "teacher", *given, "--hidden", 0, "--epochs", "0.1", "--out", tmp_path / "out")
    model = load_model(tmp_path / "out")
    assert model.rows.weight.shape == (model.config.vocabulary + 100, 40) and model.config.ngrams == (2, 3)


def test_a_student_that_is_there_goes_on_and_may_have_a_vocabulary_of_its_own(small, house, tmp_path):
    before = load_model(small / "student")
    invoke("distill", house / "teacher", "--student", small / "student", "--data", house / "data", *SMALL, "--out", tmp_path / "further")
    after = load_model(tmp_path / "further")
    assert after.config == before.config.changed(dropout=0.0) and accuracy(tmp_path / "further") > 0.85
    kind = before.config.kind
    given = ("--student", kind, "--vocabulary", "unigram:50", "--data", house / "data", *FAST)
    invoke("distill", house / "teacher", *given, "--out", tmp_path / "own")
    own = load_model(tmp_path / "own")
    assert (own.config.kind, own.config.vocabulary) == (kind, 50) and accuracy(tmp_path / "own") > 0.8


def test_words_that_name_no_student(house, tmp_path):
    given = ("--data", house / "data", "--out", tmp_path / "out")
    error = refused("distill", house / "teacher", "--student", "bag", *given)
    assert error.message == "There is no student 'bag'." and "convolution:256" in error.hint
    error = refused("distill", house / "teacher", "--student", "static:wide", *given)
    assert error.message == "'static:wide' is no student: the sizes of static are numbers, its width and its neurons."
    error = refused("distill", house / "teacher", "--student", "convolution:8:4:2", *given)
    assert error.message.startswith("'convolution:8:4:2' is no student") and "convolution:128:64" in error.hint
    error = refused("distill", house / "teacher", "--student", "static", "--hidden-states", "tokens", *given)
    assert error.message == "A static student has no states of its tokens."
    error = refused("distill", house / "teacher", "--student", house / "encoder.json", *given)
    assert "student encoder.json" in error.message or "is the configuration of an encoder" in error.message


def test_a_word_is_known_by_its_digest():
    words = ("static", "static:64", "convolution:128:64")
    one, other, both = (open_sources({"student": None}, {"student": word})["student"] for word in words)
    assert student_values(one) == {"kind": "static"} and student_values(other) == {"kind": "static", "width": 64}
    assert student_values(both) == {"kind": "convolution", "channels": 128, "neurons": 64}
    assert len({one.digest, other.digest, both.digest}) == 3


def test_components_keep_what_they_can_of_the_table():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 4, generator=generator) @ torch.randn(4, 12, generator=generator)
    kept = components(table, 4)
    assert float(kept.std()) == pytest.approx(DEVIATION)
    distances = torch.cdist(table, table) / torch.cdist(kept, kept).clamp_min(1e-9)
    assert torch.allclose(distances[0, 1:], distances[0, 1].expand(59), rtol=1e-3)  # the table has rank 4: nothing is lost
    assert torch.allclose(kept.var(0).sort(descending=True)[0], kept.var(0))  # the widest first
    assert torch.equal(components(table, 16)[:, 12:], torch.zeros(60, 4))
    assert torch.equal(components(table, 4), kept)


def test_a_bridge_is_trained_with_the_student():
    """States of another width are compared through a linear that belongs to the objective."""
    student = tiny_encoder()
    ids, mask = batch([5, 3])
    _, states = student.states(ids, mask)
    bridge = torch.nn.Linear(24, 7)
    target = torch.stack([bridge((state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)) for state in states], 1).detach()
    found = objective(soft=0.0, hard=0.0, hidden=1.0, temperature=1.0, bridge=bridge)
    assert {parameter.shape for parameter in found.parameters()} == {(7, 24), (7,)}
    loss = found(student, {"input_ids": ids, "attention_mask": mask, "teacher_logits": torch.zeros(2, 3), "teacher_states": target})
    assert loss.item() == pytest.approx(0, abs=1e-6)
