"""The slot of norms over flat activations [T, W]: layernorm (Ba et al. 2016), rmsnorm (Zhang and Sennrich 2019), batchnorm."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model import slots


class BatchNorm(nn.Module):
    """Each feature by its mean and variance over the real tokens of the batch; in eval mode by their averages in training.

    Ioffe and Szegedy 2015, §3.1. Padding takes no part in either.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[T, W] to [T, W]; the float `mask` [T] is 1 where there is a token."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            count = mask.sum().clamp(min=1.0)
            mean = mask @ x.float() / count
            variance = mask @ (x.float() - mean).square() / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1.0), self.momentum)
        # One product and one sum: in an exported graph both factors are constants.
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale + (self.bias - mean * scale)


def _layernorm(norm: slots.LayerNorm, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=norm.eps)


def _rmsnorm(norm: slots.RmsNorm, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=norm.eps)


def _batchnorm(norm: slots.BatchNorm, width: int) -> nn.Module:
    return BatchNorm(width, norm.eps, norm.momentum)


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": _layernorm, "rmsnorm": _rmsnorm, "batchnorm": _batchnorm}
