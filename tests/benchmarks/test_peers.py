"""Environments are made once; a tool that does not build is a reason, not an end."""

import json
import sys

import pytest

from benchmarks import peers
from benchmarks.peers import PEERS, BuildError, environment, execute, weights


def test_an_environment_is_made_once_and_again_when_its_pins_change(tmp_path, monkeypatch):
    ran = []

    def run(command, folders=()):
        ran.append(command)
        (tmp_path / ".venv-olive").mkdir(exist_ok=True)

    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers, "execute", run)
    (tmp_path / "olive.txt").write_text("olive-ai==0.13.0\n")
    for _ in range(2):
        assert environment("olive") == tmp_path / ".venv-olive" / "bin" / "python"
    assert [command[1:3] for command in ran] == [["-m", "venv"], ["-m", "pip"]]
    (tmp_path / "olive.txt").write_text("olive-ai==0.14.0\n")
    environment("olive")
    assert len(ran) == 4


def test_what_does_not_build_says_its_last_words():
    with pytest.raises(BuildError, match="^ValueError: no such pass$"):
        execute([sys.executable, "-c", "raise ValueError('no such pass')"])
    with pytest.raises(BuildError, match="ended with 3"):
        execute([sys.executable, "-c", "raise SystemExit(3)"])


def test_what_is_made_is_not_made_again_until_something_changes(tmp_path, monkeypatch):
    ran = []

    def run(command, folders):
        ran.append(command[2])
        (tmp_path / "out").mkdir(exist_ok=True)
        if command[2] == "fails":
            raise BuildError("no such pass")

    monkeypatch.setattr(peers, "execute", run)
    (tmp_path / "with_olive.py").write_text("build()")

    def make(form="int8", identity="teacher"):
        peers.once(["python", tmp_path / "with_olive.py", form], (), tmp_path / "out", [identity])

    make()
    make()
    assert ran == ["int8"]
    make(identity="another teacher")
    with pytest.raises(BuildError):
        make("fails")
    make("int8", "another teacher")  # what failed may have left half of something
    (tmp_path / "with_olive.py").write_text("build_better()")
    make("int8", "another teacher")
    assert ran == ["int8", "int8", "fails", "int8", "int8"]


def test_every_peer_has_its_module_and_its_pins():
    for peer in PEERS:
        assert (peers.HERE / f"{peer.module}.py").exists()
        assert peers.PINS.get(peer.environment, peers.HERE / f"{peer.environment}.txt").exists()


def test_a_size_is_that_of_what_is_loaded(tmp_path):
    for name in ("model.onnx", "config.json", "olive/model.onnx", "static/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps("12345678"))
    assert weights(tmp_path) == 20
