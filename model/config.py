"""The encoder's configuration: slots as tagged unions, the list of layers as the truth.

Every exchangeable part is a slot with a `kind` (model/slots.py, and the heads here); a parameter exists only in the kind that means
it. `layers` may be written as a shorthand and is expanded when read: a pruned, grown or mixed model is just another list. The
shorthand is `{"count": 6, "attention": …, "feedforward": …}`, where a part may be a list, whose members the layers take in turn:
`"attention": [dense, window, window]` makes one layer of three dense. This file is torch-free.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from model.errors import ConfigError
from model.slots import (
    ADDED,
    BETWEEN_TOKENS,
    BY_DISTANCE,
    MIXING,
    Attention,
    FeedForward,
    LayerNorm,
    LearnedPositions,
    Norm,
    Positions,
    Slot,
)

T = TypeVar("T", bound=Slot)


class LayerConfig(Slot):
    """One layer of the stack.

    `positions`: instead of the encoder's, for a layer that has its own (a kind that acts in layers, such as rotary with another base).
    `attention_norm`: false in a first layer that leaves out the norm before its attention, since the embeddings are normed.
    """

    attention: Attention
    feedforward: FeedForward
    positions: Positions | None = None
    attention_norm: bool = True

    @field_validator("attention", mode="before")
    @classmethod
    def _dense(cls, attention: Any) -> Any:
        return {"kind": "dense", **attention} if isinstance(attention, dict) else attention


Hidden = Literal["tanh", "gelu", "gelu_tanh", "relu", "silu"]


class HiddenHead(Slot):
    """What most heads share.

    `hidden`: a dense layer of the encoder's width with this activation before the output, as the heads of BERT and RoBERTa (tanh), ELECTRA
    (gelu) and DistilBERT (relu) have one; `hidden_norm`: a norm of the encoder's kind after that, as in ModernBERT's.
    """

    hidden: Literal["none", "tanh", "gelu", "gelu_tanh", "relu", "silu"] = "none"
    hidden_norm: bool = False

    @model_validator(mode="after")
    def _normed(self) -> "HiddenHead":
        if self.hidden_norm and self.hidden == "none":
            raise ValueError("hidden_norm is a norm after the hidden layer, but there is none: choose hidden, or leave it out")
        return self


class PooledHead(HiddenHead):
    """What heads over a whole text share; `pooling`: the mean over the tokens, or the first token."""

    pooling: Literal["mean", "cls"] = "mean"


class ClassificationHead(PooledHead):
    """One of `labels` classes."""

    kind: Literal["classification"] = "classification"
    labels: int = Field(ge=2)


class MultilabelHead(PooledHead):
    """Any of `labels` classes, each decided by itself."""

    kind: Literal["multilabel"] = "multilabel"
    labels: int = Field(ge=1)


class RegressionHead(PooledHead):
    """One number."""

    kind: Literal["regression"] = "regression"
    labels: Literal[1] = 1


class TaggingHead(HiddenHead):
    """One of `labels` tags for each token."""

    kind: Literal["tagging"] = "tagging"
    labels: int = Field(ge=2)


class EmbeddingHead(Slot):
    """The text as a vector of length 1: the mean over the tokens, or the first token (Reimers and Gurevych 2019, §3)."""

    kind: Literal["embedding"] = "embedding"
    labels: Literal[0] = 0
    pooling: Literal["mean", "cls"] = "mean"


class MaskedHead(Slot):
    """The likeliest token of the vocabulary in each place: a masked language model (Devlin et al. 2018, §3.1).

    A dense layer to the width of the token table with this activation, a norm of the encoder's kind, and the product with the table itself
    (`tied`: Press and Wolf 2017) or with one of its own.
    """

    kind: Literal["masked"] = "masked"
    labels: Literal[0] = 0
    hidden: Hidden = "gelu"
    tied: bool = True


class ReplacedHead(Slot):
    """Whether each token was put in place of another: a dense layer with this activation, one logit (Clark et al. 2020, §2)."""

    kind: Literal["replaced"] = "replaced"
    labels: Literal[1] = 1
    hidden: Hidden = "gelu"


Head = Annotated[
    ClassificationHead | MultilabelHead | RegressionHead | TaggingHead | EmbeddingHead | MaskedHead | ReplacedHead,
    Field(discriminator="kind"),
]


class Quantization(Slot):
    """Which parts are stored in fewer bits, and computed so.

    `scheme`: the form in which ONNX Runtime's CPU ("cpu": uint8 activations with a zero point) or TensorRT ("tensorrt": int8 ones,
    symmetric) runs them as integers; `linears`: names of the linear modules that are QuantizedLinear (static activations, int8 rows of
    weights); `embeddings`: how the token table is stored: fp16, or int8 with one scale a row.
    """

    scheme: Literal["cpu", "tensorrt"] = "cpu"
    linears: tuple[str, ...] = ()
    embeddings: Literal["fp32", "fp16", "int8"] = "fp32"

    @field_validator("embeddings", mode="before")
    @classmethod
    def _of_before(cls, embeddings: Any) -> Any:
        return {True: "int8", False: "fp32"}[embeddings] if isinstance(embeddings, bool) else embeddings

    @property
    def integers(self) -> bool:
        """Whether anything is int8."""
        return bool(self.linears) or self.embeddings == "int8"


class EncoderConfig(Slot):
    """A text encoder with its head; `model.encoder.Encoder` builds it.

    `embedding_width`: of the tables, where they are narrower than the encoder and projected to its width (Lan et al. 2020, §3.1).
    `token_dropout`: share of the tokens, not counting the first, whose embedding is left out in training (Iyyer et al. 2015, §3.1).
    `positions_after_norm`: positions are added to normed embeddings, not before the norm, so that what the first layer projects is a sum of
    what a token gives and what its place gives, both of which can be computed once and for all.
    `early_pooling`: the last layer pools what its attention gives, and what that is added to, as the head would pool the states; its
    output projection, feed-forward network and norms then run on one row a text.
    """

    kind: Literal["encoder"] = "encoder"
    vocabulary: int = Field(ge=1)
    width: int = Field(ge=1)
    embedding_width: int | None = Field(default=None, ge=1)
    token_types: int = Field(default=0, ge=0)
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    positions: Positions = LearnedPositions()
    positions_after_norm: bool = False
    norm: Norm = LayerNorm()
    norm_first: bool = False
    dropout: float = Field(default=0.1, ge=0, lt=1)
    layers: tuple[LayerConfig, ...] = Field(min_length=1)
    early_pooling: bool = False
    head: Head
    max_length: int = Field(default=512, ge=2)
    quantization: Quantization | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "layers" not in values:
            return values
        layers = values["layers"]
        if isinstance(layers, dict) and "count" in layers:
            parts = {name: part if isinstance(part, list | tuple) else [part] for name, part in layers.items() if name != "count"}
            if not isinstance(layers["count"], int):
                raise ValueError(f"layers have a count of {layers['count']!r}: give a whole number")
            if empty := [name for name, part in parts.items() if not part]:
                raise ValueError(f"layers take their {empty[0]} in turn from a list with nothing in it: put one in")
            layers = [{name: part[number % len(part)] for name, part in parts.items()} for number in range(layers["count"])]
        if isinstance(layers, list | tuple):
            layers = [_with_head_width(layer, values.get("width")) for layer in layers]
        return {**values, "layers": layers}

    @field_validator("head", mode="before")
    @classmethod
    def _classify(cls, head: Any) -> Any:
        return {"kind": "classification", **head} if isinstance(head, dict) else head

    @model_validator(mode="after")
    def _possible(self) -> "EncoderConfig":
        if self.positions.kind == "sinusoidal" and self.table_width % 2:
            raise ValueError(f"sinusoidal positions come in pairs, but the embeddings are {self.table_width} wide: choose an even width")
        for number, layer in enumerate(self.layers):
            for problem in self._impossible(layer):
                raise ValueError(f"layer {number} has {problem}")
        if self.positions_after_norm and self.positions.kind not in ADDED:
            raise ValueError(
                f"positions_after_norm, but {self.positions.kind} positions are not added to embeddings: leave it out, or choose "
                f"{' or '.join(ADDED)}"
            )
        if self.early_pooling:
            self._pools_early()
        head = self.head
        if self.norm.kind == "batchnorm" and (head.kind == "masked" or getattr(head, "hidden_norm", False)):
            raise ValueError(f"a {head.kind} head with a norm, but batchnorm cannot be that norm: choose layernorm or rmsnorm")
        stored = self.quantization.embeddings if self.quantization else "fp32"
        if head.kind == "masked" and head.tied and stored != "fp32":
            what = f"the token table is what a tied masked head answers with, so it cannot be {stored}"
            raise ValueError(f"{what}: quantize with embeddings fp32")
        return self

    def _pools_early(self) -> None:
        last = self.layers[-1].attention.kind
        if not hasattr(self.head, "pooling"):
            raise ValueError(f"early_pooling leaves one row a text, but a {self.head.kind} head answers for each token: leave it out")
        if last != "dense":
            raise ValueError(f"early_pooling is for dense attention, but the last layer has {last}: leave it out, or make that layer dense")
        if self.norm.kind == "batchnorm":
            raise ValueError("early_pooling would mix averages over tokens with those over texts in batchnorm: choose another norm")

    def _impossible(self, layer: LayerConfig) -> Iterator[str]:
        attention, positions = layer.attention, layer.positions or self.positions
        if layer.positions and layer.positions.kind not in BETWEEN_TOKENS:
            yield f"{layer.positions.kind} positions of its own, but a layer can only have {', '.join(BETWEEN_TOKENS)}: choose one of them"
        if positions.kind == "rotary" and attention.head_width % 2:
            yield f"heads of width {attention.head_width}, but rotary positions turn pairs: choose an even head_width"
        if positions.kind in BY_DISTANCE and attention.kind in MIXING:
            yield (
                f"{attention.kind} attention, whose keys are mixtures of tokens at no distance that {positions.kind} positions could see: "
                "choose learned, sinusoidal, rotary or none"
            )
        if attention.kind == "linformer" and self.max_length > attention.length:
            yield (
                f"linformer attention for {attention.length} tokens, but max_length is {self.max_length}: lower max_length or raise its "
                "length, or choose landmark attention, which has no longest text"
            )

    @property
    def typed(self) -> bool:
        """Whether the encoder tells the two texts of a pair apart."""
        return self.token_types > 1

    @property
    def folds(self) -> bool:
        """Whether what the first layer projects is a sum of what a token gives and what its place gives (`export.folding`)."""
        first = self.layers[0]
        reads = not (self.norm_first and first.attention_norm)
        fixed = self.positions.kind not in ADDED or self.positions_after_norm
        stretched = self.positions.kind == "learned" and self.positions.length < self.max_length
        return reads and fixed and not stretched and self.head.kind != "masked"  # whose head asks for the tokens' own table

    @property
    def maskless(self) -> bool:
        """Whether a batch without padding needs no mask: nothing in the encoder but dense attention and pooling asks what is padding."""
        kinds = (self.positions, *(layer.positions for layer in self.layers if layer.positions))
        by_text = any(kind.kind == "rotary" and kind.extension and kind.extension.kind == "dynamic" for kind in kinds)
        stretched = self.positions.kind == "learned" and self.positions.length < self.max_length
        dense = all(layer.attention.kind == "dense" for layer in self.layers)
        return dense and not by_text and not stretched and self.norm.kind != "batchnorm"

    @property
    def table_width(self) -> int:
        """Width of the embedding tables."""
        return self.embedding_width or self.width

    @property
    def table(self) -> str:
        """Name of the module that is the token table."""
        return "embeddings.tokens"

    @property
    def vector_width(self) -> int:
        """Width of the vectors that an embedding head gives."""
        return self.width

    def changed(self, **fields: Any) -> "EncoderConfig":
        """A copy with `fields` replaced, validated again."""
        return read_config({**self.model_dump(), **fields})


def _with_head_width(layer: Any, width: Any) -> Any:
    """`layer` with the head width that shares the encoder's among its heads, where none is given."""
    attention = layer.get("attention") if isinstance(layer, dict) else None
    if not isinstance(attention, dict) or "head_width" in attention or not isinstance(width, int):
        return layer
    heads = attention.get("heads")
    if not isinstance(heads, int) or heads < 1:
        return layer
    if width % heads:
        raise ValueError(f"{heads} heads do not divide a width of {width}: choose a divisor, or give head_width")
    return {**layer, "attention": {**attention, "head_width": width // heads}}


def read_config(values: dict[str, Any], what: str = "encoder configuration") -> EncoderConfig:
    """Validate `values`; raises ConfigError with every problem on one line."""
    return validated(EncoderConfig, values, what)


def validated(kind: type[T], values: dict[str, Any], what: str) -> T:
    """`values` as a configuration of `kind`; raises ConfigError with every problem on one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"Impossible {what}: {problems(error)}.", "`compress options` lists the slots and their parameters.") from None


def problems(error: ValidationError) -> str:
    """Every problem of a pydantic error in one line, each once, whatever number of layers has it: `where: what (got value)`."""
    items = error.errors()
    found: dict[tuple[Any, ...], list[str]] = {}
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(other["loc"][: len(place)] == place for other in items if other is not item):
            continue  # a list is empty because what should be in it has problems of its own
        text = "it does not say its kind" if item["type"] == "union_tag_not_found" else item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] in ("missing", "value_error") or isinstance(item["input"], dict) else f" (got {item['input']!r})"
        same = (*(part for part in place if not isinstance(part, int)), text, got)
        found.setdefault(same, []).append(f"{'.'.join(map(str, place)) or 'configuration'}: {text}{got}")
    return "; ".join(first + (f" (and {len(more)} more like it)" if more else "") for first, *more in found.values())
