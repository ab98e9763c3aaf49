"""Families of checkpoints as tables: what their tensors are called, and how their config.json reads as ours.

The names are those of transformers. What our encoder cannot represent is refused by name, never dropped; biases that a family leaves
out are zeros here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.errors import ConfigError

Values = dict[str, Any]
Tensors = dict[str, Tensor]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Family:
    """One family. In the tables ours ← theirs; several of theirs are stacked, rows upon rows; a line is a weight and its bias.

    `prefix` stands before the names in models with a head, `layer` before those of layer {}. `heads`: kind of head → its modules, with the
    activations `hidden` (kind → ours, or "=" and the key of theirs in config.json; gelu if left out); what a masked language model answers
    with is `decoder`, where it is not the token table, and the first of `decoder_bias` that is there. `left_out`: heads that are not kept.
    `read` gives the encoder's configuration without its head; `mend` makes the tensors fit the tables.
    """

    prefix: str
    embeddings: Mapping[str, tuple[str, ...]]
    layer: str
    layers: Mapping[str, tuple[str, ...]]
    heads: Mapping[str, Mapping[str, str]]
    hidden: Mapping[str, str]
    decoder: str
    decoder_bias: tuple[str, ...]
    left_out: tuple[str, ...]
    read: Callable[[Values], Values]
    mend: Callable[[Tensors, Values], Tensors] = lambda tensors, config: tensors
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def theirs(self, ours: str) -> tuple[str, ...]:
        """The names of the tensors that make our tensor `ours`, which is not one of the head."""
        module, _, parameter = ours.rpartition(".")
        if module.startswith("layers."):
            _, number, part = module.split(".", 2)
            return tuple(f"{self.layer.format(number)}{theirs}.{parameter}" for theirs in self.layers[part])
        return tuple(f"{theirs}.{parameter}" for theirs in {**self.embeddings, **self.others}[module])

    def activation(self, kind: str, config: Values) -> str:
        """Ours of the checkpoint's own head of `kind`; raises ConfigError if it is unknown."""
        said = self.hidden.get(kind, self.hidden.get("", "gelu"))
        return ACTIVATIONS[demand(config, said[1:], ACTIVATIONS, "gelu")] if said.startswith("=") else said


def demand(config: Values, feature: str, known: Iterable[Any], default: Any = None) -> Any:
    """The value of `feature`; raises ConfigError if it is not one of `known`."""
    value = config.get(feature, default)
    if value not in (known := list(known)):
        raise ConfigError(
            f"This {config['model_type']} has {feature} {value!r}, which cannot be read; known: {', '.join(map(repr, known))}.",
            "As a teacher any model of transformers will do: `compress distill DIRECTORY --data DATA --base minilm`.",
        )
    return value


def _shared(width: int, heads: int) -> dict[str, Any]:
    if heads < 1 or width % heads:
        raise ConfigError(f"It shares a width of {width} among {heads} heads.", "Give a checkpoint whose config.json is whole.")
    return {"kind": "dense", "heads": heads, "head_width": width // heads}


def _read_bert(config: Values) -> Values:
    demand(config, "position_embedding_type", ("absolute", None), "absolute")
    demand(config, "is_decoder", (False, None), False)
    demand(config, "add_cross_attention", (False, None), False)
    activation = ACTIVATIONS[demand(config, "hidden_act", ACTIVATIONS, "gelu")]
    width, length = int(config["hidden_size"]), config["max_position_embeddings"]
    return {
        "vocabulary": config["vocab_size"],
        "width": width,
        "token_types": config.get("type_vocab_size", 2),
        "positions": {"kind": "learned", "length": length},
        "norm": {"kind": "layernorm", "eps": config.get("layer_norm_eps", 1e-12)},
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "layers": {
            "count": config["num_hidden_layers"],
            "attention": _shared(width, int(config["num_attention_heads"])),
            "feedforward": {"kind": "mlp", "neurons": config["intermediate_size"], "activation": activation},
        },
        "max_length": length,
    }


def _mend_bert(tensors: Tensors, config: Values) -> Tensors:
    """Norms as they have been called since 2019."""
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in tensors.items()
    }


