"""The slot of positions, as far as they act in layers: on queries and keys (`rotate`), or on scores (`bias`).

They see places, not layouts, so that they serve every kind of attention: a block of queries and the keys that it looks at are as good
as all of them.

Shapes: B texts, H heads, S tokens, Q queries, K keys, D head width; `…` are the axes that a kind of attention has in between.
"""

import math

import torch
from torch import Tensor, nn

from model import slots


class Relation(nn.Module):
    """Nothing: what every kind does unless it says otherwise. `adds` tells whether it adds to scores."""

    adds = False

    def __init__(self, positions: slots.Slot, attention: slots.AttentionHeads) -> None:
        super().__init__()

    def rotate(self, q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, S, D], turned by their position; `bias` [B, 1, 1, S] is 0 where there is a token."""
        return q, k

    def bias(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor | None:
        """What is added to the scores of queries `q` [B, H, …, Q, D] at `here` […, Q, 1] with keys at `there` […, 1, K], if anything.

        The result can be broadcast to [B, H, …, Q, K].
        """
        return None


class RotaryPositions(Relation):
    """Pairs of coordinates (i, i + D/2) turned by the angle position · frequency_i (Su et al. 2021, §3.2.2)."""

    def __init__(self, positions: slots.RotaryPositions, attention: slots.AttentionHeads) -> None:
        super().__init__(positions, attention)
        self.base, self.extension = positions.base, positions.extension

    def rotate(self, q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, S, D], each pair of coordinates turned; D is even."""
        length, width = q.shape[-2:]
        frequency, sharpness = self._frequency(width, bias)
        place = torch.arange(length, device=q.device, dtype=torch.float32)[:, None]
        # The sign of the sine is in the frequencies, so that one product with the halves exchanged is enough.
        cos = torch.cos(place * torch.cat((frequency, frequency), dim=-1)) * sharpness
        sin = torch.sin(place * torch.cat((-frequency, frequency), dim=-1)) * sharpness
        return _turn(q, cos, sin), _turn(k, cos, sin)

    def _frequency(self, width: int, bias: Tensor) -> tuple[Tensor, float]:
        """Radians a position for each pair ([D/2], or [B, 1, 1, D/2] by text), and what queries and keys are multiplied by."""
        exponent = torch.arange(0, width, 2, device=bias.device, dtype=torch.float32) / width
        plain = self.base**-exponent
        match self.extension:
            case slots.LinearExtension(factor=factor):
                return plain / factor, 1.0
            case slots.DynamicExtension(factor=factor, length=trained) if width > 2:
                # By each text's own length, so that its neighbours in the batch do not matter.
                tokens = bias.exp().sum(dim=-1, keepdim=True).clamp(min=trained)
                growth = (factor * tokens / trained - (factor - 1)) ** (width / (width - 2))
                return (self.base * growth) ** -exponent, 1.0
            case slots.YarnExtension() as yarn:
                first = max(math.floor(_pair_that_turns(yarn.fast, width, self.base, yarn.length)), 0)
                last = min(math.ceil(_pair_that_turns(yarn.slow, width, self.base, yarn.length)), width - 1)
                pairs = torch.arange(width // 2, device=bias.device, dtype=torch.float32)
                divided = ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)
                return plain / yarn.factor * divided + plain * (1 - divided), 0.1 * math.log(yarn.factor) + 1
        return plain, 1.0


def _pair_that_turns(times: float, width: int, base: float, length: int) -> float:
    """The (fractional) pair of coordinates that turns that often within `length` positions."""
    return width * math.log(length / (times * 2 * math.pi)) / (2 * math.log(base))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((second, first), dim=-1) * sin).to(x.dtype)


class AlibiPositions(Relation):
    """-slope · distance, with slopes 2^(-8/H), 2^(-16/H), … 2^-8 (Press et al. 2022, §3), for any number of heads.

    The slopes are part of the state: a head that is left after pruning keeps its own.
    """

    adds = True
    slopes: Tensor

    def __init__(self, positions: slots.AlibiPositions, attention: slots.AttentionHeads) -> None:
        super().__init__(positions, attention)
        self.register_buffer("slopes", 2.0 ** (-8.0 * torch.arange(1, attention.heads + 1) / attention.heads))

    def bias(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor:
        distance = (here - there).abs()
        return -self.slopes.view(-1, *[1] * distance.ndim) * distance[None]


class BucketPositions(Relation):
    """A learned number for each head and bucket of distances (Raffel et al. 2020, §2.1, and its published code)."""

    adds = True
    bucket: Tensor

    def __init__(self, positions: slots.BucketPositions, attention: slots.AttentionHeads) -> None:
        super().__init__(positions, attention)
        self.farthest = positions.distance
        self.buckets = nn.Parameter(torch.empty(positions.buckets, attention.heads))
        self.register_buffer("bucket", _buckets(positions.buckets, positions.distance), persistent=False)

    def bias(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor:
        # A distance is looked up, not computed with: a logarithm for every pair of tokens would cost more than attention.
        table = self.buckets[self.bucket].t()  # [H, 2·farthest + 1]
        index = (there - here).clamp(-self.farthest, self.farthest) + self.farthest
        return torch.unflatten(table.index_select(1, index.flatten()), 1, index.shape)[None]


def _buckets(buckets: int, farthest: int) -> Tensor:
    """The bucket of each distance (key - query) from -farthest to farthest; at farthest and beyond, all is the last one's."""
    each, exact = buckets // 2, buckets // 4
    distance = torch.arange(-farthest, farthest + 1)
    far = distance.abs()
    wide = exact + (torch.log(far.clamp(min=1).float() / exact) / math.log(farthest / exact) * (each - exact)).long()
    return torch.where(far < exact, far, wide.clamp(max=each - 1)) + each * (distance > 0)


class RelativePositions(Relation):
    """A learned key for each distance, which the heads share: q · key / √D is added to the scores (Shaw et al. 2018, §3.2)."""

    adds = True

    def __init__(self, positions: slots.RelativePositions, attention: slots.AttentionHeads) -> None:
        super().__init__(positions, attention)
        self.farthest = positions.distance
        self.keys = nn.Parameter(torch.empty(2 * positions.distance + 1, attention.head_width))

    def bias(self, q: Tensor, here: Tensor, there: Tensor) -> Tensor:
        # Each query meets each distance once, and its scores are then looked up.
        scores: Tensor = q @ self.keys.t() * q.shape[-1] ** -0.5
        index = (there - here).clamp(-self.farthest, self.farthest) + self.farthest
        return scores.gather(-1, index.expand(*scores.shape[:-1], index.shape[-1]))


RELATIONS: dict[str, type[Relation]] = {
    "none": Relation,
    "learned": Relation,
    "sinusoidal": Relation,
    "rotary": RotaryPositions,
    "alibi": AlibiPositions,
    "t5": BucketPositions,
    "relative": RelativePositions,
}
