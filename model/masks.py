"""From the attention mask to what is added to attention scores: computed once a batch, not once a layer.

Shapes: B texts, S tokens.
"""

from torch import Tensor

# exp(-10,000) is exactly 0 in every float type, and a text without a single token still gives finite numbers.
_HIDDEN = 1e4


def attention_bias(mask: Tensor) -> Tensor:
    """Added to attention scores: 0 where `mask` [B, S] is 1, so low that nothing is left where it is 0; [B, 1, 1, S]."""
    return ((mask - 1.0) * _HIDDEN)[:, None, None, :]
