"""The slot of attention: the dense kind, and the dict of all kinds.

Shapes: B texts, S tokens, H heads of queries, G heads of keys and values, D head width, P keys of the prefix.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import slots
from model.attention_base import Attention, Relation, places
from model.attention_linformer import LandmarkAttention, LinformerAttention
from model.attention_sparse import FixedAttention, StridedAttention
from model.attention_window import BigBirdAttention, WindowAttention
from model.kernels import KERNELS


class DenseAttention(Attention):
    """Every token attends to every token: softmax(q kᵀ / √D + bias) v (Vaswani et al. 2017, §3.2).

    And to the `prefix` [2, G, P, D], keys and values that stand nowhere: they are neither rotated nor at any distance, and never padding
    (Li and Liang 2021, §4.2, without the network that made them).
    """

    def __init__(self, attention: slots.DenseAttention, width: int, dropout: float) -> None:
        super().__init__(attention, width, dropout)
        self.prefix = nn.Parameter(torch.empty(2, self.keys, attention.prefix, self.head_width)) if attention.prefix else None
        if self.prefix is not None:
            nn.init.normal_(self.prefix, std=0.02)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D]."""
        place = places(q.shape[2], q)
        added = positions.bias(q, place[:, None], place[None, :])
        hidden = bias if bias.shape[1] else None  # empty where nothing is padding
        total = hidden if added is None else added if hidden is None else hidden + added
        if self.prefix is not None:
            own = self.prefix.to(k.dtype).repeat_interleave(self.heads // self.keys, dim=1)[:, None].expand(-1, q.shape[0], -1, -1, -1)
            k, v = torch.cat((own[0], k), dim=2), torch.cat((own[1], v), dim=2)
            total = None if total is None else F.pad(total, (own.shape[3], 0))
        return KERNELS[kernel](q, k, v, total, self.dropped)


ATTENTIONS: dict[str, type[Attention]] = {
    "dense": DenseAttention,
    "window": WindowAttention,
    "sparse_strided": StridedAttention,
    "sparse_fixed": FixedAttention,
    "sparse_bigbird": BigBirdAttention,
    "linformer": LinformerAttention,
    "landmark": LandmarkAttention,
}
