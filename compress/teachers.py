"""Teachers: our own artifacts, and any sequence classifier of transformers.

A checkpoint of a family that our encoder can be (model/families.py) becomes one, head and all. Any other is run as it is, by
transformers with its own tokenizer, and teaches by its answers alone.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.answers import Ask
from compress.data import Data
from compress.progress import say
from compress.sources import Source, numbered, place_of
from compress.tasks import labels_agree, labels_of, trainable
from model.artifact import open_artifact
from model.checkpoint import load_encoder
from model.encoder import Encoder
from model.errors import ConfigError, DataError
from model.pretrained import load_pretrained, pretrained_labels


@dataclass(frozen=True)
class Teacher:
    """What is taught: its task and labels, which are those of the data; `model` is None where our encoder cannot be it.

    `order`: for each of the data's labels, its number in the outputs of the model in `path`; `digest` is that of what is there.
    """

    path: Path
    task: str
    labels: list[str]
    model: Encoder | None
    order: list[int]
    digest: str


def open_teachers(sources: Mapping[str, Source], data: Data) -> list[Teacher]:
    """The teacher among `sources`, then those that teach beside it; none where there is none.

    Raises what `open_teacher` does, and ConfigError if there are others without the one, or if they give vectors of other widths.
    """
    others = numbered("also", sources)
    if "teacher" not in sources:
        if others:
            raise ConfigError("--also names more teachers, but there is no first one.", "Give --teacher too.")
        return []
    teachers = [open_teacher(sources[role], data, place_of(sources)) for role in ("teacher", *others)]
    widths = {teacher.model.config.vector_width for teacher in teachers if teacher.task == "embedding" and teacher.model}
    if len(widths) > 1:
        raise ConfigError(f"The teachers give vectors of {' and '.join(map(str, sorted(widths)))} numbers.", "Give teachers of one width.")
    return teachers


def open_teacher(source: Source, data: Data, backbone: Path | None = None) -> Teacher:
    """The teacher at `source`, `backbone` as in `load_model`.

    Raises DataError if its labels are not those of `data`, ArtifactError if it is no PyTorch model.
    """
    if source.artifact is not None:
        manifest = open_artifact(source.path, "torch").manifest
        task = labels_agree(manifest.labels, data, manifest.task)
        order = list(range(len(manifest.labels)))
        model = load_encoder(source.path, "to be taught by", backbone)
        return Teacher(source.path, task, manifest.labels, model, order, source.digest)
    task = trainable(data)
    labels, theirs = labels_of(task, data), pretrained_labels(source.path)
    if task == "regression" and len(theirs) == 1:
        theirs = labels
    if sorted(theirs) != sorted(labels):
        raise DataError(
            f"The labels of {source.path} ({', '.join(theirs)}) are not those of {data.name} ({', '.join(labels)}).",
            "Name them in its config.json (id2label, label2id) as the data does.",
        )
    order = [theirs.index(label) for label in labels]
    try:
        model = load_pretrained(source.path, {"kind": task, "labels": len(labels)}, kept=True)
    except ConfigError as error:
        if task == "tagging":
            raise ConfigError(
                f"{error.message} Tags cannot be taught across tokenizers.", "Give a teacher that `compress train` made."
            ) from None
        say(f"  {error.message} It teaches by its answers alone.")
        return Teacher(source.path, task, labels, None, order, source.digest)
    output: Any = model.get_submodule("head.output")
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.copy_(parameter[order].clone())
    return Teacher(source.path, task, labels, model, order, source.digest)


def foreign_ask(teacher: Teacher, texts: list[str], pairs: list[str] | None, max_length: int) -> Ask:
    """Answers of a teacher that transformers runs, by its own tokenizer: of rows of `texts`, `teacher_logits` [rows, labels].

    It is loaded when it is asked for the first time.
    """

    @functools.cache
    def loaded() -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        return AutoTokenizer.from_pretrained(teacher.path), AutoModelForSequenceClassification.from_pretrained(teacher.path).eval()

    @torch.no_grad()
    def ask(rows: list[int]) -> dict[str, Tensor]:
        tokenizer, model = loaded()
        parts = [[side[row] for row in rows] for side in (texts, pairs) if side is not None]
        inputs = tokenizer(*parts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        return {"teacher_logits": model(**inputs).logits.float()[:, teacher.order]}

    return ask
