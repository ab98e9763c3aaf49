"""What exchanging one module costs in ONNX Runtime: RMSNorm for LayerNorm, SwiGLU for an MLP of the same FLOPs, fewer key heads, …

Four layers of width 384 with 12 heads of 32, weights at random, one text, one thread; all take turns in one process, round after round,
and a ratio is the median over rounds of that round's ratio to the plain encoder.

    python benchmarks/modules.py --json modules.json
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.cli import boundary
from export.graph import export_graph, opset_for
from model.config import read_config
from model.encoder import Encoder
from serve.machine import machine_facts
from serve.predictor import open_session

WIDTH, LAYERS, VOCABULARY, LONGEST = 384, 4, 1000, 512
PLAIN: dict[str, Any] = {"attention": {"heads": 12}, "feedforward": {"kind": "mlp", "neurons": 1536}}
# Three matrices where an MLP has two: two thirds of the neurons are the same FLOPs (Shazeer 2020, §3).
GLU = {"kind": "glu", "neurons": 1024}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "plain again": ({}, {}),
    "rmsnorm": ({"norm": {"kind": "rmsnorm"}}, {}),
    "swiglu": ({}, {"feedforward": {**GLU, "activation": "silu"}}),
    "geglu": ({}, {"feedforward": {**GLU, "activation": "gelu"}}),
    "rmsnorm, swiglu": ({"norm": {"kind": "rmsnorm"}}, {"feedforward": {**GLU, "activation": "silu"}}),
    "batchnorm": ({"norm": {"kind": "batchnorm"}}, {}),
    "pre-norm": ({"norm_first": True}, {}),
    "4 key heads": ({}, {"attention": {"heads": 12, "key_value_heads": 4}}),
    "1 key head": ({}, {"attention": {"heads": 12, "key_value_heads": 1}}),
    "16 heads": ({}, {"attention": {"heads": 16}}),
    "query-key norm": ({}, {"attention": {"heads": 12, "query_key_norm": True}}),
    "rotary": ({"positions": {"kind": "rotary"}}, {}),
    "alibi": ({"positions": {"kind": "alibi"}}, {}),
    "t5": ({"positions": {"kind": "t5"}}, {}),
    "relative": ({"positions": {"kind": "relative"}}, {}),
}


def write(name: str, file: Path) -> None:
    """The graph of a variant."""
    encoder, layer = VARIANTS[name]
    shape = {"vocabulary": VOCABULARY, "width": WIDTH, "max_length": LONGEST, "head": {"labels": 2}}
    torch.manual_seed(0)
    model = Encoder(read_config({**shape, "layers": {"count": LAYERS, **PLAIN, **layer}, **encoder})).eval()
    export_graph(model, file, opset=opset_for(model), pairs=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    given = parser.parse_args()
    lengths, rounds = [16, 64, 128, 512], 15 if given.quick else 60
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, LONGEST))
    samples: dict[str, dict[int, list[float]]] = {name: {length: [] for length in lengths} for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for number, name in enumerate(VARIANTS):
            print(f"\r  exporting {number + 1} of {len(VARIANTS)}", end="", file=sys.stderr, flush=True)
            file = Path(folder) / f"{number}.onnx"
            write(name, file)
            sessions[name], _ = open_session(file)
        print(file=sys.stderr)
        for number in range(rounds + 1):
            for length in lengths:
                inputs = {"input_ids": ids[:, :length], "attention_mask": np.ones((1, length), np.int64)}
                for name, session in sessions.items():
                    runs = []
                    for _ in range(5 if length < 512 else 1):
                        started = time.perf_counter()
                        session.run(None, inputs)
                        runs.append(1000 * (time.perf_counter() - started))
                    if number:  # the first round warms up
                        samples[name][length].append(min(runs))
    ratios = {
        name: {
            str(length): round(statistics.median(x / y for x, y in zip(found, samples["plain"][length], strict=True)), 3)
            for length, found in by.items()
        }
        for name, by in samples.items()
    }
    latency = {name: {str(length): round(statistics.median(found), 3) for length, found in by.items()} for name, by in samples.items()}
    print(f"| latency over that of the plain encoder | {' | '.join(f'{length} tokens' for length in lengths)} |")
    print("|---" * (len(lengths) + 1) + "|")
    for name, by_length in ratios.items():
        print(f"| {name} | {' | '.join(f'{ratio:.2f}' for ratio in by_length.values())} |")
    if given.json:
        report = {"ratios": ratios, "latency_ms": latency, "rounds": rounds, "machine": machine_facts()}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with boundary():
        main()
