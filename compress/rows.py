"""Rows of files one by one, in and out: the formats of `compress.tables`, for files that may be larger than the memory.

Only a .json list is read at once. Every message about a row says where the row is.
"""

import codecs
import csv
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from compress.tables import file_format, parsed, read_file, unquoted
from model.artifact import flush
from model.errors import DataError, EnvironmentProblem, require

Row = tuple[str, dict[str, Any]]  # its place, for messages, and its columns

BLOCK = 1024  # rows of a Parquet file that are read or written at a time


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file; raises DataError if it cannot be read or has none, or when it comes to a damaged line."""
    reader = READERS.get(file_format(path))
    if reader is None:
        raise DataError(f"{path} ends in {path.suffix or 'nothing'}, which is unknown.", f"Known: {' '.join(READERS)} (also .gz).")
    empty = True
    for row in reader(path):
        yield row
        empty = False
    if empty:
        raise DataError(f"{path} has no rows.", "It should have a row for each text.")


def numbered_lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Lines of UTF-8 with their ends and their numbers from 1, without a byte order mark; raises DataError naming `name` and the line."""
    try:
        for number, line in enumerate(stream, 1):
            try:
                yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
            except UnicodeDecodeError as error:
                what = f"byte 0x{line[error.start]:02x} is not UTF-8"
                raise DataError(f"{name}, line {number}: {what}.", "Save the file as UTF-8.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} is not a whole gzip file: {error}.", "Get or compress it again.") from None


def check_target(out: Path, *, overwrite: bool) -> None:
    """Raise DataError if `out` has a name of no known format, or exists and `overwrite` is not given."""
    if file_format(out) not in WRITERS:
        raise DataError(f"{out} ends in {out.suffix or 'nothing'}, which is unknown.", f"Known: {' '.join(WRITERS)} (also .gz).")
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists already.", "Choose another --out, or give --overwrite.")


def write_rows(out: Path, rows: Iterable[Row]) -> int:
    """Write `rows` in the format of `out`'s name and return how many; `out` appears whole or not at all, and replaces what is there.

    Raises DataError if the rows do not fit the format, EnvironmentProblem if the disk refuses.
    """
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row

    partial = out.with_name(f".{os.getpid()}.partial.{out.name}")
    try:
        with _created(partial) as stream:
            WRITERS[file_format(out)](stream, counted())
        flush(partial)
        partial.replace(out)
    except OSError as error:
        raise EnvironmentProblem(f"{out} cannot be written: {error.strerror}.", "Check the folder, and the room on its disk.") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return count


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as plain:
            if path.suffix.lower() != ".gz":
                yield plain
                return
            with gzip.open(plain) as unpacked:
                yield cast(IO[bytes], unpacked)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from None


@contextmanager
def _created(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as plain:
        if path.suffix.lower() != ".gz":
            yield plain
            return
        with gzip.open(plain, "wb") as packed:
            yield cast(IO[bytes], packed)


def _read_csv(path: Path) -> Iterator[Row]:
    with _opened(path) as stream:
        lines = (line for _, line in numbered_lines(stream, str(path)))
        header = next(lines, "")
        csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than a long document
        delimiter = ";" if header.count(";") > header.count(",") else ","
        reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
        try:
            yield from _named(path, ((reader.line_num, row) for row in reader if row))
        except csv.Error as error:
            hint = 'Put a field that has quotes in quotes, and write each " in it twice.'
            raise DataError(f"{path}, line {reader.line_num}: {error}.", hint) from None


def _read_tsv(path: Path) -> Iterator[Row]:
    with _opened(path) as stream:
        lines = ((number, line.rstrip("\r\n")) for number, line in numbered_lines(stream, str(path)))
        yield from _named(path, ((number, [unquoted(cell) for cell in line.split("\t")]) for number, line in lines if line))


def _named(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    """Rows of cells as dicts by the first row's names."""
    header = [name.strip() for name in next(lines, (0, []))[1]]
    if len(set(header)) < len(header):
        raise DataError(f"{path} has several columns of one name ({', '.join(header)}).", "Give each column its own name.")
    for number, row in lines:
        if len(row) != len(header):
            hint = "In a .csv, put a field that has a separator in quotes."
            raise DataError(f"{path}, line {number}: {len(row)} fields, but the header has {len(header)}.", hint)
        yield f"{path}, line {number}", dict(zip(header, row, strict=True))


def _read_jsonl(path: Path) -> Iterator[Row]:
    with _opened(path) as stream:
        for number, line in numbered_lines(stream, str(path)):
            if line.strip():
                where = f"{path}, line {number}"
                values = parsed(line, where)
                if not isinstance(values, dict):
                    raise DataError(f"{where}: {line.strip()[:40]} is not an object.", 'Write each row as {"text": …}.')
                yield where, values


def _read_json(path: Path) -> Iterator[Row]:
    with _opened(path) as stream:
        is_list = next((line.lstrip()[:1] for _, line in numbered_lines(stream, str(path)) if line.strip()), "") == "["
    if not is_list:
        yield from _read_jsonl(path)
        return
    columns = read_file(path).columns
    for number, row in enumerate(zip(*columns.values(), strict=True), 1):
        yield f"{path}, row {number}", dict(zip(columns, row, strict=True))


def _read_parquet(path: Path) -> Iterator[Row]:
    pyarrow = _pyarrow()
    with _opened(path) as stream:
        try:
            batches = pyarrow.parquet.ParquetFile(stream).iter_batches(BLOCK)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for number, values in enumerate(rows, 1):
                yield f"{path}, row {number}", values
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} is not a Parquet file: {error}.", "Write it again.") from None


def _pyarrow() -> Any:
    require("train", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    return pyarrow


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _write_csv(stream: IO[bytes], rows: Iterator[Row], delimiter: str = ",") -> None:
    text = codecs.getwriter("utf-8")(stream)
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    header: list[str] = []
    for where, values in rows:
        if not header:
            header = list(values)
            writer.writerow(header)
        if values.keys() != set(header):
            what = f"the columns are {', '.join(values)}, but those of the first row {', '.join(header)}"
            raise DataError(f"{where}: {what}.", "Write to .jsonl, where rows may differ.")
        cells = [_cell(values[name]) for name in header]
        if delimiter == "\t" and any(mark in cell for cell in cells for mark in "\t\r\n"):
            raise DataError(f"{where}: a field has a tab or a new line in it, which a .tsv cannot hold.", "Write to .csv or .jsonl.")
        writer.writerow(cells)


def _write_tsv(stream: IO[bytes], rows: Iterator[Row]) -> None:
    _write_csv(stream, rows, "\t")


def _write_jsonl(stream: IO[bytes], rows: Iterator[Row]) -> None:
    for _, values in rows:
        stream.write(json.dumps(values, ensure_ascii=False, default=str).encode() + b"\n")


def _write_parquet(stream: IO[bytes], rows: Iterator[Row]) -> None:
    pyarrow = _pyarrow()
    schema = writer = None
    try:
        while block := [values for _, values in itertools.islice(rows, BLOCK)]:
            table = pyarrow.Table.from_pylist(block, schema)
            if writer is None:
                schema, writer = table.schema, pyarrow.parquet.ParquetWriter(stream, table.schema)
            writer.write_table(table)
    except pyarrow.ArrowException as error:
        raise DataError(f"The rows do not fit in one Parquet table: {error}.", "Write to .jsonl, where rows may differ.") from None
    finally:
        if writer is not None:
            writer.close()


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
WRITERS: dict[str, Callable[[IO[bytes], Iterator[Row]], None]] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
