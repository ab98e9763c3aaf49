"""A vocabulary trimmed to the texts: what stays means what it meant, in ids, in embeddings, and in every reader of the file."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors
from transformers import AutoTokenizer

from compress.cli import cli
from compress.vocabularies import moved, own_tokenizer, train_vocabulary
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ConfigError
from model.tokenizer import SENTENCEPIECE_FILE, open_tokenizer
from tests.compress.chain import BAD, GOOD, OTHER, SMALL, SPECIAL, write_data, write_encoder, write_tokenizer
from tests.model.tiny import tiny_encoder

TEXTS = ["the film was very good", "the plot was dull", "The actor was very very fine"]
USED = ("the", "film", "was", "very", "good", "plot", "dull", "actor", "fine")
ALWAYS = len(SPECIAL) + 2 * 26  # and every letter, at the beginning of a word and within


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    return open_tokenizer(write_tokenizer(tmp_path_factory.mktemp("old") / "wordpiece"), 24)


@pytest.fixture(scope="module")
def trimmed(old, tmp_path_factory):
    """The words of TEXTS and two more."""
    return own_tokenizer(f"trimmed:{ALWAYS + len(USED) + 2}", TEXTS, tmp_path_factory.mktemp("new"), 24, old)


def pieces(tokenizer, text: str) -> list[str]:
    return [tokenizer.tokens[number] for number in tokenizer.ids([text])[0].ids]


def test_what_the_texts_use_stays_and_then_the_lowest_ids(old, trimmed):
    assert trimmed.vocabulary == len(trimmed.numbers) == ALWAYS + len(USED) + 2
    unused = [word for word in (*GOOD, *BAD, *OTHER) if word not in USED and len(word) > 1]
    assert trimmed.numbers.keys() == {*SPECIAL, *USED, *unused[:2], *(piece for piece in old.numbers if len(piece.removeprefix("##")) == 1)}
    assert (trimmed.kind, trimmed.special, trimmed.pad_id) == (old.kind, old.special, old.numbers["[PAD]"])


@given(st.lists(st.sampled_from([*USED, "a", "Film,", "xyz", "[MASK]", "Wąs"]), max_size=12))
def test_texts_of_what_stays_are_split_as_before(old, trimmed, words):
    assert pieces(trimmed, " ".join(words)) == pieces(old, " ".join(words))


def test_a_word_whose_piece_is_gone_is_spelled(old, trimmed):
    assert pieces(old, "grim scene")[1:-1] == ["grim", "scene"]
    assert pieces(trimmed, "grim scene")[1:-1] == ["g", "##r", "##i", "##m", "s", "##c", "##e", "##n", "##e"]


def test_what_has_no_place_in_a_text_goes_first(tmp_path):
    """BERT numbers places that it holds free and foreign characters before its words."""
    words = [*SPECIAL, "[unused0]", "東", "##東", *"ab", "##a", "##b", "never", "used"]
    fast = Fast(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.add_special_tokens(list(SPECIAL))
    fast.save(str(tmp_path / "tokenizer.json"))
    found = own_tokenizer("trimmed:11", ["ab used"], tmp_path / "new", 24, open_tokenizer(tmp_path, 24))
    assert found.numbers.keys() == {*SPECIAL, *"ab", "##a", "##b", "never", "used"}
    assert pieces(found, "a used") == ["[CLS]", "a", "used", "[SEP]"]


def test_other_readers_give_its_ids(trimmed, tmp_path):
    trimmed.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "grim [MASK] Scene!", "", "naïve 東京"):
        assert auto(text)["input_ids"] == trimmed.ids([text])[0].ids
    assert auto("the", "film")["input_ids"] == trimmed.ids(["the"], ["film"])[0].ids


def test_a_moved_model_answers_as_before(old, trimmed):
    model = tiny_encoder(vocabulary=old.vocabulary).eval()
    smaller = moved(model, trimmed, old)
    assert smaller.config.vocabulary == trimmed.vocabulary
    for text in TEXTS:
        one, two = (torch.tensor([tokenizer.ids([text])[0].ids]) for tokenizer in (old, trimmed))
        assert torch.equal(model(one, torch.ones_like(one)), smaller(two, torch.ones_like(two)))


def unigram(folder: Path, unknown: int | None = 3) -> Path:
    """As XLM-R's: a Unigram model in tokenizer.json alone, special tokens first."""
    folder.mkdir()
    words = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁the", -2.0), ("▁rare", -9.0), ("▁film", -4.0)]
    letters = [(letter, -12.0) for letter in "▁thefilmra"]
    fast = Fast(models.Unigram([*words, *dict(letters).items()], unk_id=unknown))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast.post_processor = processors.Sequence([template])
    fast.save(str(folder / "tokenizer.json"))
    return folder


