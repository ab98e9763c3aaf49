"""BERT-family checkpoints in, and our encoders out as transformers models: one name table, read in both directions.

Devlin et al. 2018; the names are those of transformers' BertModel. What one side cannot represent is refused, never dropped.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from model.checkpoint import CONFIG, WEIGHTS, read_json, read_tensors
from model.config import EncoderConfig, read_config
from model.encoder import Encoder
from model.errors import ArtifactError, ConfigError, require
from model.heads import POOLINGS

# Ours ← theirs; several of theirs are stacked, rows upon rows. Each line stands for a weight and, where there is one, a bias.
_EMBEDDINGS = {
    "embeddings.tokens": ("embeddings.word_embeddings",),
    "embeddings.types": ("embeddings.token_type_embeddings",),
    "embeddings.positions": ("embeddings.position_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
}
_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feedforward.up": ("intermediate.dense",),
    "feedforward.down": ("output.dense",),
    "feedforward_norm": ("output.LayerNorm",),
}
_HEAD = {"head.output": ("classifier",)}

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}

# Parts of a checkpoint that an encoder does not have: the pooler and heads of pretraining or of another task, and a saved arange.
_LEFT_OUT = ("pooler.", "cls.", "classifier.", "qa_outputs.", "embeddings.position_ids")


def load_pretrained(
    directory: Path,
    labels: int,
    pooling: Literal["mean", "cls"] = "mean",
    head: Literal["fresh", "kept"] = "fresh",
    max_length: int | None = None,
) -> Encoder:
    """The encoder of a BERT-family checkpoint (config.json, model.safetensors) with a head for `labels`, in eval mode.

    `head`: "fresh" starts a new head, "kept" takes the checkpoint's linear classifier. `max_length` is the checkpoint's if None.
    Raises ConfigError naming what cannot be represented; ArtifactError if a file or a tensor is missing, unknown or misshapen.
    """
    config = _read_bert(directory, labels, pooling, max_length)
    tensors = {_modern(name): tensor for name, tensor in read_tensors(directory / WEIGHTS).items()}
    if head == "kept":
        _check_head(tensors, labels, directory)
    encoder = Encoder(config)
    wanted = encoder.state_dict()
    theirs = {ours: names for ours, names in _names(wanted) if head == "kept" or not ours.startswith("head.")}
    if missing := [name for names in theirs.values() for name in names if name not in tensors]:
        raise ArtifactError(f"{directory / WEIGHTS} has no tensor {missing[0]}.", "Give a whole checkpoint of a BertModel.")
    used = {name for names in theirs.values() for name in names}
    if unknown := [name for name in tensors if name not in used and not name.startswith(_LEFT_OUT)]:
        raise ArtifactError(
            f"{directory / WEIGHTS} has a tensor that a BertModel has not: {unknown[0]}.", "Give a checkpoint of a BertModel."
        )
    for ours, names in theirs.items():
        rows, *columns = wanted[ours].shape
        expected = [rows // len(names), *columns]
        for name in names:
            if list(tensors[name].shape) != expected:
                raise ArtifactError(
                    f"{directory / WEIGHTS}: {name} is {list(tensors[name].shape)}, but config.json asks for {expected}.",
                    "Give a checkpoint whose config.json belongs to its weights.",
                )
        wanted[ours] = torch.cat([tensors[name] for name in names]).float()
    encoder.load_state_dict(wanted)
    return encoder.eval()


def to_transformers(encoder: Encoder) -> nn.Module:
    """A transformers BertModel with `encoder`'s weights, pooling and head: (input_ids, attention_mask, token_type_ids=None) → logits.

    Raises ConfigError naming what BERT has not.
    """
    config = encoder.config
    if found := list(_beyond_bert(config)):
        raise ConfigError(f"This encoder is no BERT: it has {', '.join(found)}.", "Run it in the engine 'torch' instead of 'transformers'.")
    require("train", "transformers")
    from transformers import BertConfig, BertModel

    ours = encoder.state_dict()
    layer = config.layers[0]
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == layer.feedforward.activation)
    bert = BertModel(
        BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            num_hidden_layers=len(config.layers),
            num_attention_heads=layer.attention.heads,
            intermediate_size=layer.feedforward.neurons,
            hidden_act=activation,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=len(ours["embeddings.positions.weight"]),
            type_vocab_size=max(config.token_types, 1),
            layer_norm_eps=config.norm.eps,
        ),
        add_pooling_layer=False,
    )
    model = _Classifier(bert, config)
    state = {} if config.token_types else {"bert.embeddings.token_type_embeddings.weight": torch.zeros(1, config.width)}
    for name, names in _names(ours):
        for theirs, part in zip(names, ours[name].chunk(len(names)), strict=True):
            state[theirs if theirs.startswith("classifier.") else f"bert.{theirs}"] = part
    model.load_state_dict(state)
    return model.eval()


class _Classifier(nn.Module):
    def __init__(self, bert: nn.Module, config: EncoderConfig) -> None:
        super().__init__()
        self.bert = bert
        self.pool = POOLINGS[config.head.pooling]
        self.classifier = nn.Linear(config.width, config.head.labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        logits: Tensor = self.classifier(self.pool(states, attention_mask.to(states.dtype)))
        return logits


def _names(ours: Iterable[str]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Each of our tensors' names with theirs."""
    for name in ours:
        module, _, parameter = name.rpartition(".")
        if module.startswith("layers."):
            _, number, part = module.split(".", 2)
            yield name, tuple(f"encoder.layer.{number}.{theirs}.{parameter}" for theirs in _LAYER[part])
        else:
            yield name, tuple(f"{theirs}.{parameter}" for theirs in (_EMBEDDINGS | _HEAD)[module])


