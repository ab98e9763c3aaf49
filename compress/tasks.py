"""The table of tasks: head, data, metrics, answers. Losses are in `compress.losses`, decoding is in `serve.tasks`.

What a model gives (`outputs`) and the truth, by task (n texts, L labels):

- classification: logits [n, L]; class numbers [n]
- multilabel: logits [n, L]; 0 or 1 [n, L]
- regression: [n, 1]; scores [n]
- tagging: logits [n, most words, L], NaN where there is no word or it was cut off; for each text the numbers of its words' tags
- embedding: cosines of pairs [n, 1]; scores [n]
- masked: [m, 2] for all m hidden tokens: log-probability of what was there, and of the likeliest; no truth besides
- replaced: [m, 2] for all m tokens: the logit, and whether the token was replaced; no truth besides

A benchmark has these two by text, [n, most places, 2], NaN where a text has no more places, for masked with the number of the likeliest
token as a third; the truth of each text is then its `compress.judging.Lesson`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.judging import (
    Answers,
    class_answers,
    class_details,
    entity_counts,
    entity_details,
    entity_words,
    error_details,
    label_answers,
    label_counts,
    label_details,
    mask_answers,
    mask_counts,
    overlap,
    part,
    places,
    plain,
    point_details,
    rank_correlation,
    replacement_answers,
    replacement_counts,
    right_or_wrong,
    share,
    tag_answers,
)
from compress.statistics import Floats
from model import config
from model.errors import DataError
from model.slots import Slot
from serve.tasks import OUTSIDE, spans

if TYPE_CHECKING:
    from compress.data import Data

Metrics = dict[str, Any]


def classification_metrics(logits: NDArray[Any], truth: NDArray[Any], labels: Sequence[str] = ()) -> Metrics:
    """`accuracy`, `macro_f1`, `mcc` (Matthews' correlation for several classes: Gorodkin 2004), and `f1`, a list by class.

    A class that neither occurs nor is predicted has no F1: its place holds None, and the mean leaves it out.
    """
    predicted = logits.argmax(axis=1)
    classes = np.arange(logits.shape[1])
    f1 = _f1(predicted[:, None] == classes, truth[:, None] == classes)
    return {"accuracy": float(np.mean(predicted == truth)), "macro_f1": _mean(f1), "mcc": _matthews(predicted, truth), "f1": f1}


def multilabel_metrics(logits: NDArray[Any], truth: NDArray[Any], labels: Sequence[str] = ()) -> Metrics:
    """`micro_f1` over all decisions, `macro_f1`, `f1` by label as in classification, and `exact_match`: texts with every label right."""
    predicted, right = logits > 0, truth > 0.5
    f1 = _f1(predicted, right)
    micro = _f1(predicted.reshape(-1, 1), right.reshape(-1, 1))[0]
    exact = float(np.mean((predicted == right).all(axis=1)))
    return {"micro_f1": 1.0 if micro is None else micro, "macro_f1": _mean(f1), "exact_match": exact, "f1": f1}


def regression_metrics(outputs: NDArray[Any], truth: NDArray[Any], labels: Sequence[str] = ()) -> Metrics:
    """`spearman` and `pearson` correlation (None where one side is constant), `rmse`."""
    found = outputs[:, 0].astype(np.float64)
    error = float(np.sqrt(np.mean((found - truth) ** 2)))
    return {"spearman": _correlation(_ranks(found), _ranks(truth)), "pearson": _correlation(found, truth), "rmse": error}


def embedding_metrics(cosines: NDArray[Any], truth: NDArray[Any], labels: Sequence[str] = ()) -> Metrics:
    """`spearman` and `pearson` correlation of the cosines with the scores: only their order means something."""
    found = regression_metrics(cosines, truth)
    return {name: found[name] for name in ("spearman", "pearson")}


def tagging_metrics(logits: NDArray[Any], truth: Sequence[Sequence[int]], labels: Sequence[str]) -> Metrics:
    """`entity_f1`, `precision` and `recall` of whole entities (see `serve.tasks.spans`), `word_accuracy`, `f1` by type of entity.

    A word that was cut off counts as tagged O.
    """
    outside = labels.index(OUTSIDE) if OUTSIDE in labels else -1
    hits: dict[str, int] = {}
    guessed: dict[str, int] = {}
    there: dict[str, int] = {}
    right = words = 0
    for rows, tags in zip(logits, truth, strict=True):
        rows = rows[: len(tags)]
        numbers = np.where(np.isnan(rows[:, 0]), outside, rows.argmax(axis=1))
        found = [*numbers.tolist(), *[outside] * (len(tags) - len(numbers))]
        right += sum(one == other for one, other in zip(found, tags, strict=True))
        words += len(tags)
        mine, real = (set(spans([labels[number] if number >= 0 else OUTSIDE for number in side])) for side in (found, tags))
        for counts, entities in ((hits, mine & real), (guessed, mine), (there, real)):
            for name, _, _ in entities:
                counts[name] = counts.get(name, 0) + 1
    hit, guess, real_count = sum(hits.values()), sum(guessed.values()), sum(there.values())
    types = sorted(guessed.keys() | there.keys())
    return {
        "entity_f1": 2 * hit / (guess + real_count) if guess + real_count else 1.0,
        "precision": hit / guess if guess else 0.0,
        "recall": hit / real_count if real_count else 0.0,
        "word_accuracy": right / words,
        "f1": {name: 2 * hits.get(name, 0) / (guessed.get(name, 0) + there.get(name, 0)) for name in types},
    }


def no_details(outputs: NDArray[Any], truth: Any, labels: Sequence[str]) -> dict[str, Any]:
    """A task whose metrics say all."""
    return {}


def masked_metrics(outputs: NDArray[Any], truth: Any = None, labels: Sequence[str] = ()) -> Metrics:
    """`masked_accuracy`: hidden tokens whose likeliest guess is right; `perplexity`: what the truth's mean probability is one in."""
    outputs = _known(outputs)
    right = outputs[:, 0] >= outputs[:, 1]
    return {"masked_accuracy": float(right.mean()), "perplexity": float(np.exp(-outputs[:, 0].astype(np.float64).mean()))}


def replaced_metrics(outputs: NDArray[Any], truth: Any = None, labels: Sequence[str] = ()) -> Metrics:
    """`replaced_f1` of the tokens that were replaced, `precision`, `recall`, and `replaced_accuracy` over all tokens."""
    outputs = _known(outputs)
    found, right = outputs[:, 0] > 0, outputs[:, 1] > 0.5
    hits = int((found & right).sum())
    f1 = _f1(found[:, None], right[:, None])[0]
    return {
        "replaced_f1": 1.0 if f1 is None else f1,
        "precision": hits / max(1, int(found.sum())),
        "recall": hits / max(1, int(right.sum())),
        "replaced_accuracy": float((found == right).mean()),
    }


@dataclass(frozen=True)
class Task:
    """What a task is made of: its head's configuration, the task of the data that it learns from, its metrics and the first among them.

    What a benchmark asks besides, each with a default that suits any metrics; functions take outputs, truth and labels:
    `counts` gives numbers [n, k] of each text, of which `total` makes the score of resampled texts, [r, n, k] → [r] (without them the
    metrics are computed on every resample); `answers` says what two models answer and whether that is `same` (without them outputs
    [n, 1] are compared by their ranks); `shown` writes an answer to a text for people; `details` are what a report shows besides;
    `paired` is whether a text is either right or wrong, so that McNemar's test applies; `ordered` is whether of outputs [n, 1] only the
    order means something; `apart` is whether a model takes the two texts of a pair one at a time.
    """

    head: type[Slot]
    data: str
    metrics: Callable[[NDArray[Any], Any, Sequence[str]], Metrics]
    score: str
    counts: Callable[[NDArray[Any], Any, Sequence[str]], Floats] | None = None
    total: Callable[[Floats], Floats] = share
    answers: Callable[[NDArray[Any], Any, Sequence[str]], Answers] | None = None
    same: str = "rank correlation"
    shown: Callable[[Any, str], str] = plain
    details: Callable[[NDArray[Any], Any, Sequence[str]], dict[str, Any]] = no_details
    paired: bool = False
    ordered: bool = False
    apart: bool = False


TASKS = {
    "classification": Task(
        config.ClassificationHead,
        "classification",
        classification_metrics,
        "accuracy",
        counts=right_or_wrong,
        answers=class_answers,
        same="same class",
        details=class_details,
        paired=True,
    ),
    "multilabel": Task(
        config.MultilabelHead,
        "multilabel",
        multilabel_metrics,
        "micro_f1",
        counts=label_counts,
        total=overlap,
        answers=label_answers,
        same="same labels",
        details=label_details,
    ),
    "regression": Task(
        config.RegressionHead,
        "regression",
        regression_metrics,
        "spearman",
        counts=places,
        total=rank_correlation,
        details=error_details,
    ),
    "tagging": Task(
        config.TaggingHead,
        "tagging",
        tagging_metrics,
        "entity_f1",
        counts=entity_counts,
        total=overlap,
        answers=tag_answers,
        same="same tags",
        shown=entity_words,
        details=entity_details,
    ),
    "embedding": Task(
        config.EmbeddingHead,
        "regression",
        embedding_metrics,
        "spearman",
        counts=places,
        total=rank_correlation,
        details=point_details,
        ordered=True,
        apart=True,
    ),
    "masked": Task(
        config.MaskedHead,
        "text",
        masked_metrics,
        "masked_accuracy",
        counts=mask_counts,
        total=part,
        answers=mask_answers,
        same="same tokens",
    ),
    "replaced": Task(
        config.ReplacedHead,
        "text",
        replaced_metrics,
        "replaced_f1",
        counts=replacement_counts,
        total=overlap,
        answers=replacement_answers,
        same="same tokens",
    ),
}
PRETRAINING = ("masked", "replaced")  # tasks whose lessons are in the text itself
PER_TOKEN = ("tagging", *PRETRAINING)


def trainable(data: "Data", task: str = "auto") -> str:
    """The task to train on `data`: `task`, or what the labels say; raises DataError if it cannot be trained on these data."""
    if task in PRETRAINING and data.task != "tagging":
        return task  # any text will do
    if data.task not in TASKS:
        why = f"; {data.note}" if data.task == "text" else ""
        raise DataError(
            f"{data.name} is a set for {data.task}, which is not trained here{why}.",
            "Text without labels is for `compress train --task masked` or replaced. If the set has labels, name their column with --label.",
        )
    task = data.task if task == "auto" else task
    if TASKS[task].data != data.task or (task == "embedding" and not data.pairs):
        raise DataError(
            f"A model for {task} cannot learn from {data.name}, which is a set for {data.task}{' of pairs' if data.pairs else ''}.",
            "Embeddings learn from pairs of texts with a score; the other tasks from labels of their own kind.",
        )
    return task


def labels_of(task: str, data: "Data") -> list[str]:
    """The names of a model's outputs: one for regression and replaced, none for embedding and masked."""
    return {"regression": ["score"], "embedding": [], "masked": [], "replaced": ["replaced"]}.get(task, list(data.labels))


def labels_agree(labels: Sequence[str], data: "Data", task: str = "auto") -> str:
    """The task of a model on `data`; raises DataError if its task or its labels, in their order, are not those of the data."""
    task = trainable(data, task)
    known = labels_of(task, data)
    if list(labels) != known:
        model_only, data_only = sorted(set(labels) - set(known)), sorted(set(known) - set(labels))
        sides = (("only the model has", model_only), ("only the data have", data_only))
        found = "; ".join(f"{side} {', '.join(names)}" for side, names in sides if names) or "they differ in order"
        raise DataError(f"The classes of the model are not those of {data.name}: {found}.", "Use the data that the model was trained on.")
    return task


def truth_of(task: str, part: Any, labels: Sequence[str]) -> Any:
    """What the metrics compare with, of one part of the data (columns as `compress.data` has them)."""
    if task == "tagging":
        index = {label: number for number, label in enumerate(labels)}
        return [[index[tag] for tag in tags] for tags in part["tags"][:]]
    if task == "multilabel":
        return np.array([[number in row for number in range(len(labels))] for row in part["label"][:]], np.float32)
    return np.asarray(part["label"][:])


def texts_of(task: str, part: Any) -> list[str]:
    """The texts of one part of the data; for tagging the words with spaces between them.

    Raises DataError for a word that has a space in it: it would come back as two.
    """
    if task != "tagging":
        texts: list[str] = part["text"][:]
        return texts
    for row, words in enumerate(part["tokens"][:], 1):
        if odd := [word for word in words if len(word.split()) != 1]:
            what = f"Row {row} has the word {odd[0]!r}, which has white space in it."
            raise DataError(what, "Give each word by itself, with its own tag.")
    return [" ".join(words) for words in part["tokens"][:]]


def first_score(quality: Metrics) -> tuple[str, float] | None:
    """The metric that stands for a model, and its value."""
    return next(((task.score, quality[task.score]) for task in TASKS.values() if quality.get(task.score) is not None), None)


def quality_words(quality: Metrics) -> str:
    """The first score in words: 81.2 %, entity F1 81.2 %, Spearman 0.812."""
    name, value = first_score(quality) or ("", 0.0)
    words = {"accuracy": f"{100 * value:.1f} %", "spearman": f"Spearman {value:.3f}"}
    return words.get(name, f"{name.replace('_', ' ').replace('f1', 'F1')} {100 * value:.1f} %") if name else "no score"


def _known(outputs: NDArray[Any]) -> NDArray[Any]:
    """All places [m, k] of outputs that may be by text, [n, most places, k]."""
    every: NDArray[Any] = outputs.reshape(-1, outputs.shape[-1])
    known: NDArray[Any] = every[~np.isnan(every[:, 0])]
    return known


def _f1(predicted: NDArray[Any], right: NDArray[Any]) -> list[float | None]:
    """F1 of each column of two boolean arrays [n, L]; None for a column without a single true value."""
    hits, total = (predicted & right).sum(axis=0), predicted.sum(axis=0) + right.sum(axis=0)
    return [float(2 * hit / both) if both else None for hit, both in zip(hits, total, strict=True)]


def _matthews(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """0 where the classes of one side are all the same."""
    every = np.union1d(predicted, truth)
    guess, real = ((side[:, None] == every).sum(axis=0).astype(np.float64) for side in (predicted, truth))
    count, hits = float(len(truth)), float(np.sum(predicted == truth))
    scale = (count**2 - guess @ guess) * (count**2 - real @ real)
    return float((hits * count - guess @ real) / np.sqrt(scale)) if scale > 0 else 0.0


def _mean(scores: Sequence[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else 1.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 0; ties share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count + 1) / 2)[place]
    return ranks


def _correlation(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(one, other)[0, 1])
