"""The table of tasks against scikit-learn, scipy and rules written out."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from compress.tasks import (
    TASKS,
    classification_metrics,
    embedding_metrics,
    labels_agree,
    labels_of,
    multilabel_metrics,
    quality_words,
    regression_metrics,
    tagging_metrics,
    texts_of,
    trainable,
    truth_of,
)
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
    several = len({*labels, *predicted}) > 1  # of one alone sklearn warns
    assert metrics["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted) if several else 0, abs=1e-12)
    classes = list(range(logits.shape[1]))
    expected = f1_score(labels, predicted, labels=classes, average=None, zero_division=0)
    for number, score in enumerate(metrics["f1"]):
        met = number in labels or number in predicted
        assert score == (pytest.approx(expected[number]) if met else None)


@given(st.integers(1, 20), st.integers(1, 5), st.randoms(use_true_random=False))
def test_several_labels_are_those_of_sklearn(rows, labels, random):
    logits = np.array([[random.uniform(-2, 2) for _ in range(labels)] for _ in range(rows)])
    truth = np.array([[random.random() < 0.4 for _ in range(labels)] for _ in range(rows)])
    predicted = logits > 0
    metrics = multilabel_metrics(logits, truth.astype(np.float32))
    met = (predicted | truth).any(axis=0)
    if met.any():
        assert metrics["micro_f1"] == pytest.approx(f1_score(truth.ravel(), predicted.ravel(), zero_division=0))
        by_label = (
            f1_score(truth, predicted, average=None, zero_division=0) if labels > 1 else [f1_score(truth, predicted, zero_division=0)]
        )
        assert metrics["macro_f1"] == pytest.approx(np.mean(np.asarray(by_label)[met]))
    assert metrics["exact_match"] == pytest.approx(np.mean((predicted == truth).all(axis=1)))


@given(hnp.arrays(np.float64, (12, 2), elements=st.integers(-5, 5).map(float)))
def test_correlations_are_those_of_scipy(columns):
    """Whole numbers, so that there are ties."""
    found, truth = columns.T
    metrics = regression_metrics(found[:, None], truth)
    if np.ptp(found) == 0 or np.ptp(truth) == 0:
        assert metrics["spearman"] is metrics["pearson"] is None
    else:
        assert metrics["spearman"] == pytest.approx(spearmanr(found, truth).statistic)
        assert metrics["pearson"] == pytest.approx(pearsonr(found, truth).statistic)
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((found - truth) ** 2)))
    assert embedding_metrics(found[:, None], truth) == {name: metrics[name] for name in ("spearman", "pearson")}


NAMES = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


def one_hot(sentences: list[list[int]], words: int) -> np.ndarray:
    logits = np.full((len(sentences), words, len(NAMES)), np.nan, np.float32)
    for row, tags in enumerate(sentences):
        for place, tag in enumerate(tags):
            logits[row, place] = np.eye(len(NAMES))[tag]
    return logits


def test_entities_count_whole_and_cut_words_count_as_outside():
    truth = [[1, 3, 4, 0, 2], [4, 0, 4]]  # a PER of two words, a LOC of two; a LOC
    guess = [[1, 3, 4, 0, 4], [4, 0, 4]]  # the first LOC is one word short
    metrics = tagging_metrics(one_hot(guess, 5), truth, NAMES)
    assert (metrics["precision"], metrics["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert metrics["f1"] == {"LOC": pytest.approx(0.5), "PER": 1.0}
    assert metrics["word_accuracy"] == pytest.approx(7 / 8)
    cut = one_hot([[1, 3, 4], [4, 0, 4]], 3)  # the end of the first sentence was cut off: its LOC is not found
    assert tagging_metrics(cut, truth, NAMES)["recall"] == pytest.approx(2 / 3)


def data_for(task, labels=(), note="", pairs=False):
    return types.SimpleNamespace(name="reviews", task=task, labels=labels, note=note, pairs=pairs)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "tagging"])
def test_labels_say_what_is_trained(task):
    assert trainable(data_for(task, ("no", "yes"))) == task
    assert TASKS[task].head.model_fields["kind"].default == task


def test_embeddings_learn_from_scored_pairs():
    assert trainable(data_for("regression", pairs=True), "embedding") == "embedding"
    for unfit in (data_for("regression"), data_for("classification", pairs=True)):
        with pytest.raises(DataError, match="A model for embedding cannot learn from reviews, which is a set for"):
            trainable(unfit, "embedding")
    assert labels_of("embedding", data_for("regression")) == [] and labels_of("regression", data_for("regression")) == ["score"]


def test_plain_text_is_refused():
    with pytest.raises(DataError) as caught:
        trainable(data_for("text", note="no label column among text, stars"))
    assert caught.value.message == "reviews is a set for text, which is not trained here; no label column among text, stars."
    assert caught.value.hint.endswith("If the set has labels, name their column with --label.")


def test_the_classes_of_a_model_must_be_those_of_the_data():
    assert labels_agree(["no", "yes"], data_for("classification", ("no", "yes")), "classification") == "classification"
    with pytest.raises(DataError, match=r"not those of reviews: only the model has maybe; only the data have yes\."):
        labels_agree(["maybe", "no"], data_for("classification", ("no", "yes")))
    with pytest.raises(DataError, match="they differ in order"):
        labels_agree(["yes", "no"], data_for("classification", ("no", "yes")))
    with pytest.raises(DataError, match="A model for tagging cannot learn from reviews, which is a set for classification"):
        labels_agree(["no", "yes"], data_for("classification", ("no", "yes")), "tagging")


def test_truth_and_texts_by_task():
    tagged = {"tokens": [["a", "b"]], "tags": [["O", "B-X"]]}
    assert truth_of("tagging", tagged, ["B-X", "O"]) == [[1, 0]]
    assert texts_of("tagging", tagged) == ["a b"]
    assert truth_of("multilabel", {"label": [[], [0, 2]]}, "abc").tolist() == [[0, 0, 0], [1, 0, 1]]
    assert truth_of("regression", {"label": [0.5]}, ["score"]).tolist() == [0.5]
    with pytest.raises(DataError, match="Row 1 has the word 'New York', which has white space in it"):
        texts_of("tagging", {"tokens": [["New York"]]})


def test_quality_in_words():
    assert quality_words({"accuracy": 0.8123}) == "81.2 %"
    assert quality_words({"entity_f1": 0.5, "f1": {}}) == "entity F1 50.0 %"
    assert quality_words({"spearman": 0.81234}) == "Spearman 0.812"
    assert quality_words({"spearman": None}) == "no score"
