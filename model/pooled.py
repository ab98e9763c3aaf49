"""What the models of tables share: they pool over the text, and one hidden layer and the answer stand after that.

Shapes: B texts, S tokens, P pooled features, N neurons, L labels.
"""

import torch
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


class TableModel(nn.Module):
    """A model that is its pooled features and the network `head` after them. `checkpointing` has no meaning here."""

    config: StaticConfig | ConvolutionConfig
    head: PooledNetwork

    def __init__(self, config: StaticConfig | ConvolutionConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits [B, L] of token ids [B, S]; `attention_mask` [B, S] is 1 where there is a token, 0 where there is padding.

        Without it nothing is padding.
        """
        return self.states(input_ids, attention_mask, token_type_ids)[0]

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits [B, L] and the hidden layer [B, N]: one state, pooled already. Raises ConfigError for types, which it has not."""
        if token_type_ids is not None:
            raise ConfigError(
                f"token_type_ids were given, but a {self.config.kind} model has no token types.", "Encode the texts without types."
            )
        logits, hidden = self.head(self.pooled(input_ids, attention_mask))
        return logits, [hidden]

    def pooled(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The features [B, P] of token ids [B, S] and their mask."""
        raise NotImplementedError

    def stays(self, ids: Tensor) -> Tensor | None:
        """Whether a token is not left out in this step of training, [B, S]; the first never is. None where all stay."""
        if not (self.training and self.config.token_dropout):
            return None
        kept = torch.rand(ids.shape, device=ids.device) >= self.config.token_dropout
        kept[:, 0] = True
        return kept
