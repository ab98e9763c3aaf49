"""A bag of tokens and hashed n-grams, and a convolution with pooling, as loops over one text in float64."""

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float64]]


def _network(weights: Arrays, features: NDArray[np.float64]) -> NDArray[np.float64]:
    hidden = np.maximum(weights["head.hidden.weight"] @ features + weights["head.hidden.bias"], 0)
    return weights["head.output.weight"] @ hidden + weights["head.output.bias"]


def bag(weights: Arrays, ids: list[int], *, vocabulary: int, ngrams: tuple[int, ...], buckets: int) -> NDArray[np.float64]:
    """Logits: the mean over the rows of all tokens and of all n-grams, each by the hash of its tokens from left to right."""
    rows = [weights["rows.weight"][token] for token in ids]
    for length in ngrams:
        for start in range(len(ids) - length + 1):
            bucket = ids[start]
            for token in ids[start + 1 : start + length]:
                bucket = (bucket * 1_000_003 + token) % buckets
            rows.append(weights["rows.weight"][vocabulary + bucket])
    return _network(weights, np.mean(rows, axis=0))


def convolution(weights: Arrays, ids: list[int]) -> NDArray[np.float64]:
    """Logits: for each place products of its neighbours and the taps, cut at zero; then maximum and mean over places."""
    taps = weights["taps.weight"]  # [channels, width, taps]
    beside = taps.shape[2] // 2
    places = []
    for place in range(len(ids)):
        total = weights["bias"].copy()
        for tap in range(taps.shape[2]):
            if 0 <= place + tap - beside < len(ids):
                total += taps[:, :, tap] @ weights["tokens.weight"][ids[place + tap - beside]]
        places.append(np.maximum(total, 0))
    return _network(weights, np.concatenate([np.max(places, axis=0), np.mean(places, axis=0)]))
