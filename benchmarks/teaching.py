"""What a teacher costs a student: the time of distilling against that of training the same student on the labels, and what is kept.

    python benchmarks/teaching.py --quick --json benchmarks/teaching.json

A teacher is fine-tuned briefly (how good it is says nothing about time). Its student is distilled once with an empty cache, which asks
the teacher; then, in turn, the same student is trained on the labels alone and distilled with the answers that are there, each a process
of its own, on the same texts for one pass. Seconds are those of the whole stage, as its manifest has them. At the end the same distillation
runs on answers that are kept whole (float32) in place of halved (float16).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {"quick": {"texts": 4000, "rounds": 3}, "full": {"texts": None, "rounds": 3}}
COMMON = ("--batch-size", 64, "--learning-rate", "4e-4", "--max-length", 64)
COMMAND = "import sys; {patch}from compress.cli import main; main()"
WHOLE = "from compress import answers; answers.HALF = (); "


def compress(*arguments: object, patch: str = "") -> dict[str, Any]:
    """Run a stage in a process of its own; its manifest."""
    command = [sys.executable, "-c", COMMAND.format(patch=patch), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    manifest: dict[str, Any] = json.loads((Path(str(arguments[-1])) / "manifest.json").read_bytes())
    return manifest


def measure(data: str, base: str, size: dict[str, Any], threads: int, folder: Path) -> dict[str, Any]:
    """All runs, one after the other."""
    texts = () if size["texts"] is None else ("--train-texts", size["texts"])
    common = (*COMMON, "--threads", threads, *texts)
    teacher = folder / "teacher"
    compress("train", data, "--base", base, *COMMON, "--threads", threads, "--train-texts", 512, "--out", teacher)
    taught = ("distill", teacher, "--data", data, "--depth", 2, *common)
    cold = compress(*taught, "--cache", folder / "cache", "--out", folder / "cold")
    seconds: dict[str, list[float]] = {"labels": [], "taught": []}
    for number in range(size["rounds"]):
        alone = compress("train", data, "--base", folder / "cold", "--dropout", 0, *common, "--out", folder / f"labels{number}")
        warm = compress(*taught, "--cache", folder / "cache", "--out", folder / f"warm{number}")
        if warm["digest"] != cold["digest"]:
            sys.exit("distilling with the answers of an earlier run gave another artifact")
        for name, manifest in (("labels", alone), ("taught", warm)):
            seconds[name].append(manifest["made_by"]["seconds"])
            print(f"{name:>8}: {seconds[name][-1]:7.1f} s", file=sys.stderr)
    whole = compress(*taught, "--cache", folder / "whole", "--out", folder / "float32", patch=WHOLE)
    kept = {name: sum(file.stat().st_size for file in (folder / name).rglob("*.safetensors")) / 1e6 for name in ("cache", "whole")}
    quality = {name: manifest["metrics"]["validation"]["accuracy"] for name, manifest in (("float16", cold), ("float32", whole))}
    return {
        "texts": cold["metrics"]["training"]["steps"] * 64 if size["texts"] is None else size["texts"],
        "seconds": seconds,
        "ratio": statistics.median(taught / alone for taught, alone in zip(seconds["taught"], seconds["labels"], strict=True)),
        "seconds_with_an_empty_cache": cold["made_by"]["seconds"],
        "kept_mb": {"float16": round(kept["cache"], 2), "float32": round(kept["whole"], 2)},
        "validation_accuracy": quality,
        "loss": {name: manifest["metrics"]["training"]["loss"] for name, manifest in (("float16", cold), ("float32", whole))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few texts")
    parser.add_argument("--data", default="tweets", help="set to learn on")
    parser.add_argument("--base", default="minilm", help="what the teacher starts from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(given.data, given.base, SIZES["quick" if given.quick else "full"], given.threads, Path(folder))
    print(f"distilling takes {report['ratio']:.2f} times what training on labels takes", file=sys.stderr)
    print(json.dumps({"data": given.data, "threads": given.threads, **report}))
    if given.json:
        given.json.write_text(json.dumps({"data": given.data, "threads": given.threads, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
