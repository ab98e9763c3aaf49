"""Text without labels, from which a student learns through its teacher alone, or a vocabulary is made.

A source is a file (.txt with a text a line, or a format of `compress.tables`), a folder, or whatever else `compress.data` reads. Of a
folder only the files `train` and `unlabelled` are taken where it has one of them, else all but those of parts that are measured on; of a
set its train part. Every known text column counts. A text is taken once, and never if it stands in the data already, be it in a part
that is measured on or in train: case, spaces and punctuation do not make it another one.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.tables import PART_NAMES, READERS, Table, file_format, read_file, stem
from model.errors import DataError

if TYPE_CHECKING:
    from compress.data import Data

LINES = ".txt"
COLUMNS = ("text", "text_b", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "question1", "question2")
# After a full stop, a question or exclamation mark or an ellipsis (and what closes behind it), before what is no small letter.
BOUNDARY = re.compile(r"""(?<=[.!?…])(?:["'”’)\]]|\s?»)*\s+(?=[^\sa-zß-öø-ÿ])|(?<=[。！？])\s*|\s*(?:<br\s*/?>|\n)\s*""")
ABBREVIATION = re.compile(r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|M|Mme|No)\.$")


@dataclass(frozen=True)
class Unlabelled:
    """Texts without labels that the data do not have; `digest` is over the texts in their order, `dropped` counts what was left out."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    digest: str
    dropped: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """What a manifest keeps of them."""
        return {"names": list(self.names), "digest": self.digest, "texts": len(self.texts)}

    def words(self) -> str:
        """The counts for a person."""
        left = ", ".join(f"{count:,} {why}" for why, count in self.dropped.items() if count)
        return f"{len(self.texts):,} texts without labels from {', '.join(self.names)}" + (f" (left out: {left})" if left else "")


def load_unlabelled(
    sources: Sequence[str], data: "Data", *, column: str = "", sentences: bool = False, most: int | None = None, seed: int = 0
) -> Unlabelled:
    """The texts of `sources` that `data` do not have.

    column: the one with the text. sentences: split texts at the ends of sentences. most: draw so many by `seed`. Raises DataError if a
    source cannot be read, has no such column, or if nothing new is left of all of them.
    """
    found = [read for source in sources for read in _read(source, column)]
    names = tuple(dict.fromkeys(name for name, _ in found))
    texts = [text for _, read in found for text in read]
    measured = {part: {plain(text) for text in _all(data.splits[part])} for part in ("validation", "test")}
    known = {plain(text) for text in _all(data.splits["train"])}
    dropped = {"in validation or test": 0, "in train": 0, "twice": 0}
    seen: set[str] = set()
    kept = []
    pieces = (piece for whole in texts for piece in split_sentences(whole)) if sentences else texts
    for text in pieces:
        form = plain(text)
        if not form:
            continue
        if form in measured["validation"] or form in measured["test"]:
            dropped["in validation or test"] += 1
        elif form in known:
            dropped["in train"] += 1
        elif form in seen:
            dropped["twice"] += 1
        else:
            seen.add(form)
            kept.append(text.strip())
    if not kept:
        left = ", ".join(f"{count:,} {why}" for why, count in dropped.items() if count)
        raise DataError(
            f"{', '.join(names)}: no text is left that {data.name} does not have already{f' ({left})' if left else ''}.",
            "Give other text to --unlabelled, or leave it out.",
        )
    if most is not None and len(kept) > most:
        kept = [kept[row] for row in sorted(np.random.default_rng(seed).permutation(len(kept))[:most])]
    digest = hashlib.sha256()
    for text in kept:
        digest.update(json.dumps(text).encode() + b"\n")
    return Unlabelled(names, tuple(kept), digest.hexdigest(), dropped)


def plain(text: str) -> str:
    """What makes a text the same as another: its letters and digits; the whole of it where it has none."""
    return re.sub(r"[\W_]+", "", text.casefold()) or text.strip()


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, by their marks; a line of its own is one too."""
    found: list[str] = []
    start = 0
    for place in BOUNDARY.finditer(text):
        piece = text[start : place.end()].strip()
        if ABBREVIATION.search(piece):
            continue
        found.append(piece)
        start = place.end()
    pieces = (re.sub(r"<br\s*/?>", " ", piece).strip() for piece in (*found, text[start:]))
    return [piece for piece in pieces if piece]


def _all(part: Any) -> Iterator[str]:
    """Every text of a part of the data."""
    if "tokens" in part.column_names:
        yield from (" ".join(words) for words in part["tokens"][:])
    for name in ("text", "text_b"):
        if name in part.column_names:
            yield from part[name][:]


def _read(source: str, column: str) -> Iterator[tuple[str, list[str]]]:
    """Names and texts of what is at `source`."""
    path = Path(source)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file() and file_format(file) in (LINES, *READERS)]
        if ours := [file for file in files if stem(file).lower() in ("train", "unlabelled")]:
            files = ours
        files = [file for file in files if PART_NAMES.get(stem(file).lower(), "train") == "train"]
        if not files:
            there = ", ".join(sorted(file.name for file in path.iterdir())) or "nothing"
            raise DataError(f"{path} has no text for --unlabelled; it has: {there}.", f"Known: {LINES} {' '.join(READERS)} (also .gz).")
        for file in files:
            yield f"{path.resolve().name}/{stem(file)}", _texts(file, column)
    elif path.is_file():
        yield stem(path), _texts(path, column)
    else:
        from compress.data import find_tables

        yield source, _of(find_tables(source)["train"], column)


def _texts(file: Path, column: str) -> list[str]:
    if file_format(file) != LINES:
        return _of(read_file(file), column)
    try:
        raw = file.read_bytes()
        texts = (gzip.decompress(raw) if file.suffix.lower() == ".gz" else raw).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: the byte at offset {error.start} is not UTF-8.", "Save the file as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}.", "Check the file.") from None
    if not any(text.strip() for text in texts):
        raise DataError(f"{file} is empty.", "It should have a text a line.")
    return texts


def _of(table: Table, column: str) -> list[str]:
    """The texts in a column, or in every known text column; a blank is no text."""
    names = [column] if column else [name for name in COLUMNS if name in table.columns]
    if not names:
        raise DataError(
            f"{table.where} has no column with text; it has: {', '.join(table.columns)}.", "Name it with --unlabelled-text COLUMN."
        )
    if column and column not in table.columns:
        raise DataError(
            f"{table.where} has no column {column!r}; it has: {', '.join(table.columns)}.", "Name one of them with --unlabelled-text."
        )
    return [value for name in names for value in table.columns[name] if isinstance(value, str)]
