"""Which texts are shown where two models disagree, and how."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from compress.disagreements import LONGEST, MOST, disagreements

NAMES = ("a", "b", "c")
labels = st.integers(0, 2)


def outputs(classes, probability=None):
    """Logits [n, 3] whose softmax gives each class its probability."""
    sure = np.full(len(classes), 0.9) if probability is None else np.asarray(probability)
    found = np.repeat(np.log((1 - sure) / 2)[:, None], 3, axis=1)
    found[np.arange(len(classes)), classes] = np.log(sure)
    return found


def shown(truth, baseline, model, probability=None, texts=None):
    texts = texts or [str(number) for number in range(len(truth))]
    return disagreements("classification", texts, None, np.array(truth), NAMES, outputs(baseline), outputs(model, probability))


@given(st.lists(st.tuples(labels, labels, labels, st.floats(0.4, 0.99)), min_size=1, max_size=60))
def test_examples_are_texts_with_two_answers_each_once(rows):
    truth, baseline, model, probability = ([row[part] for row in rows] for part in range(4))
    found = shown(truth, baseline, model, probability)
    places = [int(one["text"]) for one in found]
    assert len(set(places)) == len(places) == min(MOST, sum(one != other for one, other in zip(baseline, model, strict=True)))
    for one, row in zip(found, places, strict=True):
        assert (one["truth"], one["baseline"], one["model"]) == (NAMES[truth[row]], NAMES[baseline[row]], NAMES[model[row]])
        assert one["baseline"] != one["model"]
        assert one["better"] == ("baseline" if baseline[row] == truth[row] else "model" if model[row] == truth[row] else None)
        assert abs(one["probability"] - probability[row]) < 1e-3


def test_lost_won_and_both_wrong_take_turns_the_most_certain_first():
    found = shown([0] * 6, [0, 0, 1, 1, 0, 0], [1, 2, 0, 2, 1, 0], [0.5, 0.9, 0.7, 0.6, 0.8, 0.99], list("uvwxyz"))
    assert [one["text"] for one in found] == ["v", "w", "x", "y", "u"]


def test_a_long_text_is_cut():
    (found,) = shown([0], [0], [1], texts=["word " * 100])
    assert len(found["text"]) <= LONGEST and found["text"].endswith("word…")


def test_labels_and_entities_are_written_out():
    (found,) = disagreements(
        "multilabel", ["t"], ["u"], np.array([[1, 0]]), ("bad", "good"), np.array([[3.0, 2.0]]), np.array([[-3.0, -2.0]])
    )
    assert (found["truth"], found["baseline"], found["model"], found["better"]) == ("bad", "bad, good", "none", None)
    assert (found["text"], found["text_b"]) == ("t", "u")
    tags = ["B-LOC", "B-PER", "I-PER", "O"]
    (found,) = disagreements(
        "tagging", ["Ada Lovelace saw London"], None, [[1, 2, 3, 0]], tags, np.eye(4)[[[1, 2, 3, 0]]], np.eye(4)[[[1, 3, 3, 0]]] * 9
    )
    assert found["truth"] == found["baseline"] == "Ada Lovelace (PER), London (LOC)"
    assert (found["model"], found["better"]) == ("Ada (PER), London (LOC)", "baseline")
    assert found["probability"] > 0.99


def test_numbers_that_lie_furthest_apart_stand_first():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    baseline, model = np.array([[1.1], [2.0], [3.5], [0.0]]), np.array([[1.0], [4.5], [3.5], [4.25]])
    found = disagreements("regression", list("wxyz"), None, truth, ["score"], baseline, model)
    assert [(one["text"], one["better"]) for one in found] == [("x", "baseline"), ("z", "model"), ("w", "model")]
    assert found[0] | {} == {"text": "x", "truth": "2.00", "baseline": "2.00", "model": "4.50", "better": "baseline"}


def test_of_cosines_only_the_order_is_judged():
    truth = np.array([0.0, 2.5, 5.0])
    found = disagreements("embedding", list("xyz"), None, truth, [], np.array([[0.90], [0.91], [0.92]]), np.array([[0.1], [0.9], [0.8]]))
    assert [(one["text"], one["better"]) for one in found] == [("y", "baseline"), ("z", "baseline")]
