"""Checkpoints of other families in, and our encoders out as transformers models.

The families' names and features are tables (model/families.py). What one side cannot represent is refused, never dropped.
"""

import copy
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.checkpoint import CONFIG, WEIGHTS, read_json, read_tensors
from model.config import EncoderConfig, read_config
from model.encoder import Encoder
from model.errors import ArtifactError, ConfigError, require
from model.families import ACTIVATIONS, BERT, FAMILIES, Family, Tensors, Values, demand
from model.heads import MaskedHead

WHOLE = "Give a checkpoint whose config.json belongs to its weights."
HEADS = {"ForMaskedLM": "masked", "ForPreTraining": "masked", "ForTokenClassification": "tagging"}
"""How the name of a model of transformers ends → the task of its head."""


def load_pretrained(directory: Path, head: Mapping[str, Any], *, kept: bool = False, max_length: int | None = None) -> Encoder:
    """The encoder of a checkpoint of one of FAMILIES (config.json, model.safetensors) with the head of this configuration, in eval mode.

    The head is fresh, or with `kept` the checkpoint's own, `head` naming its kind and labels. `max_length` is the checkpoint's if None.
    Raises ConfigError naming what cannot be represented; ArtifactError if a file or a tensor is missing, unknown or misshapen.
    """
    where = directory / CONFIG
    given = read_json(where)
    if given.get("model_type") not in FAMILIES:
        raise ConfigError(
            f"{where} has model_type {given.get('model_type')!r}, which cannot be read; known: {', '.join(FAMILIES)}.",
            "As a teacher any model of transformers will do: `compress distill DIRECTORY --data DATA --base minilm`.",
        )
    family = FAMILIES[given["model_type"]]
    try:
        values = family.read(given)
    except KeyError as error:
        raise ConfigError(f"{where} does not say {error.args[0]!r}.", "Give the config.json of the model, whole.") from None
    tensors = family.mend({name.removeprefix(family.prefix): value for name, value in read_tensors(directory / WEIGHTS).items()}, given)
    names: dict[str, tuple[str, ...]] = {}
    if kept:
        head, names = _kept_head(family, given, tensors, dict(head), directory)
    length = {"max_length": max_length} if max_length else {}
    encoder = Encoder(read_config({**values, "head": dict(head), **length}, f"encoder from {where}"))
    wanted = encoder.state_dict()
    names |= {ours: family.theirs(ours) for ours in wanted if not ours.startswith("head.")}
    _check_names(names, tensors, family, directory)
    for ours, theirs in names.items():
        rows, *columns = wanted[ours].shape
        expected = [rows // len(theirs), *columns]
        for name in theirs:
            if list(tensors[name].shape) != expected:
                raise ArtifactError(
                    f"{directory / WEIGHTS}: {name} is {list(tensors[name].shape)}, but config.json asks for {expected}.", WHOLE
                )
        wanted[ours] = torch.cat([tensors[name] for name in theirs]).float()
    encoder.load_state_dict(wanted)
    return encoder.eval()


def own_task(directory: Path) -> str | None:
    """The task of a checkpoint's own head, by the name that transformers gave the model ("BertForMaskedLM"); None where that says none."""
    given = read_json(directory / CONFIG)
    name = str((given.get("architectures") or [""])[0])
    if name == "ElectraForPreTraining":
        return "replaced"
    if not name.endswith("ForSequenceClassification"):
        return next((task for end, task in HEADS.items() if name.endswith(end)), None)
    if given.get("problem_type") == "multi_label_classification":
        return "multilabel"
    return "regression" if len(given.get("id2label") or (0, 1)) == 1 else "classification"


def own_head(directory: Path) -> tuple[str, list[str]]:
    """Task and labels of a checkpoint's own head; raises ConfigError if it has none, or if its config.json does not name its labels."""
    task = own_task(directory)
    if task is None:
        named = ", ".join(read_json(directory / CONFIG).get("architectures") or []) or "nothing"
        raise ConfigError(
            f"{directory} has no head of its own that is known here: its config.json names {named} as its model.",
            f"Known: …{', …'.join(HEADS)} and …ForSequenceClassification; or start a head: `compress train DATA --base {directory} …`.",
        )
    fixed = {"masked": [], "replaced": ["replaced"], "regression": ["score"]}
    return task, fixed[task] if task in fixed else pretrained_labels(directory)


def pretrained_labels(directory: Path) -> list[str]:
    """The labels of a checkpoint's own head, in order; raises ConfigError if its config.json names none."""
    given = read_json(directory / CONFIG)
    names = {int(number): str(name) for number, name in (given.get("id2label") or {}).items()}
    if sorted(names) != list(range(len(names))) or not names:
        raise ConfigError(f"{directory / CONFIG} names no labels.", "Write them there as id2label.")
    return [names[number] for number in range(len(names))]


def longest(directory: Path) -> int:
    """Tokens that a text is cut to: what tokenizer and positions both allow, at most 512."""
    config, tokenizer = (
        json.loads(path.read_bytes()) if path.exists() else {} for path in (directory / CONFIG, directory / "tokenizer_config.json")
    )
    positions = config.get("max_position_embeddings", 512)
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # theirs begin behind the padding's
    return int(min(512, positions, tokenizer.get("model_max_length", math.inf)))


def to_transformers(encoder: Encoder) -> nn.Module:
    """A transformers BertModel with `encoder`'s weights and head: (input_ids, attention_mask, token_type_ids=None) → what `encoder` gives.

    Raises ConfigError naming what BERT has not.
    """
    config = encoder.config
    check_bert(config)
    require("train", "transformers")
    from transformers import BertConfig, BertModel

    ours = encoder.state_dict()
    layer: Any = config.layers[0]
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == layer.feedforward.activation)
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
    state = {} if config.token_types else {"embeddings.token_type_embeddings.weight": torch.zeros(1, config.width)}
    for name in ours:
        if not name.startswith("head."):
            theirs = BERT.theirs(name)
            state |= zip(theirs, ours[name].chunk(len(theirs)), strict=True)
    bert.load_state_dict(state)
    return _WithHead(bert, copy.deepcopy(encoder.head)).eval()


