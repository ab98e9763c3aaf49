"""The slots of the encoder's body as configuration: positions, attention, feed-forward network, norm.

Each slot has kinds, and a parameter exists only in the kind that means it. This file is torch-free.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Slot(BaseModel):
    """A frozen part of a configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LearnedPositions(Slot):
    """A table of `length` learned vectors, added to the token embeddings (Devlin et al. 2018, §3).

    For a text longer than the table, the table is stretched to the text's length by linear interpolation.
    """

    kind: Literal["learned"] = "learned"
    length: int = Field(default=512, ge=1)


class SinusoidalPositions(Slot):
    """Sines and cosines of wavelengths from 2π to `base`·2π, added to the token embeddings (Vaswani et al. 2017, §3.5).

    `scale`: what they are multiplied by, the deviation of fresh embeddings. (The paper multiplies the embeddings up to 1 instead; unless
    one or the other is done, the positions drown the words.)
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: float = Field(default=10000.0, gt=1)
    scale: float = Field(default=0.02, gt=0)


class LinearExtension(Slot):
    """Positions divided by `factor` (Chen et al. 2023, §2.3)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=1)


class DynamicExtension(Slot):
    """Dynamic NTK: the base grows with the text once it has more than `length` tokens (Peng et al. 2023, §3.3).

    `length`: tokens a text had in training.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: float = Field(default=1.0, ge=1)
    length: int = Field(ge=1)


class YarnExtension(Slot):
    """YaRN: slow frequencies divided by `factor`, fast ones kept, scores sharpened (Peng et al. 2023, §3.2 to §3.4).

    `length`: tokens a text had in training; `fast` and `slow`: turns within `length` above which a frequency is kept, and below which
    it is divided.
    """

    kind: Literal["yarn"] = "yarn"
    factor: float = Field(gt=1)
    length: int = Field(ge=1)
    fast: float = Field(default=32.0, gt=0)
    slow: float = Field(default=1.0, gt=0)


Extension = Annotated[LinearExtension | DynamicExtension | YarnExtension, Field(discriminator="kind")]


class RotaryPositions(Slot):
    """Queries and keys rotated by their position (Su et al. 2021, §3.2.2), with an extension for texts longer than those trained on."""

    kind: Literal["rotary"] = "rotary"
    base: float = Field(default=10000.0, gt=1)
    extension: Extension | None = None


class AlibiPositions(Slot):
    """Scores fall with distance, each head's at a slope of its own (Press et al. 2022, §3), alike in both directions."""

    kind: Literal["alibi"] = "alibi"


class BucketPositions(Slot):
    """A learned number for each head and bucket of distances, added to the scores (T5: Raffel et al. 2020, §2.1).

    Half of the `buckets` are for each direction; they widen with distance up to `distance`, beyond which all is one. Each layer has
    a table of its own.
    """

    kind: Literal["t5"] = "t5"
    buckets: int = Field(default=32, ge=4, multiple_of=2)
    distance: int = Field(default=128, ge=2)

    @model_validator(mode="after")
    def _possible(self) -> "BucketPositions":
        if self.distance <= self.buckets // 4:
            raise ValueError(
                f"distance is {self.distance}, but the {self.buckets // 4} shortest have a bucket each: give more than {self.buckets // 4}"
            )
        return self


class RelativePositions(Slot):
    """A learned key for each distance, up to `distance` on either side; each layer has its own (Shaw et al. 2018, §3.2)."""

    kind: Literal["relative"] = "relative"
    distance: int = Field(default=16, ge=1)


class NoPositions(Slot):
    """No notion of order."""

    kind: Literal["none"] = "none"


Positions = Annotated[
    LearnedPositions | SinusoidalPositions | RotaryPositions | AlibiPositions | BucketPositions | RelativePositions | NoPositions,
    Field(discriminator="kind"),
]
ADDED = ("learned", "sinusoidal")  # positions that are added to the embeddings
BETWEEN_TOKENS = ("rotary", "alibi", "t5", "relative")  # positions that act in every layer, on queries, keys and scores
BY_DISTANCE = ("alibi", "t5", "relative")  # those that need the distance between a query and a key


class AttentionHeads(Slot):
    """What every kind of attention has: `heads` of `head_width` each.

    `key_value_heads`: heads of keys and values, each shared by heads / key_value_heads heads of queries (Ainslie et al. 2023; 1 is
    Shazeer 2019; left out, each head has its own). `query_key_norm`: RMSNorm over each head's queries and keys (Henry et al. 2020;
    Dehghani et al. 2023, §2).
    """

    heads: int = Field(ge=1)
    head_width: int = Field(ge=1, description="left out: width / heads")
    key_value_heads: int | None = Field(default=None, ge=1)
    query_key_norm: bool = False

    @model_validator(mode="after")
    def _divides(self) -> "AttentionHeads":
        if self.key_value_heads and self.heads % self.key_value_heads:
            raise ValueError(f"{self.key_value_heads} key_value_heads do not divide {self.heads} heads: choose a divisor of {self.heads}")
        return self

    @property
    def keys(self) -> int:
        """Heads of keys and values."""
        return self.key_value_heads or self.heads


