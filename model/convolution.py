"""A convolution over tokens, its channels pooled (Kim 2014, §2), which can be folded into its token table.

What a tap gives for a token is a product of the token's row and the tap's weights, so that for each token of the vocabulary it can be
computed once and for all: a folded convolution looks the products up, shifts them and sums. Shapes: B texts, S tokens, W width,
C channels, K taps, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ConfigError
from model.kinds import ConvolutionConfig
from model.pooled import PooledNetwork, TableModel
from model.quantized import make_room


class Convolution(TableModel):
    """relu(convolution), its maximum and mean over the tokens, and a small network after them; the convolution is folded or not.

    Beyond a text's ends and where there is padding stand zeros. A folded table has a last row of zeros for that.
    """

    config: ConvolutionConfig

    def __init__(self, config: ConvolutionConfig) -> None:
        super().__init__(config)
        self.tokens = None if config.folded else nn.Embedding(config.vocabulary, config.width)
        self.taps = None if config.folded else nn.Conv1d(config.width, config.channels, config.taps, padding="same", bias=False)
        self.rows = nn.Embedding(config.vocabulary + 1, config.taps * config.channels) if config.folded else None
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.head = PooledNetwork(config, 2 * config.channels)
        if self.tokens is not None:
            nn.init.normal_(self.tokens.weight, std=0.1)
        if config.quantization:
            make_room(self, config.quantization, config.table)

    def pooled(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The maximum and the mean of each channel, [B, 2 C]."""
        there = None if mask is None else mask > 0
        if (kept := self.stays(ids)) is not None:
            there = kept if there is None else there & kept
        y = self._looked_up(ids, there) if self.rows is not None else self._convolved(ids, there)
        y = F.relu(y + self.bias)
        if mask is None:
            mean = y.mean(dim=1)
        else:
            real = mask.float()
            y = y * real[:, :, None]  # so padding cannot be the maximum: nothing is below zero
            mean = y.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1.0)
        return torch.cat([y.amax(dim=1), mean], dim=1)

    def _convolved(self, ids: Tensor, there: Tensor | None) -> Tensor:
        """[B, S, C]: the convolution as it is trained."""
        assert self.tokens is not None and self.taps is not None
        x = self.tokens(ids)
        if there is not None:
            x = x * there[:, :, None]
        y: Tensor = self.taps(x.transpose(1, 2)).transpose(1, 2)
        return y

    def _looked_up(self, ids: Tensor, there: Tensor | None) -> Tensor:
        """[B, S, C]: the same from the folded table."""
        assert self.rows is not None
        nothing, beside = self.config.vocabulary, self.config.taps // 2
        ids = F.pad(ids if there is None else torch.where(there, ids, nothing), (beside, beside), value=nothing)
        parts = self.rows(ids).chunk(self.config.taps, dim=-1)  # for each tap [B, beside + S + beside, C]
        last = len(parts) - 1
        y: Tensor = parts[0][:, : -last or None]
        for tap, part in enumerate(parts[1:], start=1):
            y = y + part[:, tap : tap - last or None]
        return y


@torch.no_grad()
def folded(model: Convolution) -> Convolution:
    """The same function, its token table multiplied into its taps; raises ConfigError if the table is quantized."""
    if model.config.folded:
        return model
    if model.config.quantization:
        raise ConfigError("A convolution is folded before it is quantized.", "Give the model that it was made from.")
    assert model.tokens is not None and model.taps is not None
    config = model.config.changed(folded=True)
    result = Convolution(config)
    weights = model.taps.weight  # [C, W, K]
    table = torch.cat([model.tokens.weight @ weights[:, :, tap].t() for tap in range(config.taps)], dim=1)
    state = {name: value for name, value in model.state_dict().items() if name.startswith(("bias", "head."))}
    result.load_state_dict({**state, "rows.weight": F.pad(table, (0, 0, 0, 1))})
    return result.train(model.training)
