"""The contract of a stage: sources in, an artifact out; whole or not at all; never made twice; resumed after a kill.

`run_stage` opens and verifies the sources, works in `OUT.partial/` beside OUT and renames once at the end. In there, `plan.json` says
what is being made (so that another command does not go on from it), `work/` is the stage's own (training checkpoints), `artifact/`
becomes OUT.
"""

import errno
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from compress import config
from compress.card import write_card
from compress.ranks import rank
from compress.sources import BACKBONE, Source, check_backbone
from model.artifact import MANIFEST, Kind, Manifest, canonical, flush, open_artifact, read_manifest, seal
from model.errors import AlambicError, ArtifactError, EnvironmentProblem, require
from serve.machine import machine_facts

if TYPE_CHECKING:
    from compress.data import Data


@dataclass(frozen=True)
class Workspace:
    """Where a stage writes: `artifact` becomes the result, `work` is scratch that survives a kill and is deleted at the end."""

    artifact: Path
    work: Path


@dataclass(frozen=True)
class Result:
    """What a stage tells of what it made; `backbone`: the role of the source without which it is not whole (see model/backbone.py)."""

    task: str
    labels: list[str]
    metrics: dict[str, Any] = field(default_factory=dict)
    backbone: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage: its options, the kind it makes, what it needs.

    `sources`: role → kind of artifact, None where other things will do; a role that ends in `?` may be absent, one that ends in `*` or `+`
    may be there several times (`compress.sources.several`), that in `+` at least once. `packages`: the import names that it needs, by the
    extra that brings them.
    """

    name: str
    options: type[config.Options]
    kind: Kind
    sources: Mapping[str, Kind | None]
    needs_data: bool
    packages: Mapping[str, tuple[str, ...]]

    @property
    def roles(self) -> dict[str, bool]:
        """Role → whether it may be absent."""
        return {role.rstrip("?*+"): role.endswith(("?", "*")) for role in self.sources}

    @property
    def kinds(self) -> dict[str, Kind | None]:
        """Role → the kind of artifact that it wants."""
        return {role.rstrip("?*+"): kind for role, kind in self.sources.items()}

    @property
    def repeated(self) -> set[str]:
        """The roles that may be there several times."""
        return {role.rstrip("*+") for role in self.sources if role.endswith(("*", "+"))}

    def check_environment(self) -> None:
        """Raise EnvironmentProblem naming the install command if a package that this stage needs is missing."""
        for extra, modules in self.packages.items():
            require(extra, *modules)

    @property
    def run(self) -> Callable[..., Result]:
        """The function `run(options, sources, data, workspace)` of `compress.stages.NAME`, imported only now."""
        # Threads that wait by spinning starve each other on a shared machine: several times slower there, a tenth faster on a quiet one.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        for chatty in ("torchao", "torch.utils._pytree", "transformers"):  # notes at import about what nobody here asked for
            logging.getLogger(chatty).setLevel(logging.ERROR)
        run: Callable[..., Result] = importlib.import_module(f"compress.stages.{self.name}").run
        return run


_TRAIN = {"train": ("torch", "transformers", "accelerate", "datasets", "safetensors")}
_QUANTIZE = {"train": (*_TRAIN["train"], "torchao")}
_EXPORT = {"export": ("torch", "safetensors", "onnx", "onnxscript"), "cpu": ("onnxruntime",)}
_REPORT = {"train": ("datasets",), "report": ("matplotlib", "jinja2")}
_MOVED: dict[str, Kind | None] = {f"{BACKBONE}?": None}  # where the backbone of a prefix is now: no parent, since the prefix has it for one
_TAUGHT: dict[str, Kind | None] = {"also*": None, "generator?": None, **_MOVED}  # more teachers, and whose words --augment infill takes
STAGES = {
    stage.name: stage
    for stage in (
        Stage("train", config.TrainOptions, "torch", {"base": None, "tokenizer?": None, "generator?": None}, True, _TRAIN),
        Stage("distill", config.DistillOptions, "torch", {"teacher": None, "base?": None, "student?": None, **_TAUGHT}, True, _TRAIN),
        Stage("prune", config.PruneOptions, "torch", {"model": "torch", "teacher?": None, **_TAUGHT}, True, _TRAIN),
        Stage("quantize", config.QuantizeOptions, "torch", {"model": "torch", "teacher?": None, **_TAUGHT}, True, _QUANTIZE),
        Stage("export", config.ExportOptions, "onnx", {"model": "torch", "ensemble*": "torch", **_MOVED}, False, _EXPORT),
        Stage("benchmark", config.BenchmarkOptions, "report", {"models+": None}, True, _REPORT),
    )
}


@dataclass(frozen=True)
class Outcome:
    """What `run_stage` did: `fresh` is False when OUT was up to date already."""

    path: Path
    manifest: Manifest
    fresh: bool


def run_stage(
    stage: Stage, options: config.Options, sources: Mapping[str, Source], data: "Data | None", out: Path, *, overwrite: bool = False
) -> Outcome:
    """Make the artifact `out`, or leave it alone if it is up to date.

    Raises ArtifactError if `out` is in use, is something else, or was made otherwise and `overwrite` is not given; whatever the stage
    raises passes through, and then `out` is as it was. In a process that only helps to train (`compress.ranks`) it ends the process.
    """
    check_backbone(sources)
    parents = {role: source for role, source in sources.items() if role != BACKBONE}
    if data and isinstance(options, config.MoreText) and options.unlabelled:
        data = _with_unlabelled(data, options)
    plan: dict[str, Any] = {
        "stage": stage.name,
        "options": options.identity(),
        "parents": {role: source.digest for role, source in sorted(parents.items())},
        "data": data.summary() if data else _data_of(parents),
    }
    partial = out.with_name(out.name + ".partial")
    if rank() and _up_to_date(out, plan, overwrite) is None:  # process 0 makes the artifact, this one helps it train
        with tempfile.TemporaryDirectory() as scratch:
            stage.run(options, sources, data, Workspace(Path(scratch), partial / "work"))
    if rank():
        sys.exit(0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(out), _room(out):
        _restore(out)
        if (done := _up_to_date(out, plan, overwrite)) is not None:
            shutil.rmtree(partial, ignore_errors=True)
            return Outcome(out, done, fresh=False)
        workspace = _begin(partial, plan, overwrite)
        started = time.time()
        try:
            result = stage.run(options, sources, data, workspace)
        except BaseException:
            if not any(workspace.work.iterdir()):  # nothing to go on from
                shutil.rmtree(partial)
            raise
        made: dict[str, Any] = {"kind": stage.kind, "task": result.task, "labels": result.labels, "metrics": result.metrics}
        ancestors = _ancestors(parents)
        if result.backbone:
            place = parents[result.backbone].path.resolve()
            ancestors[parents[result.backbone].digest]["places"] = [os.path.relpath(place, out.resolve()), str(place)]
        card = write_card(ancestors=ancestors, **plan, **made)
        (workspace.artifact / "README.md").write_text(card, encoding="utf-8")
        manifest = seal(
            workspace.artifact,
            **plan,
            **made,
            made_by={**machine_facts(), "started": round(started), "seconds": round(time.time() - started, 1)},
            ancestors=ancestors,
        )
        _replace(out, workspace.artifact)
        shutil.rmtree(partial)
        return Outcome(out, manifest, fresh=True)


def _with_unlabelled(data: "Data", options: config.MoreText) -> "Data":
    """`data` and beside it the text without labels that the options name: what is in it is part of what a stage is made of."""
    from compress.unlabelled import load_unlabelled

    found = load_unlabelled(
        options.unlabelled,
        data,
        column=options.unlabelled_text,
        sentences=options.split_sentences,
        most=options.unlabelled_texts,
        seed=options.seed,
    )
    return replace(data, unlabelled=found)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    lock = FileLock(out.with_name(out.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ArtifactError(f"{out} is being made by another command.", "Wait for it, or choose another --out.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while still held: filelock does not take an unlinked file for a lock
        lock.release()


@contextmanager
def _room(out: Path) -> Iterator[None]:
    """Turn every library's way of saying that the disk is full into one clear line."""
    try:
        yield
    except AlambicError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        said = any(
            words in str(error) for words in ("No space left", "os error 28", "File too large", "os error 27", "failed writing file")
        )
        if not (full or said):
            raise
        free = shutil.disk_usage(out.parent).free
        raise EnvironmentProblem(
            f"No room to write {out} ({free / 1e6:,.0f} MB free on that disk).",
            "Free some space and run the same command again: it goes on from its last checkpoint.",
        ) from error


