"""The stages on real components: what each makes, and that a kill changes nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

from compress.cli import cli
from compress.config import TrainOptions
from compress.training import Corpus, schedule_of_batches, train
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ConfigError
from model.tokenizer import open_tokenizer
from serve.predictor import open_predictor, scores
from tests.compress.chain import SMALL


def invoke(*arguments: object):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)


def accuracy(folder: Path) -> float:
    return float(open_artifact(folder).manifest.metrics["validation"]["accuracy"])


def texts(house: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (house / "data" / "test.jsonl").read_text().splitlines()]


def test_each_stage_keeps_what_it_should(house):
    assert accuracy(house / "teacher") > 0.9
    for name in ("student", "pruned", "quantized", "onnx"):
        assert accuracy(house / name) > 0.85
    depths = {name: len(load_model(house / name).config.layers) for name in ("teacher", "student", "pruned", "quantized")}
    assert depths == {"teacher": 4, "student": 2, "pruned": 2, "quantized": 2}
    assert {(layer.attention.heads, layer.feedforward.neurons) for layer in load_model(house / "pruned").config.layers} == {(2, 12)}
    sizes = [sum(file.bytes for file in open_artifact(house / name).manifest.files.values()) for name in ("teacher", "student", "pruned")]
    assert sizes == sorted(sizes, reverse=True)
    assert open_artifact(house / "onnx").manifest.metrics["integer_linears"] == {"integer": 8, "total": 8}


def test_the_student_starts_from_the_layers_that_it_is_mapped_to(house):
    assert open_artifact(house / "student").manifest.metrics["student_layers"] == [1, 3]


def test_lineage_reaches_the_base(house):
    manifest = open_artifact(house / "onnx").manifest
    assert sorted(known["stage"] for known in manifest.ancestors.values()) == ["base", "base", "distill", "prune", "quantize", "train"]
    assert manifest.parents == {"model": open_artifact(house / "quantized").digest}


def test_every_way_of_running_a_model_agrees(house):
    """ONNX Runtime, our modules and the transformers model, each with its own tokenizer."""
    some = texts(house)[:20]
    ours = scores(open_torch_predictor(house / "teacher", "torch"), some)
    theirs = scores(open_torch_predictor(house / "teacher", "transformers"), some)
    assert np.allclose(ours, theirs, atol=1e-5)
    int8 = scores(open_predictor(house / "onnx"), some)
    frozen = scores(open_torch_predictor(house / "quantized", "torch"), some)
    assert np.allclose(int8, frozen, atol=0.05) and (int8.argmax(1) == frozen.argmax(1)).all()


def test_one_text_goes_without_a_mask_and_a_batch_with_one(house):
    some = texts(house)[:6]
    predictor = open_predictor(house / "onnx")
    alone = [predictor.logits(predictor.encode([text])) for text in some]
    assert predictor.session._session is None and set(predictor.encode(some[:1])) == {"input_ids"}
    masked_one = predictor.encode(some[:1]) | {"attention_mask": np.ones_like(predictor.encode(some[:1])["input_ids"])}
    assert np.array_equal(predictor.logits(masked_one), alone[0]) and predictor.session._session is None
    assert np.allclose(predictor.logits(predictor.encode(some)), np.concatenate(alone), atol=1e-5)
    assert predictor.session._session is not None
    invoke("export", house / "quantized", "--out", house / "masked", "--no-single")
    masked = open_predictor(house / "masked")
    assert masked.single is None and np.allclose(masked.logits(masked.encode(some[:1])), alone[0], atol=1e-5)
    sizes = {name: file.bytes for name, file in open_artifact(house / "onnx").manifest.files.items()}
    assert sizes["model.onnx.single"] < sizes["model.onnx"]  # the small tensors of a tiny model are most of it


def test_autotokenizer_reads_every_artifact(house):
    some = texts(house)[:5]
    for name in ("teacher", "student", "onnx"):
        ours = open_tokenizer(house / name, 24).ids(some)
        assert AutoTokenizer.from_pretrained(house / name)(some)["input_ids"] == [encoding.ids for encoding in ours]


def test_quantization_aware_training(house, tmp_path):
    out = tmp_path / "qat"
    method = ("--method", "qat", "--teacher", house / "teacher", *SMALL)
    invoke("quantize", house / "pruned", "--data", house / "data", "--out", out, *method)
    assert accuracy(out) > 0.85 and open_artifact(out).manifest.metrics["training"]["steps"] == 20
    invoke("export", out, "--out", tmp_path / "onnx")
    assert open_artifact(tmp_path / "onnx").manifest.metrics["integer_linears"]["integer"] == 8


def test_distilling_states_of_all_tokens_with_the_teacher_running_along(house, tmp_path):
    options = ("--hidden-states", "tokens", "--hard", "0.5", "--train-texts", "64", *SMALL)
    invoke("distill", house / "teacher", "--data", house / "data", "--out", tmp_path / "student", "--epochs", 2, *options)
    assert accuracy(tmp_path / "student") > 0.7


@pytest.mark.parametrize(("shared", "integers"), [((), 7), (("--key-value-heads", 1), 8)], ids=["own keys", "shared keys"])
def test_forms_of_a_student_from_the_command_to_the_file(house, tmp_path, shared, integers):
    more = ("--train-texts", 64, "--epochs", 2, *SMALL)
    form = ("--pooling", "cls", "--early-pooling", "--positions-after-norm", "--activation", "relu")
    invoke("distill", house / "teacher", "--data", house / "data", "--out", tmp_path / "student", *form, *more)
    invoke("prune", tmp_path / "student", "--data", house / "data", "--out", tmp_path / "pruned", "--heads", 2, *shared, *more)
    invoke("quantize", tmp_path / "pruned", "--data", house / "data", "--out", tmp_path / "int8", *SMALL)
    invoke("export", tmp_path / "int8", "--out", tmp_path / "onnx")
    config, metrics = load_model(tmp_path / "int8").config, open_artifact(tmp_path / "onnx").manifest.metrics
    assert config.early_pooling and config.positions_after_norm and config.layers[1].feedforward.activation == "relu"
    assert [layer.attention.keys for layer in config.layers] == ([1, 1] if shared else [2, 2])
    assert metrics["integer_linears"] == {"integer": integers, "total": integers}  # the first projection is in the table
    assert metrics["folded"] and metrics["one_query"]
    assert "✓ runs as planned" in invoke("audit", tmp_path / "onnx").output
    with pytest.raises(ConfigError, match="cannot be folded into the embeddings"):
        invoke("export", house / "student", "--out", tmp_path / "no", "--fold", "always")
    invoke("train", house / "data", "--base", house / "student", "--out", tmp_path / "trained", "--early-pooling", *more)
    assert load_model(tmp_path / "trained").config.early_pooling


def test_a_pruned_model_recovers_without_a_teacher_too(house, tmp_path):
    options = ("--heads", "3,1", "--allocation", "global", "--neurons", "8", *SMALL)
    invoke("prune", house / "student", "--data", house / "data", "--out", tmp_path / "pruned", *options)
    kept = open_artifact(tmp_path / "pruned").manifest.metrics["kept"]
    assert sum(heads for heads, _ in kept) == 4 and sum(neurons for _, neurons in kept) == 16


def test_an_artifact_is_a_base_with_a_fresh_head(house, tmp_path):
    invoke("train", house / "data", "--base", house / "pruned", "--out", tmp_path / "again", "--epochs", 2, *SMALL)
    assert accuracy(tmp_path / "again") > 0.85


@pytest.mark.parametrize("schedule", [1.0, 2.5, 0.3])
def test_the_order_of_batches_is_the_seeds_and_covers_each_pass(schedule):
    lengths = np.random.default_rng(1).integers(1, 40, 230)
    batches = schedule_of_batches(lengths, 16, schedule, seed=3)
    assert batches == schedule_of_batches(lengths, 16, schedule, seed=3) != schedule_of_batches(lengths, 16, schedule, seed=4)
    assert len(batches) == round(schedule * 15)
    for start in range(0, len(batches) - 14, 15):
        assert sorted(row for rows in batches[start : start + 15] for row in rows) == list(range(230))
    spreads = [lengths[rows].max() - lengths[rows].min() for rows in batches]
    assert np.mean(spreads) < 8  # like lengths together: little padding


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("when", [1, 7, 14, 19])
def test_a_killed_training_ends_in_the_same_weights(house, tmp_path, when):
    """Dropout, order and optimizer go on as if nothing had happened, from wherever the last whole checkpoint was."""
    tokenizer = open_tokenizer(house / "teacher", 24)
    encodings = tokenizer.ids(texts(house))
    corpus = Corpus(tokenizer, encodings, torch.arange(len(encodings)) % 2)
    options = TrainOptions(batch_size=16, epochs=4, learning_rate=1e-3, threads=1, checkpoint_every=3)

    def run(work: Path, kill_at: int) -> dict[str, torch.Tensor]:
        from compress.losses import supervised
        from compress.training import prepare

        prepare(options)
        model = load_model(house / "teacher")

        def progress(done: int, total: int, words: str) -> None:
            if done == kill_at:
                raise Killed

        train(model, corpus, supervised("classification"), options, work, progress)
        return model.state_dict()

    whole = run(tmp_path / "whole", -1)
    with pytest.raises(Killed):
        run(tmp_path / "work", when)
    half = tmp_path / "work" / "checkpoint-99"  # one that a kill left half-written
    half.mkdir(parents=True)
    again = run(tmp_path / "work", -1)
    assert not half.exists()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_same_command_gives_the_same_digest_in_another_place(house, tmp_path):
    shutil.copytree(house / "teacher", tmp_path / "moved")
    for out, teacher in (("a", house / "teacher"), ("b", tmp_path / "moved")):
        invoke("distill", teacher, "--data", house / "data", "--out", tmp_path / out, "--train-texts", 64, *SMALL)
    assert open_artifact(tmp_path / "a").digest == open_artifact(tmp_path / "b").digest


def test_a_base_may_change_its_attention_and_goes_through_the_chain(house, tmp_path):
    given = ("--base", house / "teacher", "--epochs", "0.5", "--attention", "dense,window:6", "--out", tmp_path / "window", *SMALL)
    assert invoke("train", house / "data", *given).exit_code == 0
    assert [layer.attention.kind for layer in load_model(tmp_path / "window").config.layers] == ["dense", "window"] * 2
    assert accuracy(tmp_path / "window") > 0.85
    pruned = ("--data", house / "data", "--heads", "2", "--epochs", "0.1", "--out", tmp_path / "pruned", *SMALL)
    assert invoke("prune", tmp_path / "window", *pruned).exit_code == 0
    int8 = ("--data", house / "data", "--calibration-texts", "64", "--out", tmp_path / "int8", *SMALL)
    assert invoke("quantize", tmp_path / "pruned", *int8).exit_code == 0
    assert invoke("export", tmp_path / "int8", "--out", tmp_path / "onnx").exit_code == 0
    manifest = open_artifact(tmp_path / "onnx").manifest
    assert manifest.metrics["integer_linears"] == {"integer": 16, "total": 16} and accuracy(tmp_path / "onnx") > 0.8
