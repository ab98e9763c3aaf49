"""Every kind of model as configuration: the encoder (model/config.py), and models of tables. This file is torch-free."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.config import EmbeddingHead, EncoderConfig, Head, PooledHead, Quantization, validated
from model.errors import ConfigError
from model.slots import Slot


class TableConfig(Slot):
    """What the models share that look tokens up in tables, pool over the text, and have one hidden layer and a linear after that.

    `width`: of a token's row; `neurons`: of the hidden layer; `vector`: width of the vectors of an embedding head (left out: `width`).
    `token_dropout`: share of the tokens, not counting the first, that are left out in training (Iyyer et al. 2015, §3.1).
    """

    vocabulary: int = Field(ge=1)
    width: int = Field(default=128, ge=1)
    neurons: int = Field(default=256, ge=1)
    token_dropout: float = Field(default=0.1, ge=0, lt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    vector: int | None = Field(default=None, ge=1)
    head: Head
    max_length: int = Field(default=512, ge=2)
    quantization: Quantization | None = None

    @field_validator("head", mode="before")
    @classmethod
    def _classify(cls, head: Any) -> Any:
        return {"kind": "classification", **head} if isinstance(head, dict) else head

    @model_validator(mode="after")
    def _possible(self) -> Self:
        kind = getattr(self, "kind", "")
        if not isinstance(self.head, PooledHead | EmbeddingHead):
            raise ValueError(f"a {kind} model gives one answer for a text and none for its tokens: {self.head.kind} needs an encoder")
        if self.head.pooling != "mean" or getattr(self.head, "hidden", "none") != "none":
            raise ValueError(f"a {kind} model has its own pooling and hidden layer: leave those of the head out")
        return self

    @property
    def typed(self) -> bool:
        """Whether the two texts of a pair are told apart: never."""
        return False

    @property
    def maskless(self) -> bool:
        """Whether a batch without padding needs no mask: always."""
        return True

    @property
    def vector_width(self) -> int:
        """Width of the vectors that an embedding head gives."""
        return self.vector or self.width

    def changed(self, **fields: Any) -> Self:
        """A copy with `fields` replaced, validated again."""
        return validated(type(self), {**self.model_dump(), **fields}, "configuration")


class StaticConfig(TableConfig):
    """A bag of tokens and hashed n-grams, their rows averaged (Joulin et al. 2016, §2); `model.static.Static` builds it.

    `ngrams`: lengths of the n-grams, each at least 2; `buckets`: rows that they share by their hash.
    """

    kind: Literal["static"] = "static"
    ngrams: tuple[Annotated[int, Field(ge=2, le=5)], ...] = (2,)
    buckets: int = Field(default=65536, ge=1, le=2**24)

    @property
    def table(self) -> str:
        """Name of the module that is the token table."""
        return "rows"


class ConvolutionConfig(TableConfig):
    """One convolution over the tokens, the maximum and the mean of its channels (Kim 2014, §2); `model.convolution.Convolution` builds it.

    `taps`: tokens that a channel sees, an odd number; `folded`: whether the token table has been multiplied into the convolution, so that
    each tap is a row looked up.
    """

    kind: Literal["convolution"] = "convolution"
    token_dropout: float = Field(default=0.2, ge=0, lt=1)
    channels: int = Field(default=256, ge=1)
    taps: int = Field(default=3, ge=1, le=15)
    folded: bool = False

    @field_validator("taps")
    @classmethod
    def _odd(cls, taps: int) -> int:
        if taps % 2 == 0:
            raise ValueError(f"{taps} taps have no one in the middle: choose an odd number")
        return taps

    @property
    def table(self) -> str:
        """Name of the module that is the token table."""
        return "rows" if self.folded else "tokens"


ModelConfig = EncoderConfig | StaticConfig | ConvolutionConfig
KINDS: dict[str, type[ModelConfig]] = {"encoder": EncoderConfig, "static": StaticConfig, "convolution": ConvolutionConfig}


def read_model(values: dict[str, Any], what: str = "model configuration") -> ModelConfig:
    """`read_config` for a model of any kind; without a `kind` it is an encoder's."""
    kind = values.get("kind", "encoder")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"Impossible {what}: there is no kind of model {kind!r}.", f"Choose one of {', '.join(KINDS)}.")
    return validated(KINDS[kind], values, what)
