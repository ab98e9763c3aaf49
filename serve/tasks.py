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

from model.errors import ConfigError
from model.tokenizer import Batch, Encoding, Tokenizer

Floats = npt.NDArray[np.floating[Any]]

OUTPUTS = {
    "classification": "logits",
    "multilabel": "logits",
    "regression": "logits",
    "tagging": "logits",
    "embedding": "embedding",
    "masked": "logits",
    "replaced": "logits",
}
MASKS = ("[MASK]", "<mask>")  # what stands for a hidden word in a text, whatever the tokenizer calls it
GUESSES = 5
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


@dataclass(frozen=True)
class Guess:
    """A token that may stand where the mask is, and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class Guesses:
    """For each mask of a text the likeliest tokens, the likeliest first."""

    masks: list[list[Guess]]

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"words": "|".join(mask[0].token for mask in self.masks)}


@dataclass(frozen=True)
class Replacements:
    """The words of a text (between white space) that look replaced, and the probability of each that it is (None: it was cut off)."""

    replaced: list[str]
    words: list[str]
    probabilities: list[float | None]

    def cells(self) -> dict[str, str | float]:
        """What a table has of it."""
        return {"replaced": "|".join(self.replaced)}


Answer = Prediction | Labels | Score | Tags | Embedding | Guesses | Replacements  # of one text; their fields are its JSON


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

    For tagging and replaced with `words`: where each word begins; for masked where each mask is. The two texts of a pair are one row, but
    for embeddings two: all first, all second.
    """
    if task in ("tagging", "replaced") and pairs is None:
        return tokenizer.pad(tokenizer.words([text.split() for text in texts]), types)
    if task == "masked":
        encodings, mask = _masked(tokenizer, texts, pairs), tokenizer.special_ids.get("mask_token", -1)
        places = [[place for place, number in enumerate(encoding.ids) if number == mask] for encoding in encodings]
        return tokenizer.pad([encoding._replace(words=found) for encoding, found in zip(encodings, places, strict=True)], types)
    if task == "embedding" and pairs is not None:
        return tokenizer.encode([*texts, *pairs], None, types)
    return tokenizer.encode(texts, pairs, types)


def _masked(tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Encoding]:
    """Token ids of texts with masks, which SentencePiece by itself would take for letters."""
    mask = tokenizer.special.get("mask_token", MASKS[0])
    named = [[with_mask(text, mask) for text in side] for side in (texts, pairs) if side is not None]
    if tokenizer.kind != "sentencepiece" or not any(mask in text for side in named for text in side):
        return tokenizer.ids(named[0], named[1] if pairs is not None else None)
    if pairs is not None:
        raise ConfigError("A pair of texts has a mask, which this SentencePiece model reads in single texts only.", "Give one text.")
    return [tokenizer.around(text.split(mask), tokenizer.special_ids["mask_token"]) for text in named[0]]


def with_mask(text: str, mask: str) -> str:
    """The text with the tokenizer's own name of the mask for each of MASKS."""
    for known in MASKS:
        text = text.replace(known, mask)
    return text


def outputs_by_text(task: str, outputs: Floats, batch: Batch, pairs: bool) -> Floats:
    """What each text has of a model's outputs.

    For tagging by word, for masked by mask, [B, words, L], NaN where there is none; for replaced by word, [B, words, 1], the highest of its
    tokens'; for embedded pairs the cosine, [B, 1]; otherwise the outputs themselves.
    """
    if task == "replaced":
        return _highest(outputs, batch)
    if task in ("tagging", "masked"):
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

    The label, the labels, the tags of the words, the score, the vector (of a pair the cosine), the token in place of each mask, or
    whether each word was replaced.
    """
    if task == "classification":
        return labels[int(outputs[0].argmax())]
    row = outputs_by_text(task, outputs, batch, pairs)[0]
    if task == "multilabel":
        return [label for label, value in zip(labels, row, strict=True) if value > 0]
    if task == "replaced":
        return (row[:, 0] > 0).tolist()
    if task in ("tagging", "masked"):
        return [labels[number] for number in row[~np.isnan(row[:, 0])].argmax(axis=1)]
    return float(row[0]) if len(row) == 1 else row


def _highest(outputs: Floats, batch: Batch) -> Floats:
    """The highest logit of each word's tokens, [B, words, 1]; without words, of each token."""
    tokens = np.asarray(batch["attention_mask"]).sum(axis=1)
    words = batch.get("words", np.broadcast_to(np.arange(outputs.shape[1]), outputs.shape[:2]))
    found = np.full((*words.shape, 1), np.nan, np.float32)
    for row, places in enumerate(words):
        known = places[(places >= 0) & (places < tokens[row])]
        # The last word ends before the token that ends the text; where there is none, it is the text's own.
        end = max(int(tokens[row]) - 1, int(known[-1]) + 1) if len(known) else 0
        for number, start in enumerate(known):
            until = int(known[number + 1]) if number + 1 < len(known) else end
            found[row, int(np.flatnonzero(places == start)[0]), 0] = outputs[row, start:until, 0].max()
    return found


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


def _guesses(row: Floats, labels: Sequence[str], text: str) -> Guesses:
    masks = []
    for scores in row:
        if not np.isnan(scores[0]):
            likely = probabilities(scores)
            best = np.argsort(-likely, kind="stable")[:GUESSES]
            masks.append([Guess(labels[int(number)].replace("▁", "").replace("Ġ", ""), float(likely[number])) for number in best])
    return Guesses(masks)


def _replacements(row: Floats, labels: Sequence[str], text: str) -> Replacements:
    words = text.split()
    found = [None if np.isnan(value) else float(sigmoid(value)) for value in row[: len(words), 0]]
    return Replacements([word for word, chance in zip(words, found, strict=True) if chance and chance > 0.5], words, found)


DECODERS: dict[str, Callable[[Floats, Sequence[str], str], Answer]] = {
    "classification": _class,
    "multilabel": _classes,
    "regression": _score,
    "tagging": _tags,
    "embedding": _embedding,
    "masked": _guesses,
    "replaced": _replacements,
}
