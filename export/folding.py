"""Parts of an encoder computed before it runs: what is left to do is the same, in fewer nodes.

`fold`: the normed embedding of a token, and its share of the first layer's queries, keys and values, are one row of one table; where
positions are added after the norm, theirs are a second table, and W(e + p) + b = (We + b) + Wp. `clamp`: a ReLU whose output is quantized
with zero point 0 is the lower end of the quantizer. Both are exact, but for the order of sums and for how the table is stored.

Shapes: B texts, S tokens, V vocabulary, W width, P the width of the first layer's packed queries, keys and values.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.plan import FIRST
from model.build import Model
from model.encoder import Encoder, Layer
from model.errors import ConfigError
from model.feedforward import ACTIVATIONS, Mlp
from model.quantized import QuantizedLinear
from model.slots import ADDED

ROWS = 2048  # computed at a time
Storage = Literal["fp32", "fp16", "int8"]


class FoldedEmbeddings(nn.Module):
    """A row of `table` [V, W + P] for each token, and one of `places` [longest, W + P] for where it stands, if that is added.

    fp16 and int8 rows are widened after the gather; int8 has one scale a column, which the widths of a norm ask for.
    """

    table: Tensor
    scales: Tensor | None
    places: Tensor | None

    def __init__(self, table: Tensor, places: Tensor | None, storage: Storage) -> None:
        super().__init__()
        scales = None
        if storage == "int8":
            scales = (table.abs().amax(dim=0) / 127).clamp(min=torch.finfo(torch.float32).tiny)
            table = (table / scales).round().clamp(-127, 127).to(torch.int8)
        elif storage == "fp16":
            most = torch.finfo(torch.float16).max
            table = table.clamp(-most, most).half()
        self.register_buffer("table", table)
        self.register_buffer("scales", scales)
        self.register_buffer("places", places)

    def forward(self, input_ids: Tensor, mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """[B, S] to [B*S, W + P]; there is no second type of token."""
        rows = F.embedding(input_ids, self.table).float()
        if self.scales is not None:
            rows = rows * self.scales
        if self.places is not None:
            rows = rows + self.places[: input_ids.shape[1]]
        return rows.flatten(0, 1)


class FoldedLayer(Layer):
    """A first layer that is handed its own projection beside its input."""

    def __init__(self, layer: Layer, width: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(layer.__dict__)
        self.attention.set_submodule("qkv", nn.Identity())
        self.width = width

    def forward(self, x: Tensor, mask: Tensor | None, bias: Tensor, kernel: str) -> Tensor:
        """[B*S, W + P] to what the layer gives."""
        x, projected = torch.split_with_sizes(x, (self.width, x.shape[1] - self.width), dim=1)
        return self.after(x, projected, mask, bias, kernel)


def fold(model: Encoder, storage: Storage) -> Encoder:
    """A copy of `model` for export, its token embeddings, their norm and the first projection in one table of `storage`.

    Texts are single ones: a table has no room for the second type of token. Raises ConfigError where the projection is no such sum.
    """
    config = model.config
    if not config.folds:
        raise ConfigError(
            "The first projection cannot be folded into the embeddings: it reads positions or a norm that no token knows of by itself.",
            "Leave --fold at auto, or distill with --positions-after-norm.",
        )
    model = copy.deepcopy(model).eval()
    embeddings: Any = model.embeddings
    qkv: Any = model.get_submodule(FIRST)
    positions = embeddings.positions
    after = config.positions.kind in ADDED
    with torch.no_grad():
        if isinstance(qkv, QuantizedLinear):  # the weights that it has, and activations as they are
            weight, bias = qkv.weight.float() * qkv.scales[:, None], qkv.bias
        else:
            weight, bias = qkv.weight, qkv.bias
        embeddings.positions = _Nothing()
        ids = [torch.arange(start, min(start + ROWS, config.vocabulary)) for start in range(0, config.vocabulary, ROWS)]
        rows = torch.cat([embeddings(part[None], torch.ones(1, len(part)), None) for part in ids])
        table = torch.cat((rows, F.linear(rows, weight, bias)), dim=1)
        places = None
        if after:
            own = positions(torch.zeros(1, config.max_length, config.table_width), None, torch.ones(1, config.max_length))[0]
            own = own if embeddings.projection is None else F.linear(own, embeddings.projection.weight)
            places = torch.cat((own, F.linear(own, weight)), dim=1)
    model.set_submodule("embeddings", FoldedEmbeddings(table, places, storage))
    first: Any = model.layers[0]
    model.set_submodule("layers.0", FoldedLayer(first, config.width))
    return model


class _Nothing(nn.Module):
    """Positions left out, while the rows of tokens are computed."""

    def forward(self, x: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
        return x if offset is None else x + offset


def clamps(model: Model) -> list[Mlp]:
    """The networks whose ReLU a quantizer with zero point 0 computes anyway."""
    found = [module for module in model.modules() if isinstance(module, Mlp) and module.activation is ACTIVATIONS["relu"]]
    # The bytes of the CPU's scheme have no sign; TensorRT's have one, and keep what is below zero.
    return [mlp for mlp in found if isinstance(mlp.down, QuantizedLinear) and (mlp.down.scheme, mlp.down.zero_point) == ("cpu", 0)]


def clamp(model: Model) -> Model:
    """A copy of `model` for export without the ReLUs that quantizers compute: one fused into its linear would leave that in float."""
    model = copy.deepcopy(model)
    for mlp in clamps(model):
        mlp.activation = _same
    return model


def _same(x: Tensor) -> Tensor:
    return x
