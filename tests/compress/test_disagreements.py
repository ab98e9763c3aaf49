"""Which texts are shown where two models disagree."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compress.disagreements import LONGEST, MOST, disagreements

NAMES = ("a", "b", "c")
labels = st.integers(0, 2)


@given(st.lists(st.tuples(labels, labels, labels, st.floats(0, 1)), max_size=60))
def test_examples_are_texts_with_two_answers_each_once(rows: list[tuple[int, int, int, float]]) -> None:
    truth, baseline, model, probability = (np.array([row[part] for row in rows]) for part in range(4))
    found = disagreements([str(number) for number in range(len(rows))], truth, NAMES, baseline, model, probability)
    shown = [int(one["text"]) for one in found]
    assert len(set(shown)) == len(shown) == min(MOST, int(np.sum(baseline != model)))
    for one, row in zip(found, shown, strict=True):
        assert (one["truth"], one["baseline"], one["model"]) == (NAMES[truth[row]], NAMES[baseline[row]], NAMES[model[row]])
        assert one["baseline"] != one["model"]


def test_lost_won_and_both_wrong_take_turns_the_most_certain_first() -> None:
    truth = [0] * 6
    baseline = np.array([0, 0, 1, 1, 0, 0])
    model = np.array([1, 2, 0, 2, 1, 0])
    probability = np.array([0.5, 0.9, 0.7, 0.6, 0.8, 0.99])
    found = disagreements(list("uvwxyz"), truth, NAMES, baseline, model, probability)
    assert [one["text"] for one in found] == ["v", "w", "x", "y", "u"]


def test_a_long_text_is_cut() -> None:
    (found,) = disagreements(["word " * 100], [0], NAMES, np.array([0]), np.array([1]), np.array([0.5]))
    assert len(found["text"]) <= LONGEST and found["text"].endswith("word…")
