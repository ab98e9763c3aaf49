"""The table of tasks: head, loss, metrics, decoding.

Classification is trained for now. Regression, tagging and plain text load (`compress.data`), and `trainable` says that they are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.config import ClassificationHead
from model.errors import DataError

if TYPE_CHECKING:
    from compress.data import Data


def classification_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    """`accuracy`, `macro_f1`, and `f1`, a list by class.

    logits [n, classes], labels [n] of class indices. A class that neither occurs nor is predicted has no F1: its place holds None, and
    the mean leaves it out.
    """
    predicted = logits.argmax(axis=1)
    classes = range(logits.shape[1])
    hits = np.array([np.sum((predicted == c) & (labels == c)) for c in classes])
    total = np.array([np.sum(predicted == c) + np.sum(labels == c) for c in classes])
    f1 = [float(2 * hit / both) if both else None for hit, both in zip(hits, total, strict=True)]
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "macro_f1": float(np.mean([score for score in f1 if score is not None])),
        "f1": f1,
    }


def decode_classes(logits: NDArray[Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each row of logits [n, classes]: `label`, the likeliest class, and `probabilities` by class (softmax)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    return [{"label": labels[int(row.argmax())], "probabilities": dict(zip(labels, map(float, row), strict=True))} for row in probabilities]


@dataclass(frozen=True)
class Task:
    """What a task is made of: its head's configuration, its loss (a name in torch.nn.functional), its metrics and decoding."""

    head: type[ClassificationHead]
    loss: str
    metrics: Callable[[NDArray[Any], NDArray[Any]], dict[str, Any]]
    decode: Callable[[NDArray[Any], Sequence[str]], list[dict[str, Any]]]


def trainable(data: "Data") -> Task:
    """The task of `data`; raises DataError if it is one that loads but is not trained."""
    if data.task not in TASKS:
        why = f"; {data.note}" if data.task == "text" else ""
        raise DataError(
            f"{data.name} is a set for {data.task}, which is not trained here{why}.",
            f"Trained: {', '.join(TASKS)}. If the set has classes, name their column with --label.",
        )
    return TASKS[data.task]


def labels_agree(labels: Sequence[str], data: "Data") -> None:
    """Raise DataError if the classes of a model are not those of `data`, in the same order."""
    if list(labels) != list(data.labels):
        model_only, data_only = sorted(set(labels) - set(data.labels)), sorted(set(data.labels) - set(labels))
        sides = (("only the model has", model_only), ("only the data have", data_only))
        found = "; ".join(f"{side} {', '.join(names)}" for side, names in sides if names) or "they differ in order"
        raise DataError(f"The classes of the model are not those of {data.name}: {found}.", "Use the data that the model was trained on.")


TASKS = {"classification": Task(ClassificationHead, "cross_entropy", classification_metrics, decode_classes)}
