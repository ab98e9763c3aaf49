"""Texts on which two models give different answers: where a student went another way than its teacher."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.judging import mean_ranks
from compress.statistics import Floats
from compress.tasks import TASKS
from compress.units import significant

MOST = 12  # examples
LONGEST = 240  # characters of a text

Disagreement = dict[str, Any]


def disagreements(
    task: str,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    truth: Any,
    labels: Sequence[str],
    baseline: NDArray[Any],
    model: NDArray[Any],
) -> list[Disagreement]:
    """At most MOST examples: those that `model` lost against `baseline`, those that it won, and those where both err, in turn.

    `baseline` and `model` are outputs as `compress.tasks` has them. Of each sort the answers that the model is surest of stand first, for
    those say most; of numbers those that lie furthest apart, and the nearer to the truth wins (in rank, where only order means something).
    `better` says who, or is None. A long text is cut.
    """
    kind = TASKS[task]
    if kind.answers is None:
        if baseline.ndim != 2 or baseline.shape[1] != 1:
            return []  # neither answers nor numbers: nothing to show
        found = _numbers(np.asarray(truth, np.float64), baseline[:, 0], model[:, 0], ordered=kind.ordered)
    else:
        ours, theirs = (kind.answers(outputs, truth, labels) for outputs in (model, baseline))
        answers = list(zip(theirs.right, theirs.given, ours.given, strict=True))
        apart = [row for row in np.argsort(-ours.sure, kind="stable").tolist() if answers[row][1] != answers[row][2]]
        found = []
        for row in apart:
            right, one, other = answers[row]
            better = "baseline" if one == right else "model" if other == right else None
            shown = (kind.shown(answer, texts[row]) for answer in answers[row])
            said = dict(zip(("truth", "baseline", "model"), shown, strict=True))
            found.append((row, {**said, "better": better, "probability": round(float(ours.sure[row]), 4)}))
    sorts = [[one for one in found if one[1]["better"] == better] for better in ("baseline", "model", None)]
    chosen = [rows[place] for place in range(MOST) for rows in sorts if place < len(rows)][:MOST]
    return [{**_texts(row, texts, pairs), **example} for row, example in chosen]


def _numbers(truth: Floats, baseline: NDArray[Any], model: NDArray[Any], *, ordered: bool) -> list[tuple[int, Disagreement]]:
    """Rows with their answers written out, those that lie furthest apart first."""
    values = np.stack([truth, baseline, model]).astype(np.float64)
    judged = mean_ranks(np.stack([np.unique(side, return_inverse=True)[1] for side in values])) if ordered else values
    distance = np.abs(judged[2] - judged[1])
    errors = np.abs(judged[1:] - judged[0])
    found = []
    for row in np.argsort(-distance, kind="stable").tolist():
        if not distance[row]:
            break
        one, other = errors[:, row]
        better = None if one == other else "baseline" if one < other else "model"
        said = dict(zip(("truth", "baseline", "model"), map(significant, values[:, row].tolist()), strict=True))
        found.append((row, {**said, "better": better}))
    return found


def _texts(row: int, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, str]:
    sides = {"text": texts} if pairs is None else {"text": texts, "text_b": pairs}
    return {name: _cut(side[row]) for name, side in sides.items()}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}…"
