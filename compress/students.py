"""Students made from their teacher: chosen layers, everything else alike (Sanh et al. 2019, §3; Turc et al. 2019), or its token table."""

from typing import Any

import torch
from torch import Tensor

from model.build import Model, build
from model.config import EncoderConfig
from model.encoder import Encoder
from model.errors import ConfigError
from model.kinds import ModelConfig

DEVIATION = 0.1  # of fresh token rows, whatever they come from


def layer_map(depth: int, teacher_depth: int, chosen: tuple[int, ...] = ()) -> list[int]:
    """For each of `depth` layers the teacher layer that it is mapped to, counted from 0.

    Without `chosen`, evenly spaced, the last on the last. Raises ConfigError for a map that cannot be.
    """
    if depth > teacher_depth:
        raise ConfigError(f"A model of {depth} layers cannot be made of one of {teacher_depth}.", f"Give at most {teacher_depth} layers.")
    if not chosen:
        return [(index + 1) * teacher_depth // depth - 1 for index in range(depth)]
    if len(chosen) != depth or min(chosen) < 0 or max(chosen) >= teacher_depth or list(chosen) != sorted(set(chosen)):
        raise ConfigError(
            f"--teacher-layers {','.join(map(str, chosen))} does not map {depth} layers to a teacher of {teacher_depth}.",
            f"Give {depth} rising numbers between 0 and {teacher_depth - 1}.",
        )
    return list(chosen)


def inherit(teacher: Encoder, layers: list[int], dropout: float | None = None) -> Encoder:
    """A student with the teacher's embeddings and head and its `layers`, weights copied."""
    config: EncoderConfig = teacher.config.changed(
        layers=[teacher.config.layers[index].model_dump() for index in layers],
        **({} if dropout is None else {"dropout": dropout}),
    )
    student = Encoder(config)
    weights = {}
    for name, value in teacher.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers":
            if int(parts[1]) not in layers:
                continue
            parts[1] = str(layers.index(int(parts[1])))
        weights[".".join(parts)] = value.clone()
    student.load_state_dict(weights)
    return student


def components(table: Tensor, width: int) -> Tensor:
    """The rows of `table` [V, W] in their `width` principal components [V, width], scaled to DEVIATION; what it has not is zero.

    The sign of a component is that of its largest loading, so that it does not hang on the library.
    """
    rows = (table - table.mean(0)).double()
    _, axes = torch.linalg.eigh(rows.t() @ rows)
    axes = axes.flip(1)[:, :width]
    largest = axes.abs().argmax(0, keepdim=True)
    kept = rows @ (axes * axes.gather(0, largest).sign())
    kept = kept / kept.std().clamp_min(1e-12) * DEVIATION
    return torch.nn.functional.pad(kept, (0, max(0, width - kept.shape[1]))).float()


def from_table(config: ModelConfig, table: Tensor | None) -> Model:
    """A fresh model of `config`, its token rows begun with those of another model's `table` [V, W], where there is one."""
    student = build(config)
    if table is not None:
        own: Any = student.get_submodule(student.config.table)
        with torch.no_grad():
            own.weight[: len(table)] = components(table, own.embedding_dim)
    return student
