"""The loader: every format gives the same data, the parts are cut fairly, and whatever is wrong is said with its place."""

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.data import load_data
from model.errors import DataError

ROOT = Path(__file__).parents[2]
TEXTS = [
    'She said "no", twice.',
    "été; à Noël — œuf",
    '"quoted"',
    'a "',
    "10",
    " spaces ",
    "# no comment",
    "a,b,c",
    "line\u2028separator",
    "nan",
]
ROWS = [{"text": f"{text} {number}", "label": "yes" if number % 3 else "no"} for number in range(3) for text in TEXTS]
PARTS = ("train", "validation", "test")


def jsonl(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def parquet(rows):
    buffer = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


# Written by others than the loader's own readers wherever there are such.
WRITERS = {
    ".jsonl": jsonl,
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": lambda rows: pandas.DataFrame(rows).to_csv(index=False).encode(),
    ".tsv": lambda rows: pandas.DataFrame(rows).to_csv(index=False, sep="\t").encode(),
    ".parquet": parquet,
}


def write(path, rows):
    suffix = path.suffixes[-2] if path.suffix == ".gz" else path.suffix
    content = WRITERS[suffix](rows)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def contents(data):
    return {part: data.splits[part].to_dict() for part in PARTS}


@pytest.mark.parametrize("suffix", [*WRITERS, *(f"{suffix}.gz" for suffix in WRITERS)])
def test_every_format_gives_the_same_data(suffix, tmp_path):
    expected = load_data(write(tmp_path / "expected.jsonl", ROWS))
    data = load_data(write(tmp_path / f"reviews{suffix}", ROWS))
    assert contents(data) == contents(expected)
    assert data.digest == expected.digest
    assert (data.name, data.task, data.labels, data.pairs) == ("reviews", "classification", ("no", "yes"), False)
    texts = [text for part in PARTS for text in data.splits[part]["text"]]
    assert sorted(texts) == sorted(row["text"] for row in ROWS)
    for part in PARTS:
        for row in data.splits[part]:
            assert {"text": row["text"], "label": data.labels[row["label"]]} in ROWS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=9, unique=True))
def test_any_text_survives_csv_and_jsonl(texts, tmp_path):
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, ["text", "label"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    (tmp_path / "a.csv").write_bytes(buffer.getvalue().encode())
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    from_csv, from_jsonl = load_data(str(tmp_path / "a.csv")), load_data(str(tmp_path / "a.jsonl"))
    assert Counter(text for part in PARTS for text in from_csv.splits[part]["text"]) == Counter(texts)
    assert from_csv.digest == from_jsonl.digest


def test_labels_of_every_format_are_the_same_classes(tmp_path):
    whole = [{"text": f"text {n}", "label": n % 3} for n in range(30)]
    floats = [{**row, "label": float(row["label"])} for row in whole]
    digests = {
        load_data(write(tmp_path / f"{kind}{suffix}", rows)).digest for kind, rows in (("i", whole), ("f", floats)) for suffix in WRITERS
    }
    assert len(digests) == 1


def test_a_csv_of_a_french_spreadsheet(tmp_path):
    (tmp_path / "avis.csv").write_bytes(
        b"\xef\xbb\xbf" + b"avis;note\r\n" + b"".join(f'"Bien; très {n}, oui";{n % 2}\r\n'.encode() for n in range(20))
    )
    data = load_data(str(tmp_path / "avis.csv"), ["avis"], "note")
    assert data.labels == ("0", "1")
    assert "Bien; très 0, oui" in {text for part in PARTS for text in data.splits[part]["text"]}


def test_a_tsv_may_have_bare_quotes(tmp_path):
    (tmp_path / "glue.tsv").write_text("sentence\tlabel\n" + "".join(f'" it works {n}\t{n % 2}\n' for n in range(20)))
    data = load_data(str(tmp_path / "glue.tsv"))
    assert sorted(text for part in PARTS for text in data.splits[part]["text"])[0] == '" it works 0'
    assert sum(data.summary()["counts"].values()) == 20


@pytest.mark.parametrize(
    ("columns", "text", "expected"),
    [
        (("text", "text_b"), (), ("text", "text_b")),
        (("text", "sentence"), (), ("text",)),
        (("sentence1", "sentence2"), (), ("sentence1", "sentence2")),
        (("premise", "hypothesis"), (), ("premise", "hypothesis")),
        (("sentence",), (), ("sentence",)),
        (("text", "title", "body"), ("title", "body"), ("title", "body")),
        (("text", "body"), ("body",), ("body",)),
    ],
)
def test_which_columns_are_the_text(columns, text, expected, tmp_path):
    rows = [{**{column: f"{column} {n}" for column in columns}, "label": n % 2} for n in range(20)]
    data = load_data(write(tmp_path / "rows.jsonl", rows), text)
    assert data.pairs == (len(expected) == 2)
    for row in data.splits["train"]:
        found = (row["text"], row["text_b"]) if data.pairs else (row["text"],)
        assert tuple(value.split()[0] for value in found) == expected


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (["b", "a", "C"], "classification", ("C", "a", "b")),
        ([10, 9, -1], "classification", ("-1", "9", "10")),
        (["10", "9", "2.0"], "classification", ("2", "9", "10")),
        ([True, False, True], "classification", ("False", "True")),
        (["1", "2", "many"], "classification", ("1", "2", "many")),
        ([0.5, 1, 2], "regression", ()),
        (["3.8", "5.0", "1e-1"], "regression", ()),
    ],
)
def test_labels_tell_the_task(labels, task, classes, tmp_path):
    rows = [{"text": f"text {n}", "stars": labels[n % 3]} for n in range(30)]
    data = load_data(write(tmp_path / "rows.jsonl", rows), label="stars")
    assert (data.task, data.labels) == (task, classes)
    for part in PARTS:
        for row in data.splits[part]:
            original = labels[int(row["text"].split()[1]) % 3]
            assert (
                row["label"] == float(original) if task == "regression" else data.labels[row["label"]] == str(original).removesuffix(".0")
            )


