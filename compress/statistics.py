"""Intervals and paired tests, by numpy alone.

Intervals are percentile bootstraps (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §13.3) of 95 %, seeded. Over fewer than
two rows there is no interval: it is None, never a width of zero. Over few rows (rounds) they are somewhat too narrow, which is one
reason why a speed also has to pass the noise floor.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "no clear difference"]

CELLS = 8_000_000  # resampled numbers held at once
LEAST = 0.02  # medians of processes of one file were seen to differ by up to a percent: nothing smaller than this is concluded
BEYOND = 10  # samples that must lie beyond a quantile before it is claimed


def bootstrap(
    statistic: Callable[..., Floats], *values: ArrayLike, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """The interval of `statistic` over resampled rows.

    `values` are arrays [n, …] whose rows belong together: each resample takes the same rows of all of them, so two of them make a paired
    bootstrap. `statistic` gets them as [k, n, …] and returns [k].
    """
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    count = len(arrays[0])
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    block = max(1, CELLS // sum(array.size for array in arrays))
    draws = []
    for start in range(0, resamples, block):
        rows = generator.integers(count, size=(min(block, resamples - start), count))  # [k, n]
        draws.append(statistic(*(array[rows] for array in arrays)))
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean(values: Floats) -> Floats:
    """[k, n] → [k]."""
    averages: Floats = values.mean(axis=1)
    return averages


def median(values: Floats) -> Floats:
    """[k, …] → [k], over everything in a row."""
    middle: Floats = np.median(values.reshape(len(values), -1), axis=1)
    return middle


def speedup(baseline: Floats, model: Floats, seed: int = 0) -> tuple[float, Interval | None]:
    """How many times faster `model` is, paired by round: the median over rounds of the ratio of the rounds' medians, and its interval.

    Both are samples [rounds, texts]; a slow phase of the machine slows the two of a round alike and leaves their ratio.
    """
    ratios = np.median(baseline, axis=1) / np.median(model, axis=1)  # [rounds]
    return float(np.median(ratios)), bootstrap(median, ratios, seed=seed)


def noise_floor(one: Floats, other: Floats, seed: int = 0) -> float | None:
    """The largest deviation from 1 in the interval of the ratio of a model to its own twin, both [rounds, texts]; 0.02 is 2 %."""
    _, interval = speedup(one, other, seed)
    return None if interval is None else max(interval[1], 1 / interval[0], 1.0) - 1


def verdict(ratio: float, interval: Interval | None, floor: float | None) -> Verdict:
    """`faster` or `slower` only where the interval leaves out 1 and the ratio, either way round, lies beyond the noise floor and LEAST."""
    if interval is None or floor is None or interval[0] <= 1 <= interval[1] or max(ratio, 1 / ratio) - 1 <= max(floor, LEAST):
        return "no clear difference"
    return "faster" if ratio > 1 else "slower"


def quantile(samples: ArrayLike, share: float) -> float | None:
    """The `share` quantile, or None where fewer than 10 samples lie beyond it: p95 takes 200 samples, p99 1,000."""
    values = np.asarray(samples, dtype=np.float64).ravel()
    if round(values.size * (1 - share), 6) < BEYOND:
        return None
    return float(np.quantile(values, share))


def mcnemar(one: ArrayLike, other: ArrayLike) -> float:
    """Exact two-sided p of McNemar's test (1947) on which texts [n] two models get right: a binomial test on the discordant ones."""
    right, rival = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    first, second = int((right & ~rival).sum()), int((~right & rival).sum())
    count = first + second
    term = tail = 1  # whole numbers: C(count, 0), and the sum of C(count, 0 … min)
    for step in range(min(first, second)):
        term = term * (count - step) // (step + 1)
        tail += term
    p: float = 2 * tail / 2**count  # more than 1 where both are right equally often
    return min(1.0, p)


def class_table(names: Sequence[str], hits: Sequence[int], guessed: Sequence[int], there: Sequence[int]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of every class; None where a class was neither there nor predicted.

    For each of `names`: how often it was predicted rightly, predicted, and there.
    """
    return [
        {
            "label": name,
            "precision": hit / guess if guess else None,
            "recall": hit / real if real else None,
            "f1": 2 * hit / (guess + real) if guess + real else None,
            "support": real,
        }
        for name, hit, guess, real in zip(names, hits, guessed, there, strict=True)
    ]
