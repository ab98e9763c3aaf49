"""What the README tells a user to type is run as it stands; small data and a small model stand in under the built-in names."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, BertModel

from compress import builtin, sources
from compress.builtin import BuiltIn
from compress.cli import cli
from compress.recipe import shipped
from tests.compress.chain import write_texts, write_tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ONE = ("--threads", "1")  # two would wait for each other beside other tests
QUICK = {
    "train": ("--epochs", "6", *ONE),
    "distill": ("--epochs", "3", *ONE),
    "prune": ("--epochs", "2", *ONE),
    "benchmark": ("--texts", "10", "--rounds", "3"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Every `compress …` of the README's shell blocks, in order."""
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.startswith("compress ")]


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """A folder to type in, where `tweets` is 300 texts of our making and `minilm` a tiny BERT."""
    base = write_tokenizer(tmp_path / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192, "max_position_embeddings": 128}
    BertModel(BertConfig(vocab_size=90, **sizes), add_pooling_layer=False).save_pretrained(base)

    def tweets() -> dict[str, dict[str, list[str]]]:
        parts = {}
        for seed, (part, count) in enumerate((("train", 320), ("validation", 60), ("test", 60))):
            rows = [json.loads(line) for line in write_texts(tmp_path / "texts.jsonl", count, seed).read_text().splitlines()]
            parts[part] = {name: [row[name] for row in rows] for name in ("text", "label")}
        return parts

    monkeypatch.setitem(builtin.SETS, "tweets", BuiltIn(tweets, "stands in", "ours"))
    monkeypatch.setattr(sources.builtin, "base_directory", lambda name: base)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_and_the_python_of_the_readme_work(small_world, capsys):
    assert [command[1] for command in commands()] == ["train", "distill", "prune", "quantize", "export", "benchmark", "predict"]
    for command in commands():
        extra = QUICK.get(command[1], ())
        done = CliRunner().invoke(cli, [*command[1:], *extra], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 2
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_every_make_target_and_extra_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for group in re.findall(r"alambic\[([a-z,]+)\]", README) for name in group.split(",")}
    assert named <= set(extras)
    assert set(re.findall(r"^\| `([a-z]+)`(?: / `gpu`)? \| ", README, re.MULTILINE)) <= set(extras)


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    assert "demo" in shipped()
