"""Where costly things that several stages need are kept: a folder of entries, each made once and read by all. Torch-free.

The folder is the one of `--cache`, else that of the environment variable ALAMBIC_CACHE, else `alambic` in the user's cache folder. An
entry is a folder named after its key. Everything in it can be made again, so the whole may be deleted at any time while nothing runs.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.progress import say
from model.artifact import canonical, sha256
from model.errors import ArtifactError, ConfigError, EnvironmentProblem

KEY = "key.json"
LIMIT_GB = 20.0  # of all entries together, unless ALAMBIC_CACHE_GB says otherwise


@dataclass(frozen=True)
class Entry:
    """One entry: its folder, what it is the result of, its size, and when it was last used (seconds since 1970)."""

    path: Path
    key: dict[str, Any]
    bytes: int
    used: float


def cache_folder(given: str | None = None) -> Path:
    """The folder that holds the entries."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alambic"
    return Path(given or os.environ.get("ALAMBIC_CACHE") or user)


@contextmanager
def entry(cache: Path, key: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of the entry `key`, made if it is not there, for this process alone until the block ends; the oldest others make room.

    Raises ArtifactError if that folder is the entry of another key, EnvironmentProblem if the cache cannot be written.
    """
    folder = cache / sha256(canonical(dict(key)))[:32]
    with writable(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        with writable(cache):
            folder.mkdir(exist_ok=True)
            _check(folder, dict(key))
            os.utime(folder / KEY)
        yield folder
    _make_room(cache, folder)


@contextmanager
def writable(cache: Path) -> Iterator[None]:
    """Turn what the disk refuses into one clear line."""
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"The cache {cache} cannot be written: {error.strerror or error}.", "Give another folder: --cache DIR, or ALAMBIC_CACHE=DIR."
        ) from error


def entries(cache: Path) -> list[Entry]:
    """The entries of the cache, the last used first."""
    found = []
    for file in cache.glob(f"*/{KEY}"):
        try:
            key, used = json.loads(file.read_bytes()), file.stat().st_mtime
        except (OSError, ValueError):
            key, used = {}, 0.0
        found.append(Entry(file.parent, key, sum(path.stat().st_size for path in file.parent.iterdir()), used))
    return sorted(found, key=lambda one: -one.used)


def describe(cache: Path) -> dict[str, Any]:
    """The cache as JSON values."""
    found = [{"name": one.path.name, "bytes": one.bytes, "used": round(one.used), **one.key} for one in entries(cache)]
    return {"folder": str(cache), "bytes": sum(one["bytes"] for one in found), "entries": found}


def lines(cache: Path) -> list[str]:
    """The cache for a person."""
    found = entries(cache)
    count = "1 entry" if len(found) == 1 else f"{len(found)} entries"
    shown = [f"{cache}: {count}, {sum(one.bytes for one in found) / 1e6:,.1f} MB"]
    for one in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        what = f"{one.key.get('what', '?')} of {str(one.key.get('teacher', '?'))[:12]}"
        shown.append(f"  {one.path.name[:12]}: {what}, {one.bytes / 1e6:,.1f} MB, last used {used}")
    return shown


def clear(cache: Path) -> int:
    """Delete every entry that nobody is making; returns the bytes that were freed."""
    return sum(one.bytes for one in entries(cache) if _dropped(one.path))


def _check(folder: Path, key: dict[str, Any]) -> None:
    file = folder / KEY
    if not file.exists():
        partial = file.with_suffix(".partial")
        partial.write_bytes(canonical(key))
        partial.replace(file)
        return
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        raise ArtifactError(f"{file} is damaged.", f"Delete {folder}: it is made again.") from None
    if found != key:
        wrong = sorted(name for name in found.keys() | key.keys() if found.get(name) != key.get(name))
        sides = (", ".join(f"{name} {str(side.get(name))[:12]}" for name in wrong) for side in (found, key))
        raise ArtifactError(
            f"{folder} holds the answers of another teacher or of other texts ({next(sides)}; wanted: {next(sides)}).",
            "Delete that folder, or give another --cache.",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for whoever is making this entry; two that want the same make it once."""
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    with writable(folder.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("  waiting for another command that asks the same")
            lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while still held: filelock does not take an unlinked file for a lock
        lock.release()


def _dropped(folder: Path) -> bool:
    """Delete an entry unless it is in use."""
    try:
        with FileLock(folder.with_name(folder.name + ".lock"), timeout=0) as lock:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _make_room(cache: Path, keep: Path) -> None:
    """Drop the entries that were not used for longest while all of them together are larger than the limit."""
    given = os.environ.get("ALAMBIC_CACHE_GB", str(LIMIT_GB))
    try:
        limit = float(given) * 1e9
    except ValueError:
        raise ConfigError(f"ALAMBIC_CACHE_GB={given} is not a number.", "Give the most gigabytes that the cache may hold.") from None
    found = entries(cache)
    total = sum(one.bytes for one in found)
    for one in reversed(found):
        if total > limit and one.path != keep and time.time() - one.used > 60 and _dropped(one.path):
            total -= one.bytes
