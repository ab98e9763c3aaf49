"""int8 in the form that ONNX Runtime runs as integers: learned or calibrated ranges, then frozen modules (Jacob et al. 2018).

Activations: one range a tensor, watched by torchao's moving-average observer; uint8 for the CPU, int8 around zero for TensorRT. Weights:
int8, one scale a row. While it is trained, a `FakeQuantizedLinear` rounds as the frozen module will; gradients pass straight through.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization.pt2e import FakeQuantize, FusedMovingAvgObsFakeQuantize, MovingAverageMinMaxObserver

from compress.training import Inputs, model_inputs
from model.build import Model
from model.config import EncoderConfig
from model.errors import ConfigError
from model.quantized import BYTES, EMBEDDINGS, QuantizedLinear, quantize_rows

FIRST = "layers.0.attention.qkv"
AVERAGING = 0.05  # share of the newest batch in the moving average of a range


class FakeQuantizedLinear(nn.Linear):
    """A linear whose input and weights are rounded as `QuantizedLinear` of this scheme would; trainable."""

    def __init__(self, inputs: int, outputs: int, scheme: str = "cpu") -> None:
        super().__init__(inputs, outputs)
        least, most, kind = BYTES[scheme]
        # The fused one chooses another scale for a symmetric range than its observer tells of.
        self.activation = (FusedMovingAvgObsFakeQuantize if scheme == "cpu" else FakeQuantize)(
            observer=MovingAverageMinMaxObserver,
            averaging_constant=AVERAGING,
            dtype=kind,
            quant_min=least,
            quant_max=most,
            qscheme=torch.per_tensor_affine if scheme == "cpu" else torch.per_tensor_symmetric,
            eps=1e-6,
        )
        self.rounds = True

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] to [.., out]."""
        x = self.activation(x.float())
        if not self.rounds:
            return F.linear(x, self.weight, self.bias)
        _, scales = quantize_rows(self.weight)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return F.linear(x, torch.fake_quantize_per_channel_affine(self.weight, scales, zeros, 0, -127, 127), self.bias)


def linears(model: Model, keep: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Names of the linears of the layers, without those to `keep` in fp32; the head always stays fp32.

    So does the first projection where positions come after the norm: export folds it into the table of embeddings, and there is nothing
    left of it to compute. Raises ConfigError if a name to keep does not exist.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith("layers.")]
    if unknown := sorted(set(keep) - set(names)):
        raise ConfigError(f"There is no linear {', '.join(unknown)} to keep.", f"The linears are: {', '.join(names)}.")
    folded = [FIRST] if isinstance(model.config, EncoderConfig) and model.config.positions_after_norm and model.config.folds else []
    return tuple(name for name in names if name not in keep and name not in folded)


def observed(model: Model, names: tuple[str, ...], scheme: str = "cpu") -> Model:
    """A copy of `model` whose linears `names` are FakeQuantizedLinear of `scheme` ("cpu", "tensorrt"), with ranges still to be seen."""
    model = copy.deepcopy(model)
    for name in names:
        linear: Any = model.get_submodule(name)
        fake = FakeQuantizedLinear(linear.in_features, linear.out_features, scheme)
        fake.load_state_dict(linear.state_dict(), strict=False)
        model.set_submodule(name, fake)
    return model


@torch.no_grad()
def calibrate(model: Model, batches: Iterable[Inputs]) -> None:
    """Watch the ranges of activations over `batches`; nothing is rounded while they are watched."""
    fakes = [module for module in model.modules() if isinstance(module, FakeQuantizedLinear)]
    model.eval()
    for fake in fakes:
        fake.activation.disable_fake_quant()
        fake.rounds = False
    for inputs in batches:
        model(**model_inputs(inputs))
    for fake in fakes:
        fake.activation.enable_fake_quant()
        fake.rounds = True


def freeze(model: Model, names: tuple[str, ...], *, embeddings: str, scheme: str = "cpu") -> Model:
    """`model`, int8 in place of the FakeQuantizedLinear `names` of `scheme`, its token table stored as `embeddings` says."""
    frozen = copy.deepcopy(model)
    frozen.config = model.config.changed(quantization={"scheme": scheme, "linears": names, "embeddings": embeddings})
    for name in names:
        fake: Any = model.get_submodule(name)
        scale, zero_point = fake.activation.calculate_qparams()
        frozen.set_submodule(name, QuantizedLinear.from_linear(fake, float(scale), int(zero_point), scheme))
    if embeddings in EMBEDDINGS:
        table: Any = model.get_submodule(model.config.table)
        frozen.set_submodule(model.config.table, EMBEDDINGS[embeddings].from_embedding(table))
    return frozen.eval()
