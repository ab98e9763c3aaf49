"""The serving half of the table of tasks: how texts become a batch, and what a model gives becomes an answer.

What a model gives, by task (B texts, S tokens, L labels, W width): classification, multilabel and regression [B, L], tagging [B, S, L],
embedding [B, W].
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.tokenizer import Batch, Tokenizer

Floats = npt.NDArray[np.floating[Any]]

OUTPUTS = {"classification": "logits", "multilabel": "logits", "regression": "logits", "tagging": "logits", "embedding": "embedding"}
OUTSIDE = "O"  # the tag of words that are of no entity


@dataclass(frozen=True)
class Prediction:
    """The likeliest label of a text, its probability, and the probability of every label, in the model's order."""

    label: str
    probability: float
    probabilities: dict[str, float]

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"label": self.label, "probability": self.probability}


@dataclass(frozen=True)
class Labels:
    """The labels of a text that are likelier than not, and the probability of every label."""

    labels: list[str]
    probabilities: dict[str, float]

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"labels": "|".join(self.labels)}


@dataclass(frozen=True)
class Score:
    """A number: of a text or pair (regression), or the cosine of the two texts of a pair (embedding)."""

    score: float

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"score": self.score}


@dataclass(frozen=True)
class Entity:
    """A run of words: words[start:end] of the text."""

    type: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Tags:
    """The words of a text (between white space) with their tags, and the entities that these make; a word that was cut off has no tag."""

    words: list[str]
    tags: list[str | None]
    entities: list[Entity]

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"tags": " ".join(tag or OUTSIDE for tag in self.tags)}


@dataclass(frozen=True)
class Embedding:
    """A text as a vector of length 1."""

    embedding: list[float]

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"embedding": json.dumps(self.embedding)}


Answer = Prediction | Labels | Score | Tags | Embedding  # of one text; their fields are its JSON


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """Softmax over the last axis, in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)), in float64, without overflow."""
    result: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0, -np.asarray(logits, np.float64)))
    return result


def spans(tags: Sequence[str | None]) -> list[tuple[str, int, int]]:
    """Entities (type, start, end) of tags such as B-PER I-PER O, by the rules of conlleval (Tjong Kim Sang and De Meulder 2003).

    An entity begins at B, S, or at any tag after O, E, S or another type, and goes on while its type does; tags without a prefix count as
    I. None is O.
    """
    found: list[tuple[str, int, int]] = []
    before, open_type = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, _, name = (tag or OUTSIDE).partition("-")
        if not name and prefix != OUTSIDE:
            prefix, name = "I", prefix
        if prefix == OUTSIDE:
            before = OUTSIDE
            continue
        if prefix in ("B", "S") or before in (OUTSIDE, "E", "S") or name != open_type:
            found.append((name, place, place + 1))
        else:
            found[-1] = (name, found[-1][1], place + 1)
        before, open_type = prefix, name
    return found


def batch_for(task: str, tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, types: bool) -> Batch:
    """The inputs of a model of `task`.

    For tagging with `words`: where each word begins. The two texts of a pair are one row, but for embeddings two: all first, all second.
    """
    if task == "tagging":
        return tokenizer.pad(tokenizer.words([text.split() for text in texts]), types)
    if task == "embedding" and pairs is not None:
        return tokenizer.encode([*texts, *pairs], None, types)
    return tokenizer.encode(texts, pairs, types)


def outputs_by_text(task: str, outputs: Floats, batch: Batch, pairs: bool) -> Floats:
    """What each text has of a model's outputs.

    For tagging by word, [B, words, L], NaN where there is none; for embedded pairs the cosine, [B, 1]; otherwise the outputs themselves.
    """
    if task == "tagging":
        words = batch["words"]
        found = np.asarray(outputs, np.float32)[np.arange(len(words))[:, None], words]
        return np.where(words[:, :, None] >= 0, found, np.float32(np.nan))
    if task == "embedding" and pairs:
        first, second = np.split(outputs, 2)
        cosines: Floats = (first * second).sum(axis=1, keepdims=True)
        return cosines
    return outputs


def bare_answer(task: str, outputs: Floats, batch: Batch, labels: Sequence[str], pairs: bool) -> Any:
    """What a model answers to the first text of a batch and nothing around it, as a benchmark times it.

    The label, the labels, the tags of the words, the score, or the vector (of a pair the cosine).
    """
    if task == "classification":
        return labels[int(outputs[0].argmax())]
    row = outputs_by_text(task, outputs, batch, pairs)[0]
    if task == "multilabel":
        return [label for label, value in zip(labels, row, strict=True) if value > 0]
    if task == "tagging":
        return [labels[number] for number in row[~np.isnan(row[:, 0])].argmax(axis=1)]
    return float(row[0]) if len(row) == 1 else row


def stacked(rows: Sequence[Floats]) -> npt.NDArray[np.float32]:
    """Outputs of several texts as one array; sentences are filled up with NaN to the most words."""
    if rows[0].ndim == 1:
        return np.asarray(np.stack(rows), np.float32)
    filled = np.full((len(rows), max(len(row) for row in rows), rows[0].shape[-1]), np.nan, np.float32)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return filled


def _class(row: Floats, labels: Sequence[str], text: str) -> Prediction:
    named = dict(zip(labels, probabilities(row).tolist(), strict=True))
    label = max(named, key=named.__getitem__)
    return Prediction(label, named[label], named)


def _classes(row: Floats, labels: Sequence[str], text: str) -> Labels:
    named = dict(zip(labels, sigmoid(row).tolist(), strict=True))
    return Labels([label for label, probability in named.items() if probability > 0.5], named)


def _score(row: Floats, labels: Sequence[str], text: str) -> Score:
    return Score(float(row[0]))


def _tags(row: Floats, labels: Sequence[str], text: str) -> Tags:
    words = text.split()
    tags = [None if np.isnan(values[0]) else labels[int(values.argmax())] for values in row[: len(words)]]
    return Tags(words, tags, [Entity(name, " ".join(words[start:end]), start, end) for name, start, end in spans(tags)])


def _embedding(row: Floats, labels: Sequence[str], text: str) -> Embedding | Score:
    return Score(float(row[0])) if len(row) == 1 else Embedding(row.tolist())


DECODERS: dict[str, Callable[[Floats, Sequence[str], str], Answer]] = {
    "classification": _class,
    "multilabel": _classes,
    "regression": _score,
    "tagging": _tags,
    "embedding": _embedding,
}