class _WithHead(nn.Module):
    def __init__(self, bert: Any, head: nn.Module) -> None:
        super().__init__()
        self.bert = bert
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        table = (self.bert.get_input_embeddings().weight,) if isinstance(self.head, MaskedHead) else ()
        outputs: Tensor = self.head(states, attention_mask.to(states.dtype), *table)
        return outputs


def has_head(directory: Path, kind: str) -> bool:
    """Whether the checkpoint has a head of `kind` of its own, "masked" or "replaced"."""
    family = FAMILIES.get(str(read_json(directory / CONFIG).get("model_type")))
    if family is None or kind not in family.heads:
        return False
    with safe_open(directory / WEIGHTS, "pt") as tensors:
        names = set(tensors.keys())
    answers = kind != "masked" or any(name in names for name in (*family.decoder_bias, f"{family.decoder}.weight"))
    return answers and all(f"{theirs}.weight" in names for theirs in family.heads[kind].values())


def _kept_head(
    family: Family, given: Values, tensors: Tensors, head: dict[str, Any], directory: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """The configuration of the checkpoint's own head, and its names; raises ConfigError if there is none that ours can be."""
    kind = head.get("kind", "classification")
    pooled = kind in ("classification", "multilabel", "regression")
    table = family.heads.get("classification" if pooled else kind, {})
    if not table:
        raise ConfigError(f"A {given['model_type']} has no head that is {kind}.", "Start a fresh head and train it.")
    if pooled:
        head["pooling"] = demand(given, "classifier_pooling", ("cls", "mean"), "cls")
    if "head.hidden" in table:
        head["hidden"] = family.activation(kind, given)
        head |= {"hidden_norm": True} if "head.norm" in table and kind != "masked" else {}
    names: dict[str, tuple[str, ...]]
    names = {f"{ours}.{parameter}": (f"{theirs}.{parameter}",) for ours, theirs in table.items() for parameter in ("weight", "bias")}
    if kind == "masked":
        head["tied"] = bool(given.get("tie_word_embeddings", True))
        output = f"{family.decoder}.weight"
        names |= {} if head["tied"] else {"head.table.weight": (output,)}
        biases = family.decoder_bias if head["tied"] else family.decoder_bias[::-1]  # untied, the output has a bias of its own
        names["head.bias"] = (next((name for name in biases if name in tensors), biases[0]),)
    if missing := [theirs for (theirs, *_) in names.values() if theirs not in tensors]:
        raise ConfigError(f"{directory / WEIGHTS} has no classifier to keep: {missing[0]} is missing.", "Start a fresh head.")
    if kind != "masked" and (found := len(tensors[names["head.output.weight"][0]])) != head["labels"]:
        raise ConfigError(
            f"The classifier in {directory / WEIGHTS} has {found} labels, but {head['labels']} are wanted.", "Start a fresh head."
        )
    return head, names


def _check_names(names: Mapping[str, tuple[str, ...]], tensors: Tensors, family: Family, directory: Path) -> None:
    used = [name for theirs in names.values() for name in theirs]
    if missing := [name for name in used if name not in tensors]:
        raise ArtifactError(f"{directory / WEIGHTS} has no tensor {missing[0]}.", WHOLE)
    if unknown := [name for name in tensors if name not in set(used) and not name.startswith(family.left_out)]:
        raise ArtifactError(f"{directory / WEIGHTS} has a tensor that its family has not: {unknown[0]}.", WHOLE)


def check_bert(config: EncoderConfig, name: object = "This encoder") -> None:
    """Raise ConfigError that says what an encoder, called `name`, has and a BERT has not."""
    if found := list(_beyond_bert(config)):
        raise ConfigError(
            f"{name} is no BERT: it has {', '.join(found)}.", "Run it in our own PyTorch instead of transformers: --way torch,ort."
        )


def _beyond_bert(config: EncoderConfig) -> Iterable[str]:
    """What `config` has and BERT has not."""
    if config.positions.kind != "learned":
        yield f"{config.positions.kind} positions"
    if config.norm.kind != "layernorm":
        yield config.norm.kind
    if config.norm_first:
        yield "norms before (norm_first)"
    if config.early_pooling:
        yield "early pooling"
    if config.quantization:
        yield "quantized parts"
    if config.embedding_width not in (None, config.width):
        yield "embeddings of another width"
    if any(layer.attention.kind != "dense" for layer in config.layers):
        yield "attention that is not dense"
    elif any(layer.attention.prefix for layer in config.layers if layer.attention.kind == "dense"):
        yield "a prefix"
    if any(layer.feedforward.kind == "glu" for layer in config.layers):
        yield "gated feed-forward networks (glu)"
    if any(layer.feedforward.kind == "none" for layer in config.layers):
        yield "layers without a feed-forward network"
    if any(layer.attention.key_value_heads or layer.attention.query_key_norm for layer in config.layers):
        yield "shared keys and values, or norms over queries and keys"
    if any(layer.positions or not layer.attention_norm for layer in config.layers):
        yield "layers with positions of their own or without a norm"
    if len(set(config.layers)) > 1:
        yield "layers that differ from each other"
    attention = config.layers[0].attention
    if attention.heads * attention.head_width != config.width:
        yield f"{attention.heads} heads of width {attention.head_width} in a width of {config.width}"
