"""What each rewrite for one text saves of a small int8 student: text → label on one thread, in ONNX Runtime.

Two layers of width 384 with 2 heads of 32 and 128 neurons, MiniLM's vocabulary, weights at random (speed does not depend on them),
calibrated on the texts. All ways take turns in one process, each warmed before its turn; beside them MiniLM's shape in fp32.

    python benchmarks/one_text.py --data sst2 --json one_text.json
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from compress.cli import boundary
from compress.data import load_data
from compress.quantization import calibrate, freeze, linears, observed
from compress.sources import open_source
from export.audit import audit
from export.first_token import one_query
from export.folding import Storage, clamp, fold
from export.graph import export_graph, opset_for
from export.one_text import one_text
from export.sharing import share_weights
from model.config import read_config
from model.encoder import Encoder
from model.tokenizer import Tokenizer, open_tokenizer
from serve.machine import machine_facts
from serve.predictor import OrtPredictor
from serve.sessions import open_session

LONGEST, TEXTS, WARM = 128, 150, 0.03
EARLY = {"early_pooling": True}
FOLDS = {**EARLY, "positions_after_norm": True}
LAST = tuple(f"layers.1.{name}" for name in ("attention.output", "feedforward.up", "feedforward.down"))


@dataclass(frozen=True)
class Way:
    """Changes of the encoder, activation, how embeddings are stored and whether they are folded, linears that stay fp32.

    `own`: whether the one-text graph has attention of its own (export/one_text.py).
    """

    changes: dict[str, Any]
    activation: str = "gelu"
    storage: Storage = "int8"
    folded: bool = False
    kept: tuple[str, ...] = ()
    own: bool = True


CLS = {"head": {"labels": 2, "pooling": "cls"}}
NEURONS = 128


def eight(keys: int) -> dict[str, Any]:
    """Layers of 8 heads that have so many heads of keys and values."""
    attention = {"heads": 8, "head_width": 32, "key_value_heads": keys}
    return {"layers": {"count": 2, "attention": attention, "feedforward": {"kind": "mlp", "neurons": NEURONS, "activation": "relu"}}}


WAYS = {
    "plain": Way({}),
    "early pooling": Way(EARLY),
    "early pooling, fp16 embeddings": Way(EARLY, storage="fp16"),
    "early pooling, fp32 embeddings": Way(EARLY, storage="fp32"),
    "early pooling, relu": Way(EARLY, "relu"),
    "the same, folded in int8": Way(FOLDS, "relu", folded=True),
    "the same, folded in int8, attention as in batches": Way(FOLDS, "relu", folded=True, own=False),
    "the same, folded in fp16": Way(FOLDS, "relu", "fp16", folded=True),
    "the same, folded in fp32": Way(FOLDS, "relu", "fp32", folded=True),
    "folded in int8, one-row linears fp32": Way(FOLDS, "relu", folded=True, kept=LAST),
    "folded in int8, the first token for the mean": Way({**FOLDS, **CLS}, "relu", folded=True),
    "the same of 8 heads": Way({**FOLDS, **CLS, **eight(8)}, "relu", folded=True),
    "the same of 8 heads that share 2 heads of keys and values": Way({**FOLDS, **CLS, **eight(2)}, "relu", folded=True),
    "the same of 8 heads that share 1": Way({**FOLDS, **CLS, **eight(1)}, "relu", folded=True),
    "not folded, the first token for the mean": Way({**EARLY, **CLS}, "relu"),
    "folded in int8, RMSNorm for LayerNorm": Way({**FOLDS, "norm": {"kind": "rmsnorm"}}, "relu", folded=True),
}
MINILM = "MiniLM fp32"


def student(name: str, tokenizer: Tokenizer, texts: list[str]) -> Encoder:
    """The encoder of a way, as it is exported."""
    way = WAYS[name]
    model = encoder(2, 2, NEURONS, way.activation, tokenizer, **way.changes)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():  # as large as trained ones, so that nothing is optimised away
            if "layers" in parameter_name and "norm" not in parameter_name:
                parameter.normal_(std=0.06)
    names = linears(model, way.kept)
    watched = observed(model, names)
    calibrate(watched, [{key: torch.from_numpy(array) for key, array in tokenizer.encode(texts[:64]).items()}])
    frozen = clamp(freeze(watched, names, embeddings=way.storage))
    frozen = one_query(frozen)
    return fold(frozen, way.storage) if way.folded else frozen


def encoder(depth: int, heads: int, neurons: int, activation: str, tokenizer: Tokenizer, **changes: Any) -> Encoder:
    """An encoder of width 384 with heads of 32."""
    layer = {"attention": {"heads": heads, "head_width": 32}, "feedforward": {"kind": "mlp", "neurons": neurons, "activation": activation}}
    values = {"vocabulary": tokenizer.vocabulary, "width": 384, "token_types": 2, "max_length": LONGEST, "head": {"labels": 2}}
    torch.manual_seed(0)
    return Encoder(read_config({**values, "layers": {"count": depth, **layer}, **changes})).eval()


def write(name: str, folder: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    """The two graphs of a way in `folder`, unless they are there."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    model = encoder(6, 12, 1536, "gelu", tokenizer) if name == MINILM else student(name, tokenizer, texts)
    alone = one_text(model) if name == MINILM or WAYS[name].own else model
    export_graph(model, folder / "model.onnx", opset=opset_for(model), pairs=False)
    export_graph(alone, folder / "single.onnx", opset=opset_for(model), pairs=False, single=True)
    share_weights(folder / "single.onnx", folder / "model.onnx")


