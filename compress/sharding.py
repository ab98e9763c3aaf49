"""Sharded training (FSDP): each process keeps its share of parameters, gradients and optimizer state, by torch's `fully_shard`.

`accelerate launch` hands on in variables of the environment what its configuration file says. accelerate itself shards nothing on CPUs
(it makes whole copies there), so a model is sharded before accelerate sees it, on CPUs and GPUs alike.
"""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from compress.config import Training
from compress.ranks import processes
from model.build import Model
from model.encoder import Layer
from model.errors import EnvironmentProblem

# What `fsdp_config` may say; where it says nothing, the first. What is not here is of FSDP 1 or concerns speed alone.
KNOWN = {
    "fsdp_version": ("2",),
    "fsdp_auto_wrap_policy": ("no_wrap", "transformer_based_wrap", "size_based_wrap"),
    "fsdp_transformer_layer_cls_to_wrap": ("", "layer"),
    "fsdp_reshard_after_forward": ("true", "false"),
    "fsdp_state_dict_type": ("sharded_state_dict", "full_state_dict"),
    "fsdp_offload_params": ("false", "true"),
    "fsdp_activation_checkpointing": ("false", "true"),
    "fsdp_activation_checkpointing_offload": ("false",),
    "fsdp_sharding_strategy": ("full_shard",),
    "fsdp_ignored_modules": ("",),
}
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on process 0; the others get nothing


@dataclass(frozen=True)
class Sharding:
    """What accelerate's configuration asks for.

    least: parameters from which a layer of the encoder is gathered by itself, None for never; all else is gathered at once.
    reshard: let go of the others' shares between forward and backward. whole: process 0 writes checkpoints, instead of each its share.
    offload: shares wait in the CPU's memory. checkpointing: as the option of that name.
    """

    least: int | None
    reshard: bool
    whole: bool
    offload: bool
    checkpointing: bool


def read_sharding() -> Sharding | None:
    """None where none is asked for. Raises EnvironmentProblem for a setting that is not KNOWN, such as accelerate's default, FSDP 1."""
    if not (_variable("ACCELERATE_USE_FSDP") == "true" or _variable("FSDP_VERSION")):
        return None
    given = {}
    for name, known in KNOWN.items():
        given[name] = _variable(name.upper().replace("_LAYER_CLS", "_CLS")) or ("1" if name == "fsdp_version" else known[0])
        if given[name] not in known:
            hint = f"Set it to {' or '.join(known)} in accelerate's configuration." if known[0] else "Leave it out."
            raise EnvironmentProblem(f"{name} is {given[name]}, which sharded training does not do here.", hint)
    smallest = _variable("FSDP_MIN_NUM_PARAMS") or str(10**8)
    if not smallest.isdecimal():
        raise EnvironmentProblem(f"fsdp_min_num_params is {smallest}.", "Write a whole number, in digits.")
    least = {"no_wrap": None, "transformer_based_wrap": 0, "size_based_wrap": int(smallest)}
    return Sharding(
        least=least[given["fsdp_auto_wrap_policy"]],
        reshard=given["fsdp_reshard_after_forward"] == "true",
        whole=given["fsdp_state_dict_type"] == "full_state_dict",
        offload=given["fsdp_offload_params"] == "true",
        checkpointing=given["fsdp_activation_checkpointing"] == "true",
    )


