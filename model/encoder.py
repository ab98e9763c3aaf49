"""The encoder: embeddings, layers, head. The one forward that is trained, pruned, quantized and exported.

Shapes: B texts, S tokens, W width. Between embeddings and head the activations are flat, [B*S, W] (see model/attention.py).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.attention import ATTENTIONS
from model.attention_linformer import LinformerAttention
from model.config import EncoderConfig, LayerConfig
from model.errors import ConfigError
from model.feedforward import FEEDFORWARDS
from model.heads import HEADS, POOLINGS
from model.kernels import sizes
from model.masks import attention_bias, no_bias
from model.norms import NORMS, BatchNorm
from model.positions import POSITIONS, LearnedPositions
from model.positions_relative import RELATIONS, BucketPositions, RelativePositions
from model.quantized import make_room

LONG, HEADS_AT_ONCE = 2048, 2  # for longer texts so many heads are mixed at once in exported graphs (see model/attention_base.py)


class Embeddings(nn.Module):
    """Tokens, types and positions summed, then a norm and dropout (Devlin et al. 2018, figure 2); or positions added after the norm.

    Narrower tables are projected to the encoder's width after the norm (Lan et al. 2020, §3.1).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.table_width
        self.tokens = nn.Embedding(config.vocabulary, width)
        self.types = nn.Embedding(config.token_types, width) if config.token_types else None
        self.positions = POSITIONS[config.positions.kind](config.positions, width, config.max_length)
        self.norm = NORMS[config.norm.kind](config.norm, width)
        self.after_norm = config.positions_after_norm
        self.dropout = nn.Dropout(config.dropout)
        self.token_dropout = config.token_dropout
        self.projection = nn.Linear(width, config.width) if width != config.width else None

    def forward(self, input_ids: Tensor, mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """[B, S] to [B*S, W]; the float `mask` [B, S] is 1 where there is a token; without `token_type_ids` every token has type 0.

        `mask` None: see Encoder.forward.

        Raises ConfigError if types are given to an encoder that has none.
        """
        x = self.tokens(input_ids)
        if self.training and self.token_dropout:
            kept = torch.rand(input_ids.shape, device=x.device) >= self.token_dropout
            kept[:, 0] = True
            x = x * kept[..., None]
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
        if self.after_norm:
            x = x if offset is None else x + offset
            x = self.positions(normed(self.norm, x.flatten(0, 1), mask).view_as(x), None, mask).flatten(0, 1)
        else:
            x = normed(self.norm, self.positions(x, offset, mask).flatten(0, 1), mask)
        y: Tensor = self.dropout(x)
        return y if self.projection is None else self.projection(y)


class Layer(nn.Module):
    """Attention and feed-forward network, each added to its input; normed after (BERT) or, with norm_first, before.

    With `pooling`, what attention mixed and what it is added to are pooled to one row a text before all else: since projecting and adding
    are linear, pooling the sum would give the same, but for a text without tokens. The norm and the network then see means of tokens.
    """

    def __init__(self, layer: LayerConfig, config: EncoderConfig, pooling: str | None = None) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.pool = POOLINGS[pooling] if pooling else None
        positions = layer.positions or config.positions
        self.positions = RELATIONS[positions.kind](positions, layer.attention)
        self.attention = ATTENTIONS[layer.attention.kind](layer.attention, config.width, config.dropout)
        if config.max_length > LONG:
            self.attention.at_once = HEADS_AT_ONCE
        self.attention_norm = NORMS[config.norm.kind](config.norm, config.width) if layer.attention_norm else nn.Identity()
        network = FEEDFORWARDS.get(layer.feedforward.kind)  # there may be none
        self.feedforward = network(layer.feedforward, config.width) if network else None
        self.feedforward_norm = NORMS[config.norm.kind](config.norm, config.width) if network else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor, kernel: str) -> Tensor:
        """[B*S, W] to [B*S, W], or [B, W] where it pools; `mask` is [B, S], `bias` what it adds to scores, [B, 1, 1, S]."""
        return self.after(x, normed(self.attention_norm, x, mask) if self.norm_first else x, mask, bias, kernel)

    def after(self, x: Tensor, read: Tensor, mask: Tensor | None, bias: Tensor, kernel: str) -> Tensor:
        """`forward` once it is known what attention is to `read`, [B*S, W]."""
        pool = self._pool(mask)
        attended = self.dropout(self.attention(read, bias, self.positions, kernel, pool))
        x = attended + (x if pool is None else pool(x.view(*sizes(bias), x.shape[1])))
        x = x if self.norm_first else normed(self.attention_norm, x, mask)
        if self.feedforward is None or self.feedforward_norm is None:
            return x
        if self.norm_first:
            y: Tensor = x + self.dropout(self.feedforward(normed(self.feedforward_norm, x, mask)))
            return y
        return normed(self.feedforward_norm, x + self.dropout(self.feedforward(x)), mask)

    def _pool(self, mask: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        pool = self.pool
        return None if pool is None else lambda x: pool(x, mask)


def normed(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` [B*S, W] normed; only one kind asks what is padding."""
    y: Tensor = norm(x, mask.flatten()) if isinstance(norm, BatchNorm) and mask is not None else norm(x)
    return y


class Encoder(nn.Module):
    """A text encoder with its head, built from `config`; weights are fresh (see `initialise`).

    `kernel` ("sdpa", "eager" or "flex") says how attention is computed, never what it gives; exported graphs always hold the eager one.
    `checkpointing`: keep only the input of each layer in training, and compute the rest again where it is needed (Chen et al. 2016).
    Raises ConfigError if the configuration quantizes a module that does not exist.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.kernel = "sdpa"
        self.checkpointing = False
        self.embeddings = Embeddings(config)
        pooling = getattr(config.head, "pooling", None) if config.early_pooling else None
        self.layers = nn.ModuleList([*(Layer(layer, config) for layer in config.layers[:-1]), Layer(config.layers[-1], config, pooling)])
        self.norm = NORMS[config.norm.kind](config.norm, config.width) if config.norm_first else nn.Identity()
        self.head = HEADS[config.head.kind](config.head, config, partial(NORMS[config.norm.kind], config.norm))
        initialise(self)
        if config.quantization:
            make_room(self, config.quantization, config.table)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, labels] of token ids [B, S]; `attention_mask` [B, S] is 1 where there is a token, 0 where there is padding.

        Without `attention_mask` nothing is padding: the same as a mask of ones, in fewer operations where the encoder can. A head that
        answers for each token gives [B, S, labels], or, at the `places` [P] of the flat tokens [B*S] alone, [P, labels].
        """
        return self.states(input_ids, attention_mask, token_type_ids, places)[0]

    def states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, labels] and what each layer gave, [B, S, W] (before the final norm, if there is one).

        What the last layer gives is [B, W] with `early_pooling`.
        """
        kernel = "eager" if torch.compiler.is_exporting() else self.kernel
        if attention_mask is None and not self.config.maskless:
            attention_mask = torch.ones_like(input_ids)
        mask = None if attention_mask is None else attention_mask.float()
        bias = no_bias(input_ids) if mask is None else attention_bias(mask)
        x = self.embeddings(input_ids, mask, token_type_ids)
        states = []
        for layer in self.layers:
            x = self._layer(layer, x, mask, bias, kernel)
            states.append(x.view(*sizes(bias), x.shape[1]) if layer.pool is None else x)
        x = normed(self.norm, x, mask)
        return self._answer(x if self.config.early_pooling else x.view(*sizes(bias), x.shape[1]), mask, places), states

    def _answer(self, x: Tensor, mask: Tensor | None, places: Tensor | None) -> Tensor:
        """What the head gives of the last states, of all or at some places; see `forward`."""
        if places is not None:
            x = x.flatten(0, 1)[places][None]
        table = (self.embeddings.tokens.weight,) if self.config.head.kind == "masked" else ()
        y: Tensor = self.head(x, mask, *table)
        return y if places is None else y[0]

    def _layer(self, layer: nn.Module, *inputs: Any) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            y: Tensor = layer(*inputs)
            return y
        if self.config.norm.kind == "batchnorm":
            raise ConfigError(
                "batchnorm cannot be trained with gradient checkpointing: computing a layer twice would count its batch twice.",
                "Train without checkpointing, or choose another norm.",
            )
        y = checkpoint(layer, *inputs, use_reentrant=False)
        return y


def initialise(encoder: nn.Module) -> None:
    """Fresh weights in place, as BERT has them: normal with deviation 0.02, biases 0; norms stay at identity."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Embedding | LearnedPositions):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, BucketPositions):
            nn.init.normal_(module.buckets, std=0.02)
        if isinstance(module, RelativePositions):
            nn.init.normal_(module.keys, std=0.02)
        if isinstance(module, LinformerAttention):
            # Mixtures are then as large as what they are mixed of (Wang et al. 2020, §3: a random projection).
            nn.init.normal_(module.projections, std=module.projections.shape[-1] ** -0.5)
