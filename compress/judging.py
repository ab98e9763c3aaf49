"""What a model answers to each text, by task: for two models to be compared, for scores to be resampled, for people to read.

Shapes as in `compress.tasks`: outputs and truth of n texts, L labels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.statistics import Floats, class_table
from serve.tasks import OUTSIDE, probabilities, sigmoid, spans

Array = NDArray[Any]

ERRORS = (0.5, 0.9, 0.95, 0.99)  # quantiles of |answer - truth| that a report has
POINTS = 300  # texts of a scatter


@dataclass(frozen=True)
class Lesson:
    """A text with words hidden or exchanged: its `ids`, the `places` among them that are asked about, and what is `right` at each.

    That is the token that was there (masked), or 1 where another was (replaced). `tokens` are the names of all ids.
    """

    ids: list[int]
    places: list[int]
    right: list[int]
    tokens: Sequence[str]


@dataclass(frozen=True)
class Answers:
    """Of n texts what a model answers, what is right (equal where the answer is), and the probability of its least sure decision [n]."""

    given: list[Any]
    right: list[Any]
    sure: Floats


def class_answers(logits: Array, truth: Array, labels: Sequence[str]) -> Answers:
    """The names of the classes."""
    return Answers(
        [labels[number] for number in logits.argmax(axis=1)],
        [labels[int(number)] for number in truth],
        probabilities(logits).max(axis=1),
    )


def label_answers(logits: Array, truth: Array, labels: Sequence[str]) -> Answers:
    """Tuples of the labels that a text has."""
    found, right = (
        [tuple(label for label, there in zip(labels, row, strict=True) if there) for row in side] for side in (logits > 0, truth > 0.5)
    )
    return Answers(found, right, sigmoid(np.abs(logits)).min(axis=1))


def tag_answers(logits: Array, truth: Sequence[Sequence[int]], labels: Sequence[str]) -> Answers:
    """Tuples of a tag a word; a word that was cut off is O."""
    found, right, sure = [], [], []
    for rows, real in zip(logits, truth, strict=True):
        rows = rows[: len(real)]
        kept = rows[~np.isnan(rows[:, 0])]
        guessed = iter(kept.argmax(axis=1).tolist())
        numbers = [None if np.isnan(row[0]) else next(guessed) for row in rows]
        named = [OUTSIDE if number is None else labels[number] for number in numbers]
        found.append((*named, *[OUTSIDE] * (len(real) - len(named))))
        right.append(tuple(labels[number] for number in real))
        sure.append(float(probabilities(kept).max(axis=1).min()) if len(kept) else 1.0)
    return Answers(found, right, np.array(sure))


def mask_answers(outputs: Array, truth: Sequence[Lesson], labels: Sequence[str]) -> Answers:
    """Tuples of the likeliest token in each place."""
    found, right, sure = [], [], []
    for rows, lesson in zip(outputs, truth, strict=True):
        rows = rows[: len(lesson.places)]
        given, real = rows[:, 2].astype(np.int64).tolist(), lesson.right
        found.append(tuple(lesson.tokens[number] if number < len(lesson.tokens) else "" for number in given))
        right.append(tuple(lesson.tokens[number] for number in real))
        sure.append(float(np.exp(rows[:, 1].min(initial=0))))
    return Answers(found, right, np.array(sure))


def replacement_answers(outputs: Array, truth: Sequence[Lesson], labels: Sequence[str]) -> Answers:
    """Tuples of the tokens that were replaced."""
    found: list[tuple[str, ...]] = []
    right: list[tuple[str, ...]] = []
    sure = []
    for rows, lesson in zip(outputs, truth, strict=True):
        rows = rows[: len(lesson.places)]
        names = [lesson.tokens[lesson.ids[place]] for place in lesson.places]
        for answers, there in ((found, rows[:, 0] > 0), (right, rows[:, 1] > 0.5)):
            answers.append(tuple(name for name, one in zip(names, there, strict=True) if one))
        sure.append(float(sigmoid(np.abs(rows[:, 0])).min(initial=1)))
    return Answers(found, right, np.array(sure))


# Numbers of a text, [n, k], of which a score is made; `total` takes them of resampled texts, [r, n, k], and gives the scores [r].


def right_or_wrong(logits: Array, truth: Array, labels: Sequence[str]) -> Floats:
    """[n, 1]: 1 where the class is right."""
    return np.asarray(logits.argmax(axis=1) == truth, np.float64)[:, None]


def label_counts(logits: Array, truth: Array, labels: Sequence[str]) -> Floats:
    """[n, 2]: labels found that are right; labels found and labels that are right, added."""
    found, right = logits > 0, truth > 0.5
    return np.stack([(found & right).sum(axis=1), found.sum(axis=1) + right.sum(axis=1)], axis=1).astype(np.float64)


def entity_counts(logits: Array, truth: Sequence[Sequence[int]], labels: Sequence[str]) -> Floats:
    """[n, 2]: entities found that are right; entities found and entities that are right, added."""
    answers = tag_answers(logits, truth, labels)
    sides = [(set(spans(mine)), set(spans(real))) for mine, real in zip(answers.given, answers.right, strict=True)]
    return np.array([[len(mine & real), len(mine) + len(real)] for mine, real in sides], np.float64)


def mask_counts(outputs: Array, truth: Any, labels: Sequence[str]) -> Floats:
    """[n, 2]: hidden tokens that are found; all that were hidden."""
    known = ~np.isnan(outputs[:, :, 0])
    return np.stack([(known & (outputs[:, :, 0] >= outputs[:, :, 1])).sum(axis=1), known.sum(axis=1)], axis=1).astype(np.float64)


def replacement_counts(outputs: Array, truth: Any, labels: Sequence[str]) -> Floats:
    """[n, 2]: replaced tokens that are found; tokens found and tokens replaced, added."""
    found, right = outputs[:, :, 0] > 0, outputs[:, :, 1] > 0.5  # no place is NaN: neither
    return np.stack([(found & right).sum(axis=1), found.sum(axis=1) + right.sum(axis=1)], axis=1).astype(np.float64)


def places(outputs: Array, truth: Array, labels: Sequence[str]) -> Floats:
    """[n, 2]: the place of a text's answer among all, from 0, and of its score; equal values have one place."""
    return np.stack([np.unique(side, return_inverse=True)[1] for side in (outputs[:, 0], np.asarray(truth))], axis=1).astype(np.float64)


