"""The slot of heads: from the last states to the answer.

Shapes: B texts, S tokens, W width, L labels, V tokens of the vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import config


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        # ONNX Runtime sums the rows of one matrix three times as fast as those of a stack of one.
        return x.mean(dim=(0, -2))[None] if x.shape[0] == 1 else x.mean(dim=-2)
    # A product of matrices sums over the tokens; the clamp keeps a text without tokens finite.
    for _ in x.shape[1:-2]:
        mask = mask[:, None]
    total = (mask[..., None, :] @ x)[..., 0, :]
    return total / mask.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _cls(x: Tensor, mask: Tensor | None) -> Tensor:
    return x[..., 0, :]


# Of [B, S, W], or [B, H, S, D] for each head by itself, what stands for the text: [B, W] or [B, H, D]; the mask is [B, S], or None
# where there is no padding.
POOLINGS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"mean": _mean, "cls": _cls}
HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
MakeNorm = Callable[[int], nn.Module]  # a norm of the encoder's kind, of this width


def _pooled(pool: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
    """[B, S, W] to [B, W]; what the encoder has pooled before, [B, W], stays."""
    return x if x.ndim == 2 else pool(x, mask)


class PooledHead(nn.Module):
    """Pool, a hidden layer where the configuration has one, then one linear: a score for each of the labels."""

    def __init__(
        self, head: config.ClassificationHead | config.MultilabelHead | config.RegressionHead, encoder: config.EncoderConfig, norm: MakeNorm
    ) -> None:
        super().__init__()
        self.pool = POOLINGS[head.pooling]
        self.dropout = nn.Dropout(encoder.dropout)
        self.hidden = nn.Linear(encoder.width, encoder.width) if head.hidden != "none" else None
        self.activation = HIDDEN.get(head.hidden)
        self.norm = norm(encoder.width) if head.hidden_norm else nn.Identity()
        self.output = nn.Linear(encoder.width, head.labels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, L] of states `x` [B, S, W] and the float `mask` [B, S], 1 where there is a token; or of pooled states [B, W]."""
        x = self.dropout(_pooled(self.pool, x, mask))
        if self.hidden is not None and self.activation is not None:
            x = self.dropout(self.norm(self.activation(self.hidden(x))))
        logits: Tensor = self.output(x)
        return logits


class TaggingHead(nn.Module):
    """A hidden layer where the configuration has one, then one linear for each token (Devlin et al. 2018, §5.3)."""

    def __init__(self, head: config.TaggingHead | config.ReplacedHead, encoder: config.EncoderConfig, norm: MakeNorm) -> None:
        super().__init__()
        self.dropout = nn.Dropout(encoder.dropout)
        self.hidden = nn.Linear(encoder.width, encoder.width) if head.hidden != "none" else None
        self.activation = HIDDEN.get(head.hidden)
        self.norm = norm(encoder.width) if isinstance(head, config.TaggingHead) and head.hidden_norm else nn.Identity()
        self.output = nn.Linear(encoder.width, head.labels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, S, L] of states `x` [B, S, W]; those of padding mean nothing."""
        batch, length = x.shape[:2]
        x = self.dropout(x.flatten(0, 1))  # flat: one Gemm with its bias when exported
        if self.hidden is not None and self.activation is not None:
            x = self.norm(self.activation(self.hidden(x)))
        logits: Tensor = self.output(x)
        return logits.view(batch, length, -1)


class EmbeddingHead(nn.Module):
    """Pool, and scale to length 1, so that the product of two vectors is their cosine (Reimers and Gurevych 2019, §3)."""

    def __init__(self, head: config.EmbeddingHead, encoder: config.EncoderConfig, norm: MakeNorm) -> None:
        super().__init__()
        self.pool = POOLINGS[head.pooling]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Vectors [B, W] of states `x` [B, S, W] and the float `mask` [B, S], 1 where there is a token; or of pooled states [B, W]."""
        return F.normalize(_pooled(self.pool, x, mask), dim=-1)


class MaskedHead(nn.Module):
    """Dense, activation, norm, and a score for each token of the vocabulary (Devlin et al. 2018, §3.1, and its published code)."""

    def __init__(self, head: config.MaskedHead, encoder: config.EncoderConfig, norm: MakeNorm) -> None:
        super().__init__()
        self.hidden = nn.Linear(encoder.width, encoder.table_width)
        self.activation = HIDDEN[head.hidden]
        self.norm = norm(encoder.table_width)
        self.table = None if head.tied else nn.Embedding(encoder.vocabulary, encoder.table_width)
        self.bias = nn.Parameter(torch.zeros(encoder.vocabulary))

    def forward(self, x: Tensor, mask: Tensor, table: Tensor) -> Tensor:
        """Logits [B, S, V] of states `x` [B, S, W]; `table` [V, W of the table] is that of the encoder's tokens."""
        batch, length = x.shape[:2]
        x = self.norm(self.activation(self.hidden(x.flatten(0, 1))))
        return F.linear(x, table if self.table is None else self.table.weight, self.bias).view(batch, length, -1)


HEADS: dict[str, Callable[..., nn.Module]] = {
    "classification": PooledHead,
    "multilabel": PooledHead,
    "regression": PooledHead,
    "tagging": TaggingHead,
    "embedding": EmbeddingHead,
    "masked": MaskedHead,
    "replaced": TaggingHead,
}
