"""The encoder's configuration: slots as tagged unions, the list of layers as the truth.

Every exchangeable part is a slot with a `kind`; a parameter exists only in the kind that means it. `layers` may be written as a
shorthand (`{"count": 6, "attention": …, "feedforward": …}`) and is expanded when read: a pruned, grown or mixed model is just
another list. This file is torch-free.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.errors import ConfigError


class Slot(BaseModel):
    """A frozen part of a configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LearnedPositions(Slot):
    """A table of `length` learned vectors, added to the token embeddings (Devlin et al. 2018, §3)."""

    kind: Literal["learned"] = "learned"
    length: int = Field(default=512, ge=1)


class RotaryPositions(Slot):
    """Queries and keys rotated by their position (Su et al. 2021, §3.2.2)."""

    kind: Literal["rotary"] = "rotary"
    base: float = Field(default=10000.0, gt=1)


class NoPositions(Slot):
    """No notion of order."""

    kind: Literal["none"] = "none"


Positions = Annotated[LearnedPositions | RotaryPositions | NoPositions, Field(discriminator="kind")]


class DenseAttention(Slot):
    """Every token attends to every token; `heads` of `head_width` each (Vaswani et al. 2017, §3.2)."""

    kind: Literal["dense"] = "dense"
    heads: int = Field(ge=1)
    head_width: int = Field(ge=1)


Attention = DenseAttention


Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


class Mlp(Slot):
    """down(activation(up(x))) with `neurons` in the middle."""

    kind: Literal["mlp"] = "mlp"
    neurons: int = Field(ge=1)
    activation: Activation = "gelu"


class Glu(Slot):
    """down(activation(gate(x)) * up(x)): GeGLU with gelu, SwiGLU with silu (Shazeer 2020)."""

    kind: Literal["glu"] = "glu"
    neurons: int = Field(ge=1)
    activation: Activation = "silu"


FeedForward = Annotated[Mlp | Glu, Field(discriminator="kind")]


class LayerNorm(Slot):
    """Mean and variance (Ba et al. 2016)."""

    kind: Literal["layernorm"] = "layernorm"
    eps: float = Field(default=1e-12, gt=0)


class RmsNorm(Slot):
    """Root mean square only (Zhang and Sennrich 2019)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: float = Field(default=1e-6, gt=0)


Norm = Annotated[LayerNorm | RmsNorm, Field(discriminator="kind")]


class LayerConfig(Slot):
    """One layer of the stack."""

    attention: Attention
    feedforward: FeedForward


class ClassificationHead(Slot):
    """One of `labels` classes from the pooled last layer: `mean` over the tokens, or the first token (`cls`)."""

    kind: Literal["classification"] = "classification"
    labels: int = Field(ge=2)
    pooling: Literal["mean", "cls"] = "mean"


class Quantization(Slot):
    """Which parts are stored and computed in int8.

    `linears`: names of the linear modules that are QuantizedLinear (static uint8 activations, int8 rows of weights);
    `embeddings`: whether the token table is int8 with one scale a row.
    """

    linears: tuple[str, ...] = ()
    embeddings: bool = False


class EncoderConfig(Slot):
    """A text encoder with its head; `model.encoder.Encoder` builds it."""

    vocabulary: int = Field(ge=1)
    width: int = Field(ge=1)
    token_types: int = Field(default=0, ge=0)
    positions: Positions = LearnedPositions()
    norm: Norm = LayerNorm()
    norm_first: bool = False
    dropout: float = Field(default=0.1, ge=0, lt=1)
    layers: tuple[LayerConfig, ...] = Field(min_length=1)
    head: ClassificationHead
    max_length: int = Field(default=512, ge=2)
    quantization: Quantization | None = None

    @field_validator("layers", mode="before")
    @classmethod
    def _expand(cls, layers: Any) -> Any:
        if isinstance(layers, dict) and "count" in layers:
            layer = {name: value for name, value in layers.items() if name != "count"}
            return [layer] * int(layers["count"])
        return layers

    @model_validator(mode="after")
    def _possible(self) -> "EncoderConfig":
        if self.positions.kind == "learned" and self.max_length > self.positions.length:
            raise ValueError(
                f"max_length is {self.max_length}, but there are only {self.positions.length} learned positions: "
                "lower max_length or lengthen the table"
            )
        if self.positions.kind == "rotary":
            for number, layer in enumerate(self.layers):
                if layer.attention.head_width % 2:
                    raise ValueError(
                        f"layer {number} has heads of width {layer.attention.head_width}, but rotary positions turn pairs: "
                        "choose an even head_width"
                    )
        return self

    def changed(self, **fields: Any) -> "EncoderConfig":
        """A copy with `fields` replaced, validated again."""
        return read_config({**self.model_dump(), **fields})


def read_config(values: dict[str, Any], what: str = "encoder configuration") -> EncoderConfig:
    """Validate `values`; raises ConfigError with every problem on one line."""
    try:
        return EncoderConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"Impossible {what}: {problems(error)}.", "`compress options` lists the slots and their parameters.") from None


def problems(error: ValidationError) -> str:
    """Every problem of a pydantic error in one line: `where: what (got value)`."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "configuration"
        text = item["msg"].removeprefix("Value error, ")
        got = "" if item["type"] in ("missing", "value_error") or isinstance(item["input"], dict) else f" (got {item['input']!r})"
        parts.append(f"{where}: {text}{got}")
    return "; ".join(parts)