def answer(predictor: OrtPredictor, text: str) -> int:
    """Text → label."""
    return int(predictor.logits(predictor.encode([text]))[0].argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--data", default="tweets", help="where the texts come from (default: tweets)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the graphs there, and take those that are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = open_tokenizer(open_source("minilm").path, LONGEST)
    texts = load_data(given.data).splits["test"]["text"][:TEXTS]
    predictors: dict[tuple[str, str], OrtPredictor] = {}
    found: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as temporary:
        for number, name in enumerate([MINILM, *WAYS]):
            print(f"\r  exporting {number + 1} of {len(WAYS) + 1}", end="", file=sys.stderr, flush=True)
            folder = (given.work or Path(temporary)) / str(number)
            write(name, folder, tokenizer, texts)
            batched, single = (open_session(folder / file)[0] for file in ("model.onnx", "single.onnx"))
            predictor = OrtPredictor(batched, frozenset({"input_ids", "attention_mask"}), tokenizer, ("a", "b"), "cpu", "int8")
            predictors[name, "batched"], predictors[name, "single"] = predictor, replace(predictor, single=single)
            size = (folder / "model.onnx").stat().st_size
            nodes = {kind: audit(folder / file).nodes for kind, file in (("batched", "model.onnx"), ("single", "single.onnx"))}
            found[name] = {"bytes": size, "nodes": nodes, "median_us": {}}
        print(file=sys.stderr)
    samples: dict[tuple[str, str], list[list[float]]] = {way: [] for way in predictors}
    for _ in range(3 if given.quick else 11):
        for way, predictor in predictors.items():
            warm = time.perf_counter() + WARM
            while time.perf_counter() < warm:
                answer(predictor, texts[0])
            turn = []
            for text in texts:
                started = time.perf_counter()
                answer(predictor, text)
                turn.append(1e6 * (time.perf_counter() - started))
            samples[way].append(turn)
    for (name, kind), turns in samples.items():
        found[name]["median_us"][kind] = round(float(np.median(turns)), 1)
    tokens = statistics.mean(len(encoding.ids) for encoding in tokenizer.ids(texts))
    print(f"{len(texts)} texts of {given.data}, {tokens:.1f} tokens on average")
    print("| | nodes | one-text graph | µs | one-text graph | × MiniLM | MB |\n|---" + "|---:" * 6 + "|")
    baseline = found[MINILM]["median_us"]["batched"]
    for name, figures in found.items():
        count, median = figures["nodes"], figures["median_us"]
        ratio, megabytes = baseline / median["single"], figures["bytes"] / 1e6
        times = (f"{median[kind]:.0f}" for kind in ("batched", "single"))
        print(f"| {name} | {' | '.join((*map(str, count.values()), *times, f'{ratio:.0f}×', f'{megabytes:.1f}'))} |")
    if given.json:
        report = {"data": given.data, "texts": len(texts), "tokens": round(tokens, 1), "ways": found, "machine": machine_facts()}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with boundary():
        main()
