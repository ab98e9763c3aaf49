"""Any data in, as `datasets.DatasetDict`: built-in sets, files, folders, the Hugging Face hub.

Columns. `text` names one or two columns (two: a pair); where it is left out, the first of TEXT_COLUMNS that is there is taken. The
label is in `label`, unless told otherwise.

Task. Labels that are words or whole numbers are classes; other numbers are scores (regression); lists, or words with "|" between
them, are any number of classes (multilabel, where an empty list is a text without a label); columns `tokens` and `tags` are tagging; no
label at all is plain text. Class names are sorted, whole numbers by size.

Parts. `train`, `validation` (or `valid`, `val`, `dev`) and `test`; a single file is train. What is missing is cut from train: a tenth,
in proportion to the classes, drawn by a hash of seed and text. Rows of the same text stay together, and the order of rows is nothing.

Blanks. A row without text or label is an error that names the row: to drop it silently would change what is trained and measured on.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from compress import builtin
from compress.tables import PART_NAMES, PARTS, READERS, Columns, Table, file_format, read_file, read_folder, stem
from compress.unlabelled import Unlabelled
from model.errors import DataError

TEXT_COLUMNS = (
    ("text", "text_b"),
    ("text",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("sentence",),
)


@dataclass(frozen=True)
class Data:
    """A data set, ready for a task.

    `splits` has train, validation and test, with the columns text[, text_b], label (classification: index into `labels`; multilabel: a
    list of them; regression: a float), or tokens, tags, or text alone. `digest` is over all that counts (task, labels, texts in order),
    not over format or place. `unlabelled` are texts that a stage was given beside it; they have a digest of their own.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    splits: datasets.DatasetDict
    digest: str
    note: str = ""
    synthetic: bool = False
    unlabelled: Unlabelled | None = None

    @property
    def pairs(self) -> bool:
        """Whether a row is two texts."""
        return "text_b" in self.splits["train"].column_names

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps of the data."""
        counts = {part: rows.num_rows for part, rows in self.splits.items()}
        more = {"unlabelled": self.unlabelled.summary()} if self.unlabelled else {}
        flags = {"pairs": self.pairs, "synthetic": self.synthetic}
        return {"name": self.name, "digest": self.digest, "counts": counts} | {name: True for name, there in flags.items() if there} | more


@dataclass(frozen=True)
class Source:
    """What was found at a source: its parts, and what is to be said about it."""

    name: str
    tables: dict[str, Table]
    notes: tuple[str, ...] = ()
    synthetic: bool = False


def load_data(source: str, text: Sequence[str] = (), label: str = "", seed: int = 0) -> Data:
    """Load a built-in set, a file, a folder of parts, or a data set of the hub (`owner/name` or `owner/name:configuration`).

    A built-in name comes first; a file of that name is given as `./name`. `text`, `label`: column names, as the module tells; `seed`
    decides which rows are cut from train for the parts that are missing. Raises DataError for whatever the user can mend in the data,
    EnvironmentProblem if the package of a built-in set is missing.
    """
    found = _find(source)
    task, labels, parts = _read_task(found.tables, tuple(text), label)
    notes = found.notes
    if missing := [part for part in PARTS if part not in parts]:
        parts |= _cut(parts["train"], missing, seed, found.tables["train"].where, classes=task == "classification")
        notes += (f"{' and '.join(missing)} cut from train (a tenth of the texts each, seed {seed})",)
    if task == "text":
        notes += (f"no label column among {', '.join(found.tables['train'].columns)}",)
    parts = {part: parts[part] for part in PARTS}
    splits = datasets.DatasetDict({part: datasets.Dataset.from_dict(columns) for part, columns in parts.items()})
    return Data(found.name, task, labels, splits, _digest(task, labels, parts), "; ".join(notes), found.synthetic)


def _digest(task: str, labels: Sequence[str], parts: Mapping[str, Columns]) -> str:
    digest = hashlib.sha256(json.dumps([task, labels]).encode())
    for part, columns in parts.items():
        for name in sorted(columns):
            digest.update(json.dumps([part, name, columns[name]]).encode())
    return digest.hexdigest()


def find_tables(source: str) -> dict[str, Table]:
    """The parts of a source of data, as they come; raises DataError if there is nothing."""
    return _find(source).tables


def _find(source: str) -> Source:
    if source in builtin.SETS:
        known = builtin.SETS[source]
        tables = {part: Table(f"{source} ({part})", dict(columns)) for part, columns in known.read().items()}
        return Source(source, tables, ("synthetic: sampled from templates",) if known.synthetic else (), known.synthetic)
    path = Path(source)
    if path.is_dir():
        return Source(path.resolve().name, read_folder(path))
    if path.is_file():
        return Source(stem(path), {"train": read_file(path)})
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source) or source.startswith(".") or file_format(path) in READERS:
        raise DataError(f"There is no file, folder or built-in set {source!r}.", _KNOWN_SOURCES)
    return _from_hub(source)


_KNOWN_SOURCES = (
    f"Give a path, a built-in set ({', '.join(builtin.SETS)}), "
    "or the id of a data set on the Hugging Face hub (OWNER/NAME or OWNER/NAME:CONFIGURATION)."
)


def _from_hub(source: str) -> Source:
    name, _, configuration = source.partition(":")
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the network, the hub and a set's own files have no common error
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0].rstrip(".")
        what = f"no file, folder or built-in set {source!r}, and the Hugging Face hub did not give it either ({reason})"
        raise DataError(f"There is {what}.", _KNOWN_SOURCES) from None
    tables = {}
    for part, rows in loaded.items():
        columns = {column: rows[column][:] for column in rows.column_names}
        unlabelled = False
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.ClassLabel):  # numbers that stand for names; -1 is a row without label
                columns[column] = [feature.names[value] if value is not None and value >= 0 else None for value in columns[column]]
                unlabelled |= not any(columns[column])
        if part in PART_NAMES and (part == "train" or not unlabelled):  # the test parts of GLUE have no labels: no use to us
            tables[PART_NAMES[part]] = Table(f"{source} ({part})", columns)
    if "train" not in tables:
        raise DataError(f"{source} has no part train; it has: {', '.join(loaded)}.", "Load it yourself and write its rows to a file.")
    return Source(source, tables)


def _read_task(tables: Mapping[str, Table], text: tuple[str, ...], label: str) -> tuple[str, tuple[str, ...], dict[str, Columns]]:
    """The task, its labels, and the columns of each part in the form that Data promises."""
    train = tables["train"]
    if not text and not label and {"tokens", "tags"} <= train.columns.keys():
        return _tagging(tables)
    names = _text_columns(train, text)
    parts = {part: dict(zip(("text", "text_b"), (_texts(table, name) for name in names), strict=False)) for part, table in tables.items()}
    if not label and "label" not in train.columns:
        return "text", (), parts
    if any(isinstance(value, list) or "|" in str(value) for value in train.column(label or "label")):
        return _multilabel(tables, parts, label or "label")
    values = {part: _labels(table, label or "label") for part, table in tables.items()}
    try:
        numbers = {name: float(name) for name in itertools.chain.from_iterable(values.values())}
    except ValueError:
        labels = tuple(sorted(set(values["train"])))
    else:
        if not all(number.is_integer() for number in numbers.values()):
            return "regression", (), {part: columns | {"label": _scores(values[part], tables[part])} for part, columns in parts.items()}
        values = {part: [_whole(name) for name in names] for part, names in values.items()}
        labels = tuple(sorted(set(values["train"]), key=int))
    if len(labels) < 2:
        raise DataError(f"{train.where} has one class only: {labels[0]!r} in all its rows.", "A classifier needs two: is --label right?")
    index = {name: number for number, name in enumerate(labels)}
    for part, table in tables.items():
        _refuse_unseen(values[part], index, table.where, train.where)
    return "classification", labels, {part: columns | {"label": [index[v] for v in values[part]]} for part, columns in parts.items()}


def _multilabel(tables: Mapping[str, Table], parts: dict[str, Columns], name: str) -> tuple[str, tuple[str, ...], dict[str, Columns]]:
    values = {part: _label_lists(table, name) for part, table in tables.items()}
    index = {label: number for number, label in enumerate(sorted(set(itertools.chain.from_iterable(values["train"]))))}
    for part, table in tables.items():
        _refuse_unseen(itertools.chain.from_iterable(values[part]), index, table.where, tables["train"].where)
    numbered = {part: [sorted({index[label] for label in labels}) for labels in rows] for part, rows in values.items()}
    return "multilabel", tuple(index), {part: columns | {"label": numbered[part]} for part, columns in parts.items()}


def _label_lists(table: Table, name: str) -> list[list[str]]:
    found = []
    for row, value in enumerate(table.column(name), 1):
        if value is None or value != value:
            raise DataError(f"{table.where}, row {row}: there is no {name}.", "Write an empty list where a text has no label.")
        names = value if isinstance(value, list) else str(value).split("|")
        found.append([str(label).strip() for label in names if str(label).strip()])
    return found


def _tagging(tables: Mapping[str, Table]) -> tuple[str, tuple[str, ...], dict[str, Columns]]:
    parts: dict[str, Columns] = {}
    for part, table in tables.items():
        parts[part] = {name: table.column(name) for name in ("tokens", "tags")}
        for number, (tokens, tags) in enumerate(zip(*parts[part].values(), strict=True), 1):
            lists = isinstance(tokens, list) and isinstance(tags, list) and len(tokens) == len(tags) > 0
            if not lists or not all(isinstance(word, str) for word in (*tokens, *tags)):
                what = f"row {number}: tokens and tags are not two lists of words, one as long as the other"
                raise DataError(f"{table.where}, {what}.", "Give each token one tag.")
    labels = tuple(sorted({tag for tags in parts["train"]["tags"] for tag in tags}))
    for part, table in tables.items():
        _refuse_unseen(itertools.chain.from_iterable(parts[part]["tags"]), labels, table.where, tables["train"].where)
    return "tagging", labels, parts


def _refuse_unseen(values: Iterable[str], known: Iterable[str], where: str, train: str) -> None:
    if unseen := sorted(set(values) - set(known)):
        raise DataError(
            f"{where} has {'labels' if len(unseen) > 1 else 'the label'} {', '.join(map(repr, unseen))}, which no row of {train} has.",
            "Every class must occur in train: add rows there, or take these out.",
        )


def _text_columns(train: Table, asked: tuple[str, ...]) -> tuple[str, ...]:
    if len(asked) > 2:
        raise DataError(f"{len(asked)} text columns are given ({', '.join(asked)}).", "Give one, or two for pairs.")
    if asked:
        return asked
    for names in TEXT_COLUMNS:
        if train.columns.keys() >= set(names):
            return names
    return ("text",)  # which is not there: whoever reads it says so, and what is


def _texts(table: Table, name: str) -> list[str]:
    values = table.column(name)
    _refuse_blank(values, name, table.where)
    for number, value in enumerate(values, 1):
        if not isinstance(value, str | int | float):
            raise DataError(f"{table.where}, row {number}: {name} is a {type(value).__name__}, not a text.", "Choose columns with --text.")
        if isinstance(value, str) and not value.isascii() and re.search(r"[\ud800-\udfff]", value):
            raise DataError(f"{table.where}, row {number}: {name} has half of a surrogate pair, which is no character.", "Mend the text.")
    return [str(value) for value in values]


def _labels(table: Table, name: str) -> list[str]:
    values = table.column(name)
    _refuse_blank(values, name, table.where)
    return [str(value).strip() for value in values]


def _refuse_blank(values: Sequence[Any], name: str, where: str) -> None:
    # what differs from itself is NaN, which Parquet has where a number is missing
    blank = [row for row, value in enumerate(values, 1) if value is None or value != value or not str(value).strip()]
    if blank:
        what = f"{len(blank)} of {len(values)} rows have no {name} (the first: row {blank[0]})"
        raise DataError(f"{where}: {what}.", "Fill it in, or take those rows out.")


def _whole(name: str) -> str:
    """A whole number as class name, whatever the file's format made of it: 2, 02 and 2.0 are one class."""
    try:
        return str(int(name))
    except ValueError:
        return str(int(float(name)))


