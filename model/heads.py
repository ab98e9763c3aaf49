"""The slot of heads: from the last states to the answer.

Shapes: B texts, S tokens, W width, L labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import config


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    # A product of matrices sums over the tokens; the clamp keeps a text without tokens finite.
    for _ in x.shape[1:-2]:
        mask = mask[:, None]
    total = (mask[..., None, :] @ x)[..., 0, :]
    return total / mask.sum(dim=-1, keepdim=True).clamp(min=1.0)


def _cls(x: Tensor, mask: Tensor) -> Tensor:
    return x[..., 0, :]


# Of [B, S, W], or [B, H, S, D] for each head by itself, what stands for the text: [B, W] or [B, H, D]; the mask is [B, S].
POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _cls}
HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "gelu": F.gelu, "relu": F.relu}


def _pooled(pool: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor) -> Tensor:
    """[B, S, W] to [B, W]; what the encoder has pooled before, [B, W], stays."""
    return x if x.ndim == 2 else pool(x, mask)


class PooledHead(nn.Module):
    """Pool, a hidden layer where the configuration has one, then one linear: a score for each of the labels."""

    def __init__(self, head: config.ClassificationHead | config.MultilabelHead | config.RegressionHead, width: int, dropout: float) -> None:
        super().__init__()
        self.pool = POOLINGS[head.pooling]
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, width) if head.hidden != "none" else None
        self.activation = HIDDEN.get(head.hidden)
        self.output = nn.Linear(width, head.labels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, L] of states `x` [B, S, W] and the float `mask` [B, S], 1 where there is a token; or of pooled states [B, W]."""
        x = self.dropout(_pooled(self.pool, x, mask))
        if self.hidden is not None and self.activation is not None:
            x = self.dropout(self.activation(self.hidden(x)))
        logits: Tensor = self.output(x)
        return logits


class TaggingHead(nn.Module):
    """One linear for each token (Devlin et al. 2018, §5.3)."""

    def __init__(self, head: config.TaggingHead, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, head.labels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, S, L] of states `x` [B, S, W]; those of padding mean nothing."""
        logits: Tensor = self.output(self.dropout(x.flatten(0, 1)))  # flat: one Gemm with its bias when exported
        return logits.view(x.shape[0], x.shape[1], -1)


class EmbeddingHead(nn.Module):
    """Pool, and scale to length 1, so that the product of two vectors is their cosine (Reimers and Gurevych 2019, §3)."""

    def __init__(self, head: config.EmbeddingHead, width: int, dropout: float) -> None:
        super().__init__()
        self.pool = POOLINGS[head.pooling]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Vectors [B, W] of states `x` [B, S, W] and the float `mask` [B, S], 1 where there is a token; or of pooled states [B, W]."""
        return F.normalize(_pooled(self.pool, x, mask), dim=-1)


HEADS: dict[str, Callable[..., nn.Module]] = {
    "classification": PooledHead,
    "multilabel": PooledHead,
    "regression": PooledHead,
    "tagging": TaggingHead,
    "embedding": EmbeddingHead,
}
