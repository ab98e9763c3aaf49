"""Every kind of model under one roof: what a configuration builds, and what only an encoder can.

A model has `config` and `checkpointing`; `forward(input_ids, attention_mask, token_type_ids=None)` gives its answers, `states` those and a
list of hidden states, [B, S, W] of an encoder's layers, [B, W] where they are pooled already.
"""

from model.config import EncoderConfig
from model.convolution import Convolution, folded
from model.encoder import Encoder
from model.errors import ConfigError
from model.kinds import ConvolutionConfig, ModelConfig
from model.static import Static

Model = Encoder | Static | Convolution


def build(config: ModelConfig) -> Model:
    """A fresh model of the kind that `config` is of."""
    if isinstance(config, EncoderConfig):
        return Encoder(config)
    return Convolution(config) if isinstance(config, ConvolutionConfig) else Static(config)


def as_encoder(model: Model, where: object, purpose: str) -> Encoder:
    """`model` if it is an encoder; raises ConfigError that says what it was wanted for: `purpose` ("to be pruned")."""
    if isinstance(model, Encoder):
        return model
    raise ConfigError(
        f"{where} is a {model.config.kind} model, which has no layers {purpose}.",
        "Give an encoder.",
    )


def as_run(model: Model) -> Model:
    """The same function in the form in which it is quantized and exported: of a convolution, folded into its table."""
    return folded(model) if isinstance(model, Convolution) else model
