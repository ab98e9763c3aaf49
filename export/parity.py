"""PyTorch against the exported graph, through the real predictor, over a grid of shapes with uneven padding."""

import copy
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from model.build import Model
from model.errors import GateError
from model.kinds import ModelConfig
from model.tokenizer import Batch

SIGNAL = 25.0  # dB that are asked of int8 and fp16
MOVED = 1e-4  # of a weight: int8 models that moved so are as far from themselves as their files are, be they two layers deep or six
MARGIN = 6.0  # dB between two samples of such noise


class Runs(Protocol):
    """What is compared: anything that gives logits for a batch."""

    def logits(self, batch: Batch) -> np.ndarray: ...


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit and where it was seen; signal-to-noise ratio of all shapes together, in dB.

    Together, since random ids can give one text logits of almost nothing, beside which any noise is large, and since a value that falls
    between two bytes can change one text by as much as many others together. One shape that is wrong as a whole still leaves
    no more than 10 log10(shapes) dB.
    """

    difference: float
    signal_db: float
    worst_shape: tuple[int, int]
    shapes: int


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


@torch.no_grad()
def compare(model: Model, predictor: Runs, *, pairs: bool, seed: int = 0, single: bool = False) -> Parity:
    """Run both over the grid, or over its `single` texts alone."""
    worst, where = 0.0, (0, 0)
    signals, noises = [], []  # mean squares of each shape
    given = batches(model.config, pairs=pairs, seed=seed, single=single)
    for batch in given:
        shape = batch["input_ids"].shape
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in batch.items()}
        expected = model(**tensors).numpy().astype(np.float64)
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
    signal, noise = sum(signals), sum(noises)
    ratio = math.inf if not noise else 10 * math.log10(signal / noise) if signal else -math.inf
    return Parity(worst, ratio, where, len(given))


def checked(model: Model, predictor: Runs, *, pairs: bool, tolerance: float | None, signal: float | None, single: bool = False) -> Parity:
    """Compare, and let `gate` decide.

    Without a `signal`, SIGNAL is asked, or what the model keeps of itself when its weights move by MOVED, less MARGIN, where that is
    less: each layer in int8 makes more of what the one before rounded otherwise, and in ONNX Runtime a millionth is rounded otherwise.
    """
    found = compare(model, predictor, pairs=pairs, single=single)
    if tolerance is None and signal is None and found.signal_db < SIGNAL:
        signal = min(SIGNAL, compare(model, _moved(model), pairs=pairs, single=single).signal_db - MARGIN)
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
            f"(asked: {signal:.3g} dB).",
            "Nothing was written. --signal sets what is asked.",
        )