class DenseAttention(AttentionHeads):
    """Every token attends to every token (Vaswani et al. 2017, §3.2).

    `prefix`: that many learned keys and values besides those of the tokens, which every token attends to (Li and Liang 2021, §4.2).
    """

    kind: Literal["dense"] = "dense"
    prefix: int = Field(default=0, ge=0)


class WindowAttention(AttentionHeads):
    """A token attends to the window/2 tokens on either side of it and to the first `global_tokens`, which attend to all and which all
    attend to (Beltagy et al. 2020, §3.1).
    """

    kind: Literal["window"] = "window"
    window: int = Field(default=512, ge=2, multiple_of=2)
    global_tokens: int = Field(default=1, ge=0)


class StridedAttention(AttentionHeads):
    """A token attends to those fewer than `stride` away and to every one a multiple of `stride` away (Child et al. 2019, §4.2).

    In both directions, in one softmax. `stride`: about the square root of the usual length.
    """

    kind: Literal["sparse_strided"] = "sparse_strided"
    stride: int = Field(default=64, ge=2)


class FixedAttention(AttentionHeads):
    """A token attends to its block of `stride` tokens and to the last `summary` tokens of every block (Child et al. 2019, §4.3).

    In both directions, in one softmax. `stride`: about the square root of the usual length.
    """

    kind: Literal["sparse_fixed"] = "sparse_fixed"
    stride: int = Field(default=64, ge=2)
    summary: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "FixedAttention":
        if self.summary > self.stride:
            raise ValueError(f"summary is {self.summary}, but a block has only {self.stride} tokens: choose at most stride")
        return self


class BigBirdAttention(AttentionHeads):
    """Blocks of `block` tokens attend to themselves and their two neighbours, to the first `global_blocks`, which attend to all, and to
    `random_blocks` drawn once and for all (Zaheer et al. 2020, §2).
    """

    kind: Literal["sparse_bigbird"] = "sparse_bigbird"
    block: int = Field(default=64, ge=1)
    global_blocks: int = Field(default=1, ge=0)
    random_blocks: int = Field(default=3, ge=0)


class LinformerAttention(AttentionHeads):
    """Keys and values of up to `length` tokens projected to `landmarks` by learned matrices that the heads share (Wang et al. 2020, §4)."""

    kind: Literal["linformer"] = "linformer"
    length: int = Field(default=512, ge=1)
    landmarks: int = Field(default=64, ge=1)


class LandmarkAttention(AttentionHeads):
    """Keys and values averaged over `landmarks` equal parts of the text, however long it is.

    The pooling of Wang et al. 2020, §4 (general projections), over the segments of Xiong et al. 2021, §3.2.
    """

    kind: Literal["landmark"] = "landmark"
    landmarks: int = Field(default=64, ge=1)


Attention = Annotated[
    DenseAttention | WindowAttention | StridedAttention | FixedAttention | BigBirdAttention | LinformerAttention | LandmarkAttention,
    Field(discriminator="kind"),
]
MIXING = ("linformer", "landmark")  # kinds whose keys are mixtures of tokens, at no distance from a query


Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "sigmoid"]


class Mlp(Slot):
    """down(activation(up(x))) with `neurons` in the middle (Vaswani et al. 2017, §3.3)."""

    kind: Literal["mlp"] = "mlp"
    neurons: int = Field(ge=1)
    activation: Activation = "gelu"


class Glu(Slot):
    """down(activation(gate(x)) * up(x)): GLU with sigmoid, GeGLU with gelu, SwiGLU with silu (Shazeer 2020)."""

    kind: Literal["glu"] = "glu"
    neurons: int = Field(ge=1)
    activation: Activation = "silu"


class NoFeedForward(Slot):
    """No network, and no norm of its own: the layer is its attention."""

    kind: Literal["none"] = "none"

    @property
    def neurons(self) -> int:
        """None are left."""
        return 0


FeedForward = Annotated[Mlp | Glu | NoFeedForward, Field(discriminator="kind")]


class LayerNorm(Slot):
    """Mean and variance (Ba et al. 2016)."""

    kind: Literal["layernorm"] = "layernorm"
    eps: float = Field(default=1e-12, gt=0)


class RmsNorm(Slot):
    """Root mean square only (Zhang and Sennrich 2019)."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: float = Field(default=1e-6, gt=0)


class BatchNorm(Slot):
    """Mean and variance of each feature over the tokens of a batch (Ioffe and Szegedy 2015), to show why it was replaced.

    `momentum`: share of the newest batch in the averages that are used after training.
    """

    kind: Literal["batchnorm"] = "batchnorm"
    eps: float = Field(default=1e-5, gt=0)
    momentum: float = Field(default=0.1, gt=0, le=1)


Norm = Annotated[LayerNorm | RmsNorm | BatchNorm, Field(discriminator="kind")]
