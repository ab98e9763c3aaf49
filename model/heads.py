"""The slot of heads: from the last states to the answer.

Shapes: B texts, S tokens, W width.
"""

from collections.abc import Callable

from torch import Tensor, nn

from model import config


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    # A product of matrices sums over the tokens; the clamp keeps a text without tokens finite.
    total = (mask[:, None, :] @ x)[:, 0]
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1.0)


def _cls(x: Tensor, mask: Tensor) -> Tensor:
    return x[:, 0]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": _mean, "cls": _cls}


class ClassificationHead(nn.Module):
    """Pool, then one linear: a score for each of the labels."""

    def __init__(self, head: config.ClassificationHead, width: int, dropout: float) -> None:
        super().__init__()
        self.pool = POOLINGS[head.pooling]
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, head.labels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, labels] of states `x` [B, S, W] and the float `mask` [B, S], 1 where there is a token."""
        logits: Tensor = self.output(self.dropout(self.pool(x, mask)))
        return logits


HEADS: dict[str, type[ClassificationHead]] = {"classification": ClassificationHead}
