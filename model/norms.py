"""The slot of norms, each over the last axis of [.., W]: layernorm (Ba et al. 2016) and rmsnorm (Zhang and Sennrich 2019)."""

from collections.abc import Callable

from torch import nn

from model import config


def _layernorm(norm: config.LayerNorm, width: int) -> nn.Module:
    return nn.LayerNorm(width, eps=norm.eps)


def _rmsnorm(norm: config.RmsNorm, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=norm.eps)


NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": _layernorm, "rmsnorm": _rmsnorm}
