"""The slot of attention: the dense kind, and the dict of all kinds.

Shapes: B texts, S tokens, H heads, D head width.
"""

from torch import Tensor

from model.attention_base import Attention, Relation, places
from model.attention_linformer import LandmarkAttention, LinformerAttention
from model.attention_sparse import FixedAttention, StridedAttention
from model.attention_window import BigBirdAttention, WindowAttention
from model.kernels import KERNELS


class DenseAttention(Attention):
    """Every token attends to every token: softmax(q kᵀ / √D + bias) v (Vaswani et al. 2017, §3.2)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, positions: Relation, kernel: str) -> Tensor:
        """Values [B, H, S, D]."""
        place = places(q.shape[2], q)
        added = positions.bias(q, place[:, None], place[None, :])
        return KERNELS[kernel](q, k, v, bias if added is None else bias + added, self.dropped)


ATTENTIONS: dict[str, type[Attention]] = {
    "dense": DenseAttention,
    "window": WindowAttention,
    "sparse_strided": StridedAttention,
    "sparse_fixed": FixedAttention,
    "sparse_bigbird": BigBirdAttention,
    "linformer": LinformerAttention,
    "landmark": LandmarkAttention,
}
