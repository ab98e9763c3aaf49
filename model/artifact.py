"""A model on disk: a directory that says what it is, where it comes from, and whether it is whole.

`manifest.json` names the stage that made the artifact, its options, its parents by digest, its data, and every file with its sha256.
Two hashes stand in it. `digest` is the identity: it covers all but `metrics`, `made_by` and `ancestors`, so that the same inputs give
the same digest. `checksum` covers everything else in the manifest too, so that damage in the manifest itself is found.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import ArtifactError

FORMAT = 1
MANIFEST = "manifest.json"
Kind = Literal["torch", "onnx", "report"]
NOT_IDENTITY = ("metrics", "made_by", "ancestors", "digest", "checksum")


class File(BaseModel):
    """Size and hash of one file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    bytes: int


class Manifest(BaseModel):
    """What `manifest.json` holds; see the module's head for `digest` and `checksum`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    kind: Kind
    stage: str
    options: dict[str, Any]
    task: str
    labels: list[str]
    parents: dict[str, str]
    data: dict[str, Any] | None
    files: dict[str, File]
    metrics: dict[str, Any] = Field(default_factory=dict)
    made_by: dict[str, Any] = Field(default_factory=dict)
    ancestors: dict[str, dict[str, Any]] = Field(default_factory=dict)
    digest: str = ""
    checksum: str = ""

    def summary(self) -> dict[str, Any]:
        """What a descendant remembers of this artifact, under its digest."""
        names = ("kind", "stage", "options", "parents", "data", "metrics")
        size = sum(file.bytes for file in self.files.values())
        return {**{name: getattr(self, name) for name in names}, "bytes": size, "seconds": self.made_by.get("seconds")}


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its directory and its verified manifest."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest


def canonical(value: Any) -> bytes:
    """JSON bytes of `value` that depend on the content alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(content: bytes) -> str:
    """Hexadecimal sha256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of the file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def directory_digest(directory: Path, suffixes: tuple[str, ...] = (".json", ".safetensors", ".txt", ".model", ".onnx")) -> str:
    """Digest of a model directory that is not ours: names and contents of its files with `suffixes` (no sub-folders)."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.suffix in suffixes)
    return sha256(canonical({path.name: file_sha256(path) for path in files}))


def seal(directory: Path, **fields: Any) -> Manifest:
    """Hash every file in `directory`, write the manifest last, and flush all of it to the disk.

    `fields` are those of Manifest without `files`, `digest` and `checksum`.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(directory).as_posix(): File(sha256=file_sha256(path), bytes=path.stat().st_size) for path in paths}
    manifest = Manifest(files=files, **fields)
    manifest = manifest.model_copy(update={"digest": _digest(manifest)})
    manifest = manifest.model_copy(update={"checksum": _checksum(manifest)})
    for path in paths:
        flush(path)
    (directory / MANIFEST).write_bytes(_encode(manifest))
    flush(directory / MANIFEST)
    flush(directory)
    return manifest


def flush(path: Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is the directory of a model of another maker: a config.json, and no manifest."""
    unfinished = path.with_name(path.name + ".partial").exists()
    return (path / "config.json").is_file() and not (path / MANIFEST).exists() and not unfinished


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact at `path`, itself checked; raises ArtifactError if there is none, it is damaged or too new."""
    if not path.is_dir():
        raise ArtifactError(f"There is no artifact at {path}.", "Give the directory that a stage wrote with --out.")
    file = path / MANIFEST
    if not file.is_file():
        hint = "Give the directory that a stage wrote with --out."
        if path.with_name(path.name + ".partial").exists():
            hint = "It is unfinished: run the command that was making it again; it goes on where it stopped."
        raise ArtifactError(f"{path} has no {MANIFEST}: it is no artifact.", hint)
    damaged = ArtifactError(f"{file} is damaged.", "Make the artifact again, or copy it again from where it is whole.")
    content = file.read_bytes()
    try:
        values = json.loads(content)
    except ValueError:
        raise damaged from None
    if isinstance(values, dict) and isinstance(values.get("format"), int) and values["format"] > FORMAT:
        writer = values.get("made_by", {}).get("versions", {}).get("alambic", "a newer version")
        raise ArtifactError(
            f"{path} is written in format {values['format']}; this version of alambic reads up to {FORMAT}.",
            f"Upgrade alambic (it was written by {writer}).",
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError:
        raise damaged from None
    if _encode(manifest) != content or _checksum(manifest) != manifest.checksum or _digest(manifest) != manifest.digest:
        raise damaged
    return manifest


def damage(path: Path, manifest: Manifest) -> list[str]:
    """One sentence for each file of the artifact that is missing or does not have the content that the manifest says."""
    found = []
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != expected.bytes:
            found.append(f"{name} is damaged ({file.stat().st_size:,} bytes instead of {expected.bytes:,})")
        elif file_sha256(file) != expected.sha256:
            found.append(f"{name} is damaged (its sha256 is not the one in the manifest)")
    return found


def open_artifact(path: str | Path, kind: Kind | None = None) -> Artifact:
    """Open and verify every file; raises ArtifactError naming what is damaged, or that the artifact is not of `kind`."""
    path = Path(path)
    manifest = read_manifest(path)
    if found := damage(path, manifest):
        raise ArtifactError(
            f"The artifact {path} is not whole: {'; '.join(found)}.", "Make it again, or copy it again from where it is whole."
        )
    if kind is not None and manifest.kind != kind:
        wanted = {
            "torch": "a PyTorch model (of train, distill, prune or quantize)",
            "onnx": "an exported model (of export)",
            "report": "a report",
        }
        raise ArtifactError(
            f"{path} is {wanted[manifest.kind]}, but {wanted[kind]} is needed here.",
            "Run `compress export` first." if kind == "onnx" else "Give another directory.",
        )
    return Artifact(path, manifest)


def _encode(manifest: Manifest) -> bytes:
    return json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _digest(manifest: Manifest) -> str:
    return sha256(canonical(manifest.model_dump(mode="json", exclude=set(NOT_IDENTITY))))


def _checksum(manifest: Manifest) -> str:
    return sha256(canonical(manifest.model_dump(mode="json", exclude={"checksum"})))
