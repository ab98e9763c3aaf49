"""From the attention mask to what is added to attention scores: computed once a batch, not once a layer.

Shapes: B texts, S tokens.
"""

import torch
from torch import Tensor

from model.kernels import HIDDEN


def attention_bias(mask: Tensor) -> Tensor:
    """Added to attention scores: 0 where `mask` [B, S] is 1, so low that nothing is left where it is 0; [B, 1, 1, S]."""
    return ((1.0 - mask) * HIDDEN)[:, None, None, :]


def no_bias(ids: Tensor) -> Tensor:
    """The bias of token ids [B, S] without padding: empty, [B, 0, 1, S], so that nothing is added, and still of their shape."""
    return torch.empty((ids.shape[0], 0, 1, ids.shape[1]), device=ids.device)
