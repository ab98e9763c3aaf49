"""Quality and comparison of any task: against scikit-learn, scipy and slow loops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import f1_score, precision_recall_fscore_support

from compress import quality as module
from compress.judging import mean_ranks, rank_correlation
from compress.quality import agreement, comparison, quality, retrieval
from compress.statistics import mcnemar
from compress.tasks import TASKS

TAGS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
LABELS = {"classification": ["a", "b", "c"], "multilabel": ["a", "b"], "regression": ["score"], "tagging": TAGS, "embedding": []}


def case(task, seed, count=25):
    """Outputs of two models and the truth, with what is awkward: ties, texts without a label, words that were cut off."""
    random = np.random.default_rng(seed)
    if task == "classification":
        truth = random.integers(0, 3, count)
        return random.normal(size=(count, 3)), random.normal(size=(count, 3)) + np.eye(3)[truth], truth
    if task == "multilabel":
        truth = (random.random((count, 2)) < 0.4).astype(np.float32)
        return random.normal(size=(count, 2)), random.normal(size=(count, 2)) + truth, truth
    if task == "tagging":
        lengths = random.integers(1, 7, count)
        truth = [random.integers(0, 5, length).tolist() for length in lengths]
        sides = []
        for kept in (6, 4):  # the second model cuts sentences off
            logits = random.normal(size=(count, kept, 5)) + 1.5 * np.array(
                [[np.eye(5)[(*tags, *[4] * 6)[n]] for n in range(kept)] for tags in truth]
            )
            logits[np.arange(kept) >= lengths[:, None]] = np.nan
            sides.append(logits)
        return *sides, truth
    truth = random.integers(0, 6, count) / 2
    return *(np.round(random.normal(size=(count, 1)) + truth[:, None] * weight, 1) for weight in (0.5, 2)), truth


@pytest.mark.parametrize("task", TASKS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_counts_make_the_score(task, seed):
    kind = TASKS[task]
    if task not in LABELS or kind.counts is None:
        return
    for outputs in case(task, seed)[:2]:
        truth = case(task, seed)[2]
        expected = kind.metrics(outputs, truth, LABELS[task])[kind.score]
        assert kind.total(kind.counts(outputs, truth, LABELS[task])[None])[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("task", LABELS)
def test_intervals_are_those_of_the_metrics_on_every_resample(task, monkeypatch):
    """The quick way by counts gives to the digit what resampling whole texts and asking the metrics gives."""
    baseline, model, truth = case(task, 5)
    quick = quality(task, model, truth, LABELS[task]), comparison(task, baseline, model, truth, LABELS[task])
    monkeypatch.setitem(TASKS, task, replace(TASKS[task], counts=None))
    monkeypatch.setattr(module, "SLOW", 2000)
    slow = quality(task, model, truth, LABELS[task]), comparison(task, baseline, model, truth, LABELS[task])
    assert slow[0]["score_interval"] == pytest.approx(quick[0]["score_interval"], abs=1e-9)
    assert slow[1]["score_drop_interval"] == pytest.approx(quick[1]["score_drop_interval"], abs=1e-9)
    assert slow[1]["score_drop_points"] == pytest.approx(quick[1]["score_drop_points"])
    low, high = quick[0]["score_interval"]
    assert low <= quick[0]["score"] <= high and high - low > 0.02


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_rank_correlations_of_many_rows_are_those_of_scipy(seed):
    numbers = np.random.default_rng(seed).integers(0, 4, (6, 9, 2)).astype(float)
    for row, found in zip(numbers, rank_correlation(numbers), strict=True):
        constant = np.ptp(row, axis=0).min() == 0
        assert found == (0 if constant else pytest.approx(spearmanr(row[:, 0], row[:, 1]).statistic))
    np.testing.assert_allclose(mean_ranks(numbers[:, :, 0].astype(int)), [rankdata(row) - 1 for row in numbers[:, :, 0]])


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(max_examples=25)
def test_classes_are_those_of_sklearn(seed, count):
    for task in ("classification", "multilabel"):
        _, outputs, truth = case(task, seed, count)
        found = quality(task, outputs, truth, LABELS[task])
        if task == "classification":
            expected = precision_recall_fscore_support(truth, outputs.argmax(1), labels=[0, 1, 2], zero_division=np.nan)
        else:
            expected = precision_recall_fscore_support(truth > 0, outputs > 0, zero_division=np.nan)
            assert found["score"] == pytest.approx(f1_score(truth > 0, outputs > 0, average="micro", zero_division=1.0))
        for row, *values, support in zip(found["per_class"], *expected, strict=True):
            assert row["support"] == support
            for name, value in zip(("precision", "recall", "f1"), values, strict=True):
                assert row[name] is None if np.isnan(value) else row[name] == pytest.approx(value)
        assert found["score"] == found[TASKS[task].score] and found["score_interval"] == found[f"{TASKS[task].score}_interval"]


def test_entities_by_type():
    _, outputs, truth = case("tagging", 2)
    found = quality("tagging", outputs, truth, TAGS)
    metrics = TASKS["tagging"].metrics(outputs, truth, TAGS)
    assert [row["label"] for row in found["per_class"]] == ["LOC", "PER"]
    assert {row["label"]: row["f1"] for row in found["per_class"]} == pytest.approx(metrics["f1"])
    assert {"word_accuracy", "precision", "recall"} <= found.keys() and "f1" not in found


def test_numbers_have_error_quantiles_and_points():
    _, outputs, truth = case("regression", 1, 500)
    found = quality("regression", outputs, truth, ["score"])
    error = np.abs(outputs[:, 0] - truth)
    assert {one["share"]: one["error"] for one in found["errors"]} == pytest.approx(
        {q: np.quantile(error, q) for q in (0.5, 0.9, 0.95, 0.99)}
    )
    assert len(found["points"]) == 300 and set(map(tuple, found["points"])) <= set(zip(truth, outputs[:, 0].round(4), strict=True))
    assert "errors" not in quality("embedding", outputs, truth, []) and "rmse" not in quality("embedding", outputs, truth, [])


def test_agreement_by_task():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert agreement("classification", logits, logits * 3, np.array([0, 0]), LABELS["classification"]) == 1
    assert agreement("classification", logits, logits[::-1], np.array([0, 0]), LABELS["classification"]) == 0
    sets = np.array([[1.0, -1.0], [1.0, 1.0]])
    assert agreement("multilabel", sets, np.abs(sets), np.ones((2, 2)), LABELS["multilabel"]) == 0.5
    numbers = np.array([[0.1], [0.2], [0.4]])
    assert agreement("regression", numbers, numbers**2, np.zeros(3), ["score"]) == pytest.approx(1)
    assert agreement("embedding", numbers, -numbers, np.zeros(3), []) == pytest.approx(-1)
    assert agreement("regression", numbers, numbers * 0, np.zeros(3), ["score"]) is None
    words = np.eye(5)[[[0, 2, 4], [4, 4, 4]]]
    other = words.copy()
    other[1, 0] = np.nan  # cut off: O, as the other says
    assert agreement("tagging", words, other, [[0, 2, 4], [4, 4, 4]], TAGS) == 1
    other[0, 1] = np.eye(5)[4]
    assert agreement("tagging", words, other, [[0, 2, 4], [4, 4, 4]], TAGS) == 0.5


def test_mcnemar_and_the_old_names_are_of_classification_alone():
    for task, labels in LABELS.items():
        baseline, model, truth = case(task, 3)
        found = comparison(task, baseline, model, truth, labels)
        assert ({"mcnemar_p", "accuracy_drop_points", "drop_interval"} <= found.keys()) == (task == "classification")
        assert found["score_drop_points"] == pytest.approx(
            100 * (quality(task, baseline, truth, labels)["score"] - quality(task, model, truth, labels)["score"])
        )
    baseline, model, truth = case("classification", 3)
    found = comparison("classification", baseline, model, truth, LABELS["classification"])
    right = [np.equal(outputs.argmax(1), truth) for outputs in (baseline, model)]
    assert found["mcnemar_p"] == mcnemar(*right)
    assert (found["accuracy_drop_points"], found["drop_interval"]) == (found["score_drop_points"], found["score_drop_interval"])


def test_a_constant_has_no_correlation():
    _, model, truth = case("regression", 4)
    constant = np.zeros_like(model)
    found = quality("regression", constant, truth, ["score"])
    assert found["score"] is found["spearman"] is found["score_interval"] is None
    lost = comparison("regression", model, constant, truth, ["score"])
    assert lost["score_drop_points"] is lost["score_drop_interval"] is lost["agreement"] is None


def test_any_task_with_a_score_is_measured(monkeypatch):
    """A task of which the table says nothing but its metrics, and whose outputs have another form."""

    def metrics(outputs, truth, labels):
        return {"hit_rate": float(np.mean(outputs[:, :, 0].mean(1) > truth)), "f1": []}

    monkeypatch.setitem(
        TASKS, "guessing", replace(TASKS["regression"], metrics=metrics, score="hit_rate", counts=None, details=lambda *_: {})
    )
    random = np.random.default_rng(0)
    baseline, model, truth = random.random((30, 4, 1)), random.random((30, 4, 1)), np.full(30, 0.5)
    found = quality("guessing", model, truth, [])
    assert set(found) == {"score", "score_interval", "hit_rate", "hit_rate_interval"} and found["score_interval"][0] < found["score"]
    assert comparison("guessing", baseline, model, truth, [])["agreement"] is None


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_retrieval_is_what_a_loop_finds(seed):
    random = np.random.default_rng(seed)
    first, second = unit(random.normal(size=(40, 3))), unit(random.normal(size=(40, 3)))
    texts, pairs = [f"a{number % 30}" for number in range(40)], [f"b{number % 35}" for number in range(40)]
    first, second = first[np.arange(40) % 30], second[np.arange(40) % 35]  # one vector a text
    scores = random.integers(0, 6, 40).astype(float)
    scores[:2] = 0, 5
    asked = [row for row in range(40) if scores[row] >= 4]
    ranks = []
    for row in asked:
        friends = {pairs[other] for other in asked if texts[other] == texts[row]} - {pairs[row]}
        mine = first[row] @ second[row]
        ranks.append(1 + sum(first[row] @ second[int(text[1:])] > mine for text in {*pairs} - friends - {pairs[row]}))
    found = retrieval(first, second, texts, pairs, scores)
    if len(asked) < 10:
        assert found == {}
    else:
        assert found == pytest.approx({"recall_at_1": np.mean(np.array(ranks) == 1), "mrr": np.mean(1 / np.array(ranks))})


def test_one_vector_for_all_finds_nothing():
    texts, pairs = [f"a{number}" for number in range(20)], [f"b{number}" for number in range(20)]
    scores = [number % 2 for number in range(20)]
    same = np.tile(unit(np.ones((1, 4))), (20, 1))
    assert retrieval(same, same, texts, pairs, scores) == {"recall_at_1": 0, "mrr": pytest.approx(1 / 20)}
    assert retrieval(same, same, texts, pairs, [1.0] * 20) == {}
