"""`kill -9` at random moments over all the stages, then the same command: what an undisturbed run makes."""

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from model.artifact import open_artifact
from tests.compress.chain import COMMAND, compress, environment, write_data, write_encoder, write_tokenizer

NAMES = ("teacher", "student", "pruned", "quantized", "onnx")
TRAINED = "batch_size = 16\nmax_length = 24\nthreads = 1\nlearning_rate = 2e-3\ncheckpoint_every = 5\n"


def recipe(folder: Path) -> Path:
    """The chain up to the export, its training long enough to be hit in the middle."""
    write_data(folder / "data")
    write_tokenizer(folder / "tokenizer")
    write_encoder(folder / "encoder.json")
    taught = f'teacher = "teacher"\n{TRAINED}'
    stages = [
        f'run = "train"\nout = "teacher"\nbase = "{folder / "encoder.json"}"\ntokenizer = "{folder / "tokenizer"}"\nepochs = 10\n{TRAINED}',
        f'run = "distill"\nout = "student"\nepochs = 6\n{taught}',
        f'run = "prune"\nout = "pruned"\nmodel = "student"\nheads = 2\nneurons = 12\nepochs = 6\n{taught}',
        f'run = "quantize"\nout = "quantized"\nmodel = "pruned"\nmethod = "qat"\nepochs = 4\n{taught}',
        'run = "export"\nout = "onnx"\nmodel = "quantized"\n',
    ]
    file = folder / "chain.toml"
    file.write_text(f'data = "{folder / "data"}"\n' + "".join(f"[[stage]]\n{stage}" for stage in stages))
    return file


def kill_and_repeat(file: Path, out: Path, kills: int, duration: float, seed: int) -> list[str]:
    """Run until `kills` have struck, each at a random moment of a whole run; begins anew when a run got through.

    Gives the newest thing on the disk at each kill.
    """
    moments, struck = random.Random(seed), []
    while len(struck) < kills:
        process = subprocess.Popen([*COMMAND, "run", str(file), "--out", str(out)], env=environment(), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.random() * duration)
            shutil.rmtree(out)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            there = sorted(out.rglob("*"), key=lambda path: path.stat().st_mtime) if out.exists() else []
            struck.append(there[-1].relative_to(out).parts[0] if there else "nothing yet")
    compress("run", file, "--out", out)
    return struck


def digests(out: Path) -> dict[str, str]:
    return {name: open_artifact(out / name).digest for name in NAMES}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_change_nothing(tmp_path):
    file = recipe(tmp_path)
    begun = time.monotonic()
    compress("run", file, "--out", tmp_path / "whole")
    duration = time.monotonic() - begun
    struck = kill_and_repeat(file, tmp_path / "killed", kills=20, duration=duration, seed=0)
    assert len(set(struck)) >= 4, struck  # over the stages, not all in one
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(NAMES)
