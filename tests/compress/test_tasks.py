"""The table of tasks, against scikit-learn and a softmax written out."""

import math
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score

from compress.tasks import TASKS, classification_metrics, decode_classes, labels_agree, trainable
from model.config import ClassificationHead
from model.errors import DataError


@st.composite
def answers(draw):
    """Logits [n, classes] and labels [n]; often some class neither occurs nor is predicted."""
    rows, classes = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    logits = draw(hnp.arrays(np.float32, (rows, classes), elements=st.floats(-50, 50, width=32)))
    return logits, draw(hnp.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))


@given(answers())
def test_metrics_are_those_of_sklearn(case):
    logits, labels = case
    predicted = np.argmax(logits, axis=1)
    metrics = classification_metrics(logits, labels)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    classes = list(range(logits.shape[1]))
    expected = f1_score(labels, predicted, labels=classes, average=None, zero_division=0)
    for number, score in enumerate(metrics["f1"]):
        met = number in labels or number in predicted
        assert score == (pytest.approx(expected[number]) if met else None)


def test_metrics_of_a_small_case_by_hand():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    metrics = classification_metrics(logits, np.array([0, 0, 0, 1]))
    assert metrics["accuracy"] == 0.75
    assert metrics["f1"] == [pytest.approx(0.8), pytest.approx(2 / 3), None]
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


@given(st.lists(st.lists(st.floats(-1000, 1000), min_size=3, max_size=3), min_size=1, max_size=5))
def test_decoding_is_softmax_and_its_maximum(rows):
    for row, answer in zip(rows, decode_classes(np.array(rows), ["a", "b", "c"]), strict=True):
        total = sum(math.exp(value - max(row)) for value in row)
        expected = {name: math.exp(value - max(row)) / total for name, value in zip("abc", row, strict=True)}
        assert answer["probabilities"] == pytest.approx(expected)
        assert answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())


def data_for(task, labels=(), note=""):
    return types.SimpleNamespace(name="reviews", task=task, labels=labels, note=note)


def test_classification_is_trained():
    task = trainable(data_for("classification", ("no", "yes")))
    assert task is TASKS["classification"]
    assert task.head is ClassificationHead
    assert task.loss == "cross_entropy"


@pytest.mark.parametrize("task", ["regression", "tagging", "text"])
def test_what_only_loads_is_refused(task):
    with pytest.raises(DataError) as caught:
        trainable(data_for(task, note="no label column among text, stars"))
    assert caught.value.message.startswith(f"reviews is a set for {task}, which is not trained here")
    assert caught.value.hint == "Trained: classification. If the set has classes, name their column with --label."
    assert ("no label column among text, stars" in caught.value.message) == (task == "text")


def test_the_classes_of_a_model_must_be_those_of_the_data():
    labels_agree(["no", "yes"], data_for("classification", ("no", "yes")))
    with pytest.raises(DataError, match=r"not those of reviews: only the model has maybe; only the data have yes\."):
        labels_agree(["maybe", "no"], data_for("classification", ("no", "yes")))
    with pytest.raises(DataError, match="they differ in order"):
        labels_agree(["yes", "no"], data_for("classification", ("no", "yes")))
