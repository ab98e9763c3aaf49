"""`kill -9` at random moments over all the stages, then the same command: what an undisturbed run makes."""

import random
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


def kill_and_repeat(file: Path, out: Path, kills: int, duration: float, seed: int) -> int:
    """Run until done, each time killed after a random share of what a whole run takes; gives how many kills struck."""
    moments, struck = random.Random(seed), 0
    for _ in range(kills):
        process = subprocess.Popen([*COMMAND, "run", str(file), "--out", str(out)], env=environment(), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(0.15, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            struck += 1
        process.wait()
        if (out / NAMES[-1]).exists():
            for name in moments.sample(NAMES, 2):  # begin in the middle again
                subprocess.run(["rm", "-r", str(out / name)], check=False)
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
    assert struck >= 12
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(NAMES)