def test_tokens_and_tags_are_tagging(tmp_path):
    rows = [{"tokens": ["Anna", "sleeps", str(n)], "tags": ["B-PER", "O", "O"]} for n in range(20)]
    data = load_data(write(tmp_path / "rows.jsonl", rows))
    assert (data.task, data.labels) == ("tagging", ("B-PER", "O"))
    assert data.splits["train"][0]["tags"] == ["B-PER", "O", "O"]
    assert load_data(write(tmp_path / "rows.parquet", rows)).digest == data.digest


def test_no_label_is_plain_text(tmp_path):
    data = load_data(write(tmp_path / "novel.jsonl", [{"text": f"line {n}", "doc": n} for n in range(20)]))
    assert (data.task, data.labels, data.splits["train"].column_names) == ("text", (), ["text"])
    assert "no label column among text, doc" in data.note


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abcd")), min_size=60, max_size=200), st.integers(0, 3), st.randoms())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_missing_parts_are_cut_fairly(tmp_path, pairs, seed, shuffle):
    rows = [
        {"text": f"text {text}", "label": label}
        for text, label in {**dict(pairs), 61: "a", 62: "b", **dict.fromkeys(range(70, 100), "c")}.items()
    ]
    rows += rows[:7]  # repeats
    data = load_data(write(tmp_path / "rows.jsonl", rows), seed=seed)
    parts = {part: [(row["text"], data.labels[row["label"]]) for row in data.splits[part]] for part in PARTS}
    assert Counter(row for part in parts.values() for row in part) == Counter((row["text"], row["label"]) for row in rows)
    texts = {part: {text for text, _ in found} for part, found in parts.items()}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not texts[one] & texts[other]
    everything = Counter({row["text"]: row["label"] for row in rows}.values())
    total = sum(everything.values())
    for part in ("validation", "test"):
        assert len(texts[part]) == round(total / 10)
    cut = Counter(label for _, label in set(parts["validation"]) | set(parts["test"]))
    for label, count in everything.items():
        share = 2 * round(total / 10) * (count - 1) / (total - len(everything))
        assert share - 1 <= cut[label] <= share + 1
        assert label in {name for _, name in parts["train"]}
    shuffle.shuffle(rows)
    again = load_data(write(tmp_path / "shuffled.jsonl", rows), seed=seed)
    assert {part: set(again.splits[part]["text"]) for part in PARTS} == texts


