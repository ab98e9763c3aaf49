"""New texts: their words come from the corpus, they are drawn by the seed alone, and what is measured on is never among them."""

import itertools
import math
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.augmentation import KINDS, LONGEST_NGRAM, LONGEST_RUN, Material, augment, kept, read_augmentation
from model.errors import ConfigError

WORDS = ["who", "What", "is", "the", "capital", "of", "Ireland", "?", "wrote", "a", "b", "it"]
CORPORA = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=12)
COPIES = st.integers(1, 5)
MADE = [kind for kind in KINDS if kind not in ("infill", "retrieve")]
QUESTIONS = ["What is the capital of Ireland ?", "What is the size of Spain ?", "Who wrote the book of life ?", "How far is Rome ?"]


def filled(texts):
    """A masked language model that always says the same."""
    return [text.replace("[MASK]", "thing") for text in texts]


def material(texts, seed=0, **more):
    return Material(texts, seed, mask="[MASK]", fill=filled, **more)


def runs(words, longest):
    """Every run of at most `longest` words."""
    return [words[start:stop] for start in range(len(words)) for stop in range(start + 1, min(len(words), start + longest) + 1)]


@given(CORPORA, COPIES, st.integers(0, 3), st.sampled_from([*MADE, "infill"]))
def test_new_texts_have_words_of_the_corpus_and_are_as_many_as_was_asked(texts, copies, seed, kind):
    new = augment(kind, copies, material(texts, seed))
    known = {word for text in texts for word in text.split()}
    extra = {"mask": {"[MASK]"}, "infill": {"thing"}}.get(kind, set())
    assert all(text.strip() for text in new)
    assert {word for text in new for word in text.split()} <= known | extra
    assert len(new) <= copies * len(texts)
    if kind in ("mask", "ngram", "infill"):
        assert len(new) == copies * sum(len(text.split()) > 1 for text in texts)


@given(CORPORA, COPIES, st.sampled_from([*MADE, "infill"]))
def test_the_same_seed_makes_the_same_texts_and_more_copies_go_on_where_fewer_end(texts, copies, kind):
    texts = list(dict.fromkeys(texts))
    few, again = (augment(kind, copies, material(texts)) for _ in range(2))
    assert few == again
    if kind in ("mask", "ngram", "infill"):
        more = iter(augment(kind, copies + 1, material(texts)))
        assert all(text in more for text in few)  # in their order


def test_another_process_makes_the_same_texts():
    code = (
        "from compress.augmentation import *; from tests.compress.test_augmentation import *;"
        "print([augment(kind, 3, material(QUESTIONS)) for kind in MADE])"
    )
    found = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": seed, "PYTHONPATH": path})
        for seed, path in (("1", ":".join(sys.path)), ("2", ":".join(sys.path)))
    ]
    assert found[0].stdout == found[1].stdout != "", found[0].stderr
    assert found[0].stdout.strip() == str([augment(kind, 3, material(QUESTIONS)) for kind in MADE])


def test_seeds_and_kinds_draw_differently():
    assert augment("ngram", 5, material(QUESTIONS, 0)) != augment("ngram", 5, material(QUESTIONS, 1))


@given(CORPORA, COPIES)
def test_an_ngram_is_a_run_of_its_text(texts, copies):
    for text in texts:
        words = text.split()
        for new in augment("ngram", copies, material([text])):
            assert new.split() in runs(words, LONGEST_NGRAM) and len(new.split()) < len(words)


@given(CORPORA, COPIES, st.sampled_from(["mask", "infill"]))
def test_hiding_leaves_the_other_words_and_never_hides_all_or_none(texts, copies, kind):
    hidden = "[MASK]" if kind == "mask" else "thing"
    for text in texts:
        words = text.split()
        for new in augment(kind, copies, material([text])):
            pairs = list(zip(new.split(), words, strict=True))
            assert all(made in (old, hidden) for made, old in pairs)
            assert 0 < sum(made == hidden for made, _ in pairs) < len(words)


@given(CORPORA, COPIES)
def test_a_mix_is_a_beginning_and_an_end(texts, copies):
    whole = [text.split() for text in texts]
    beginnings = {tuple(words[:stop]) for words in whole for stop in range(1, len(words) + 1)}
    ends = {tuple(words[start:]) for words in whole for start in range(len(words))}
    for new in augment("mix", copies, material(texts)):
        words = new.split()
        assert any(tuple(words[:cut]) in beginnings and tuple(words[cut:]) in ends for cut in range(1, len(words)))


