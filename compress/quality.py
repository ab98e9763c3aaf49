"""How good a model is, and how its answers compare with another's: for any task of `compress.tasks`, with intervals over texts. Torch-free.

Outputs and truth have the shapes that `compress.tasks` gives. Differences of scores are in points, hundredths of the score.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.statistics import Floats, Interval, bootstrap, mcnemar
from compress.tasks import TASKS, Task

Array = NDArray[Any]

SLOW = 400  # resamples of metrics that have no counts
MATCH = 0.8  # of the way from the lowest score of the data to the highest: such a pair is held for a match
FEWEST = 10  # matches that a figure of retrieval needs
RANKED = 2048  # queries whose similarities are held at once


def quality(task: str, outputs: Array, truth: Any, labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """`score` with `score_interval`, both under the name of the metric too (`accuracy`, `accuracy_interval`), the other metrics, details.

    A score that is not defined, such as the correlation with a constant, is None, as is its interval.
    """
    kind = TASKS[task]
    found = {name: value for name, value in kind.metrics(outputs, truth, labels).items() if value is None or isinstance(value, float)}
    score = found[kind.score]
    interval = None if score is None else _interval(kind, [outputs], truth, labels, seed)
    first = {"score": score, "score_interval": interval, kind.score: score, f"{kind.score}_interval": interval}
    return {**first, **found, **kind.details(outputs, truth, labels)}


def comparison(task: str, baseline: Array, model: Array, truth: Any, labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """What `model` loses against `baseline` on the same texts, `score_drop_points` with `score_drop_interval`, and their `agreement`.

    Where a text is right or wrong there is `mcnemar_p`, and the names that reports of classification have had from the first.
    """
    kind = TASKS[task]
    scores = [kind.metrics(outputs, truth, labels)[kind.score] for outputs in (baseline, model)]
    drop: float | None = None
    interval: Interval | None = None
    if None not in scores:
        drop = 100 * (scores[0] - scores[1])
        interval = _interval(kind, [baseline, model], truth, labels, seed)
    found: dict[str, Any] = {
        "score_drop_points": drop,
        "score_drop_interval": interval,
        "agreement": agreement(task, baseline, model, truth, labels),
    }
    if kind.paired and kind.counts is not None:
        right, rival = (kind.counts(outputs, truth, labels)[:, 0] for outputs in (baseline, model))
        found |= {f"{kind.score}_drop_points": drop, "drop_interval": interval, "mcnemar_p": mcnemar(right, rival)}
    return found


def agreement(task: str, baseline: Array, model: Array, truth: Any, labels: Sequence[str]) -> float | None:
    """The share of texts that two models answer alike; of numbers the rank correlation, None where there is none."""
    kind = TASKS[task]
    if kind.answers is not None:
        sides = [kind.answers(outputs, truth, labels).given for outputs in (baseline, model)]
        return float(np.mean([one == other for one, other in zip(*sides, strict=True)]))
    if baseline.ndim != 2 or baseline.shape[1] != 1:
        return None
    correlation = TASKS["regression"].metrics(model, baseline[:, 0], labels)["spearman"]
    return None if correlation is None else float(correlation)


def retrieval(first: Array, second: Array, texts: Sequence[str], pairs: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """`recall_at_1` and `mrr` (mean reciprocal rank) of the second text of a pair among all different second texts, by the cosine.

    `first` and `second` are vectors of length 1, [n, W], of `texts` and `pairs`. Asked are the pairs whose score is at least MATCH of the
    way from the lowest to the highest; nothing comes out if fewer than FEWEST are. What is as near as the right one counts as nearer, so
    that a model that gives all texts one vector finds nothing. What matches the same first text as well is left out of the count.
    """
    given = np.asarray(scores, np.float64)
    threshold = given.min() + MATCH * np.ptp(given) if len(given) else 0.0
    asked = [row for row in range(len(given)) if given[row] >= threshold and texts[row] != pairs[row]]
    if not np.ptp(given) or len(asked) < FEWEST:
        return {}
    candidates = {text: row for row, text in reversed(list(enumerate(pairs)))}
    place = {text: number for number, text in enumerate(candidates)}
    vectors = second[list(candidates.values())]
    matches: dict[str, set[int]] = {}
    for row in asked:
        matches.setdefault(texts[row], set()).add(place[pairs[row]])
    ranks = []
    for start in range(0, len(asked), RANKED):
        rows = asked[start : start + RANKED]
        for row, cosines in zip(rows, first[rows] @ vectors.T, strict=True):
            right = place[pairs[row]]
            others = list(matches[texts[row]] - {right})
            ranks.append(int((cosines >= cosines[right]).sum() - (cosines[others] >= cosines[right]).sum()))
    reciprocal = 1 / np.array(ranks)
    return {"recall_at_1": float(np.mean(reciprocal == 1)), "mrr": float(reciprocal.mean())}


def _interval(kind: Task, outputs: Sequence[Array], truth: Any, labels: Sequence[str], seed: int) -> Interval | None:
    """Of the score of one model, or of the points that the second of two loses against the first."""
    scored: Callable[[Floats], Floats]
    if kind.counts is not None:
        scored, arrays = kind.total, [kind.counts(one, truth, labels) for one in outputs]
        resamples = {}
    else:
        rows = np.arange(len(truth), dtype=np.float64)
        arrays, resamples = [rows] * len(outputs), {"resamples": SLOW}

    def statistic(*drawn: Floats) -> Floats:
        if kind.counts is not None:
            values = [scored(one) for one in drawn]
        else:
            values = [np.array([_again(kind, one, truth, labels, row) for row in part]) for one, part in zip(outputs, drawn, strict=True)]
        return values[0] if len(values) == 1 else 100 * (values[0] - values[1])

    return bootstrap(statistic, *arrays, **resamples, seed=seed)


def _again(kind: Task, outputs: Array, truth: Any, labels: Sequence[str], rows: Floats) -> float:
    """The score of resampled texts by the metrics themselves; 0 where it is not defined."""
    numbers = rows.astype(np.int64)
    chosen = truth[numbers] if isinstance(truth, np.ndarray) else [truth[number] for number in numbers]
    return kind.metrics(outputs[numbers], chosen, labels)[kind.score] or 0.0