def test_the_seed_decides_what_is_cut(tmp_path):
    path = write(tmp_path / "rows.csv", [{"text": f"text {n}", "label": n % 2} for n in range(200)])
    tests = [set(load_data(path, seed=seed).splits["test"]["text"]) for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_classes_of_one_row_stay_in_train(tmp_path):
    rows = [{"text": f"text {n}", "label": "usual"} for n in range(30)] + [{"text": "odd", "label": "rare"}]
    data = load_data(write(tmp_path / "rows.csv", rows))
    assert "odd" in data.splits["train"]["text"]
    assert data.summary()["counts"] == {"train": 25, "validation": 3, "test": 3}


def test_only_what_is_missing_is_cut(tmp_path):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(100)]
    write(tmp_path / "train.csv.gz", rows)
    write(tmp_path / "dev.jsonl", rows[:4])
    (tmp_path / "README.md").write_text("# mine")
    write(tmp_path / "unlabelled.jsonl.gz", [{"text": "nothing"}])
    data = load_data(str(tmp_path))
    assert data.name == tmp_path.name
    assert data.summary()["counts"] == {"train": 90, "validation": 4, "test": 10}
    assert data.note == "test cut from train (a tenth of the texts each, seed 0)"
    write(tmp_path / "test.parquet", rows[:5])
    assert load_data(str(tmp_path)).summary()["counts"] == {"train": 100, "validation": 4, "test": 5}
    assert load_data(str(tmp_path)).note == ""


def test_the_digest_is_over_content_alone(tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "extra": n} for n in range(6)]

    def digest(folder, train=rows, test=rows[:2], names=PARTS):
        (tmp_path / folder).mkdir()
        for name, part in zip(names, (train, rows[2:4], test), strict=True):
            write(tmp_path / folder / f"{name}.jsonl", part)
        return load_data(str(tmp_path / folder)).digest

    base = digest("base")
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert digest("other_names", names=("train", "valid", "test")) == base
    assert digest("other_columns", train=[{"text": row["text"], "label": row["label"]} for row in rows]) == base
    changed = [
        digest("order", train=rows[::-1]),
        digest("label", train=[{**rows[0], "label": "b"}, *rows[1:]]),
        digest("text", train=[{**rows[0], "text": "text 0 "}, *rows[1:]]),
        digest("fewer", train=rows[:-1]),
        digest("moved", train=rows[:-1], test=[*rows[:2], rows[-1]]),
    ]
    assert len({base, *changed}) == len(changed) + 1


