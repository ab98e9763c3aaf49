"""What a model says at some places of texts that are tokens already: all that the quality of a pre-training task needs.

The outputs themselves, [texts, tokens, vocabulary], are too large to be handed on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.predictor import Predictor, fits, task_of
from serve.tasks import stacked


def at_places(predictor: Predictor, lessons: Sequence[Mapping[str, list[int]]], batch_size: int = 32) -> npt.NDArray[np.float32]:
    """[texts, most places, 3 or 2], NaN where a text has no more places.

    masked: log-probability of the token that is `right`, of the likeliest, and the number of that one; replaced: the logit, and what is
    right. A lesson has `ids` [tokens], `places` among them, and what is `right` at each.
    """
    order = sorted(range(len(lessons)), key=lambda row: len(lessons[row]["ids"]))
    found: dict[int, npt.NDArray[np.float32]] = {}
    while order:
        count = min(batch_size, len(order))
        while count > 1 and not fits(predictor, count, len(lessons[order[count - 1]]["ids"])):
            count //= 2
        rows, order = order[:count], order[count:]
        outputs = predictor.logits(_batch(predictor, [lessons[row]["ids"] for row in rows]))
        for row, given in zip(rows, outputs, strict=True):
            found[row] = _said(task_of(predictor), given[lessons[row]["places"]], np.array(lessons[row]["right"], np.int64))
    return stacked([found[row] for row in range(len(lessons))])


def _batch(predictor: Predictor, texts: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[np.int64]]:
    """Texts padded with the token that they end with, which the mask hides."""
    lengths = np.array([len(text) for text in texts])
    ids = np.array([[*text, *[text[-1]] * (lengths.max() - len(text))] for text in texts], np.int64)
    batch = {"input_ids": ids, "attention_mask": (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)}
    types = "token_type_ids" in getattr(predictor, "inputs", ())  # a graph wants all that it has
    return {**batch, "token_type_ids": np.zeros_like(ids)} if types else batch


def _said(task: str, outputs: npt.NDArray[Any], right: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """[P, 3] or [P, 2] of outputs [P, V] or [P, 1]."""
    if task != "masked":
        return np.stack((outputs[:, 0], right), axis=1).astype(np.float32)
    scores = outputs.astype(np.float64)
    best = scores.argmax(axis=1)
    each = np.arange(len(best))
    peak = scores[each, best]
    total = peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1))
    return np.stack((scores[each, right] - total, peak - total, best), axis=1).astype(np.float32)
