"""Can the benchmark be believed? Copies of one model must not be told apart, and one that is 5 % slower must be found.

    python benchmarks/trust.py --quick --json benchmarks/trust.json

Each run measures a model of the demo student's shape (random weights), a copy of it, and one that takes 5 % longer on purpose, while a
process that does nothing else keeps another core busy. It prints {"false_alarms": …, "found": …, "runs": …}.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compress.cli import boundary
from serve.predictor import OrtPredictor, open_predictor

SLOWER = 1.05
BUSY = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: sum(range(1000))"
LONGEST = 1800  # seconds after which the busy process stops by itself


class Slowed:
    """A predictor that takes `factor` times as long, by spinning after each answer."""

    def __init__(self, inner: OrtPredictor, factor: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.inner, self.factor, self.clock = inner, factor, clock
        self.labels, self.engine, self.provider, self.precision = inner.labels, inner.engine, inner.provider, inner.precision
        self.encoding = 0.0

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        start = self.clock()
        batch = self.inner.encode(texts, pairs)
        self.encoding = self.clock() - start
        return batch

    def logits(self, batch: Any) -> np.ndarray:
        start = self.clock()
        found = self.inner.logits(batch)
        end = self.clock()
        until = end + (self.factor - 1) * (self.encoding + end - start)
        while self.clock() < until:
            pass
        return found


def open_slowed(path: str, threads: int, factor: float) -> Slowed:
    """The factory of the slower way."""
    return Slowed(open_predictor(path, threads=threads), factor)


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes all the time."""
    child = subprocess.Popen([sys.executable, "-c", BUSY.format(seconds=LONGEST)])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def measure(path: Path, texts: Sequence[str], labels: Sequence[int], names: Sequence[str], rounds: int, seed: int) -> dict[str, Any]:
    """One run: the verdicts on the copy and on the slower one, and the noise floor."""
    from compress.benchmarking import Plan, benchmark
    from compress.ways import Way

    plain = {"path": str(path), "threads": 1}
    ways = [
        Way("model", "model", "ort", "cpu", "fp32", "graph", "serve.predictor:open_predictor", plain),
        Way("copy", "model", "ort", "cpu", "fp32", "graph", "serve.predictor:open_predictor", plain),
        Way("slower", "model", "ort", "cpu", "fp32", "graph", "trust:open_slowed", {**plain, "factor": SLOWER}),
    ]
    measured = benchmark(ways, texts, labels, names, plan=Plan(texts=len(texts), rounds=rounds, seed=seed))
    copy, slower = measured["comparisons"]
    return {
        "copy": copy["verdict"],
        "slower": slower["verdict"],
        "noise_floor": measured["protocol"]["noise_floor"],
        "ratios": [copy["speedup"], slower["speedup"]],
    }


def main() -> None:
    """Make the model, measure, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="21 rounds a run instead of 60: under five minutes")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--json", type=Path, help="write the result, with every run, to this file")
    options = parser.parse_args()

    sys.path.append(str(Path(__file__).parent / "models"))
    from random_weights import make_graph, make_model

    from compress.builtin import tweets

    rounds = options.rounds or (21 if options.quick else 60)
    part = tweets()["test"]
    names = sorted(set(part["label"]))
    texts, labels = part["text"][:100], [names.index(label) for label in part["label"][:100]]
    with tempfile.TemporaryDirectory() as folder:
        graph = make_graph(Path(folder) / "onnx", make_model(Path(folder) / "student", "student", names))
        runs = []
        with busy_core():
            for number in range(options.runs):
                runs.append(measure(graph, texts, labels, names, rounds, seed=number))
                print(f"{number + 1}: {json.dumps(runs[-1])}", file=sys.stderr, flush=True)
    result = {
        "false_alarms": sum(run["copy"] != "no clear difference" for run in runs),
        "found": sum(run["slower"] == "slower" for run in runs),
        "runs": len(runs),
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps({**result, "rounds": rounds, "each": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with boundary():
        main()
