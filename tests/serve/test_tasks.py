"""Decoding by task, and the rules of entities against their definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.tasks import DECODERS, Entity, bare_answer, outputs_by_text, probabilities, sigmoid, spans, stacked

TAGS = ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"]


def conlleval(tags: list[str]) -> list[tuple[str, int, int]]:
    """The two tables of conlleval: does a chunk end before this tag, does one start at it?"""
    found, start, before, kind = [], 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        ends = (
            before in "ES"
            or (before, prefix) in {("B", "B"), ("B", "S"), ("B", "O"), ("I", "B"), ("I", "S"), ("I", "O")}
            or (before != "O" and kind != name)
        )
        starts = prefix in "BS" or (before in "ESO" and prefix in "EI") or (prefix != "O" and kind != name)
        if ends and before != "O":
            found.append((kind, start, place))
        if starts:
            start = place
        before, kind = prefix, name
    return found


@given(st.lists(st.sampled_from(TAGS), max_size=9))
def test_entities_are_those_of_conlleval(tags):
    assert spans(tags) == conlleval(tags)


def test_tags_without_prefix_and_words_without_tag():
    assert spans(["PER", "PER", "O", None, "LOC"]) == [("PER", 0, 2), ("LOC", 4, 5)]


def test_a_number_and_a_cosine():
    assert DECODERS["regression"](np.array([2.5]), ["score"], "a").cells() == {"score": 2.5}
    assert DECODERS["embedding"](np.array([0.25]), [], "a").cells() == {"score": 0.25}
    assert DECODERS["embedding"](np.array([0.6, 0.8]), [], "a").cells() == {"embedding": "[0.6, 0.8]"}


def test_labels_are_those_likelier_than_not():
    found = DECODERS["multilabel"](np.array([2.0, -1.0, 0.1]), "abc", "text")
    assert found.labels == ["a", "c"] and found.cells() == {"labels": "a|c"}
    assert found.probabilities["b"] == pytest.approx(1 / (1 + np.e))


def test_tags_of_words_and_their_entities():
    rows = np.log([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1], [np.nan] * 3])
    found = DECODERS["tagging"](rows, ["B-PER", "I-PER", "O"][::-1], "Ada  Lovelace wrote programs")
    assert found.words == ["Ada", "Lovelace", "wrote", "programs"]
    assert found.tags == ["I-PER", "B-PER", "O", None]
    assert found.entities == [Entity("PER", "Ada", 0, 1), Entity("PER", "Lovelace", 1, 2)]
    assert found.cells() == {"tags": "I-PER B-PER O O"}


def test_outputs_by_word():
    outputs = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    by_word = outputs_by_text("tagging", outputs, {"words": np.array([[1, 3], [2, -1]])}, False)
    assert by_word[0].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert by_word[1, 0].tolist() == [18, 19, 20] and np.isnan(by_word[1, 1]).all()
    filled = stacked([by_word[0], by_word[1, :1]])
    assert filled.shape == (2, 2, 3) and np.isnan(filled[1, 1]).all()


def test_cosines_of_pairs():
    outputs = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.6, 0.8]])
    assert outputs_by_text("embedding", outputs, {}, True).tolist() == [[0.0], [pytest.approx(1.0)]]
    assert outputs_by_text("embedding", outputs, {}, False) is outputs


@given(st.lists(st.floats(-1000, 1000), min_size=1, max_size=4))
def test_probabilities_are_finite_and_sum_to_one(row):
    assert probabilities(np.array(row)).sum() == pytest.approx(1)
    both = sigmoid(np.array(row)) + sigmoid(-np.array(row))
    assert both == pytest.approx(np.ones(len(row)))


def test_the_bare_answer_is_that_of_the_first_text():
    assert bare_answer("classification", np.array([[0.1, 0.9]]), {}, "ab", False) == "b"
    assert bare_answer("multilabel", np.array([[2.0, -1.0, 0.1]]), {}, "abc", False) == ["a", "c"]
    assert bare_answer("regression", np.array([[2.5]]), {}, ["score"], False) == 2.5
    tokens = np.eye(3)[[[0, 1, 1, 2]]]
    assert bare_answer("tagging", tokens, {"words": np.array([[1, 3, -1]])}, "abc", False) == ["b", "c"]
    assert bare_answer("embedding", np.array([[0.6, 0.8]]), {}, [], False).tolist() == [0.6, 0.8]
    assert bare_answer("embedding", np.array([[0.6, 0.8], [1.0, 0.0]]), {}, [], True) == 0.6
