"""Models of a given shape with random weights, as artifacts: where only speed counts, nothing has to be trained."""

from pathlib import Path
from typing import Any

import torch

from compress.config import ExportOptions
from compress.sources import open_source
from compress.stage import STAGES, run_stage
from model.artifact import open_artifact, seal
from model.checkpoint import save_model
from model.config import read_config
from model.encoder import Encoder
from model.tokenizer import open_tokenizer

VOCABULARY = 30522  # of the built-in base's tokenizer
SHAPES: dict[str, dict[str, int]] = {
    "student": {"layers": 2, "width": 384, "heads": 4, "head_width": 32, "neurons": 192},
    "minilm": {"layers": 6, "width": 384, "heads": 12, "head_width": 32, "neurons": 1536},
    "bert-base": {"layers": 12, "width": 768, "heads": 12, "head_width": 64, "neurons": 3072},
}


def make_model(directory: Path, shape: str, labels: list[str], max_length: int = 128) -> Path:
    """A torch artifact of the shape `shape` (one of SHAPES) at `directory`; one that is there already is taken."""
    if (directory / "manifest.json").exists():
        return open_artifact(directory, "torch").path
    size = SHAPES[shape]
    layer = {
        "attention": {"kind": "dense", "heads": size["heads"], "head_width": size["head_width"]},
        "feedforward": {"kind": "mlp", "neurons": size["neurons"]},
    }
    values: dict[str, Any] = {
        "vocabulary": VOCABULARY,
        "width": size["width"],
        "positions": {"kind": "learned", "length": 512},
        "layers": {"count": size["layers"], **layer},
        "head": {"kind": "classification", "labels": len(labels)},
        "max_length": max_length,
    }
    torch.manual_seed(0)
    directory.mkdir(parents=True)
    save_model(Encoder(read_config(values)), directory, labels)
    open_tokenizer(open_source("minilm").path, max_length).save(directory)
    seal(directory, kind="torch", stage="random", options=size, task="classification", labels=labels, parents={}, data=None)
    return directory


def make_graph(directory: Path, source: Path, options: ExportOptions | None = None) -> Path:
    """The export of the torch artifact `source` at `directory`, by the export stage."""
    return run_stage(STAGES["export"], options or ExportOptions(), {"model": open_source(str(source), "torch")}, None, directory).path