def _modern(name: str) -> str:
    """Without the prefix of models with a head, and norms as they have been called since 2019."""
    return name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _check_head(tensors: dict[str, Tensor], labels: int, directory: Path) -> None:
    if "classifier.weight" not in tensors:
        raise ConfigError(f"{directory / WEIGHTS} has no classifier to keep.", "Start a fresh head.")
    if any(name.startswith("pooler.") for name in tensors):
        raise ConfigError(
            f"The classifier in {directory / WEIGHTS} stands on BERT's pooler (a dense layer with tanh), which our head has not.",
            "Start a fresh head and train it.",
        )
    if (found := tensors["classifier.weight"].shape[0]) != labels:
        raise ConfigError(f"The classifier in {directory / WEIGHTS} has {found} labels, but {labels} are wanted.", "Start a fresh head.")


def _read_bert(directory: Path, labels: int, pooling: str, max_length: int | None) -> EncoderConfig:
    bert = read_json(directory / CONFIG)
    where = directory / CONFIG
    demands: dict[str, tuple[Any, Iterable[Any]]] = {
        "model_type": (bert.get("model_type"), ("bert",)),
        "position_embedding_type": (bert.get("position_embedding_type") or "absolute", ("absolute",)),
        "hidden_act": (bert.get("hidden_act", "gelu"), _ACTIVATIONS),
        "is_decoder": (bool(bert.get("is_decoder")), (False,)),
        "add_cross_attention": (bool(bert.get("add_cross_attention")), (False,)),
    }
    for feature, (value, known) in demands.items():
        if value not in known:
            raise ConfigError(
                f"{where} has {feature} {value!r}, which cannot be read; known: {', '.join(map(repr, known))}.",
                "Give a checkpoint of a BertModel.",
            )
    try:
        heads, width, length = int(bert["num_attention_heads"]), int(bert["hidden_size"]), bert["max_position_embeddings"]
        if heads < 1 or width % heads:
            raise ConfigError(f"{where} shares a width of {width} among {heads} heads.", "Give a checkpoint of a BertModel.")
        values = {
            "vocabulary": bert["vocab_size"],
            "width": width,
            "token_types": bert.get("type_vocab_size", 2),
            "positions": {"kind": "learned", "length": length},
            "norm": {"kind": "layernorm", "eps": bert.get("layer_norm_eps", 1e-12)},
            "dropout": bert.get("hidden_dropout_prob", 0.1),
            "layers": {
                "count": bert["num_hidden_layers"],
                "attention": {"kind": "dense", "heads": heads, "head_width": width // heads},
                "feedforward": {
                    "kind": "mlp",
                    "neurons": bert["intermediate_size"],
                    "activation": _ACTIVATIONS[bert.get("hidden_act", "gelu")],
                },
            },
            "head": {"kind": "classification", "labels": labels, "pooling": pooling},
            "max_length": max_length or length,
        }
    except KeyError as error:
        raise ConfigError(f"{where} does not say {error.args[0]!r}.", "Give the config.json of a BertModel, whole.") from None
    return read_config(values, f"encoder from {where}")


def _beyond_bert(config: EncoderConfig) -> Iterable[str]:
    """What `config` has and BERT has not."""
    if config.positions.kind != "learned":
        yield f"{config.positions.kind} positions"
    if config.norm.kind != "layernorm":
        yield config.norm.kind
    if config.norm_first:
        yield "norms before (norm_first)"
    if config.quantization:
        yield "quantized parts"
    if any(layer.feedforward.kind != "mlp" for layer in config.layers):
        yield "gated feed-forward networks (glu)"
    if len(set(config.layers)) > 1:
        yield "layers that differ from each other"
    attention = config.layers[0].attention
    if attention.heads * attention.head_width != config.width:
        yield f"{attention.heads} heads of width {attention.head_width} in a width of {config.width}"