def test_local_data_leaves_nothing_behind_and_prints_nothing(tmp_path):
    path = write(tmp_path / "rows.parquet", ROWS)
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    code = f"from compress.data import load_data; load_data({path!r})"
    environment = {"HOME": str(home), "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(home.iterdir())


GOOD = "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(20))
WRONG = {
    "nothing.csv": (b" \n", "{path} is empty.", "a row for each text"),
    "header.csv": (b"text,label\n", "{path} has a header (text, label) but no rows.", ""),
    "header.parquet": (parquet({"text": [], "label": []}), "{path} has a header (text, label) but no rows.", ""),
    "list.json": (b"[]", "{path} has no rows.", ""),
    "latin.csv": (
        "text,label\nok,a\ncafé,b\n".encode("latin-1"),
        "{path}, line 3: byte 0xe9 at offset 19 is not UTF-8.",
        "Save the file as UTF-8",
    ),
    "bad.jsonl": (b'{"text": "a", "label": 1}\n\n{"text": "b"\n', "{path}:3: not JSON: Expecting ',' delimiter", "one JSON object a line"),
    "bad.json": (b'[{"text": "a"},', "{path}: not JSON: Expecting value", "one JSON object a line"),
    "array.jsonl": (b'{"text": "a"}\n["b"]\n', '{path}, row 2: ["b"] is not an object.', "Write each row as"),
    "damaged.csv.gz": (gzip.compress(GOOD.encode())[:-9], "{path} is not a whole gzip file:", "again"),
    "plain.csv.gz": (b"text,label\n", "{path} is not a whole gzip file: Not a gzipped file", "again"),
    "damaged.parquet": (b"PAR1 or not", "{path} is not a Parquet file:", "again"),
    "rows.xlsx": (b"PK", "{path} ends in .xlsx, which is unknown.", "Known: .csv .tsv .jsonl .json .parquet (also .gz)."),
    "columns.csv": (
        b"review,stars\ngood,5\n",
        "{path} has no column 'text'; it has: review, stars.",
        "Choose columns with --text and --label.",
    ),
    "twice.csv": (b"text,text\na,b\n", "{path} has several columns named text.", ""),
    "long.csv": (b"text,label\nbuy now, or never,a\n", "{path}, line 2: 3 fields, but the header has 2.", "in quotes"),
    "short.tsv": (b"text\tlabel\nfine\ta\nbare\n", "{path}, line 3: 1 fields, but the header has 2.", ""),
    "quotes.csv": (b'text,label\n"no" he said,a\n', "{path}, line 2: ',' expected after '\"'.", 'write each " in it twice'),
    "open.csv": (b'text,label\n"open,a\n', "{path}, line 2: unexpected end of data.", ""),
    "one.csv": (b"text,label\na,x\nb,x\nc,x\n", "{path} has one class only: 'x' in all its rows.", "is --label right?"),
    "blank.csv": (b"text,label\na,x\n ,y\n,y\n", "{path}: 2 of 3 rows have no text (the first: row 2).", "Fill it in"),
    "unlabelled.csv": (b"text,label\na,x\nb,y\nc,\n", "{path}: 1 of 3 rows have no label (the first: row 3).", "Fill it in"),
    "missing.jsonl": (b'{"text": "a", "label": 1}\n{"text": "b"}\n', "{path}: 1 of 2 rows have no label (the first: row 2).", ""),
    "null.jsonl": (b'{"text": null, "label": 1}\n', "{path}: 1 of 1 rows have no text (the first: row 1).", ""),
    "missing.parquet": (parquet({"text": ["a", "b"], "label": [1.0, None]}), "{path}: 1 of 2 rows have no label (the first: row 2).", ""),
    "nested.jsonl": (b'{"text": ["a"], "label": 1}\n', "{path}, row 1: text is a list, not a text.", "--text"),
    "surrogate.jsonl": (b'{"text": "a\\ud83d", "label": 1}\n', "{path}, row 1: text has half of a surrogate pair", ""),
    "infinite.csv": (b"text,label\na,0.5\nb,inf\n", "{path}, row 2: the label inf is no score.", "finite"),
    "few.csv": (b"text,label\na,x\nb,y\nc,x\n", "{path} has 3 different texts: too few to cut validation and test from.", "Add rows"),
    "numbers.jsonl": (b'{"tokens": ["a"], "tags": [[0]]}\n', "{path}, row 1: tokens and tags are not two lists of words", ""),
    "tags.jsonl": (
        b'{"tokens": ["a", "b"], "tags": ["O"]}\n',
        "{path}, row 1: tokens and tags are not two lists of words, one as long as the other.",
        "",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name, tmp_path):
    content, message, hint = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_data(str(tmp_path / name))
    assert caught.value.message.startswith(message.format(path=tmp_path / name))
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (("body",), "", "has no column 'body'; it has: text, label."),
        ((), "stars", "has no column 'stars'; it has: text, label."),
        (("a", "b", "c"), "", "3 text columns are given (a, b, c)."),
    ],
)
def test_columns_asked_for_must_be_there(text, label, message, tmp_path):
    with pytest.raises(DataError) as caught:
        load_data(write(tmp_path / "rows.csv", [{"text": "a", "label": "b"}]), text, label)
    assert message in caught.value.message


def folder_of(tmp_path, **parts):
    for name, content in parts.items():
        (tmp_path / f"{name}.csv").write_text(content)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"test": "text,label\na,b\n"}, "has no train file; it has: test.csv."),
        ({}, "has no train file; it has: nothing."),
        (
            {"train": f"text,label\n{GOOD}", "valid": "text,label\na,b\n", "dev": "text,label\na,b\n"},
            "has two files for validation: dev.csv and valid.csv.",
        ),
        ({"train": f"text,label\n{GOOD}", "test": "text\na\n"}, "test.csv has no column 'label'; it has: text."),
        ({"train": f"text,label\n{GOOD}", "test": "text,label\nx,c\ny,a\n"}, "test.csv has the label 'c', which no row of "),
        ({"train": f"text,label\n{GOOD}", "validation": "text,label\nx,d\ny,c\n"}, "validation.csv has labels 'c', 'd', which no row of "),
    ],
)
def test_folders_that_do_not_fit(parts, message, tmp_path):
    with pytest.raises(DataError) as caught:
        load_data(folder_of(tmp_path, **parts))
    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("source", ["nothing", "./nothing", "data/nothing.csv", "/no/where/at/all", "a b", "nothing.jsonl.gz"])