@given(CORPORA, COPIES)
def test_a_cross_joins_two_texts_at_a_word_that_both_have(texts, copies):
    whole = [text.split() for text in texts]
    for new in augment("cross", copies, material(texts)):
        words = new.split()
        first = {cut for cut in range(1, len(words)) for old in whole if old[: cut + 1] == words[: cut + 1]}
        second = {
            cut
            for cut in range(1, len(words) - 1)
            for old in whole
            for place, word in enumerate(old)
            if word.casefold() == words[cut].casefold() and old[place + 1 :] == words[cut + 1 :]
        }
        assert first & second


def test_a_swap_puts_in_what_stands_between_the_same_words_elsewhere():
    """Against all texts that one, two or three swaps can make, found by looking at every pair of runs."""
    whole = [("", *text.split(), "") for text in QUESTIONS]
    between: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    for words in whole:
        for start, stop in swappable(words):
            if words[stop] not in words[start:stop]:
                between.setdefault((words[start - 1], words[stop]), set()).add(words[start:stop])

    def swapped(words):
        for start, stop in swappable(words):
            for run in between.get((words[start - 1], words[stop]), ()):
                yield (*words[:start], *run, *words[stop:])

    reachable = [set(whole)]
    for _ in range(3):
        reachable.append({new for words in reachable[-1] for new in swapped(words)})
    found = set(augment("swap", 60, material(QUESTIONS)))
    assert found <= {" ".join(words[1:-1]) for made in reachable[1:] for words in made}
    assert {"What is the size of Ireland ?", "What is the capital of Spain ?"} <= found


def swappable(words):
    """Where the runs begin and end that a swap may take out, in words with an edge on both sides."""
    return [(start, stop) for start in range(1, len(words) - 1) for stop in range(start + 1, min(len(words) - 1, start + LONGEST_RUN) + 1)]


def test_retrieve_takes_what_is_like_the_training_texts_and_never_what_is_unlike_them():
    films = [f"the film {number} was fine and he was good" for number in range(30)]
    pool = [*films, "What is the price of tea ?", "Who wrote it ?"]
    assert set(augment("retrieve", 9, material(QUESTIONS, pool=pool))) == set(pool[-2:])
    assert augment("retrieve", 1, material(["Who wrote this ?"], pool=pool)) == ["Who wrote it ?"]


@given(CORPORA, CORPORA)
def test_retrieve_agrees_with_a_slow_count(texts, pool):
    def terms(text):
        words = re.findall(r"[A-Za-z]+|[?]", text.casefold())
        return [*words, *itertools.pairwise(words)]

    sides = [[term for text in side for term in terms(text)] for side in (texts, pool)]
    scores = []
    for text in pool:
        found = terms(text)
        inside, outside = ([side.count(term) / max(1, len(side)) for term in found] for side in sides)
        scores.append(sum(math.log((0.8 * a + 0.2 * b) / b) for a, b in zip(inside, outside, strict=True)) / (len(found) + 5))
    best = sorted((score for score in scores if score > 1e-9), reverse=True)[: 2 * len(texts)]
    found = [scores[pool.index(text)] for text in augment("retrieve", 2, material(texts, pool=pool))]
    assert [score for score in found if score > 1e-9] == pytest.approx(best)  # of no use at all is 0, or what rounding leaves of it


def test_repeats_and_known_texts_are_dropped_whatever_their_case_spaces_and_marks():
    assert kept(["a b", "A  B", "c", "d", "c ?"], ["D"]) == ["a b", "c"]


@given(CORPORA, CORPORA)
def test_what_is_kept_is_new_and_there_once(new, known):
    found = kept(new, known)
    assert kept(found, known) == found and kept(found, found) == []


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("swop:3", "there is no kind 'swop'", "mask, ngram, mix, cross, swap, infill, retrieve"),
        ("swap", "'' is not a number of copies", "Write swap:10"),
        ("swap:0", "'0' is not a number of copies", "1 to 1,000"),
        ("swap:2.5", "'2.5' is not a number of copies", "Write swap:10"),
    ],
)
def test_what_cannot_be_read_is_refused(value, message, hint):
    with pytest.raises(ConfigError, match=message) as error:
        read_augmentation(value)
    assert hint in error.value.hint
    assert read_augmentation("swap:12") == ("swap", 12)


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("mask", "the tokenizer has no mask token", "swap"),
        ("infill", "needs a masked language model", "--generator"),
        ("retrieve", "no texts to choose from", "--unlabelled"),
    ],
)
def test_a_kind_without_what_it_needs_is_refused(kind, message, hint):
    with pytest.raises(ConfigError, match=message) as error:
        augment(kind, 1, Material(QUESTIONS, 0))
    assert hint in error.value.hint


def test_infill_without_a_model_is_refused():
    with pytest.raises(ConfigError, match="needs a masked language model") as error:
        augment("infill", 1, Material(QUESTIONS, 0, mask="[MASK]"))
    assert "--task masked" in error.value.hint and "--generator" in error.value.hint
