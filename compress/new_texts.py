"""The new texts that a stage was asked for with --augment: made once, kept in the cache, and never a text that the data have already."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.answers import digest_of
from compress.augmentation import HIDDEN, VERSION, Fill, Material, augment, kept, read_augmentation
from compress.bases import generator_for
from compress.cache import cache_folder, entry, writable
from compress.config import Distillation
from compress.data import Data
from compress.progress import bar, say
from compress.sources import Source
from model.artifact import flush
from model.errors import ConfigError
from model.tokenizer import Tokenizer, open_tokenizer

FILE = "texts.json"


def chooses(options: Distillation) -> bool:
    """Whether only those of the unlabelled texts are wanted that are near to the training texts."""
    return any(read_augmentation(value)[0] == "retrieve" for value in options.augment)


def new_texts(options: Distillation, data: Data, part: Any, reader: Path, generator: Source | None = None) -> list[list[str]]:
    """A list of new texts for each kind that `options` ask for, made from the rows of `part`; none stands in `data` or in an earlier list.

    reader: the model whose tokenizer has the mask token. generator: a masked language model, for `infill`. What is made lies in the cache,
    where a run that was killed, or another stage, finds it. Raises ConfigError if a kind lacks what it needs.
    """
    if generator is not None and not any(value.startswith("infill:") for value in options.augment):
        raise ConfigError("--generator is given, but nothing is to be filled in.", "Give --augment infill:10 too, or leave it out.")
    texts = list(_texts(part))
    pool = data.unlabelled.texts if data.unlabelled else ()
    known = [text for rows in data.splits.values() for text in _texts(rows)]
    if pool and not chooses(options):
        known.extend(pool)
    lists = []
    for kind, copies in map(read_augmentation, options.augment):
        key: dict[str, Any] = {"kind": kind, "copies": copies, "seed": options.seed, "texts": digest_of(texts), "version": VERSION}
        mask, fill = "", None
        if kind == "infill" and generator is not None:
            tokenizer = open_tokenizer(generator.path, options.max_length)
            fill = _filler(generator, tokenizer, options)
            key |= {"generator": generator.digest, "max_length": options.max_length}
        elif kind in HIDDEN:
            tokenizer = open_tokenizer(reader, options.max_length)
        if kind in HIDDEN:
            key["mask"] = mask = tokenizer.special.get("mask_token", "")
        if kind == "retrieve" and data.unlabelled:
            key["pool"] = data.unlabelled.digest
        made = _made(cache_folder(options.cache), key, Material(texts, options.seed, pool, mask, fill))
        new = kept(made, known)
        say(f"  {kind}: {len(new):,} new texts ({len(made) - len(new):,} more were repeats or in the data)")
        known.extend(new)
        lists.append(new)
    return lists


def _filler(generator: Source, tokenizer: Tokenizer, options: Distillation) -> Fill:
    """Fills in words by the model at `generator`, which is opened when there is something to fill."""

    def fill(texts: list[str]) -> list[str]:
        from compress.infilling import infilled

        model = generator_for(generator, tokenizer)
        with bar("filling in words") as progress:
            return infilled(model, tokenizer, texts, options.seed, progress)

    return fill


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
