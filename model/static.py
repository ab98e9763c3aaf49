"""A bag of tokens and hashed n-grams: their rows are averaged (Joulin et al. 2016, §2; Weinberger et al. 2009 for the hash).

Shapes: B texts, S tokens, W width.
"""

import torch
from torch import Tensor, nn

from model.kinds import StaticConfig
from model.pooled import PooledNetwork, TableModel
from model.quantized import make_room

MULTIPLIER = 1_000_003  # of the hash: a prime, so that it has no factor in common with the number of buckets


class Static(TableModel):
    """Rows of tokens and of n-grams of neighbouring tokens, their mean, and a small network after it.

    One table holds the rows of the tokens and then those of the buckets. Bucket of an n-gram: (bucket of its first n - 1 tokens *
    MULTIPLIER + last token) mod buckets, where the bucket of a single token is its id.
    """

    config: StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        self.rows = nn.Embedding(config.vocabulary + (config.buckets if config.ngrams else 0), config.width)
        self.head = PooledNetwork(config, config.width)
        with torch.no_grad():
            self.rows.weight[: config.vocabulary].normal_(std=0.1)
            self.rows.weight[config.vocabulary :] = 0  # an n-gram that was never seen then says nothing
        if config.quantization:
            make_room(self, config.quantization, config.table)

    def pooled(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The mean [B, W] of the rows of all tokens and n-grams."""
        if mask is None and not self.training:
            mean: Tensor = self.rows(self._numbers(ids)).mean(dim=1)
            return mean
        mask = torch.ones(ids.shape, device=ids.device) if mask is None else mask.float()
        if (kept := self.stays(ids)) is not None:
            mask = mask * kept
        weights = self._weights(mask)
        # A product of matrices sums over the bag; the clamp keeps a text without tokens finite.
        total: Tensor = (weights[:, None, :] @ self.rows(self._numbers(ids)))[:, 0]
        return total / weights.sum(dim=1, keepdim=True).clamp(min=1.0)

    def _numbers(self, ids: Tensor) -> Tensor:
        """Numbers of the rows of all tokens and n-grams, [B, S + n-grams]."""
        config = self.config
        numbers, buckets = [ids], ids
        for length in range(2, max(config.ngrams, default=1) + 1):
            buckets = (buckets[:, :-1] * MULTIPLIER + ids[:, length - 1 :]) % config.buckets
            if length in config.ngrams:
                numbers.append(buckets + config.vocabulary)
        return torch.cat(numbers, dim=1)

    def _weights(self, mask: Tensor) -> Tensor:
        """What each of them counts, [B, S + n-grams]: an n-gram counts if every token of it does."""
        weights, whole = [mask], mask
        for length in range(2, max(self.config.ngrams, default=1) + 1):
            whole = whole[:, :-1] * mask[:, length - 1 :]
            if length in self.config.ngrams:
                weights.append(whole)
        return torch.cat(weights, dim=1)
