"""PyTorch against the exported graph, through the real predictor, over a grid of shapes with uneven padding."""

import copy
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from model.build import Model
from model.errors import GateError
from model.kinds import ModelConfig
from model.tokenizer import Batch

SIGNAL = 25.0  # dB that are asked of int8 and fp16
MOVED = 1e-4  # of a weight: int8 models that moved so are as far from themselves as their files are, be they two layers deep or six
MARGIN = 6.0  # dB by which two samples of such noise may differ


class Runs(Protocol):
    """What is compared: anything that gives logits for a batch."""

    def logits(self, batch: Batch) -> np.ndarray: ...


@dataclass(frozen=True)
class Parity:
    """The worst of all shapes: largest difference of a logit and where it was seen, least signal-to-noise ratio in dB; and that of all.

    The signal is that of all shapes together: random ids can give one text logits of almost nothing, and any noise is large beside them.
    `together_db` has the noise of all shapes too, which depends less on the one text that a value between two bytes changed most.
    """

    difference: float
    signal_db: float
    worst_shape: tuple[int, int]
    shapes: int
    together_db: float


def grid(longest: int) -> list[tuple[int, int]]:
    """Batch and length of each trial: length 1, odd, powers of two and one beside them, the longest; very long texts one at a time."""
    lengths = sorted({length for length in (1, 2, 7, 16, 31, 33, 64, longest - 1, longest) if 1 <= length <= longest})
    return [(batch, length) for length in lengths for batch in _sizes(length)] + [(17, min(23, longest))]


def _sizes(length: int) -> tuple[int, ...]:
    return (1, 3) if length < 100 else (1, 2) if length <= 2048 else (1,)


def batch_of(shape: tuple[int, int], vocabulary: int, seed: int, *, pairs: bool) -> Batch:
    """Random ids of `shape`; each row but the first is padded to a length of its own, the second one to length 1."""
    random = np.random.default_rng(seed)
    batch, length = shape
    ids = random.integers(0, vocabulary, shape)
    lengths = random.integers(1, length + 1, batch)
    lengths[0] = length
    lengths[1:2] = 1
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    types = {"token_type_ids": random.integers(0, 2, shape) * mask} if pairs else {}
    return {"input_ids": ids * mask, "attention_mask": mask, **types}


def batches(config: ModelConfig, *, pairs: bool, seed: int = 0, single: bool = False) -> list[Batch]:
    """A batch for every shape of the grid, or only for those of a `single` text."""
    shapes = [shape for shape in grid(config.max_length) if shape[0] == 1 or not single]
    return [batch_of(shape, config.vocabulary, seed + number, pairs=pairs) for number, shape in enumerate(shapes)]


def compare(model: Model, predictor: Runs, *, pairs: bool, seed: int = 0, single: bool = False) -> Parity:
    """Run both over the grid, or over its `single` texts alone."""
    worst, where = 0.0, (0, 0)
    signals, noises = [], []  # mean squares of each shape
    whole = _Module(model)
    given = batches(model.config, pairs=pairs, seed=seed, single=single)
    for batch in given:
        shape = batch["input_ids"].shape
        expected = whole.logits(batch).astype(np.float64)
        found = predictor.logits(batch).astype(np.float64)
        if expected.ndim == 3 and found.shape == expected.shape:  # what stands at padding means nothing
            expected, found = (np.where(batch["attention_mask"][:, :, None], values, 0.0) for values in (expected, found))
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise GateError(f"At batch and length {shape} the file gives {found.shape} instead of {expected.shape}, or no numbers.", "")
        signals.append(float(np.square(expected).mean()))
        noises.append(float(np.square(found - expected).mean()))
        difference = float(np.abs(found - expected).max())
        if difference > worst:
            worst, where = difference, shape
    signal, count = sum(signals), len(given)
    return Parity(worst, _ratio(signal, count * max(noises)), where, count, _ratio(signal, sum(noises)))


def _ratio(signal: float, noise: float) -> float:
    """In dB."""
    return math.inf if not noise else 10 * math.log10(signal / noise) if signal else -math.inf


def checked(model: Model, predictor: Runs, *, pairs: bool, tolerance: float | None, signal: float | None, single: bool = False) -> Parity:
    """Compare, and let `gate` decide.

    Without a `signal`, int8 and fp16 are asked for SIGNAL, or to be as near to the model as it is to itself when its weights move by MOVED:
    each layer in int8 makes more of what the one before rounded otherwise, and in ONNX Runtime the last bits are rounded otherwise.
    """
    found = compare(model, predictor, pairs=pairs, single=single)
    if tolerance is None and signal is None and found.signal_db < SIGNAL:
        itself = compare(model, _moved(model), pairs=pairs, single=single)
        if found.together_db >= itself.together_db - MARGIN:
            return found
    gate(found, tolerance=tolerance, signal=SIGNAL if signal is None else signal)
    return found


@dataclass(frozen=True)
class _Module:
    """A module as a predictor."""

    module: Model

    @torch.no_grad()
    def logits(self, batch: Batch) -> np.ndarray:
        found: np.ndarray = self.module(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
        return found


@torch.no_grad()
def _moved(model: Model) -> _Module:
    """A copy whose weights are each MOVED times a normal number away, of themselves."""
    moved = copy.deepcopy(model)
    random = torch.Generator().manual_seed(0)
    for weight in moved.parameters():
        weight.mul_(1 + MOVED * torch.randn(weight.shape, generator=random))
    return _Module(moved)


def gate(parity: Parity, *, tolerance: float | None, signal: float) -> None:
    """Raise GateError if fp32 differs by more than `tolerance`, or int8 or fp16 (tolerance None) has less than `signal` dB."""
    if tolerance is not None and parity.difference > tolerance:
        raise GateError(
            f"The exported graph differs from PyTorch by {parity.difference:.2g} at batch and length {parity.worst_shape} "
            f"(allowed: {tolerance:g}).",
            "Nothing was written. --tolerance sets what is allowed.",
        )
    if tolerance is None and parity.signal_db < signal:
        raise GateError(
            f"The exported graph is {parity.signal_db:.1f} dB from PyTorch, worst at batch and length {parity.worst_shape} "
            f"(asked: {signal:g} dB).",
            "Nothing was written. --signal sets what is asked.",
        )
