"""What precision and gradient checkpointing cost and save in training: tokens a second, peak memory, and the loss at the end.

    python benchmarks/training.py --quick --json benchmarks/training.json

Each way trains the same encoder (random weights, dropout 0) on the same texts in the same order, in a process of its own. Memory is the
most that the process held while it trained beyond what it held before. With a GPU, fp16 and TF32 are measured too, and memory is the GPU's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CPU_WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "fp32, checkpointing": {"checkpointing": True},
    "bf16, checkpointing": {"precision": "bf16", "checkpointing": True},
}
GPU_WAYS: dict[str, dict[str, Any]] = {**CPU_WAYS, "fp16": {"precision": "fp16"}, "tf32": {"tf32": True}}
SIZES = {
    "quick": {"width": 256, "layers": 6, "heads": 4, "length": 128, "batch": 16, "steps": 12},
    "full": {"width": 384, "layers": 12, "heads": 12, "length": 256, "batch": 32, "steps": 60},
}
VOCABULARY = 2000


def measure(way: dict[str, Any], size: dict[str, int], device: str) -> dict[str, float]:
    """One way, in this process."""
    import torch

    from compress.config import TrainOptions
    from compress.losses import supervised
    from compress.training import Corpus, prepare, train
    from model.config import read_config
    from model.encoder import Encoder
    from model.tokenizer import Encoding, open_tokenizer

    options = TrainOptions(batch_size=size["batch"], learning_rate=5e-4, max_length=size["length"], threads=1, device=device, **way)
    prepare(options)
    layer = {"attention": {"heads": size["heads"]}, "feedforward": {"kind": "mlp", "neurons": 4 * size["width"]}}
    values = {"vocabulary": VOCABULARY, "width": size["width"], "dropout": 0.0, "layers": {"count": size["layers"], **layer}}
    model = Encoder(read_config({**values, "head": {"labels": 2}, "max_length": size["length"]}))
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, size["batch"] * size["steps"])
    # Half of the tokens of a text are from the half of the vocabulary that its label names.
    low = random.integers(0, VOCABULARY, (len(labels), size["length"]))
    ids = np.where(random.random(low.shape) < 0.5, low, low // 2 + labels[:, None] * (VOCABULARY // 2))
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(
            open_tokenizer(_tokenizer(Path(folder)), size["length"]), [Encoding(row.tolist()) for row in ids], torch.tensor(labels)
        )
        times: list[float] = []
        before = _held(device)
        told = train(model, corpus, supervised("classification"), options, Path(folder), lambda *_: times.append(time.perf_counter()))
        peak = _held(device, peak=True)
    seconds = float(np.median(np.diff(times)))
    return {"tokens_per_second": size["batch"] * size["length"] / seconds, "peak_mb": peak - before, "loss": told["loss"]}


def _tokenizer(folder: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(VOCABULARY - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder


def _held(device: str, peak: bool = False) -> float:
    """Memory of the process (of the GPU) now, or the most so far, MB."""
    if device == "cuda":
        import torch

        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 1e6
    name = "VmHWM" if peak else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small encoder and few steps")
    parser.add_argument("--data", type=Path, help="not used: the texts are made up")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = SIZES["quick" if given.quick else "full"]
    ways = GPU_WAYS if given.device == "cuda" else CPU_WAYS
    if given.way:
        print(json.dumps(measure(ways[given.way], size, given.device)))
        return
    figures = {}
    for name in ways:
        command = [sys.executable, __file__, "--device", given.device, "--way", name, *(["--quick"] if given.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        figures[name] = json.loads(done.stdout.splitlines()[-1])
        print(
            "{:>20}: {tokens_per_second:8,.0f} tokens/s, {peak_mb:6,.0f} MB, loss {loss:.4f}".format(name, **figures[name]), file=sys.stderr
        )
    report = {"device": given.device, "size": size, "ways": figures}
    print(json.dumps(report))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
