"""Prefix tuning against full fine-tuning of MiniLM: what is trained and saved, and what that costs in accuracy and time.

    python benchmarks/prefix_tuning.py --quick --data trec-directory --json prefix_tuning.json

Each way is `compress train` on the same texts, with the learning rate that suits it, then the test part, read once. The latency is
that of the exported file, one text at a time on one thread.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from compress.cli import boundary, cli
from compress.data import load_data
from model.artifact import open_artifact
from serve.predictor import open_predictor, scores

QUICK: dict[str, dict[str, Any]] = {
    "full": {"learning-rate": 1e-4, "epochs": 2, "train-texts": 1500},
    "prefix 16": {"prefix": 16, "learning-rate": 1e-2, "epochs": 4, "train-texts": 1500},
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"learning-rate": 1e-4, "epochs": 4},
    **{f"prefix {length}": {"prefix": length, "learning-rate": 1e-2, "epochs": 8} for length in (4, 16, 64)},
}


def run(*arguments: object) -> None:
    """One command, in this process."""
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    if done.exception:
        sys.exit(f"{done.exception}\n{done.output}")


def measure(name: str, given: dict[str, Any], data: str, folder: Path) -> dict[str, float]:
    """Train one way, export it, and read the test part."""
    options = [part for option, value in given.items() for part in (f"--{option}", value)]
    started = time.monotonic()
    out = folder / name.replace(" ", "-")
    run("train", data, "--base", "minilm", "--max-length", 64, *options, "--out", out)
    seconds = time.monotonic() - started
    run("export", out, "--out", folder / f"{out.name}-onnx")
    manifest, exported = open_artifact(out).manifest, open_artifact(folder / f"{out.name}-onnx").manifest
    test = load_data(data).splits["test"]
    found = scores(open_predictor(folder / f"{out.name}-onnx"), test["text"][:]).argmax(1)
    right = found == np.asarray(test["label"][:])
    return {
        "accuracy": float(right.mean()),
        "interval": float(1.96 * right.std() / len(right) ** 0.5),
        "trained_parameters": manifest.metrics["trained_parameters"],
        "saved_bytes": manifest.files["model.safetensors"].bytes,
        "seconds": seconds,
        "ort_ms": exported.metrics["ort_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one length of prefix, fewer texts and passes")
    parser.add_argument("--data", default="intents-en", help="built-in set, file or folder with class labels and single texts")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (QUICK if given.quick else WAYS).items():
            figures[name] = measure(name, options, given.data, Path(folder))
            line = "{:>10}: {accuracy:.1%} ± {interval:.1%}, {trained_parameters:,} trained, {saved_bytes:,} bytes, {seconds:.0f} s"
            print((line + ", {ort_ms} ms").format(name, **figures[name]), file=sys.stderr)
    report = {"data": given.data, "ways": figures}
    print(json.dumps(report))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    with boundary():
        main()
