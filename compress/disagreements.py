"""Texts on which two models give different labels: where a student went another way than its teacher."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST = 12  # examples
LONGEST = 240  # characters of a text

Disagreement = dict[str, Any]


def disagreements(
    texts: Sequence[str], truth: Sequence[int], names: Sequence[str], baseline: NDArray[Any], model: NDArray[Any], probability: NDArray[Any]
) -> list[Disagreement]:
    """At most MOST examples: those that `model` lost against `baseline`, those that it won, and those where both err, in turn.

    `baseline` and `model` are class numbers [n] into `names`, `probability` is the model's of its own answer [n]; of each sort the most
    certain stand first, for those say most. A long text is cut.
    """
    truths = np.asarray(truth)
    apart = np.flatnonzero(baseline != model)
    certain = apart[np.argsort(-probability[apart], kind="stable")]
    sorts = [
        [int(row) for row in certain if baseline[row] == truths[row]],
        [int(row) for row in certain if model[row] == truths[row]],
        [int(row) for row in certain if truths[row] not in (baseline[row], model[row])],
    ]
    chosen = [rows[place] for place in range(MOST) for rows in sorts if place < len(rows)][:MOST]
    return [
        {
            "text": texts[row] if len(texts[row]) <= LONGEST else f"{texts[row][: LONGEST - 1].rstrip()}…",
            "truth": names[truths[row]],
            "baseline": names[baseline[row]],
            "model": names[model[row]],
            "probability": round(float(probability[row]), 4),
        }
        for row in chosen
    ]
