"""--augment in the stages: the same texts whatever was killed, none that is measured on, and one clear line for what cannot be."""

import json
import shutil
import string
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.augmentation import read_augmentation
from compress.cli import cli
from compress.config import DistillOptions
from compress.data import load_data
from compress.new_texts import new_texts
from model.artifact import open_artifact
from model.errors import ConfigError, DataError
from tests.compress.chain import BAD, GOOD, OTHER, SMALL, write_texts


def run(*arguments: object) -> str:
    command = [str(argument) for argument in arguments]
    done = CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return done.output


def distill(house: Path, out: Path, *arguments: object) -> str:
    return run("distill", house / "teacher", "--data", house / "data", "--out", out, "--epochs", 0.5, *SMALL, *arguments)


@pytest.fixture
def data(house):
    return load_data(str(house / "data"))


def made(house, data, *augment, **options):
    wanted = DistillOptions(augment=augment, max_length=24, **options)
    return new_texts(wanted, data, data.splits["train"], house / "teacher")


def test_a_student_learns_on_them_and_the_digest_knows(house, tmp_path, monkeypatch):
    monkeypatch.setenv("ALAMBIC_CACHE", str(tmp_path / "cache"))
    told = distill(house, tmp_path / "one", "--augment", "swap:2,mask:1,ngram:1")
    assert "swap: " in told and "mask: " in told and "ngram: " in told
    one = open_artifact(tmp_path / "one").manifest
    assert one.options["augment"] == ["swap:2", "mask:1", "ngram:1"]
    shutil.rmtree(tmp_path / "cache")
    distill(house, tmp_path / "again", "--augment", "swap:2,mask:1,ngram:1")
    distill(house, tmp_path / "other", "--augment", "swap:2,mask:1,ngram:2")
    digests = [open_artifact(tmp_path / name).manifest.digest for name in ("one", "again", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_a_flag_may_be_repeated(house, tmp_path, monkeypatch):
    monkeypatch.setenv("ALAMBIC_CACHE", str(tmp_path / "cache"))
    distill(house, tmp_path / "out", "--augment", "swap:1", "--augment", "ngram:1")
    assert open_artifact(tmp_path / "out").manifest.options["augment"] == ["swap:1", "ngram:1"]


def test_nothing_that_is_measured_on_and_no_text_twice(house, data):
    known = {text for rows in data.splits.values() for text in rows["text"][:]}
    lists = made(house, data, "ngram:3", "mix:3", "cross:2", "swap:3", "mask:2")
    texts = [text for each in lists for text in each]
    assert all(lists) and not known & set(texts) and len(texts) == len(set(texts))


def test_a_text_of_the_test_part_is_dropped_when_it_is_made(house, data):
    shorter = data.splits["train"]["text"][0].split()
    measured = {" ".join(shorter[start:stop]) for start in range(len(shorter)) for stop in range(start + 1, len(shorter) + 1)}
    rows = data.splits["test"].from_dict({"text": sorted(measured), "label": [0] * len(measured)})
    data.splits["test"] = rows
    assert not measured & set(made(house, data, "ngram:20")[0])


def test_what_was_made_is_read_again(house, data, tmp_path):
    first = made(house, data, "swap:2", cache=str(tmp_path))
    [file] = tmp_path.glob("*/texts.json")
    texts = json.loads(file.read_text())
    file.write_text(json.dumps([*texts, "never made"]))
    assert made(house, data, "swap:2", cache=str(tmp_path)) == [[*first[0], "never made"]]
    assert "never made" not in made(house, data, "swap:2", cache=str(tmp_path), seed=1)[0]


def test_retrieve_takes_of_the_unlabelled_texts_those_that_are_near(house, tmp_path, monkeypatch):
    monkeypatch.setenv("ALAMBIC_CACHE", str(tmp_path / "cache"))
    more = write_texts(tmp_path / "more.jsonl", 300, seed=9)
    with more.open("a") as file:
        file.write('{"text": "nothing in common", "label": "good"}\n')
    told = distill(house, tmp_path / "near", "--unlabelled", more, "--augment", "retrieve:1")
    [kept] = [json.loads(file.read_text()) for file in (tmp_path / "cache").glob("*/texts.json")]
    assert "retrieve: " in told and kept and "nothing in common" not in kept
    count = int(told.split("retrieve: ")[1].split(" ")[0].replace(",", ""))
    assert f"learns on {320 + count:,} texts" in told


def test_infill_takes_the_words_of_a_generator(house, tmp_path, monkeypatch):
    monkeypatch.setenv("ALAMBIC_CACHE", str(tmp_path / "cache"))
    base = ("--base", house / "encoder.json", "--tokenizer", house / "tokenizer")
    run("train", house / "data", *base, "--out", tmp_path / "masked", "--task", "masked", *SMALL)
    arguments = ("--augment", "infill:2", "--generator", tmp_path / "masked")
    told = distill(house, tmp_path / "one", *arguments)
    [kept] = [json.loads(file.read_text()) for file in (tmp_path / "cache").glob("*/texts.json")]
    words = {word for text in kept for word in text.split()}
    assert "infill: " in told and words <= {*GOOD, *BAD, *OTHER, *string.ascii_lowercase} and len(kept) > 500
    assert open_artifact(tmp_path / "one").manifest.parents["generator"] == open_artifact(tmp_path / "masked").manifest.digest
    shutil.rmtree(tmp_path / "cache")
    distill(house, tmp_path / "again", *arguments)
    assert open_artifact(tmp_path / "one").manifest.digest == open_artifact(tmp_path / "again").manifest.digest
    for wrong, given, message in (
        (house / "teacher", ("--augment", "infill:2"), "is a model for classification: it cannot fill in words"),
        (tmp_path / "masked", ("--augment", "swap:2"), "nothing is to be filled in"),
    ):
        with pytest.raises(ConfigError, match=message):
            distill(house, tmp_path / "other", *given, "--generator", wrong)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--augment", "swop:3"), "there is no kind 'swop'", "Kinds: mask"),
        (("--augment", "swap:many"), "'many' is not a number of copies", "swap:10"),
        (("--augment", "infill:3"), "needs a masked language model", "--generator"),
        (("--augment", "retrieve:3"), "no texts to choose from", "--unlabelled"),
    ],
)
def test_what_cannot_be_is_one_clear_line(house, tmp_path, arguments, message, hint):
    with pytest.raises(ConfigError, match=message) as error:
        distill(house, tmp_path / "out", *arguments)
    assert hint in error.value.hint and not (tmp_path / "out").exists()


def test_pairs_are_refused(house, tmp_path):
    rows = [{"text": f"a good film {number}", "text_b": "the plot", "label": ("good", "bad")[number % 2]} for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="set of pairs; text without labels comes alone") as error:
        run("distill", house / "teacher", "--data", tmp_path / "pairs.jsonl", "--out", tmp_path / "out", "--augment", "swap:1", *SMALL)
    assert "--augment" in error.value.hint


def test_labels_alone_cannot_use_them(house, tmp_path):
    with pytest.raises(ConfigError, match="teaches through a teacher alone") as error:
        run("prune", house / "student", "--data", house / "data", "--out", tmp_path / "out", "--augment", "swap:1", "--heads", 2, *SMALL)
    assert "--augment" in error.value.hint


def test_values_are_read_alike_everywhere():
    assert read_augmentation("swap:20") == ("swap", 20)
    with pytest.raises(ConfigError, match="there is no kind"):
        DistillOptions(augment=("back-translate:2",))
