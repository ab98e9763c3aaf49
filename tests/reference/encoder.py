"""Slow, obvious forms of the encoder's parts in float64: loops over heads and tokens, formulas as the papers write them."""

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def dense_attention(q: Array, k: Array, v: Array, mask: list[int]) -> Array:
    """Attention of q, k, v [heads, tokens, width], one weight at a time; tokens whose mask is 0 are not looked at."""
    heads, tokens, width = q.shape
    y = np.zeros((heads, tokens, width))
    for head in range(heads):
        for here in range(tokens):
            weights = [
                math.exp(float(q[head, here] @ k[head, there]) / math.sqrt(width)) if mask[there] else 0.0 for there in range(tokens)
            ]
            for there in range(tokens):
                y[head, here] += weights[there] / sum(weights) * v[head, there]
    return y


def rotary(x: Array, base: float) -> Array:
    """x [heads, tokens, width]: coordinates i and i + width/2 are a complex number, multiplied by e^(j·position·base^(-2i/width))."""
    heads, tokens, width = x.shape
    y = np.zeros_like(x)
    for head in range(heads):
        for token in range(tokens):
            for pair in range(width // 2):
                number = complex(x[head, token, pair], x[head, token, pair + width // 2])
                angle = token * base ** (-2 * pair / width)
                number *= complex(math.cos(angle), math.sin(angle))
                y[head, token, pair], y[head, token, pair + width // 2] = number.real, number.imag
    return y


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


def integer_linear(x: Array, scale: float, zero_point: int, weight: Any, scales: Array, bias: Array) -> Array:
    """A linear on bytes: x [rows, in] to uint8, int8 weights [out, in], summed as integers, scaled once at the end."""
    bytes_in = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.int64)
    sums = (bytes_in - zero_point) @ np.asarray(weight, dtype=np.int64).T
    return sums * scale * scales + bias
