"""What a stage starts from: artifacts, checkpoints of other makers, configurations; each with a digest."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import builtin
from model.artifact import MANIFEST, Artifact, Kind, directory_digest, file_sha256, is_checkpoint, open_artifact, sha256
from model.errors import ArtifactError, ConfigError, require

BACKBONE = "backbone"  # the role that tells where the backbone of a prefix is now


@dataclass(frozen=True)
class Source:
    """A path, what it was called, and the digest of what is there; `artifact` is None for what is not ours."""

    path: Path
    name: str
    digest: str
    artifact: Artifact | None = None

    @property
    def model(self) -> Artifact:
        """The artifact; raises ArtifactError for anything that is not one."""
        if self.artifact is None:
            raise ArtifactError(f"{self.path} is not an alambic artifact.", "Make one of it with `compress train DATA --base …`.")
        return self.artifact


STUDENTS = {"static": ("width", "neurons"), "convolution": ("channels", "neurons")}
"""Kind of a student without layers → the parameters that its sizes are."""


def student_values(source: Source) -> dict[str, Any]:
    """The configuration of a student that is named in a word with its sizes (`convolution:128:64`) or written in a JSON file.

    Raises ConfigError if it can be neither.
    """
    if source.path.is_file():
        return configuration(source.path)
    kind, *sizes = source.name.split(":")
    names = STUDENTS[kind]
    if len(sizes) > len(names) or not all(size.isdecimal() and int(size) for size in sizes):
        what = f"{source.name!r} is no student: the sizes of {kind} are numbers, its {' and its '.join(names)}."
        raise ConfigError(what, "Write it as static:128, convolution:256 or convolution:128:64.")
    return {"kind": kind, **{name: int(size) for name, size in zip(names, sizes, strict=False)}}


def configuration(path: Path) -> dict[str, Any]:
    """The values in a JSON file; raises ConfigError if there are none."""
    hint = "Give a model configuration; `compress options` lists what it takes."
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", hint) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no JSON object.", hint)
    return values


def open_sources(kinds: Mapping[str, Kind | None], paths: Mapping[str, str]) -> dict[str, Source]:
    """Open each role's path, verified and of the kind that the role wants (None: anything that `open_source` knows)."""
    found = {}
    for role, path in paths.items():
        kind = kinds.get(role, kinds.get(re.sub(r"-\d+$", "", role)))  # one of `several`
        found[role] = _open_student(path) if role == "student" else open_source(path, kind)
    return found


def _open_student(value: str) -> Source:
    """A student in a word, in a JSON file, or an artifact."""
    path = Path(value)
    if path.is_dir() or path.with_name(path.name + ".partial").exists():
        artifact = open_artifact(path, "torch")
        return Source(path, path.name, artifact.digest, artifact)
    if value.partition(":")[0] in STUDENTS:
        return Source(path, value, sha256(value.encode()))
    if path.is_file():
        return Source(path, path.name, file_sha256(path))
    raise ConfigError(
        f"There is no student {value!r}.", f"Give {' or '.join(STUDENTS)}, with a size as convolution:256, a JSON file, or an artifact."
    )


def check_backbone(sources: Mapping[str, Source]) -> None:
    """Raise ConfigError if a backbone is given, but none of the others was trained on it (see model/backbone.py)."""
    if (given := sources.get(BACKBONE)) is None:
        return
    wanted = {role: _backbone_of(source) for role, source in sources.items() if role != BACKBONE}
    if given.digest not in wanted.values():
        needs = ", ".join(f"{role} needs {digest[:12]}…" for role, digest in wanted.items() if digest) or "all are whole"
        raise ConfigError(
            f"Nothing here is a prefix of --backbone {given.path} ({given.digest[:12]}…): {needs}.", "Leave it out, or give that one."
        )


def place_of(sources: Mapping[str, Source]) -> Path | None:
    """Where the backbone is now, if that was given."""
    return sources[BACKBONE].path if BACKBONE in sources else None


def _backbone_of(source: Source) -> str:
    path = source.path / "config.json"
    return str(json.loads(path.read_bytes()).get("backbone", "")) if source.artifact and path.is_file() else ""


def several(role: str, paths: Sequence[str]) -> dict[str, str]:
    """The paths of a role that has several: `also-1`, `also-2` and so on; the models of a benchmark under the names of their last parts.

    Raises ConfigError if two models have one name.
    """
    if role != "models":
        return {f"{role}-{number}": path for number, path in enumerate(paths, 1)}
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Two of the models have the same name ({', '.join(names)}).", "Rename one directory: the report tells them apart by it."
        )
    return dict(zip(names, paths, strict=True))


def numbered(role: str, roles: Iterable[str]) -> list[str]:
    """Those of `roles` that `several` made of one, in their order."""
    numbers = [int(known.removeprefix(f"{role}-")) for known in roles if re.fullmatch(rf"{role}-\d+", known)]
    return [f"{role}-{number}" for number in sorted(numbers)]


def open_source(value: str, kind: Kind | None = None) -> Source:
    """An artifact of `kind` (a directory of transformers passes for "torch"), or, where `kind` is None, whatever can be started from.

    That is an artifact directory, the built-in `minilm`, a directory of transformers, a JSON file with a model configuration, a
    SentencePiece model, or the id of a model on the Hugging Face hub. Raises ArtifactError or ConfigError that lists them.
    """
    path = Path(value)
    if kind == "torch" and is_checkpoint(path):
        return Source(path, path.name, directory_digest(path))
    if kind is not None or (path / MANIFEST).exists() or path.with_name(path.name + ".partial").exists():
        artifact = open_artifact(path, kind)
        return Source(path, path.name, artifact.digest, artifact)
    if path.is_file():
        return Source(path, path.name, file_sha256(path))
    name = path.name
    if not path.is_dir():
        name = value
        path = builtin.base_directory(value) if value in builtin.BASES else _from_hub(value)
    return Source(path, name, directory_digest(path))


def _from_hub(value: str) -> Path:
    require("train", "huggingface_hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = f"a directory, a built-in model ({', '.join(builtin.BASES)}), or the id of a model on the hub"
    if value.count("/") > 1 or value.startswith((".", "/")):
        raise ArtifactError(f"There is nothing at {value}.", f"Give {wanted}.")
    try:
        return Path(snapshot_download(value, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (OSError, ValueError, HFValidationError) as error:
        raise ConfigError(
            f"There is no model {value!r} here, and the hub did not give it ({type(error).__name__}).", f"Give {wanted}."
        ) from None
