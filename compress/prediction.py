"""Labels texts with a model: from arguments, standard input or a file; to the terminal or a file. Torch-free for exported models.

Everything goes in blocks, so that a file may be larger than the memory.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from compress.rows import check_target, numbered_lines, read_rows, write_rows
from model.artifact import Manifest, is_checkpoint, read_manifest
from model.errors import ArtifactError, ConfigError, DataError, require
from serve.predictor import Predictor, open_predictor, predict
from serve.tasks import Answer

BLOCK = 1024  # texts that are labelled at a time, batches of like length within
TEXT, PAIR = "text", "text_b"
ADDED = "predicted_"  # stands before the columns that an answer adds


@dataclass(frozen=True)
class Item:
    """One text (or pair) to label: its place in messages, the columns it came with, the text or both texts."""

    where: str
    values: dict[str, Any]
    texts: tuple[str, ...]


Result = tuple[Item, Answer]


@dataclass(frozen=True)
class Device:
    """Where to run: see `serve.predictor.open_predictor`."""

    provider: str = "cpu"
    threads: int = 1
    allow_fallback: bool = False


def label_texts(
    model: Path,
    *,
    texts: Sequence[str] = (),
    file: Path | None = None,
    stdin: IO[bytes],
    columns: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    as_json: bool = False,
    device: Device = Device(),
    backbone: Path | None = None,
    echo: Callable[[str], None],
) -> int:
    """Label `texts`, else the rows of `file`, else the lines of `stdin`; write `out`, else `echo` a line for each. Returns how many.

    `columns` names the column of `file` with the text, or two of a pair. Raises what its parts raise, and ConfigError if the model was
    trained on pairs and gets single texts, or the other way round.
    """
    if texts and file:
        raise ConfigError("Texts are given both as arguments and with --file.", "Give one or the other.")
    if columns and not file:
        raise ConfigError(f"--text names columns ({', '.join(columns)}), but there is no file.", "Give one with --file.")
    if out is not None:
        check_target(out, overwrite=overwrite)
    manifest = None if is_checkpoint(model) else read_manifest(model)
    pairs = takes_pairs(manifest) if manifest else None
    columns = tuple(columns) or ((TEXT, PAIR) if pairs and file else (TEXT,))
    _check_columns(model, pairs, columns)
    items = file_items(file, columns) if file else text_items(texts) if texts else line_items(stdin, "standard input")
    first = next(items)  # what is wrong with the texts is told before the model is opened
    predictor = open_model(model, manifest, device, backbone)
    results = predictions(predictor, itertools.chain([first], items))
    if out is not None:
        return write_rows(out, with_predictions(results))
    count = 0
    for item, prediction in results:
        echo(shown(item, prediction, as_json=as_json))
        count += 1
    return count


def takes_pairs(manifest: Manifest) -> bool | None:
    """Whether the model was trained on pairs of texts, by the data in its manifest or its ancestors'; None if there are none."""
    if manifest.task in ("embedding", "masked", "replaced"):
        return None  # a text has a vector, a pair the cosine of its two; words are found in either
    sets = [manifest.data, *(ancestor.get("data") for ancestor in manifest.ancestors.values())]
    known = [bool(data.get("pairs")) for data in sets if data is not None]
    return any(known) if known else None


def open_model(path: Path, manifest: Manifest | None, device: Device, backbone: Path | None = None) -> Predictor:
    """A predictor for an exported or a PyTorch model, or, without a manifest, for one of transformers as that runs it.

    `backbone`: where that of a prefix is now. Raises ArtifactError for a report, ConfigError for what the model does not take, and
    whatever opening raises.
    """
    kind = manifest.kind if manifest else "checkpoint"
    if backbone and kind != "torch":
        raise ConfigError(f"{path} has no backbone: it is whole.", "Leave out --backbone.")
    if kind == "onnx":
        return open_predictor(path, device.provider, device.threads, device.allow_fallback)
    if kind == "report":
        raise ArtifactError(f"{path} is a report: it labels nothing.", "Give the model that `compress export` made.")
    if device.provider != "cpu" and not device.allow_fallback:
        raise ConfigError(f"{path} is a PyTorch model, which runs on the CPU here.", f"Run `compress export {path} --out …` and give that.")
    require("train", "torch", "transformers")
    if kind == "checkpoint":
        from export.foreign import open_foreign
        from model.pretrained import own_head

        task, labels = own_head(path)
        return open_foreign(path, labels, threads=device.threads, task=task)
    from export.torch_predictor import open_torch_predictor

    return open_torch_predictor(path, "torch", device.threads, backbone=backbone)


