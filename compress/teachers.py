"""Teachers: our own artifacts, and any sequence classifier of transformers.

A checkpoint of a family that our encoder can be (model/families.py) becomes one, head and all. Any other is run as it is, by
transformers with its own tokenizer, and teaches by its answers alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.data import Data
from compress.progress import say
from compress.sources import Source
from compress.tasks import labels_agree, labels_of, trainable
from compress.training import Progress
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.encoder import Encoder
from model.errors import ConfigError, DataError
from model.pretrained import load_pretrained, pretrained_labels

AT_ONCE = 32  # texts that a foreign teacher answers at a time


@dataclass(frozen=True)
class Teacher:
    """What is taught: its task and labels, which are those of the data; `model` is None where our encoder cannot be it.

    `order`: for each of the data's labels, its number in the outputs of the model in `path`.
    """

    path: Path
    task: str
    labels: list[str]
    model: Encoder | None
    order: list[int]


def open_teacher(source: Source, data: Data, backbone: Path | None = None) -> Teacher:
    """The teacher at `source`, `backbone` as in `load_model`.

    Raises DataError if its labels are not those of `data`, ArtifactError if it is no PyTorch model.
    """
    if source.artifact is not None:
        manifest = open_artifact(source.path, "torch").manifest
        task = labels_agree(manifest.labels, data, manifest.task)
        return Teacher(source.path, task, manifest.labels, load_model(source.path, backbone), list(range(len(manifest.labels))))
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
        return Teacher(source.path, task, labels, None, order)
    output: Any = model.get_submodule("head.output")
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.copy_(parameter[order].clone())
    return Teacher(source.path, task, labels, model, order)


@torch.no_grad()
def foreign_answers(
    teacher: Teacher, texts: list[str], pairs: list[str] | None, max_length: int, file: Path, progress: Progress
) -> dict[str, Tensor]:
    """`teacher_logits` [n, labels] of a teacher that transformers runs, by its own tokenizer; kept in `file`, which a second call reads."""
    if file.exists():
        return load_file(file)
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(teacher.path)
    model = AutoModelForSequenceClassification.from_pretrained(teacher.path).eval()
    logits = torch.zeros(len(texts), len(teacher.labels))
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    for start in range(0, len(order), AT_ONCE):
        rows = order[start : start + AT_ONCE]
        parts = [[side[row] for row in rows] for side in (texts, pairs) if side is not None]
        inputs = tokenizer(*parts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        logits[rows] = model(**inputs).logits.float()[:, teacher.order]
        progress(min(start + AT_ONCE, len(order)), len(order), "")
    answers = {"teacher_logits": logits}
    partial = file.with_suffix(".partial")
    save_file(answers, partial)
    partial.rename(file)
    return answers