def share(numbers: Floats) -> Floats:
    """Accuracy of `right_or_wrong`."""
    total: Floats = numbers[:, :, 0].mean(axis=1)
    return total


def part(numbers: Floats) -> Floats:
    """Of two counts a text the first's share in the second, over all texts; 0 where there is nothing."""
    sums = numbers.sum(axis=1)
    return np.where(sums[:, 1] > 0, sums[:, 0] / np.maximum(sums[:, 1], 1), 0.0)


def overlap(numbers: Floats) -> Floats:
    """F1 of two counts a text: 2 hits / (found + there); 1 where there is nothing to find and nothing is found."""
    sums = numbers.sum(axis=1)
    return np.where(sums[:, 1] > 0, 2 * sums[:, 0] / np.maximum(sums[:, 1], 1), 1.0)


def rank_correlation(numbers: Floats) -> Floats:
    """Spearman's correlation of two places a text, ties sharing the mean of their ranks; 0 where one side is constant."""
    ranks = [mean_ranks(numbers[:, :, side].astype(np.int64)) for side in (0, 1)]
    one, other = (side - side.mean(axis=1, keepdims=True) for side in ranks)
    scale = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.where(scale > 0, (one * other).sum(axis=1) / np.where(scale > 0, scale, 1), 0.0)


def mean_ranks(codes: NDArray[np.int64]) -> Floats:
    """Ranks from 0 of whole numbers [r, n] from 0 within each row, ties sharing the mean of theirs.

    They are counted, since sorting every resample takes too long.
    """
    rows, width = len(codes), int(codes.max()) + 1
    counts = np.bincount((codes + width * np.arange(rows)[:, None]).ravel(), minlength=rows * width).reshape(rows, width)
    ranks: Floats = np.take_along_axis(np.cumsum(counts, axis=1) - (counts + 1) / 2, codes, axis=1)
    return ranks


# What a report has besides the metrics


def class_details(logits: Array, truth: Array, labels: Sequence[str]) -> dict[str, Any]:
    """`per_class`: precision, recall, F1 and support of every class."""
    every = np.arange(len(labels))
    return {"per_class": _columns(logits.argmax(axis=1)[:, None] == every, np.asarray(truth)[:, None] == every, labels)}


def label_details(logits: Array, truth: Array, labels: Sequence[str]) -> dict[str, Any]:
    """`per_class`, of every label."""
    return {"per_class": _columns(logits > 0, truth > 0.5, labels)}


def entity_details(logits: Array, truth: Sequence[Sequence[int]], labels: Sequence[str]) -> dict[str, Any]:
    """`per_class`, of every type of entity that the labels name."""
    answers = tag_answers(logits, truth, labels)
    hits, guessed, there = Counter[str](), Counter[str](), Counter[str]()
    for mine, real in zip(answers.given, answers.right, strict=True):
        one, other = set(spans(mine)), set(spans(real))
        for counter, entities in ((hits, one & other), (guessed, one), (there, other)):
            counter.update(name for name, _, _ in entities)
    names = sorted({name for label in labels for name, _, _ in spans([label])})
    return {"per_class": class_table(names, *([counter[name] for name in names] for counter in (hits, guessed, there)))}


def error_details(outputs: Array, truth: Array, labels: Sequence[str]) -> dict[str, Any]:
    """`errors`: quantiles of |answer - truth|, each as {"share", "error"}; and `points`."""
    error = np.abs(outputs[:, 0].astype(np.float64) - truth)
    return {"errors": [{"share": one, "error": float(np.quantile(error, one))} for one in ERRORS], **point_details(outputs, truth, labels)}


def point_details(outputs: Array, truth: Array, labels: Sequence[str]) -> dict[str, Any]:
    """`points`: [truth, answer] of at most POINTS texts, the same for every model."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(truth))[:POINTS])
    return {"points": [[round(float(truth[row]), 4), round(float(outputs[row, 0]), 4)] for row in chosen]}


def _columns(found: Array, right: Array, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Of two boolean arrays [n, L]."""
    return class_table(labels, *(side.sum(axis=0).tolist() for side in (found & right, found, right)))


# For people


def plain(answer: Any, text: str) -> str:
    """A label, or several with commas between them."""
    return answer if isinstance(answer, str) else ", ".join(answer) or "none"


def entity_words(answer: Sequence[str], text: str) -> str:
    """The entities that the tags make: Ada Lovelace (PER), London (LOC)."""
    words = text.split()
    return ", ".join(f"{' '.join(words[start:end])} ({name})" for name, start, end in spans(answer)) or "none"