def test_what_is_not_there_is_not_asked_of_the_hub(source, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match="There is no file, folder or built-in set") as caught:
        load_data(source)
    assert repr(source) in caught.value.message
    assert "tweets, bbc, intents" in caught.value.hint
    assert "Hugging Face hub" in caught.value.hint


def test_a_hub_that_does_not_answer():
    with pytest.raises(DataError) as caught:  # HF_HUB_OFFLINE is set for all tests
        load_data("someone/something")
    assert caught.value.message.startswith(
        "There is no file, folder or built-in set 'someone/something', and the Hugging Face hub did not give it either (ConnectionError: "
    )
    assert "\n" not in str(caught.value)


def test_a_set_of_the_hub(monkeypatch):
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["up", "down"])})
    train = {"sentence": [f"text {n}" for n in range(30)], "label": [n % 2 for n in range(30)]}
    unlabelled = {"sentence": ["a", "b"], "label": [-1, -1]}
    parts = {name: datasets.Dataset.from_dict(rows, features) for name, rows in (("train", train), ("test", unlabelled), ("more", train))}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or datasets.DatasetDict(parts))
    data = load_data("someone/glue:sst2")
    assert asked == [("someone/glue", "sst2")]
    assert (data.name, data.task, data.labels) == ("someone/glue:sst2", "classification", ("down", "up"))
    assert data.summary()["counts"] == {"train": 24, "validation": 3, "test": 3}
    assert all(data.labels[row["label"]] == ["up", "down"][int(row["text"].split()[1]) % 2] for row in data.splits["train"])
    del parts["train"]
    with pytest.raises(DataError, match=r"someone/glue has no part train; it has: test, more\."):
        load_data("someone/glue")


if "ALAMBIC_DATA" in os.environ:
    SETS = Path(os.environ["ALAMBIC_DATA"])
    TABLE = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in (SETS / "README.md").read_text().splitlines() if line.startswith("| ")
    ]
    LISTED = {cells[0]: cells for cells in TABLE[1:]}

    @pytest.mark.parametrize("name", sorted(path.name for path in SETS.iterdir() if path.is_dir()))
    def test_sets_load_as_their_list_says(name):
        _, _, about, classes, *counts = LISTED[name][:7]
        data = load_data(str(SETS / name))
        kinds = {"text pair: similarity": "regression", "token tags": "tagging", "plain text": "text"}
        assert data.task == next((task for start, task in kinds.items() if about.startswith(start)), "classification")
        assert data.pairs == about.startswith("text pair")
        if data.task == "classification":
            assert len(data.labels) == int(classes)
        given = [int(re.sub(r"\D.*", "", count.replace(",", "")) or 0) for count in counts]
        found = list(data.summary()["counts"].values())
        assert sum(found) == sum(given)
        assert [count for count, wanted in zip(found[1:], given[1:], strict=True) if wanted] == [count for count in given[1:] if count]


@pytest.mark.parametrize("labels", [[["b", "a"], [], ["b"]], ["b|a", "c", "b"]], ids=["lists", "words"])
def test_several_labels(tmp_path, labels):
    for part in ("train", "validation", "test"):
        rows = [{"text": f"{part} {number}", "label": label} for number, label in enumerate(labels)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(str(tmp_path))
    assert (data.task, data.labels) == ("multilabel", ("a", "b") if [] in labels else ("a", "b", "c"))
    assert data.splits["train"]["label"][:] == [[0, 1], [] if [] in labels else [2], [1]]


def test_several_labels_without_a_value_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": "a", "label": label}) for label in (["a"], None)))
    with pytest.raises(DataError, match="row 2: there is no label. Write an empty list where a text has no label"):
        load_data(str(tmp_path / "x.jsonl"))
