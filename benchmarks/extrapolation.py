"""Which positions still work on texts longer than those they were trained on: train at 128 tokens, evaluate at 512 and 2048.

A small encoder from nothing, one for each kind of positions, on the articles of `bbc` (five topics) cut to 128 tokens. Articles are
seldom longer than a few hundred words, so a text for evaluation is several test articles of one topic in a row, cut to the length.
The tokens are whole words of the training texts. A task of topics asks little of word order: the table tells whether a kind breaks
down beyond its length, not how well it reads.

    python benchmarks/extrapolation.py --json extrapolation.json
"""

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from compress.cli import boundary
from compress.data import load_data
from model.config import read_config
from model.encoder import Encoder
from serve.machine import machine_facts

TRAINED, LENGTHS, WIDTH, VOCABULARY, BATCH = 128, (128, 512, 2048), 128, 8000, 16
POSITIONS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "learned, stretched": {"kind": "learned", "length": TRAINED},
    "sinusoidal": {"kind": "sinusoidal"},
    "rotary": {"kind": "rotary"},
    "rotary, linear": {"kind": "rotary", "extension": {"kind": "linear", "factor": 16}},
    "rotary, dynamic": {"kind": "rotary", "extension": {"kind": "dynamic", "factor": 1, "length": TRAINED}},
    "rotary, yarn": {"kind": "rotary", "extension": {"kind": "yarn", "factor": 16, "length": TRAINED}},
    "alibi": {"kind": "alibi"},
    "t5": {"kind": "t5"},
    "relative": {"kind": "relative"},
}
AFTERWARDS = ("linear", "yarn")  # put in after training without them, as their papers do


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]", text.lower())


def encoder(positions: dict[str, Any], labels: int) -> Encoder:
    """Two layers of width 128, 4 heads; texts of any length in LENGTHS."""
    layers = {"count": 2, "attention": {"heads": 4}, "feedforward": {"kind": "mlp", "neurons": 256}}
    shape = {"vocabulary": VOCABULARY, "width": WIDTH, "max_length": max(LENGTHS), "layers": layers, "head": {"labels": labels}}
    return Encoder(read_config({**shape, "positions": positions}))


def trained(name: str, texts: list[list[int]], labels: np.ndarray, classes: int, steps: int, seed: int) -> Encoder:
    """A fresh encoder, trained on windows of 128 tokens drawn from the texts."""
    positions = POSITIONS[name]
    late = positions.get("extension", {}).get("kind") in AFTERWARDS
    torch.manual_seed(seed)
    model = encoder({"kind": "rotary"} if late else positions, classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    random = np.random.default_rng(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min((step + 1) / 20, (steps - step) / (0.8 * steps), 1.0)
        rows = random.integers(0, len(texts), BATCH)
        cut = [texts[row] for row in rows]
        starts = [int(random.integers(0, max(1, len(text) - TRAINED + 1))) for text in cut]
        ids, mask = padded([text[start : start + TRAINED] for text, start in zip(cut, starts, strict=True)])
        loss = F.cross_entropy(model(ids, mask), torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if not late:
        return model.eval()
    extended = encoder(positions, classes)
    extended.load_state_dict(model.state_dict())
    return extended.eval()


def padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 [texts, longest]."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids, mask


@torch.inference_mode()
def accuracy(model: Encoder, texts: list[list[int]], labels: np.ndarray) -> float:
    """Share of the texts whose topic is found."""
    size = max(1, 8192 // len(texts[0]))
    found = [model(*padded(texts[start : start + size])).argmax(-1).numpy() for start in range(0, len(texts), size)]
    return float((np.concatenate(found) == labels).mean())


def long_texts(texts: list[list[int]], labels: np.ndarray, length: int) -> list[list[int]]:
    """For each text, it and those of its topic that follow it, in a row, cut to `length` tokens."""
    by_label = {label: [row for row in range(len(texts)) if labels[row] == label] for label in set(labels.tolist())}
    long = []
    for row, label in enumerate(labels.tolist()):
        rows = by_label[label]
        following = islice(cycle(rows), rows.index(row), None)
        joined: list[int] = []
        while len(joined) < length:
            joined += texts[next(following)]
        long.append(joined[:length])
    return long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps and texts")
    parser.add_argument("--data", default="bbc", metavar="SOURCE", help="a set that `compress train` knows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, steps, tested = (1, 100, 40) if given.quick else (3, 400, 200)
    data = load_data(given.data)
    train, test = ([words(text) for text in data.splits[part]["text"][:]] for part in ("train", "test"))
    known = [word for word, _ in Counter(word for text in train for word in text).most_common(VOCABULARY - 1)]
    number = {word: place for place, word in enumerate(known, start=1)}
    train, test = ([[number.get(word, 0) for word in text] for text in part] for part in (train, test))
    labels = np.array(data.splits["train"]["label"][:])
    rows = np.random.default_rng(0).permutation(len(test))[:tested]  # the set is in the order of its topics
    test_labels = np.array(data.splits["test"]["label"][:])[rows]
    texts = {length: long_texts([test[row] for row in rows], test_labels, length) for length in LENGTHS}
    found: dict[str, dict[str, list[float]]] = {name: {str(length): [] for length in LENGTHS} for name in POSITIONS}
    for seed in range(seeds):
        for name in POSITIONS:
            print(f"\r  seed {seed}, {name}              ", end="", file=sys.stderr, flush=True)
            model = trained(name, train, labels, len(data.labels), steps, seed)
            for length in LENGTHS:
                found[name][str(length)].append(accuracy(model, texts[length], test_labels))
    print(file=sys.stderr)
    print(f"| accuracy, trained at {TRAINED} tokens | {' | '.join(f'{length} tokens' for length in LENGTHS)} |")
    print("|---" * (len(LENGTHS) + 1) + "|")
    for name, by_length in found.items():
        print(f"| {name} | {' | '.join(f'{100 * statistics.mean(values):.1f} %' for values in by_length.values())} |")
    if given.json:
        report = {"accuracy": found, "steps": steps, "test_texts": tested, "data": data.summary(), "machine": machine_facts()}
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with boundary():
        main()