def _restore(out: Path) -> None:
    """Put the old artifact back if a kill fell between the two renames of `_replace`."""
    old = out.with_name(out.name + ".old")
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _up_to_date(out: Path, plan: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of `out` if it is what `plan` would make; None if there is nothing or it may be replaced."""
    if not out.exists():
        return None
    if not (out / MANIFEST).exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} exists and is not an artifact; it will not be replaced.", "Choose another --out.")
    if overwrite or not any(out.iterdir()):
        return None
    manifest = read_manifest(out)
    found = _with_defaults({name: getattr(manifest, name) for name in plan})
    if canonical(found) == canonical(plan):
        return open_artifact(out).manifest
    raise ArtifactError(
        f"{out} was made otherwise ({'; '.join(differences(found, plan))}).", "Choose another --out, or give --overwrite to make it anew."
    )


def _with_defaults(plan: dict[str, Any]) -> dict[str, Any]:
    """`plan` with the default of every option that its stage has got since it was written: it was made as if it had that."""
    if plan.get("stage") not in STAGES:
        return plan
    return {**plan, "options": {**STAGES[plan["stage"]].options().identity(), **plan["options"]}}


def differences(found: Any, wanted: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, one phrase each: `options.epochs: 1.0, not 2.0`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [line for key in keys for line in differences(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)]
    if found == wanted:
        return []
    short = [str(value)[:12] + "…" if isinstance(value, str) and len(value) == 64 else json.dumps(value) for value in (found, wanted)]
    return [f"{where}: {short[0]}, not {short[1]}"]


def _begin(partial: Path, plan: dict[str, Any], overwrite: bool) -> Workspace:
    """An empty `artifact/` and the `work/` that an earlier run of the same plan left."""
    file = partial / "plan.json"
    if partial.exists():
        try:
            left = _with_defaults(json.loads(file.read_bytes()))
        except (OSError, ValueError):
            left = None  # killed before the plan was whole: nothing to go on from
        if left is not None and canonical(left) != canonical(plan) and not overwrite:
            raise ArtifactError(
                f"{partial} holds the unfinished work of another command ({'; '.join(differences(left, plan))}).",
                "Run that command again to finish it, or give --overwrite to drop its work.",
            )
        if left is None or canonical(left) != canonical(plan):
            shutil.rmtree(partial)
    workspace = Workspace(partial / "artifact", partial / "work")
    shutil.rmtree(workspace.artifact, ignore_errors=True)
    workspace.artifact.mkdir(parents=True)
    workspace.work.mkdir(exist_ok=True)
    file.write_bytes(canonical(plan))
    return workspace


def _replace(out: Path, made: Path) -> None:
    """Rename `made` to `out`; an old `out` stays aside until that is done."""
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    made.rename(out)
    flush(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _data_of(sources: Mapping[str, Source]) -> dict[str, Any] | None:
    """The data that a model was made with, for a stage that has none of its own."""
    return next((source.artifact.manifest.data for source in sources.values() if source.artifact), None)


def _ancestors(sources: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    ancestors: dict[str, dict[str, Any]] = {}
    for source in sources.values():
        if source.artifact is None:
            ancestors[source.digest] = {"stage": "base", "name": source.name, "parents": {}}
        else:
            ancestors |= {**source.artifact.manifest.ancestors, source.digest: source.artifact.manifest.summary()}
    return ancestors
