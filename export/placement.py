"""A PyTorch module on its device in its precision, and the time that the device alone needs.

fp32 means fp32: TF32 is used only where asked. Moving logits back to the host waits for the device, so host-to-host times are whole.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import ConfigError, EnvironmentProblem

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
REPEATS = 20  # runs that one figure of device time is the mean of


def placed(module: nn.Module, device: str, precision: str) -> nn.Module:
    """`module` on `device` ("cpu", "cuda") in `precision` (one of DTYPES), in eval mode.

    Raises EnvironmentProblem if PyTorch sees no GPU, ConfigError for an unknown precision or one that the CPU has no kernels for.
    """
    if precision not in DTYPES:
        raise ConfigError(f"PyTorch does not run in {precision!r} here.", f"Choose one of {', '.join(DTYPES)}.")
    if device == "cpu" and precision in ("tf32", "fp16"):
        raise ConfigError(f"{precision} is for GPUs.", "On the CPU choose fp32 or bf16.")
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"CUDA was asked for, but PyTorch {torch.__version__} sees no GPU.",
            "Check `nvidia-smi`, and that this is a CUDA build of PyTorch.",
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    return module.eval().to(device, DTYPES[precision])


def arithmetic(device: str, precision: str) -> AbstractContextManager[Any]:
    """What our own modules run under: masks and positions are fp32 and have to meet halves."""
    return torch.autocast(device, DTYPES[precision]) if precision in ("fp16", "bf16") else nullcontext()


def device_seconds(run: Callable[[Mapping[str, Tensor]], Any], tensors: Mapping[str, Tensor], device: str) -> float:
    """Mean seconds of `run` over `tensors` that are on `device` already, by its own clock; the first, which may compile, does not count."""
    run(tensors)
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(REPEATS):
            run(tensors)
        return (time.perf_counter() - start) / REPEATS
    event: Any = torch.cuda.Event  # which has no types
    begin, end = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(REPEATS):
        run(tensors)
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / REPEATS
