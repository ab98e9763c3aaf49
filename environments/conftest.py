"""What the environments share: a way to run a command in one of them, and a small real artifact, made in the main one.

The environments themselves are made by `make test-environments`.
"""

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Too small to be any good, but with every file that a large one has.
ENCODER = {
    "vocabulary": 30522,
    "width": 32,
    "layers": {
        "count": 2,
        "attention": {"kind": "dense", "heads": 2, "head_width": 16},
        "feedforward": {"kind": "mlp", "neurons": 32},
    },
    "head": {"kind": "classification", "labels": 2},
}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run(environment, command, *arguments, VARIABLE=value)`: a command of an environment, from a folder that is not ours."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(environment: str, command: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        program = ROOT / environment / "bin" / command
        return subprocess.run([program, *arguments], cwd=elsewhere, env={**os.environ, **variables}, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def artifact(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of two labels, trained and exported by the command line of the main environment."""
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "encoder.json").write_text(json.dumps(ENCODER))
    with (folder / "reviews.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([f"{word} film number {number}", label] for number in range(40) for word, label in [("good", "pos"), ("bad", "neg")])
    train = ["--base", folder / "encoder.json", "--tokenizer", "minilm", "--max-length", "32", "--batch-size", "16"]
    made = run(".venv", "compress", "train", folder / "reviews.csv", *train, "--out", folder / "teacher")
    assert made.returncode == 0, made.stderr
    made = run(".venv", "compress", "export", folder / "teacher", "--out", folder / "onnx")
    assert made.returncode == 0, made.stderr
    return folder / "onnx"
