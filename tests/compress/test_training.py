"""Ways of training that change the cost and not the result: parts of a step, several processes, checkpointing; and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.config import TrainOptions
from compress.losses import supervised
from compress.training import Corpus, parts_of, prepare, schedule_of_batches, tokenize, train
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import EnvironmentProblem
from model.tokenizer import open_tokenizer
from tests.compress.chain import SMALL, compress, environment, write_data, write_encoder, write_tokenizer
from tests.model.tiny import batch, tiny_encoder


@pytest.mark.parametrize(("accumulation", "processes"), [(1, 1), (3, 1), (1, 2), (2, 2), (5, 3)])
def test_parts_make_the_mean_of_their_batch(accumulation, processes):
    values = np.random.default_rng(0).normal(size=50)
    batches = schedule_of_batches(np.ones(50, dtype=np.int64), 8, 1.0, seed=0)
    shares = [parts_of(batches, accumulation, rank, processes) for rank in range(processes)]
    assert all(len(parts) == accumulation * len(batches) for parts in shares)
    for step, rows in enumerate(batches):
        parts = [part for mine in shares for part in mine[step * accumulation : (step + 1) * accumulation]]
        assert sorted(row for part in parts if part.weight for row in part.rows) == sorted(rows)
        mean = np.mean([part.weight * values[part.rows].mean() for part in parts])  # what averaging over parts and processes gives
        assert mean == pytest.approx(values[rows].mean())


def corpus(tmp_path: Path) -> Corpus:
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "tokenizer"), 16)
    texts = [" ".join(["good" if number % 2 else "bad", "film"] * (1 + number % 4)) for number in range(40)]
    return tokenize(tokenizer, Split(text=texts, label=[number % 2 for number in range(40)]))


def test_a_pass_takes_long_texts_in_smaller_batches(tmp_path):
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "tokenizer"), 2000)
    lengths = [3, 400, 1998, 700, 5, 600, 1000]
    found = Corpus(tokenizer, tokenizer.ids(["film " * length for length in lengths]), torch.zeros(7)).batches(4)
    assert found == [[2], [6, 3], [5, 1, 4], [0]]  # 2000; 1002, 702; 602, 402, 7; 5 tokens with the special ones
    assert [len(rows) for rows in corpus(tmp_path / "short").batches(16)] == [16, 16, 8]


class Split(dict):
    """The least that a part of the data is."""

    @property
    def column_names(self) -> list[str]:
        return list(self)


def trained(tmp_path: Path, corpus: Corpus, name: str, **options: object) -> tuple[torch.Tensor, float]:
    """Its logits on the texts, and the loss at the end."""
    given = TrainOptions(batch_size=8, epochs=2, learning_rate=1e-3, threads=1, **options)
    prepare(given)
    model = tiny_encoder(vocabulary=80, head={"labels": 2}, dropout=0.0)
    told = train(model, corpus, supervised("classification"), given, tmp_path / name, lambda *_: None)
    inputs = corpus.batch(list(range(len(corpus))))
    with torch.no_grad():
        return model(inputs["input_ids"], inputs["attention_mask"]), told["loss"]


def test_frozen_tokens_stay_while_all_else_learns(tmp_path):
    texts = corpus(tmp_path)
    fresh = tiny_encoder(vocabulary=80, head={"labels": 2}, dropout=0.0).state_dict()

    def changed(frozen):
        model = tiny_encoder(vocabulary=80, head={"labels": 2}, dropout=0.0)
        options = TrainOptions(batch_size=8, learning_rate=1e-2, threads=1, frozen=frozen)
        train(model, texts, supervised("classification"), options, tmp_path / frozen, lambda *_: None)
        return {name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])}

    whole, rest = changed("nothing"), changed("tokens")
    assert rest == {name for name in whole if name != "embeddings.tokens.weight"} != whole
    assert any(name.startswith("layers.") for name in rest)


@pytest.mark.parametrize("options", [{"accumulation": 3}, {"checkpointing": True}], ids=str)
def test_what_saves_memory_changes_nothing(tmp_path, options):
    texts = corpus(tmp_path)
    whole, loss = trained(tmp_path, texts, "whole")
    found, other = trained(tmp_path, texts, "other", **options)
    assert other == pytest.approx(loss, abs=1e-4)
    assert torch.allclose(found, whole, atol=1e-3)


def test_bf16_trains_on_the_cpu(tmp_path):
    texts = corpus(tmp_path)
    _, loss = trained(tmp_path, texts, "fp32")
    _, rough = trained(tmp_path, texts, "bf16", precision="bf16")
    assert rough == pytest.approx(loss, abs=0.05) and rough != loss


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp16"}, "fp16 with scaled gradients is for GPUs; training is on the CPU"), ({"tf32": True}, "TF32 is for GPUs")],
    ids=str,
)
def test_what_needs_a_gpu_is_refused_on_the_cpu(options, message):
    with pytest.raises(EnvironmentProblem, match=message):
        prepare(TrainOptions(**options))


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EnvironmentProblem, match="--compile builds kernels with a C.. compiler, and there is no no-such-compiler") as error:
        prepare(TrainOptions(compile=True))
    assert "leave --compile out" in error.value.hint


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path):
    write_data(tmp_path / "data")
    write_tokenizer(tmp_path / "tokenizer")
    write_encoder(tmp_path / "encoder.json", layers=1)
    base = ("--base", tmp_path / "encoder.json", "--tokenizer", tmp_path / "tokenizer", "--dropout", 0, "--train-texts", 128)
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        compress("train", tmp_path / "data", *map(str, base), *SMALL, *more, "--out", tmp_path / name)
    plain, compiled = (open_artifact(tmp_path / name) for name in ("plain", "compiled"))
    assert compiled.manifest.options["compile"] and not plain.manifest.options["compile"]
    assert compiled.manifest.metrics["training"]["loss"] == pytest.approx(plain.manifest.metrics["training"]["loss"], abs=1e-3)
    ids, mask = batch([9, 4])
    assert torch.allclose(load_model(tmp_path / "compiled")(ids, mask), load_model(tmp_path / "plain")(ids, mask), atol=1e-2)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    write_data(tmp_path / "data")
    write_tokenizer(tmp_path / "tokenizer")
    write_encoder(tmp_path / "encoder.json")
    arguments = ["train", tmp_path / "data", "--base", tmp_path / "encoder.json", "--tokenizer", tmp_path / "tokenizer", "--dropout", 0]
    arguments += ["--batch-size", 16, "--max-length", 24, "--threads", 1, "--learning-rate", 2e-3, "--checkpoint-every", 7]
    alone = [Path(sys.executable).with_name("compress")]
    together = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", 2, *alone]
    for name, command in (("one", alone), ("two", together)):
        line = list(map(str, [*command, *arguments, "--out", tmp_path / name]))
        done = subprocess.run(
            line, capture_output=True, text=True, env={**environment(), "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")}
        )
        assert done.returncode == 0, done.stderr
    one, two = (open_artifact(tmp_path / name).manifest.metrics["training"]["loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
    ids, mask = batch([9, 4])
    assert torch.allclose(load_model(tmp_path / "two")(ids, mask), load_model(tmp_path / "one")(ids, mask), atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "encoder.json", "one", "tokenizer", "two"]


def test_a_recipe_is_not_for_several_processes(tmp_path):
    command = [Path(sys.executable).with_name("compress"), "run", "demo", "--out", tmp_path / "x"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**environment(), "WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2 and "Several processes train one stage at a time" in done.stderr
