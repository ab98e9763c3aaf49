"""Files as columns: CSV, TSV, JSON, JSON lines and Parquet, each also gzipped; folders of them. Needs neither torch nor datasets.

Every problem is a DataError that names the file and, where there is one, the line.

A .csv may be separated by semicolons if its header is. A .tsv has one row a line: there is no new line inside a field, and quotes are
taken away only where they stand around a whole field. A .json is a list of objects, or JSON lines.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import DataError, require

Columns = dict[str, list[Any]]

PARTS = ("train", "validation", "test")
PART_NAMES = {**{part: part for part in PARTS}, "valid": "validation", "val": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Table:
    """Rows as they came, column by column; `where` is their place in messages."""

    where: str
    columns: Columns

    def column(self, name: str) -> list[Any]:
        """The values of a column; raises DataError that lists the columns there are."""
        if name not in self.columns:
            raise DataError(
                f"{self.where} has no column {name!r}; it has: {', '.join(self.columns)}.", "Choose columns with --text and --label."
            )
        return self.columns[name]


def read_folder(folder: Path) -> dict[str, Table]:
    """The parts in a folder, from the files named after them; others are left alone. Raises DataError if there is no train."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        part = PART_NAMES.get(stem(path).lower())
        if part is None or file_format(path) not in READERS or not path.is_file():
            continue
        if part in paths:
            raise DataError(f"{folder} has two files for {part}: {paths[part].name} and {path.name}.", "Keep one of them.")
        paths[part] = path
    if "train" not in paths:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise DataError(f"{folder} has no train file; it has: {there}.", f"Name it train.*, with one of {' '.join(READERS)} (also .gz).")
    return {part: read_file(path) for part, path in paths.items()}


def file_format(path: Path) -> str:
    """The suffix that tells how to read `path`: its last, but for .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def stem(path: Path) -> str:
    """The name of `path` without its format."""
    return Path(re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)).stem


def read_file(path: Path) -> Table:
    """The rows of one file; raises DataError if it cannot be read, is damaged, or has no rows."""
    where = str(path)
    if file_format(path) not in READERS:
        raise DataError(f"{where} ends in {path.suffix or 'nothing'}, which is unknown.", f"Known: {' '.join(READERS)} (also .gz).")
    try:
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{where} is not a whole gzip file: {error}.", "Get or compress it again.") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}.") from None
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise DataError(f"{where} is empty.", "It should have a row for each text.")
    columns = READERS[file_format(path)](raw, where)
    if not any(columns.values()):
        header = f"a header ({', '.join(columns)}) but " if columns else ""
        raise DataError(f"{where} has {header}no rows.", "It should have a row for each text.")
    return Table(where, columns)


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8"
        raise DataError(f"{where}, line {line}: {what}.", "Save the file as UTF-8.") from None


def _read_csv(raw: bytes, where: str) -> Columns:
    text = _decoded(raw, where)
    header = text.partition("\n")[0]
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if header.count(";") > header.count(",") else ",", strict=True)
    try:
        return _transposed([(reader.line_num, row) for row in reader if row], where)
    except csv.Error as error:
        hint = 'Put a field that has quotes in quotes, and write each " in it twice.'
        raise DataError(f"{where}, line {reader.line_num}: {error}.", hint) from None


def _read_tsv(raw: bytes, where: str) -> Columns:
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(_decoded(raw, where).split("\n"), 1)]
    return _transposed([(number, [unquoted(cell) for cell in line.split("\t")]) for number, line in lines if line], where)


def unquoted(cell: str) -> str:
    """A field of a .tsv without the quotes around the whole of it."""
    inner = cell[1:-1].replace('""', "\0")
    return inner.replace("\0", '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner else cell


def _transposed(lines: Sequence[tuple[int, list[str]]], where: str) -> Columns:
    """Lines with their numbers, the first of them the header, as columns."""
    header = [name.strip() for name in lines[0][1]]
    if twice := {name for name in header if header.count(name) > 1}:
        raise DataError(f"{where} has several columns named {', '.join(sorted(twice))}.", "Give each column its own name.")
    for number, row in lines:
        if len(row) != len(header):
            what = f"line {number}: {len(row)} fields, but the header has {len(header)}"
            raise DataError(f"{where}, {what}.", "In a .csv, put a field that has a separator in quotes.")
    return {name: [row[position] for _, row in lines[1:]] for position, name in enumerate(header)}


def _read_jsonl(raw: bytes, where: str) -> Columns:
    lines = enumerate(_decoded(raw, where).split("\n"), 1)
    return _collected([parsed(line, f"{where}:{number}") for number, line in lines if line.strip()], where)


def _read_json(raw: bytes, where: str) -> Columns:
    if not raw.lstrip().startswith(b"["):
        return _read_jsonl(raw, where)
    return _collected(parsed(_decoded(raw, where), where), where)


def parsed(text: str, where: str) -> Any:
    """The value of JSON text; raises DataError that says where it is."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}.", "Write one JSON object a line, or (in .json) a list of objects.") from None


def _collected(rows: Sequence[Any], where: str) -> Columns:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            what = f"row {number}: {json.dumps(row)[:40]} is not an object"
            raise DataError(f"{where}, {what}.", 'Write each row as {"text": …, "label": …}.')
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return {name: [row.get(name) for row in rows] for name in names}


def _read_parquet(raw: bytes, where: str) -> Columns:
    require("train", "pyarrow")
    import pyarrow.parquet

    try:
        columns: Columns = pyarrow.parquet.read_table(io.BytesIO(raw)).to_pydict()
    except pyarrow.ArrowException as error:
        raise DataError(f"{where} is not a Parquet file: {error}.", "Write it again.") from None
    return columns


READERS: dict[str, Callable[[bytes, str], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
