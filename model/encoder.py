"""The encoder: embeddings, layers, head. The one forward that is trained, pruned, quantized and exported.

Shapes: B texts, S tokens, W width. Between embeddings and head the activations are flat, [B*S, W] (see model/attention.py).
"""

import torch
from torch import Tensor, nn

from model.attention import ATTENTIONS
from model.config import EncoderConfig, LayerConfig, Quantization
from model.errors import ConfigError
from model.feedforward import FEEDFORWARDS
from model.heads import HEADS
from model.masks import attention_bias
from model.norms import NORMS
from model.positions import POSITIONS, LearnedPositions, NoPositions
from model.quantized import QuantizedEmbedding, QuantizedLinear


class Embeddings(nn.Module):
    """Tokens, types and positions summed, then a norm and dropout (Devlin et al. 2018, figure 2)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.positions: NoPositions = POSITIONS[config.positions.kind](config.positions, config.width)
        self.norm = NORMS[config.norm.kind](config.norm, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """[B, S] to [B*S, W]; without `token_type_ids` every token has type 0.

        Raises ConfigError if types are given to an encoder that has none.
        """
        x = self.tokens(input_ids)
        offset = None
        if self.types is not None and token_type_ids is None:
            offset = self.types.weight[0]
        elif self.types is not None:
            x = x + self.types(token_type_ids)
        elif token_type_ids is not None:
            raise ConfigError(
                "token_type_ids were given, but this encoder has no token types.",
                "Encode the texts without types, or build the encoder with token_types=2.",
            )
        x = self.positions.embed(x, offset).flatten(0, 1)
        y: Tensor = self.dropout(self.norm(x))
        return y


class Layer(nn.Module):
    """Attention and feed-forward network, each added to its input; normed after (BERT) or, with norm_first, before."""

    def __init__(self, layer: LayerConfig, config: EncoderConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = ATTENTIONS[layer.attention.kind](layer.attention, config.width, config.dropout)
        self.attention_norm = NORMS[config.norm.kind](config.norm, config.width)
        self.feedforward = FEEDFORWARDS[layer.feedforward.kind](layer.feedforward, config.width)
        self.feedforward_norm = NORMS[config.norm.kind](config.norm, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor, positions: NoPositions, kernel: str) -> Tensor:
        """[B*S, W] to [B*S, W]."""
        if self.norm_first:
            x = x + self.dropout(self.attention(self.attention_norm(x), bias, positions, kernel))
            x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        else:
            x = self.attention_norm(x + self.dropout(self.attention(x, bias, positions, kernel)))
            x = self.feedforward_norm(x + self.dropout(self.feedforward(x)))
        return x


class Encoder(nn.Module):
    """A text encoder with its head, built from `config`; weights are fresh (see `initialise`).

    `kernel` ("sdpa" or "eager") says how attention is computed, never what it gives; exported graphs always hold the eager one.
    Raises ConfigError if the configuration quantizes a module that does not exist.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.kernel = "sdpa"
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(layer, config) for layer in config.layers)
        self.norm = NORMS[config.norm.kind](config.norm, config.width) if config.norm_first else nn.Identity()
        self.head = HEADS[config.head.kind](config.head, config.width, config.dropout)
        initialise(self)
        if config.quantization:
            _make_room(self, config.quantization)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits [B, labels] of token ids [B, S]; `attention_mask` [B, S] is 1 where there is a token, 0 where there is padding."""
        return self.states(input_ids, attention_mask, token_type_ids)[0]

    def states(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, labels] and what each layer gave, [B, S, W] (before the final norm, if there is one)."""
        batch, length = input_ids.shape
        kernel = "eager" if torch.compiler.is_exporting() else self.kernel
        mask = attention_mask.float()
        bias = attention_bias(mask)
        x = self.embeddings(input_ids, token_type_ids)
        states = []
        for layer in self.layers:
            x = layer(x, bias, self.embeddings.positions, kernel)
            states.append(x.view(batch, length, -1))
        logits = self.head(self.norm(x).view(batch, length, -1), mask)
        return logits, states


def initialise(encoder: nn.Module) -> None:
    """Fresh weights in place, as BERT has them: normal with deviation 0.02, biases 0; norms stay at identity."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding | LearnedPositions):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _make_room(encoder: Encoder, quantization: Quantization) -> None:
    """Put empty int8 modules where `quantization` says, for a saved state to be loaded into."""
    linears = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    for name in quantization.linears:
        if name not in linears:
            raise ConfigError(f"There is no linear module {name!r} to quantize.", f"The linear modules are: {', '.join(linears)}.")
        encoder.set_submodule(name, QuantizedLinear(linears[name].in_features, linears[name].out_features))
    if quantization.embeddings:
        encoder.set_submodule("embeddings.tokens", QuantizedEmbedding(encoder.config.vocabulary, encoder.config.width))
