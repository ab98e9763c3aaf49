"""The small chain, made once a session through the command line's own functions."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import cli
from tests.compress.chain import SMALL, write_data, write_encoder, write_tokenizer


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> Path:
    """Folder with data/, tokenizer/, encoder.json and the artifacts teacher, student, pruned, quantized, onnx."""
    folder = tmp_path_factory.mktemp("house")
    data = write_data(folder / "data")
    write_tokenizer(folder / "tokenizer")
    write_encoder(folder / "encoder.json")

    def run(*arguments: object) -> None:
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
        assert done.exception is None, done.output

    base = ("--base", folder / "encoder.json", "--tokenizer", folder / "tokenizer")
    run("train", data, *base, "--out", folder / "teacher", "--epochs", 4, *SMALL)
    run("distill", folder / "teacher", "--data", data, "--out", folder / "student", "--epochs", 2, *SMALL)
    cut = ("--heads", 2, "--neurons", 12)
    run("prune", folder / "student", "--teacher", folder / "teacher", "--data", data, "--out", folder / "pruned", *cut, *SMALL)
    run("quantize", folder / "pruned", "--data", data, "--out", folder / "quantized", "--max-length", 24)
    run("export", folder / "quantized", "--out", folder / "onnx")
    return folder
