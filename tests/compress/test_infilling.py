"""Hidden words filled in: by whole words, the same for the same text and seed, as likely as the model says."""

from collections import Counter

import pytest
import torch

from compress.infilling import LIKELIEST, infilled, whole_words
from model.tokenizer import open_tokenizer
from tests.compress.chain import BAD, GOOD, OTHER, write_tokenizer
from tests.model.tiny import shake, tiny_encoder

TEXTS = ["the [MASK] was good", "[MASK] and [MASK]", "a film", "[MASK]", "he [MASK] in the [MASK] scene of it"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return open_tokenizer(write_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer"), 16)


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_encoder(vocabulary=tokenizer.vocabulary, head={"kind": "masked"}, dropout=0.0)
    shake(model)
    return model


def filled(model, tokenizer, texts, seed=0):
    return infilled(model, tokenizer, texts, seed, lambda *_: None)


def test_only_hidden_words_change_and_become_whole_words(model, tokenizer):
    known = {*GOOD, *BAD, *OTHER, *(chr(code) for code in range(97, 123))}
    for text, new in zip(TEXTS, filled(model, tokenizer, TEXTS), strict=True):
        pairs = list(zip(text.split(), new.split(), strict=True))
        assert all(old in (word, "[MASK]") for old, word in pairs)
        assert {word for old, word in pairs if old == "[MASK]"} <= known


def test_a_text_is_filled_alike_whatever_stands_beside_it(model, tokenizer):
    together = filled(model, tokenizer, TEXTS)
    assert together == [filled(model, tokenizer, [text])[0] for text in TEXTS]
    assert any(filled(model, tokenizer, TEXTS, seed) != together for seed in (1, 2, 3))


def test_words_come_as_often_as_the_model_says(model, tokenizer):
    """Against the softmax over the likeliest whole words, computed here."""
    seeds = 600
    found = Counter(filled(model, tokenizer, ["the [MASK] was good"], seed)[0].split()[1] for seed in range(seeds))
    [encoding] = tokenizer.ids(["the [MASK] was good"])
    with torch.no_grad():
        logits = model(torch.tensor([encoding.ids]), torch.ones(1, len(encoding.ids), dtype=torch.long))[0, 2]
    words = whole_words(tokenizer.tokens, set(tokenizer.special.values()))
    likeliest = sorted((number for number, word in enumerate(words) if word), key=lambda number: -float(logits[number]))[:LIKELIEST]
    shares = torch.softmax(logits[likeliest].double(), 0).tolist()
    assert set(found) <= {words[number] for number in likeliest}
    for number, share in zip(likeliest, shares, strict=True):
        assert found[words[number]] / seeds == pytest.approx(share, abs=5 * (share * (1 - share) / seeds) ** 0.5 + 1e-3)


def test_what_is_too_long_is_cut_off(model, tokenizer):
    [new] = filled(model, tokenizer, ["the [MASK] " * 12])
    assert "[MASK]" not in new and len(new.split()) >= 14


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["[PAD]", "##ing", "film", "?", "1998", "don't"], ["", "", "film", "", "1998", "don't"]),
        (["<s>", "Ġfilm", "ing", "Ġ?", "ĠÃ©t", "Ġ"], ["", "film", "", "", "", ""]),
        (["<unk>", "▁film", "s", "▁été", "▁"], ["", "film", "", "été", ""]),
    ],
    ids=["wordpiece", "bytes", "sentencepiece"],
)
def test_whole_words_of_each_kind_of_tokenizer(tokens, words):
    assert whole_words(tokens, {"[PAD]", "<s>", "<unk>"}) == words
