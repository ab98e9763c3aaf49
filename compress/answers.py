"""What a teacher says of many texts: asked once, kept on the disk, read row by row from there.

An entry of the cache (see `compress.cache`) is the result of its key: teacher, texts and whatever else decides the answers. The texts are
asked longest first in batches that depend on the texts alone, so many to a file, so that a run that was killed goes on with the
first file that is missing and ends in the same bytes. Each file is written whole or not at all and carries a digest of its values; a
damaged one is asked for again, and one that lacks what another student wants to know gets that beside what it has. Files are
memory-mapped: the answers may be larger than the memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from compress.cache import entry, writable
from compress.progress import say
from compress.training import LONG, Column, Progress
from model.artifact import flush

AT_ONCE = 64  # texts that a teacher is asked at a time, fewer where they are LONG
SHARD = 64  # times so many texts in one file
STATE = "teacher_state_"  # and a layer's number; kept as float16 where that fits: benchmarks/teaching.py shows what it costs
Ask = Callable[[list[int]], dict[str, Tensor]]
KINDS = {"F32": np.float32, "F16": np.float16}


class Answers:
    """One value of each text, [n, ..], from the files of an entry; `rows` of it come as a float32 tensor."""

    def __init__(self, files: Sequence[np.ndarray], places: np.ndarray) -> None:
        self.files = files
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: list[int]) -> Tensor:
        size = AT_ONCE * SHARD
        found = [self.files[place // size][place % size] for place in self.places[rows].tolist()]
        return torch.from_numpy(np.stack(found).astype(np.float32))


class Stacked:
    """Values of several names side by side: [n, ..] of each of `columns` to [n, names, ..]."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, rows: list[int]) -> Tensor:
        return torch.stack([column[rows] for column in self.columns], 1)


class Mean(Stacked):
    """The mean of several columns: what an ensemble says."""

    def __getitem__(self, rows: list[int]) -> Tensor:
        return super().__getitem__(rows).mean(1)


class Joined:
    """Values of several sets of texts, one after the other."""

    def __init__(self, parts: Sequence[Column]) -> None:
        self.parts = parts
        self.starts = np.array([0, *accumulate(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: list[int]) -> Tensor:
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        found: Tensor | None = None
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            values = self.parts[number][(np.asarray(rows)[places] - self.starts[number]).tolist()]
            found = values.new_zeros(len(rows), *values.shape[1:]) if found is None else found
            found[torch.from_numpy(places)] = values
        return torch.zeros(0) if found is None else found


def joined(parts: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """The columns of several sets of texts as those of one."""
    return {name: Joined([part[name] for part in parts]) if len(parts) > 1 else parts[0][name] for name in parts[0]}


@torch.no_grad()
def kept_answers(
    cache: Path, key: Mapping[str, Any], names: Sequence[str], lengths: np.ndarray, ask: Ask, progress: Progress
) -> dict[str, Column]:
    """Of each of `names` the answers to texts of `lengths` [n]: read from `cache`, or asked for by `ask`, which takes rows and gives
    [rows, ..] by name.

    States of layers are kept as float16 where they fit, all else as float32.
    """
    order = np.argsort(-lengths, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    starts = range(0, len(order), AT_ONCE * SHARD)
    with entry(cache, {"what": "answers", **key}) as folder:
        for part in folder.glob("*.partial"):
            part.unlink()
        files = []
        for number, start in enumerate(starts):
            file = folder / f"{number:05}.safetensors"
            rows = order[start : start + AT_ONCE * SHARD].tolist()
            known = _mapped(file) if _whole(file) else {}
            if not known.keys() >= set(names):
                others = {name: torch.from_numpy(value.copy()) for name, value in known.items()}
                _write(file, {**others, **_asked(rows, lengths, ask, progress, start, len(order))})
            files.append(_mapped(file))
            progress(start + len(rows), len(order), "")
    return {name: Answers([file[name] for file in files], places) for name in names}


def digest_of(values: Iterable[Any]) -> str:
    """sha256 of a sequence of JSON values, one at a time."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _asked(rows: list[int], lengths: np.ndarray, ask: Ask, progress: Progress, before: int, total: int) -> dict[str, Tensor]:
    found: list[dict[str, Tensor]] = []
    start = 0
    while start < len(rows):
        count = min(AT_ONCE, max(1, AT_ONCE * LONG // int(lengths[rows[start]])))
        found.append(ask(rows[start : start + count]))
        start += count
        progress(before + min(start, len(rows)), total, "")
    values = {name: torch.cat([one[name].float().cpu() for one in found]).contiguous() for name in found[0]}
    halves = {name: value.half() for name, value in values.items() if name.startswith(STATE)}
    return {**values, **{name: half for name, half in halves.items() if bool(half.isfinite().all())}}


def _write(file: Path, values: dict[str, Tensor]) -> None:
    partial = file.with_suffix(".partial")
    with writable(file.parents[1]):
        try:
            save_file(values, partial, {"sha256": _digest({name: value.numpy() for name, value in values.items()})})
        except SafetensorError as error:  # its way of saying that the disk is full
            raise OSError(str(error)) from None
        flush(partial)
        partial.replace(file)


def _digest(values: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name} {values[name].dtype} {values[name].shape}".encode())
        digest.update(np.ascontiguousarray(values[name]).data)
    return digest.hexdigest()


def _whole(file: Path) -> bool:
    """Whether the file is there, and as it was written; says so if it is damaged."""
    if not file.exists():
        return False
    try:
        sound = bool(_header(file)[0]["__metadata__"]["sha256"] == _digest(_mapped(file)))
    except (ValueError, KeyError, TypeError, OverflowError):  # the header itself is damaged, or the file was cut short
        sound = False
    if not sound:
        say(f"  {file} is damaged: these texts are asked again")
    return sound


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of itself, and where its values begin."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if not 2 <= size <= file.stat().st_size - 8:
            raise ValueError("no header")
        return json.loads(stream.read(size)), 8 + size


def _mapped(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, left on the disk."""
    header, begin = _header(file)
    return {
        name: np.asarray(np.memmap(file, KINDS[known["dtype"]], "r", begin + known["data_offsets"][0], tuple(known["shape"])))
        for name, known in header.items()
        if name != "__metadata__"
    }