def text_items(texts: Sequence[str]) -> Iterator[Item]:
    """An item for each argument."""
    for number, text in enumerate(texts, 1):
        yield _item(f"text {number}", {TEXT: text}, (TEXT,))


def line_items(stream: IO[bytes], name: str) -> Iterator[Item]:
    """An item for each line, empty ones too; raises DataError if there is none or one is not UTF-8."""
    empty = True
    for number, line in numbered_lines(stream, name):
        yield _item(f"{name}, line {number}", {TEXT: line.rstrip("\r\n")}, (TEXT,))
        empty = False
    if empty:
        raise DataError(f"There is no text on {name}.", "Give texts as arguments, one a line on standard input, or with --file.")


def file_items(path: Path, columns: Sequence[str]) -> Iterator[Item]:
    """An item for each row of a file, `columns` naming the text or the two texts of a pair.

    Raises DataError if the file cannot be read, has no rows or not these columns, or if a line is damaged.
    """
    for where, values in read_rows(path):
        yield _item(where, values, columns)


def predictions(predictor: Predictor, items: Iterable[Item], batch_size: int = 32) -> Iterator[Result]:
    """Each item with its prediction, block by block, in order."""
    items = iter(items)
    while block := list(itertools.islice(items, BLOCK)):
        texts = [item.texts[0] for item in block]
        pairs = [item.texts[1] for item in block] if len(block[0].texts) == 2 else None
        yield from zip(block, predict(predictor, texts, pairs, batch_size), strict=True)


def shown(item: Item, prediction: Answer, *, as_json: bool) -> str:
    """One line: the answer (label, probability) and the text between tabs, white space in the text as single spaces; or a JSON object."""
    if as_json:
        found = asdict(prediction)
        return json.dumps(found | dict(zip((TEXT, PAIR), item.texts, strict=False)), ensure_ascii=False)
    cells = [f"{value:.4f}" if isinstance(value, float) else value for value in prediction.cells().values()]
    return "\t".join([*cells, *(" ".join(text.split()) for text in item.texts)])


def with_predictions(results: Iterable[Result]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows for `write_rows`: the columns each text came with, and the answer's. Raises DataError if the text came with one of these."""
    for item, prediction in results:
        added = {ADDED + name: value for name, value in prediction.cells().items()}
        if taken := item.values.keys() & added.keys():
            raise DataError(f"{item.where}: there is a column {', '.join(sorted(taken))} already.", "Rename it, or take it out.")
        yield item.where, item.values | added


def _check_columns(model: Path, pairs: bool | None, columns: Sequence[str]) -> None:
    if len(columns) > 2:
        raise ConfigError(f"{len(columns)} text columns are given ({', '.join(columns)}).", "Give one, or two for pairs.")
    if pairs and len(columns) == 1:
        raise ConfigError(
            f"{model} labels pairs of texts, but single texts are given.", "Give a --file, and its two columns with --text and --text."
        )
    if pairs is False and len(columns) == 2:
        raise ConfigError(f"{model} labels single texts, but pairs are given ({', '.join(columns)}).", "Give one --text.")


def _item(where: str, values: dict[str, Any], columns: Sequence[str]) -> Item:
    for column in columns:
        if column not in values:
            raise DataError(f"{where}: there is no column {column!r}; there are: {', '.join(values)}.", "Choose the column with --text.")
        text = values[column]
        if not isinstance(text, str):
            raise DataError(f"{where}: column {column!r} has {text!r}, which is no text.", "Take the row out, or put a text in.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: character {error.start + 1} of {text[:40]!a} is not whole Unicode.", "Write the text as UTF-8."
            ) from None
    return Item(where, values, tuple(values[column] for column in columns))
