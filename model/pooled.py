"""What stands after the pooling of a model of tables: one hidden layer and the answer.

Shapes: B texts, P pooled features, N neurons, L labels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ConfigError
from model.kinds import ConvolutionConfig, StaticConfig


class PooledNetwork(nn.Module):
    """output(relu(hidden(x))); of an embedding head the output is scaled to length 1."""

    def __init__(self, config: StaticConfig | ConvolutionConfig, features: int) -> None:
        super().__init__()
        embedding = config.head.kind == "embedding"
        self.normed = embedding
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(features, config.neurons)
        self.output = nn.Linear(config.neurons, config.vector_width if embedding else config.head.labels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L] of pooled features `x` [B, P], and the hidden layer [B, N] that they were made from."""
        hidden = F.relu(self.hidden(self.dropout(x)))
        logits = self.output(self.dropout(hidden))
        return (F.normalize(logits, dim=-1) if self.normed else logits), hidden


def untyped(kind: str, token_type_ids: Tensor | None) -> None:
    """Raise ConfigError if types are given to a model that has none."""
    if token_type_ids is not None:
        raise ConfigError(f"token_type_ids were given, but a {kind} model has no token types.", "Encode the texts without types.")