def _read_roberta(config: Values) -> Values:
    length = config["max_position_embeddings"] - config.get("pad_token_id", 1) - 1
    return _read_bert({"layer_norm_eps": 1e-5, "type_vocab_size": 1, **config, "max_position_embeddings": length})


def _mend_roberta(tensors: Tensors, config: Values) -> Tensors:
    """Positions count from the padding's id + 1 on: the rows before that are never used."""
    table = "embeddings.position_embeddings.weight"
    first = config.get("pad_token_id", 1) + 1
    return {name: value[first:] if name == table else value for name, value in tensors.items()}


def _read_electra(config: Values) -> Values:
    width = config.get("embedding_size", config["hidden_size"])
    return {**_read_bert(config), "embedding_width": None if width == config["hidden_size"] else width}


def _read_distilbert(config: Values) -> Values:
    names = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
    }
    renamed = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
    return _read_bert({**config, **renamed, "type_vocab_size": 0, "layer_norm_eps": 1e-12})


def _read_modernbert(config: Values) -> Values:
    width, depth = int(config["hidden_size"]), config["num_hidden_layers"]
    activation = ACTIVATIONS[demand(config, "hidden_activation", ACTIVATIONS, "gelu")]
    dense, every = _shared(width, int(config["num_attention_heads"])), config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types") or ["sliding_attention" if number % every else "full_attention" for number in range(depth)]
    rope = config.get("rope_parameters") or {
        "full_attention": {"rope_theta": config.get("global_rope_theta", 160000.0)},
        "sliding_attention": {"rope_theta": config.get("local_rope_theta") or config.get("global_rope_theta", 10000.0)},
    }
    for parameters in rope.values():
        demand({"model_type": "modernbert", **parameters}, "rope_type", ("default",), "default")
    window = {**dense, "kind": "window", "window": config.get("local_attention", 128) // 2 * 2, "global_tokens": 0}
    return {
        "vocabulary": config["vocab_size"],
        "width": width,
        "positions": {"kind": "rotary", "base": rope["full_attention"]["rope_theta"]},
        "norm": {"kind": "layernorm", "eps": config.get("norm_eps", 1e-5)},
        "norm_first": True,
        "dropout": config.get("mlp_dropout", 0.0),
        "layers": [
            {
                "attention": dense if kind == "full_attention" else window,
                "feedforward": {"kind": "glu", "neurons": config["intermediate_size"], "activation": activation},
                "positions": None if kind == "full_attention" else {"kind": "rotary", "base": rope[kind]["rope_theta"]},
                "attention_norm": number > 0,
            }
            for number, kind in enumerate(kinds)
        ],
        "max_length": config["max_position_embeddings"],
    }


def _mend_modernbert(tensors: Tensors, config: Values) -> Tensors:
    """Gate and up are packed into one matrix; biases are left out."""
    mended: Tensors = {} if config.get("decoder_bias", True) else {"decoder.bias": torch.zeros(config["vocab_size"])}
    for name, value in tensors.items():
        gate, up = value.chunk(2) if ".mlp.Wi." in name else (value, None)
        named = {name: gate} if up is None else {name.replace(".Wi.", ".gate."): gate, name.replace(".Wi.", ".up."): up}
        mended |= named
        if not name.endswith((".bias", "embeddings.weight")):
            mended |= {
                bias: torch.zeros(len(part)) for key, part in named.items() if (bias := key.replace(".weight", ".bias")) not in tensors
            }
    return mended


_EMBEDDINGS = {
    "embeddings.tokens": ("embeddings.word_embeddings",),
    "embeddings.types": ("embeddings.token_type_embeddings",),
    "embeddings.positions": ("embeddings.position_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
    "embeddings.projection": ("embeddings_project",),
}
_BERT_LAYER = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feedforward.up": ("intermediate.dense",),
    "feedforward.down": ("output.dense",),
    "feedforward_norm": ("output.LayerNorm",),
}
_BERT_LEFT_OUT = ("pooler.", "cls.", "classifier.", "qa_outputs.", "embeddings.position_ids", "lm_head.")

_TAGGER = {"head.output": "classifier"}

BERT = Family(
    prefix="bert.",
    embeddings=_EMBEDDINGS,
    layer="encoder.layer.{}.",
    layers=_BERT_LAYER,
    heads={
        "classification": {"head.hidden": "pooler.dense", "head.output": "classifier"},
        "tagging": _TAGGER,
        "masked": {"head.hidden": "cls.predictions.transform.dense", "head.norm": "cls.predictions.transform.LayerNorm"},
    },
    hidden={"": "tanh", "masked": "=hidden_act"},
    decoder="cls.predictions.decoder",
    decoder_bias=("cls.predictions.bias", "cls.predictions.decoder.bias"),
    left_out=_BERT_LEFT_OUT,
    read=_read_bert,
    mend=_mend_bert,
)
ROBERTA = Family(
    prefix="roberta.",
    embeddings=_EMBEDDINGS,
    layer="encoder.layer.{}.",
    layers=_BERT_LAYER,
    heads={
        "classification": {"head.hidden": "classifier.dense", "head.output": "classifier.out_proj"},
        "tagging": _TAGGER,
        "masked": {"head.hidden": "lm_head.dense", "head.norm": "lm_head.layer_norm"},
    },
    hidden={"": "tanh", "masked": "gelu"},
    decoder="lm_head.decoder",
    decoder_bias=("lm_head.bias", "lm_head.decoder.bias"),
    left_out=_BERT_LEFT_OUT,
    read=_read_roberta,
    mend=_mend_roberta,
)
ELECTRA = Family(
    prefix="electra.",
    embeddings=_EMBEDDINGS,
    layer="encoder.layer.{}.",
    layers=_BERT_LAYER,
    heads={
        "classification": {"head.hidden": "classifier.dense", "head.output": "classifier.out_proj"},
        "tagging": _TAGGER,
        "masked": {"head.hidden": "generator_predictions.dense", "head.norm": "generator_predictions.LayerNorm"},
        "replaced": {"head.hidden": "discriminator_predictions.dense", "head.output": "discriminator_predictions.dense_prediction"},
    },
    hidden={"": "gelu", "replaced": "=hidden_act"},
    decoder="generator_lm_head",
    decoder_bias=("generator_lm_head.bias",),
    left_out=(*_BERT_LEFT_OUT, "discriminator_predictions.", "generator_predictions.", "generator_lm_head."),
    read=_read_electra,
)
DISTILBERT = Family(
    prefix="distilbert.",
    embeddings=_EMBEDDINGS,
    layer="transformer.layer.{}.",
    layers={
        "attention.qkv": ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.output": ("attention.out_lin",),
        "attention_norm": ("sa_layer_norm",),
        "feedforward.up": ("ffn.lin1",),
        "feedforward.down": ("ffn.lin2",),
        "feedforward_norm": ("output_layer_norm",),
    },
    heads={
        "classification": {"head.hidden": "pre_classifier", "head.output": "classifier"},
        "tagging": _TAGGER,
        "masked": {"head.hidden": "vocab_transform", "head.norm": "vocab_layer_norm"},
    },
    hidden={"": "relu", "masked": "=activation"},
    decoder="vocab_projector",
    decoder_bias=("vocab_projector.bias",),
    left_out=("pre_classifier.", "classifier.", "vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "qa_outputs."),
    read=_read_distilbert,
)
_PREDICTION = {"head.hidden": "head.dense", "head.norm": "head.norm"}

MODERNBERT = Family(
    prefix="model.",
    embeddings={"embeddings.tokens": ("embeddings.tok_embeddings",), "embeddings.norm": ("embeddings.norm",)},
    others={"norm": ("final_norm",)},
    layer="layers.{}.",
    layers={
        "attention.qkv": ("attn.Wqkv",),
        "attention.output": ("attn.Wo",),
        "attention_norm": ("attn_norm",),
        "feedforward.gate": ("mlp.gate",),
        "feedforward.up": ("mlp.up",),
        "feedforward.down": ("mlp.Wo",),
        "feedforward_norm": ("mlp_norm",),
    },
    heads={
        "classification": {**_PREDICTION, "head.output": "classifier"},
        "tagging": {**_PREDICTION, "head.output": "classifier"},
        "masked": _PREDICTION,
    },
    hidden={"": "=classifier_activation"},
    decoder="decoder",
    decoder_bias=("decoder.bias",),
    left_out=("head.", "classifier.", "decoder."),
    read=_read_modernbert,
    mend=_mend_modernbert,
)
FAMILIES = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
}