def _scores(names: Sequence[str], table: Table) -> list[float]:
    scores = [float(name) for name in names]
    for row, score in enumerate(scores, 1):
        if not math.isfinite(score):
            raise DataError(f"{table.where}, row {row}: the label {score} is no score.", "All labels are numbers: they should be finite.")
    return scores


def _cut(train: Columns, parts: Sequence[str], seed: int, where: str, *, classes: bool) -> dict[str, Columns]:
    """`train` without what is cut from it, and a tenth of it for each of `parts`.

    The texts are put in the order of their label, and within one in that of a hash; then every n-th is taken, so that each label gives
    its share to within one. The first text of each class is never taken.
    """
    content = [name for name in ("text", "text_b", "tokens") if name in train]
    rows: dict[str, list[int]] = {}
    for number, values in enumerate(zip(*(train[name] for name in content), strict=True)):
        rows.setdefault(json.dumps(values), []).append(number)
    stratum = {text: min(train["label"][row] for row in same) if "label" in train else 0 for text, same in rows.items()}
    ordered = sorted(rows, key=lambda text: (stratum[text], hashlib.sha256(f"{seed} {text}".encode()).digest()))
    free = [text for before, text in itertools.pairwise(["", *ordered]) if not classes or (before and stratum[before] == stratum[text])]
    wanted = len(parts) * max(1, round(len(ordered) / 10))
    if len(free) < wanted:
        what = f"{len(ordered)} different texts: too few to cut {' and '.join(parts)} from"
        raise DataError(f"{where} has {what}.", "Add rows, or give these parts.")
    place = dict.fromkeys(range(len(train[content[0]])), "train")
    for number in range(wanted):
        for row in rows[free[number * len(free) // wanted]]:
            place[row] = parts[number % len(parts)]
    kept = {part: [row for row, found in place.items() if found == part] for part in ("train", *parts)}
    return {part: {name: [values[row] for row in rows_kept] for name, values in train.items()} for part, rows_kept in kept.items()}
