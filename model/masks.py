"""From the attention mask to what is added to attention scores: computed once a batch, not once a layer.

Shapes: B texts, S tokens.
"""

from torch import Tensor

from model.kernels import HIDDEN


def attention_bias(mask: Tensor) -> Tensor:
    """Added to attention scores: 0 where `mask` [B, S] is 1, so low that nothing is left where it is 0; [B, 1, 1, S]."""
    return ((1.0 - mask) * HIDDEN)[:, None, None, :]
