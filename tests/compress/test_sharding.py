"""Sharded training by accelerate's configuration: what it may ask for, and the same model as whole copies make, of half in each process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compress.config import TrainOptions
from compress.losses import supervised
from compress.training import prepare, train
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import EnvironmentProblem
from tests.compress.chain import environment, write_data, write_encoder, write_tokenizer
from tests.compress.test_training import corpus, trained
from tests.model.tiny import batch, tiny_encoder

SAMPLE = Path(__file__).parents[2] / "docs" / "fsdp.yaml"


class Killed(Exception):
    """Stands for a kill."""


@pytest.fixture
def launched(monkeypatch):
    """Set what `accelerate launch` sets for one process, and more."""

    def launch(**given: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
        for name, value in {**where, **asked, **given}.items():
            monkeypatch.setenv(name, value)

    yield launch
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version is 1, which sharded training does not do here", "Set it to 2"),
        ({"FSDP_VERSION": ""}, "fsdp_version is 1", "Set it to 2"),  # the variable alone: accelerate's default
        ({"FSDP_AUTO_WRAP_POLICY": "MINE"}, "fsdp_auto_wrap_policy is mine", "no_wrap or transformer_based_wrap or size_based_wrap"),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer"}, "fsdp_transformer_layer_cls_to_wrap is bertlayer", "Leave it out"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "SHARD_GRAD_OP"}, "fsdp_reshard_after_forward is shard_grad_op", "true or false"),
        ({"FSDP_STATE_DICT_TYPE": "LOCAL_STATE_DICT"}, "fsdp_state_dict_type is local_state_dict", "sharded_state_dict or full_state_dict"),
        ({"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, "fsdp_activation_checkpointing_offload is true", "Set it to false"),
        ({"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, "fsdp_sharding_strategy is hybrid_shard", "Set it to full_shard"),
        ({"FSDP_IGNORED_MODULES": "head"}, "fsdp_ignored_modules is head", "Leave it out"),
        ({"FSDP_MIN_NUM_PARAMS": "1e6"}, "fsdp_min_num_params is 1e6", "in digits"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed_precision: bf16, and --precision is fp32", "Set mixed_precision: 'no'"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "asks for compilation", "--compile does that"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "asks for PARALLELISM_CONFIG", "distributed_type: FSDP"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused(launched, given, message, hint):
    launched(**given)
    with pytest.raises(EnvironmentProblem, match=message) as error:
        prepare(TrainOptions())
    assert hint in error.value.hint


def test_sharded_training_is_not_compiled(launched):
    launched()
    with pytest.raises(EnvironmentProblem, match="--compile and sharded training do not go together"):
        prepare(TrainOptions(compile=True))


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"accumulation": 3}, {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_OFFLOAD_PARAMS": "true"}),
        ({"frozen": "tokens"}, {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "3500"}),
        ({"precision": "bf16"}, {"FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "ACCELERATE_MIXED_PRECISION": "bf16"}),
        ({"checkpointing": True}, {"FSDP_RESHARD_AFTER_FORWARD": "false"}),
        ({}, {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_ACTIVATION_CHECKPOINTING": "true"}),
    ],
    ids=str,
)
def test_sharded_training_is_the_same_training(tmp_path, launched, options, given):
    texts = corpus(tmp_path)
    whole, loss = trained(tmp_path, texts, "whole", **options)
    launched(**given)
    found, other = trained(tmp_path, texts, "sharded", **options)
    assert other == pytest.approx(loss, abs=1e-4)
    assert torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_a_killed_sharded_training_ends_in_the_same_weights(tmp_path, launched, kind):
    texts = corpus(tmp_path)
    options = TrainOptions(batch_size=8, learning_rate=1e-2, threads=1, checkpoint_every=3)

    def run(name: str, kill_at: int) -> dict[str, torch.Tensor]:
        prepare(options)
        model = tiny_encoder(vocabulary=80, head={"labels": 2})

        def progress(done: int, total: int, note: str) -> None:
            if done == kill_at:
                raise Killed

        train(model, texts, supervised("classification"), options, tmp_path / name, progress)
        return model.state_dict()

    launched(FSDP_STATE_DICT_TYPE=kind)
    undisturbed = run("whole", 0)
    launched()
    with pytest.raises(Killed):
        run("killed", 4)
    torch.distributed.destroy_process_group()
    launched()
    found = run("killed", 0)
    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())


def test_a_checkpoint_of_the_other_kind_is_not_gone_on_from(tmp_path, launched):
    texts = corpus(tmp_path)
    trained(tmp_path, texts, "work", checkpoint_every=4)
    launched()
    with pytest.raises(EnvironmentProblem, match="written by training of whole copies, which sharded training cannot go on from") as error:
        trained(tmp_path, texts, "work", checkpoint_every=4)
    assert "--overwrite" in error.value.hint


# `compress` in a process that writes down what it holds at each step of the optimizer, counted in floats, and is killed at one.
WATCHED = """
import json, os, signal, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
from compress.cli import main

steps = []

def held(tensors):
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() // 4 for part in map(local, tensors)}.values())

def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

def watch(optimizer, *_):
    steps.append(1)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    states = [optimizer.state[weight] for weight in weights]
    found = {"all": sum(weight.numel() for weight in weights), "weights": held(weights), "gradients": held(w.grad for w in weights)}
    found |= {name: held(state[name] for state in states) for name in ("exp_avg", "exp_avg_sq")}
    Path(os.environ["HELD"] + os.environ["RANK"]).write_text(json.dumps(found))
    if len(steps) == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)

register_optimizer_step_post_hook(watch)
main()
"""


@pytest.mark.slow
def test_two_processes_hold_half_each_and_train_as_one(tmp_path):
    write_data(tmp_path / "data")
    write_tokenizer(tmp_path / "tokenizer")
    write_encoder(tmp_path / "encoder.json")
    (tmp_path / "watched.py").write_text(WATCHED)
    arguments = ["train", tmp_path / "data", "--base", tmp_path / "encoder.json", "--tokenizer", tmp_path / "tokenizer", "--dropout", 0]
    arguments += ["--batch-size", 16, "--max-length", 24, "--threads", 1, "--learning-rate", 2e-3, "--checkpoint-every", 7]
    alone = [Path(sys.executable).with_name("compress")]
    together = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", SAMPLE, tmp_path / "watched.py"]

    def run(name: str, command: list[object], kill_at: int = 0) -> int:
        line = list(map(str, [*command, *arguments, "--out", tmp_path / name]))
        where = {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"), "HELD": str(tmp_path / "held"), "KILL_AT": str(kill_at)}
        done = subprocess.run(line, capture_output=True, text=True, env={**environment(), **where})
        assert kill_at or done.returncode == 0, done.stderr
        return done.returncode

    run("one", alone)
    assert run("two", together, kill_at=10)
    assert (tmp_path / "two.partial" / "work" / "checkpoint-7" / "complete").exists() and not (tmp_path / "two").exists()
    run("two", together)
    for number in range(2):
        found = json.loads((tmp_path / f"held{number}").read_text())
        whole = found.pop("all")
        assert all(0.45 < share / whole < 0.55 for share in found.values()), found
    one, two = (open_artifact(tmp_path / name).manifest.metrics["training"]["loss"] for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4)
    ids, mask = batch([9, 4])
    assert torch.allclose(load_model(tmp_path / "two")(ids, mask), load_model(tmp_path / "one")(ids, mask), atol=1e-3)
