"""The new texts that a stage was asked for with --augment: made once, kept in the cache, and never a text that the data have already."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.answers import digest_of
from compress.augmentation import VERSION, Material, augment, kept, read_augmentation
from compress.cache import cache_folder, entry, writable
from compress.config import Distillation
from compress.data import Data
from compress.progress import say
from model.artifact import flush
from model.tokenizer import open_tokenizer

FILE = "texts.json"


def chooses(options: Distillation) -> bool:
    """Whether only those of the unlabelled texts are wanted that are near to the training texts."""
    return any(read_augmentation(value)[0] == "retrieve" for value in options.augment)


def new_texts(options: Distillation, data: Data, part: Any, reader: Path) -> list[list[str]]:
    """A list of new texts for each kind that `options` ask for, made from the rows of `part`; none stands in `data` or in an earlier list.

    reader: the model whose tokenizer has the mask token. What is made lies in the cache, where a run that was killed, or another stage,
    finds it. Raises ConfigError if a kind lacks what it needs.
    """
    texts = list(_texts(part))
    pool = data.unlabelled.texts if data.unlabelled else ()
    known = [text for rows in data.splits.values() for text in _texts(rows)]
    if pool and not chooses(options):
        known.extend(pool)
    lists = []
    for kind, copies in map(read_augmentation, options.augment):
        key: dict[str, Any] = {"kind": kind, "copies": copies, "seed": options.seed, "texts": digest_of(texts), "version": VERSION}
        mask = ""
        if kind == "mask":
            mask = open_tokenizer(reader, options.max_length).special.get("mask_token", "")
            key["mask"] = mask
        if kind == "retrieve" and data.unlabelled:
            key["pool"] = data.unlabelled.digest
        made = _made(cache_folder(options.cache), key, Material(texts, options.seed, pool, mask))
        new = kept(made, known)
        say(f"  {kind}: {len(new):,} new texts ({len(made) - len(new):,} more were repeats or in the data)")
        known.extend(new)
        lists.append(new)
    return lists


def _texts(rows: Any) -> Iterator[str]:
    if "tokens" in rows.column_names:
        yield from (" ".join(words) for words in rows["tokens"][:])
    for name in ("text", "text_b"):
        if name in rows.column_names:
            yield from rows[name][:]


def _made(cache: Path, key: dict[str, Any], material: Material) -> list[str]:
    with entry(cache, {"what": "new texts", **key}) as folder:
        file = folder / FILE
        if file.exists():
            made: list[str] = json.loads(file.read_text(encoding="utf-8"))
            return made
        made = augment(key["kind"], key["copies"], material)
        with writable(cache):
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
            flush(partial)
            partial.replace(file)
        return made
