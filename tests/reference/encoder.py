"""Slow, obvious forms of the encoder's parts in float64: formulas as the papers write them."""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def layernorm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def rmsnorm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def integer_linear(x: Array, scale: float, zero_point: int, weight: Any, scales: Array, bias: Array) -> Array:
    """A linear on bytes: x [rows, in] to uint8, int8 weights [out, in], summed as integers, scaled once at the end."""
    bytes_in = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.int64)
    sums = (bytes_in - zero_point) @ np.asarray(weight, dtype=np.int64).T
    return sums * scale * scales + bias
