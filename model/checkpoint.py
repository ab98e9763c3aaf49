"""Our weights on disk: `model.safetensors` and `config.json`, never a pickle."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.build import Model, as_encoder, build
from model.encoder import Encoder
from model.errors import ArtifactError, ConfigError
from model.kinds import ModelConfig, read_model

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_model(model: Model, directory: Path, labels: Sequence[str], backbone: str = "") -> None:
    """Write weights and configuration into `directory`, which exists; equal weights give equal bytes.

    With `backbone`, the digest of what the encoder was trained on, only its prefix and head (see model/backbone.py). Raises ConfigError
    if `labels` are not as many as the head's.
    """
    from model.backbone import is_own  # which opens models itself

    write_config(directory, model.config, labels, "alambic", backbone)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not backbone or is_own(name)}
    save_file(tensors, directory / WEIGHTS)


def load_model(directory: Path, backbone: Path | None = None) -> Model:
    """The model in `directory`, on the CPU and in eval mode; one that was saved without its backbone, together with it.

    `backbone` is where that is now, None for where it was. Raises ArtifactError for a missing or unreadable file, for a backbone that is
    not there, and for a tensor that is missing, unknown, or not of the shape and type that config.json asks for.
    """
    from model.backbone import backbone_of, backbone_tensors

    config = read_model_config(directory)
    with torch.random.fork_rng(devices=[]):  # the fresh weights leave no trace in the caller's random numbers
        model = build(config)
    tensors = read_tensors(directory / WEIGHTS)
    if digest := backbone_of(directory):
        tensors |= backbone_tensors(directory, digest, backbone)
    _compare(model.state_dict(), tensors, directory / WEIGHTS)
    model.load_state_dict(tensors)
    return model.eval()


def load_encoder(directory: Path, purpose: str, backbone: Path | None = None) -> Encoder:
    """`load_model` where only an encoder will do; raises ConfigError that says what for (`purpose`: "to be pruned")."""
    return as_encoder(load_model(directory, backbone), directory, purpose)


def write_config(
    directory: Path, config: ModelConfig, labels: Sequence[str], model_type: Literal["alambic", "bert"], backbone: str = ""
) -> None:
    """Write config.json: what transformers reads (`model_type`, the labels), and ours under "alambic"; `backbone` as in `save_model`.

    Raises ConfigError if `labels` are not as many as the head's.
    """
    if len(labels) != config.head.labels:
        raise ConfigError(
            f"There are {len(labels)} labels ({', '.join(labels)}), but the head has {config.head.labels} outputs.",
            "Name one label for each output.",
        )
    values = {
        "model_type": model_type,
        "num_labels": len(labels),
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "alambic": config.model_dump(mode="json"),
        **({"backbone": backbone} if backbone else {}),
    }
    (directory / CONFIG).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_model_config(directory: Path) -> ModelConfig:
    """The model's configuration in `directory`/config.json.

    Raises ArtifactError if there is none, ConfigError if it cannot be.
    """
    values = read_json(directory / CONFIG)
    if not isinstance(values.get("alambic"), dict):
        raise ArtifactError(
            f"{directory / CONFIG} has no part 'alambic': this is not a model of ours.",
            "A BERT-family checkpoint becomes one by `compress train DATA --base DIR --out OUT`.",
        )
    return read_model(values["alambic"], f"model configuration in {directory / CONFIG}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises ArtifactError if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.", "Give the directory of a model.") from None
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} holds a {type(values).__name__}, not a JSON object.", "Give the directory of a model.")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in the safetensors file `path`; raises ArtifactError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.", "Weights are read from one safetensors file, whole.") from None


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {_form(found[name])} instead of {_form(expected[name])}"
        for name in expected.keys() & found.keys()
        if _form(found[name]) != _form(expected[name])
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + ("; …" if len(problems) > 5 else "")
        raise ArtifactError(
            f"{path} does not fit its config.json: {shown}.", "Make the model again, or copy it again from where it is whole."
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
