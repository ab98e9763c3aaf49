"""A vocabulary of one's own: the same bytes each time, the ids of `sentencepiece`, embeddings from the old pieces, and what is refused."""

import json
import random
from pathlib import Path

import pytest
import sentencepiece
import torch
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from transformers import AutoTokenizer

from compress.cli import cli
from compress.config import DistillOptions, TrainOptions, read_options
from compress.vocabularies import moved, origins, texts_of, train_vocabulary
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ConfigError, DataError
from model.tokenizer import SENTENCEPIECE_FILE, open_tokenizer
from tests.compress.chain import BAD, GOOD, OTHER, SMALL, write_data, write_encoder, write_tokenizer
from tests.model.tiny import tiny_encoder

WORDS = (*GOOD, *BAD, *OTHER, "Café", "naïveté", "Ωμέγα", "STRASSE", "straße", "1999", "don't", "東京", "ﬁne", "Ｗｉｄｅ")
SIZE = "unigram:72"


def texts(count: int = 400) -> list[str]:
    random_ = random.Random(0)
    return [" ".join(random_.choices(WORDS, k=random_.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module", params=["unigram:72", "unigram_cased:72"])
def saved(request, tmp_path_factory) -> Path:
    """A vocabulary trained and saved as an artifact has it."""
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / SENTENCEPIECE_FILE).write_bytes(train_vocabulary(request.param, texts()))
    open_tokenizer(folder, 64).save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unigram")
    (folder / SENTENCEPIECE_FILE).write_bytes(train_vocabulary(SIZE, texts()))
    return open_tokenizer(folder, 24)


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    return open_tokenizer(write_tokenizer(tmp_path_factory.mktemp("old") / "wordpiece"), 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data, a tokenizer, a configuration, and a teacher made of them."""
    folder = tmp_path_factory.mktemp("students")
    write_data(folder / "data")
    write_tokenizer(folder / "tokenizer")
    write_encoder(folder / "encoder.json", layers=2)
    base = ("--base", folder / "encoder.json", "--tokenizer", folder / "tokenizer")
    compress("train", folder / "data", *base, "--epochs", 4, *SMALL, "--out", folder / "teacher")
    return folder


def compress(*arguments: object) -> None:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output


def distill(folder: Path, *arguments: object, out: str) -> None:
    given_data = ("--data", folder / "data", "--depth", 1)
    compress("distill", folder / "teacher", *given_data, "--vocabulary", "unigram:50", *SMALL, *arguments, "--out", folder / out)


# The vocabulary


def test_the_same_texts_give_the_same_bytes():
    assert train_vocabulary(SIZE, texts()) == train_vocabulary(SIZE, iter(texts()))
    assert train_vocabulary(SIZE, texts()) != train_vocabulary(SIZE, texts(300))


def test_long_texts_are_learnt_from_too():
    """SentencePiece leaves out texts of more than 4,192 bytes unless it is told otherwise."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=train_vocabulary(SIZE, [*texts(), "zyzzyva " * 1000]))
    assert pieces.unk_id() not in pieces.encode("zyzzyva")


@given(
    st.one_of(
        st.text(max_size=40), st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), st.text("aA éÉ\u0301 \u00a0ß", max_size=30)
    )
)
@example("")
@example("  two  spaces ")
@example("ﬁne Ｗｉｄｅ STRASSE e\u0301 \u2028")
def test_the_artifact_gives_the_ids_of_sentencepiece(saved, text):
    """In `alambic` for any text. `tokenizers` agrees wherever it normalizes the text as SentencePiece does."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(saved / SENTENCEPIECE_FILE))
    expected = [2, *pieces.encode(text)[:62], 3]
    assert open_tokenizer(saved, 64).ids([text])[0].ids == expected
    fast = Fast.from_file(str(saved / "tokenizer.json"))
    if fast.normalizer.normalize_str(text) == pieces.normalize(text):  # pieces may fall otherwise where two ways to split tie
        assert "".join(fast.id_to_token(number) for number in fast.encode(text).ids[1:-1]) == "".join(
            pieces.id_to_piece(pieces.encode(text))
        )


def test_transformers_reads_it(saved):
    auto, mine = AutoTokenizer.from_pretrained(saved), open_tokenizer(saved, 64)
    for text in (*texts(60), "Don't STOP, café owner!"):
        assert auto(text)["input_ids"] == mine.ids([text])[0].ids
    assert (auto.pad_token_id, auto.mask_token) == (0, "[MASK]")


def test_unigram_reads_capitals_as_small_letters(saved):
    mine, cased = open_tokenizer(saved, 64), json.loads((saved / "tokenizer.json").read_text())
    same = mine.ids(["The FILM"]) == mine.ids(["the film"])
    assert same == ("▁STRASSE" not in {piece for piece, _ in cased["model"]["vocab"]})


def test_every_text_of_the_data_is_learnt_from():
    class Split(dict):
        @property
        def column_names(self):
            return list(self)

    assert list(texts_of(Split(text=["a", "b"], text_b=["c", "d"], label=[0, 1]))) == ["a", "b", "c", "d"]
    assert list(texts_of(Split(tokens=[["New", "York"], ["is"]], tags=[[1, 1], [0]]))) == ["New York", "is"]


# Embeddings from the old pieces


def test_pieces_start_as_the_mean_of_what_they_are_made_of(trained, wordpiece):
    teacher = tiny_encoder(vocabulary=wordpiece.vocabulary)
    student = moved(teacher, trained, wordpiece)
    old, new = teacher.embeddings.tokens.weight, student.embeddings.tokens.weight
    fast = Fast.from_str(wordpiece._rules().decode())
    model = sentencepiece.SentencePieceProcessor(model_proto=trained._files[SENTENCEPIECE_FILE])
    assert new.shape == (model.get_piece_size(), old.shape[1])
    for number in range(model.get_piece_size()):
        piece = model.id_to_piece(number)
        if fast.token_to_id(piece) is not None and piece.startswith("["):
            expected = old[fast.token_to_id(piece)]
        elif not piece.startswith("▁") and fast.token_to_id(f"##{piece}") is not None:
            expected = old[fast.token_to_id(f"##{piece}")]
        else:
            ids = fast.encode(piece.replace("▁", " "), add_special_tokens=False).ids
            expected = sum(old[one] for one in ids) / len(ids) if ids else old.mean(0)
        assert torch.allclose(new[number], expected, atol=1e-6), piece
    others = {name: value for name, value in teacher.state_dict().items() if name != "embeddings.tokens.weight"}
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in others.items())


def test_roles_and_pieces_find_each_other(trained, wordpiece, tmp_path):
    found = {piece: origins(trained, wordpiece)[number] for piece, number in trained.numbers.items()}
    known = wordpiece.numbers
    assert found["[CLS]"] == [known["[CLS]"]] and found["[MASK]"] == [known["[MASK]"]]
    assert found["▁film"] == [known["film"]] and found["s"] == [known["##s"]] and found["▁"] == []
    same = origins(trained, trained)
    assert all(row == [number] for piece, number in trained.numbers.items() if len(piece) > 1 for row in [same[number]])


def test_a_quantized_model_keeps_its_vocabulary(trained, wordpiece):
    model = tiny_encoder(vocabulary=wordpiece.vocabulary, quantization={"embeddings": True})
    with pytest.raises(ConfigError, match="is quantized: its vocabulary cannot be changed"):
        moved(model, trained, wordpiece)


# What cannot be


@pytest.mark.parametrize("text", ["bpe:100", "unigram", "unigram:", "unigram:0", "unigram:-5", "unigram:1e3", "16000"])
@pytest.mark.parametrize("kind", [TrainOptions, DistillOptions])
def test_other_vocabularies_are_refused(kind, text):
    with pytest.raises(ConfigError, match=f"'{text}' is no vocabulary: give unigram or unigram_cased") as error:
        read_options(kind, {"vocabulary": text}, "compress")
    assert "such as unigram:16000" in error.value.message


def test_a_vocabulary_larger_than_the_text_allows_names_what_is_possible():
    with pytest.raises(ConfigError, match=r"unigram:50000 is more than the text allows: only \d+ pieces are possible") as error:
        train_vocabulary("unigram:50000", texts())
    possible = error.value.hint.removeprefix("Give --vocabulary unigram:").partition(",")[0]
    pieces = sentencepiece.SentencePieceProcessor(model_proto=train_vocabulary(f"unigram:{possible}", texts()))
    assert pieces.get_piece_size() == int(possible)


def test_a_vocabulary_that_cannot_hold_the_letters_names_the_least():
    with pytest.raises(ConfigError, match=r"unigram:9 is too small: the characters of the text and the special tokens are \d+ pieces"):
        train_vocabulary("unigram:9", texts())


@pytest.mark.parametrize("nothing", [[], [""], [" \n"]])
def test_no_text_is_no_vocabulary(nothing):
    with pytest.raises(DataError, match="No vocabulary could be trained"):
        train_vocabulary(SIZE, nothing)


# The commands


def test_a_model_from_nothing_has_its_own_vocabulary(folder):
    base = ("--base", folder / "encoder.json", "--vocabulary", "unigram:50")
    for out in ("one", "two"):
        compress("train", folder / "data", *base, *SMALL, "--out", folder / out)
    one, two = (open_artifact(folder / out) for out in ("one", "two"))
    assert one.digest == two.digest
    assert load_model(one.path).config.vocabulary == 50 and open_tokenizer(one.path, 24).kind == "sentencepiece"
    with pytest.raises(ConfigError, match="--vocabulary unigram:50 trains a tokenizer, and --tokenizer .* brings one") as error:
        compress("train", folder / "data", *base, "--tokenizer", folder / "tokenizer", *SMALL, "--out", folder / "x")
    assert error.value.hint == "Give one of the two."
    prefix = ("--vocabulary", "unigram:50", "--prefix", 2)
    with pytest.raises(ConfigError, match="--prefix and --vocabulary unigram:50 together: the backbone would not be the base") as error:
        compress("train", folder / "data", "--base", folder / "teacher", *prefix, *SMALL, "--out", folder / "x")
    assert error.value.hint.startswith("Change the base's vocabulary first")


def test_a_base_with_weights_is_moved_to_it(folder):
    compress("train", folder / "data", "--base", folder / "teacher", "--vocabulary", "unigram:50", *SMALL, "--out", folder / "fine")
    assert load_model(folder / "fine").config.vocabulary == 50
    assert open_artifact(folder / "fine").manifest.metrics["validation"]["accuracy"] > 0.9


def test_a_student_of_its_own_vocabulary_learns_and_is_pruned_and_quantized(folder):
    distill(folder, "--epochs", 3, "--attention", "window:4", out="student")
    student = open_artifact(folder / "student")
    config = load_model(student.path).config
    assert (config.vocabulary, config.layers[0].attention.kind) == (50, "window")
    assert student.manifest.metrics["validation"]["accuracy"] > 0.9
    taught = ("--teacher", folder / "teacher", "--data", folder / "data", "--train-texts", 200, *SMALL)
    compress("prune", folder / "student", *taught, "--heads", 2, "--out", folder / "pruned")
    assert open_artifact(folder / "pruned").manifest.metrics["validation"]["accuracy"] > 0.9
    compress("quantize", folder / "pruned", *taught, "--method", "qat", "--out", folder / "quantized")
    assert open_tokenizer(folder / "quantized", 24).digest == open_tokenizer(folder / "student", 24).digest
    compress("export", folder / "quantized", "--out", folder / "onnx")
    assert SENTENCEPIECE_FILE in open_artifact(folder / "onnx").manifest.files


def test_text_without_labels_makes_pieces_too(folder):
    (folder / "more.txt").write_text("zyzzyva was lovely\n" * 40)
    distill(folder, "--unlabelled", folder / "more.txt", out="wider")
    rows = [json.loads(line)["text"] for line in (folder / "data" / "train.jsonl").read_text().splitlines()]
    (folder / "without").mkdir()
    (folder / "without" / SENTENCEPIECE_FILE).write_bytes(train_vocabulary("unigram:50", rows))
    known, unknown = open_tokenizer(folder / "wider", 24), open_tokenizer(folder / "without", 24)
    assert known.numbers["[UNK]"] not in known.split("zyzzyva") and unknown.numbers["[UNK]"] in unknown.split("zyzzyva")


def test_a_vocabulary_is_made_of_more_text_than_is_trained_on(folder):
    (folder / "more.txt").write_text("zyzzyva was lovely\n" * 40)
    (folder / "column.jsonl").write_text('{"body": "Syzygy is fine. Syzygy is dull."}\n{"body": "a syzygy."}\n')
    more = ("--unlabelled", f"{folder / 'more.txt'},{folder / 'column.jsonl'}", "--unlabelled-text", "body", "--split-sentences")
    base = ("--base", folder / "encoder.json", *SMALL)
    with pytest.raises(DataError, match="has no column 'body'"):
        compress(
            "train", folder / "data", *base, "--vocabulary", "unigram:50", *more[:1], folder / "data", *more[2:], "--out", folder / "x"
        )
    compress("train", folder / "data", *base, "--vocabulary", "unigram:50", *more, "--out", folder / "read")
    made, known = open_artifact(folder / "read").manifest, open_tokenizer(folder / "read", 24)
    assert made.data["unlabelled"]["texts"] == 4 and made.data["counts"] == open_artifact(folder / "teacher").manifest.data["counts"]
    assert known.numbers["[UNK]"] not in known.split("zyzzyva syzygy")
    with pytest.raises(ConfigError, match=r"--unlabelled .*more.txt is text for a vocabulary here, but none is made") as error:
        compress("train", folder / "data", "--base", folder / "teacher", *SMALL, "--unlabelled", folder / "more.txt", "--out", folder / "x")
    assert error.value.hint.startswith("Give --vocabulary, or train on that text first")
    assert not (folder / "x").exists() and not (folder / "x.partial").exists()


def test_tokens_are_not_compared_across_vocabularies(folder):
    with pytest.raises(ConfigError, match="Tokens are to be compared, but the student and the teacher have tokenizers") as error:
        distill(folder, "--hidden-states", "tokens", out="x")
    assert error.value.hint == "Give --hidden-states pooled; a tagger needs its teacher's tokenizer: leave out --base and --vocabulary."
    assert not (folder / "x.partial").exists()  # refused before there was any work to go on from
    distill(folder, out="before")
    with pytest.raises(ConfigError, match="Tokens are to be compared"):
        given_all = ("--teacher", folder / "teacher", "--data", folder / "data", "--hidden-states", "tokens", *SMALL)
        compress("prune", folder / "before", *given_all, "--heads", 2, "--out", folder / "x")


def test_a_tagger_keeps_its_teachers_vocabulary(folder, tmp_path):
    rows = [{"tokens": ["good", "film"], "tags": ["A", "O"]}, {"tokens": ["the", "dull", "plot"], "tags": ["O", "A", "O"]}] * 12
    (tmp_path / "data").mkdir()
    for part in ("train", "validation", "test"):
        lines = [
            json.dumps(
                {
                    **row,
                    "tokens": [*row["tokens"], part, *([number % 5 * "a"] if number % 5 else [])],
                    "tags": [*row["tags"], "O"] + (["O"] if number % 5 else []),
                }
            )
            for number, row in enumerate(rows)
        ]
        (tmp_path / "data" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    base = ("--base", folder / "encoder.json", "--tokenizer", folder / "tokenizer")
    compress("train", tmp_path / "data", *base, *SMALL, "--out", tmp_path / "teacher")
    with pytest.raises(ConfigError, match="a tagger needs its teacher's tokenizer"):
        command = ("distill", tmp_path / "teacher", "--data", tmp_path / "data", "--depth", 1, "--vocabulary", "unigram:24")
        compress(*command, *SMALL, "--out", tmp_path / "x")