def test_unigram_in_a_tokenizer_json(tmp_path):
    old = open_tokenizer(unigram(tmp_path / "old"), 24)
    new = own_tokenizer(f"trimmed:{old.vocabulary - 1}", ["the film"], tmp_path / "new", 24, old)
    assert old.numbers.keys() - new.numbers.keys() == {"▁rare"}
    assert pieces(new, "the film") == ["<s>", "▁the", "▁film", "</s>"]
    assert pieces(new, "rare")[1:-1] == ["▁", "r", "a", "r", "e"]
    assert pieces(new, "Ω") == pieces(old, "Ω")


def test_unigram_without_an_unknown_piece(tmp_path):
    old = open_tokenizer(unigram(tmp_path / "old", None), 24)
    new = own_tokenizer(f"trimmed:{old.vocabulary - 1}", ["the film"], tmp_path / "new", 24, old)
    assert new.rules["model"]["unk_id"] is None and pieces(new, "the film") == pieces(old, "the film")


def test_what_cannot_be_trimmed_is_refused(old, tmp_path):
    with pytest.raises(ConfigError, match=f"trimmed:{len(old.numbers)} trims nothing: the vocabulary has {len(old.numbers)} pieces"):
        own_tokenizer(f"trimmed:{len(old.numbers)}", TEXTS, tmp_path / "new", 24, old)
    with pytest.raises(ConfigError, match=f"trimmed:20 is too small: special tokens and single characters are {ALWAYS}") as error:
        own_tokenizer("trimmed:20", TEXTS, tmp_path / "new", 24, old)
    assert error.value.hint == f"Give at least --vocabulary trimmed:{ALWAYS}."
    (tmp_path / "sp").mkdir()
    (tmp_path / "sp" / SENTENCEPIECE_FILE).write_bytes(train_vocabulary("unigram:28", TEXTS * 50))
    with pytest.raises(ConfigError, match="A SentencePiece model cannot be trimmed"):
        own_tokenizer("trimmed:30", TEXTS, tmp_path / "new", 24, open_tokenizer(tmp_path / "sp", 24))
    with pytest.raises(ConfigError, match="trims the vocabulary of the base, which is a configuration without one"):
        own_tokenizer("trimmed:30", TEXTS, tmp_path / "new", 24)
    assert not (tmp_path / "new").exists()


def test_the_commands(tmp_path):
    write_data(tmp_path / "data")
    write_tokenizer(tmp_path / "tokenizer")
    write_encoder(tmp_path / "encoder.json", layers=2)

    def compress(*arguments: object) -> None:
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
        assert done.exception is None, done.output

    base = ("--base", tmp_path / "encoder.json", "--tokenizer", tmp_path / "tokenizer")
    compress("train", tmp_path / "data", *base, "--epochs", 4, *SMALL, "--out", tmp_path / "teacher")
    given = ("--data", tmp_path / "data", "--depth", 1, "--vocabulary", "trimmed:70", *SMALL)
    compress("distill", tmp_path / "teacher", *given, "--epochs", 3, "--out", tmp_path / "student")
    assert load_model(tmp_path / "student").config.vocabulary == 70
    assert open_artifact(tmp_path / "student").manifest.metrics["validation"]["accuracy"] > 0.9
    compress("train", tmp_path / "data", "--base", tmp_path / "teacher", "--vocabulary", "trimmed:70", *SMALL, "--out", tmp_path / "fine")
    assert load_model(tmp_path / "fine").config.vocabulary == 70