def take_launch(options: Training) -> Sharding | None:
    """What `accelerate launch` asks for, which from now on accelerate does not see: it would do it, too.

    Raises EnvironmentProblem for what would make another model than `options` say, or is not done here.
    """
    sharding = read_sharding()
    precision = _variable("ACCELERATE_MIXED_PRECISION")
    if precision not in ("", "no", options.precision):
        what = f"accelerate's configuration says mixed_precision: {precision}, and --precision is {options.precision}."
        raise EnvironmentProblem(what, "Set mixed_precision: 'no' there: --precision alone decides.")
    if _variable("ACCELERATE_DYNAMO_BACKEND") not in ("", "no"):
        raise EnvironmentProblem("accelerate's configuration asks for compilation.", "Leave dynamo_config out; --compile does that.")
    for engine in ("DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if _variable(f"ACCELERATE_USE_{engine}") == "true":
            what = f"accelerate's configuration asks for {engine}, with which training was never tried."
            raise EnvironmentProblem(what, "Take distributed_type: FSDP with fsdp_version: 2, or train whole copies with `torchrun`.")
    if sharding is None:
        return None
    if options.precision == "fp16":
        raise EnvironmentProblem("Sharded training does not scale gradients, which fp16 needs.", "Take --precision bf16 or fp32.")
    if options.compile:
        raise EnvironmentProblem("--compile and sharded training do not go together here.", "Leave one of them out.")
    os.environ["ACCELERATE_USE_FSDP"] = os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return sharding


def _variable(name: str) -> str:
    found = os.environ.get(name, "").lower()
    return "" if found == "none" else found  # so accelerate writes what a file leaves empty


def backend(device: str, sharding: Sharding | None) -> str:
    """What processes talk through: of shares on GPUs some wait, and are written, on the CPU."""
    if device == "cpu":
        return "gloo"
    return "nccl" if sharding is None else "cpu:gloo,cuda:nccl"


def taken(model: Model) -> Model:
    """`model` with its weights, to be sharded; what is left in place of them takes no memory, until `give_back`."""
    kept: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, kept)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(parameter.to("meta"), parameter.requires_grad))
    return twin


def give_back(twin: nn.Module, model: Model) -> None:
    """The weights of a sharded `twin`, gathered, into the `model` that they were taken from, in process 0."""
    found = get_model_state_dict(twin, options=WHOLE)
    if found:
        model.load_state_dict(found, assign=True)


def shard(lesson: nn.Module, sharding: Sharding, device: str) -> None:
    """Leave to each process its share of `lesson`, in place; what is gathered is in turn each layer, and the rest."""
    _as_first(lesson.parameters())
    mesh = init_device_mesh(device, (processes(),))
    layers = [module for module in lesson.modules() if isinstance(module, Layer)]
    units = [] if sharding.least is None else [layer for layer in layers if _size(layer) >= sharding.least]
    policy = CPUOffloadPolicy() if sharding.offload and device == "cuda" else OffloadPolicy()
    for unit in (*units, lesson):
        fully_shard(unit, mesh=mesh, reshard_after_forward=sharding.reshard, offload_policy=policy)
    # Ranges and running means follow those of process 0, as in DistributedDataParallel.
    lesson.register_forward_pre_hook(lambda *_: _as_first(lesson.buffers()))
    lesson._is_accelerate_prepared = True  # type: ignore[assignment]  # accelerate wraps no module twice


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _as_first(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        torch.distributed.broadcast(tensor, 0)


def save_shares(lesson: nn.Module, optimizer: Any, schedule: Any, folder: Path, *, whole: bool) -> None:
    """A checkpoint that any number of processes can go on from."""
    weights, state = get_state_dict(lesson, optimizer, options=WHOLE if whole else None)
    state_dict_saver.save({"lesson": weights, "optimizer": state, "schedule": schedule}, checkpoint_id=folder)


def load_shares(lesson: nn.Module, optimizer: Any, schedule: Any, folder: Path) -> None:
    """What `save_shares` wrote, into a lesson that is sharded already."""
    weights, state = get_state_dict(lesson, optimizer)
    state_dict_loader.load({"lesson": weights, "optimizer": state, "schedule": schedule}, checkpoint_id=folder)
    set_state_dict(lesson, optimizer, model_state_dict=weights, optim_state_dict=state)


def in_shares(checkpoint: Path) -> bool:
    """Whether `save_shares` wrote it."""
    return (checkpoint / ".metadata").exists()
