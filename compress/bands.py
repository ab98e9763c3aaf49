"""Latency by length: the texts of a run in bands of their real number of tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.statistics import Floats, bootstrap, median

FEWEST = 5  # texts that a band needs before it is shown


def bands(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Bands (from, to), both inclusive, each twice as wide as the one below, that hold at least FEWEST of `lengths` [texts]."""
    found, low, high = [], 1, 8
    while low <= max(lengths, default=0):
        if sum(low <= length <= high for length in lengths) >= FEWEST:
            found.append((low, high))
        low, high = high + 1, 2 * high
    return found


def latency_bands(answer: Floats, model: Floats, lengths: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """For each band its median latencies in ms: text → label (with its interval) and ids → logits; samples are seconds [rounds, texts]."""
    rows = []
    for low, high in bands(lengths):
        inside = (np.asarray(lengths) >= low) & (np.asarray(lengths) <= high)
        whole, inner = answer[:, inside] * 1000, model[:, inside] * 1000
        rows.append(
            {
                "tokens": [low, high],
                "texts": int(inside.sum()),
                "median_ms": float(np.median(whole)),
                "interval": bootstrap(median, whole, seed=seed),
                "model_only_median_ms": float(np.median(inner)),
            }
        )
    return rows
