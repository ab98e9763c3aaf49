"""Slow, obvious forms of attention and positions in float64: which token sees which, and by how much, one pair at a time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Sees = Callable[[int, int], bool]


def attention(q: Array, k: Array, v: Array, sees: Sees, bias: Callable[[int, int, int], float] | None = None) -> Array:
    """q, k, v [heads, tokens, width]: query i takes the values of all j that it `sees`, by exp(q·k / √width + bias(head, i, j))."""
    heads, tokens, width = q.shape
    y = np.zeros((heads, tokens, width))
    for head in range(heads):
        for here in range(tokens):
            weights = {
                there: math.exp(float(q[head, here] @ k[head, there]) / math.sqrt(width) + (bias(head, here, there) if bias else 0.0))
                for there in range(tokens)
                if sees(here, there)
            }
            for there, weight in weights.items():
                y[head, here] += weight / sum(weights.values()) * v[head, there]
    return y


def dense() -> Sees:
    return lambda i, j: True


def window(size: int, first: int) -> Sees:
    return lambda i, j: abs(i - j) <= size // 2 or i < first or j < first


def strided(stride: int) -> Sees:
    return lambda i, j: abs(i - j) < stride or (i - j) % stride == 0


def fixed(stride: int, summary: int) -> Sees:
    return lambda i, j: i // stride == j // stride or j % stride in range(stride - summary, stride)


def bigbird(block: int, first: int, drawn: Callable[[int], list[int]]) -> Sees:
    """`drawn(r)`: the blocks that block r sees besides."""

    def sees(i: int, j: int) -> bool:
        row, other = i // block, j // block
        return abs(row - other) <= 1 or row < first or other < first or other in drawn(row)

    return sees


def linformer(q: Array, k: Array, v: Array, keys: Array, values: Array) -> Array:
    """`keys`, `values` [landmarks, tokens] mix the tokens of k and v; q, k, v [heads, tokens, width]."""
    heads, tokens, width = q.shape
    y = np.zeros((heads, tokens, width))
    for head in range(heads):
        mixed_k = [sum(row[t] * k[head, t] for t in range(tokens)) for row in keys]
        mixed_v = [sum(row[t] * v[head, t] for t in range(tokens)) for row in values]
        for here in range(tokens):
            weights = [math.exp(float(q[head, here] @ key) / math.sqrt(width)) for key in mixed_k]
            y[head, here] = sum(weight * value for weight, value in zip(weights, mixed_v, strict=True)) / sum(weights)
    return y


def prefixed(q: Array, k: Array, v: Array, keys: Array, values: Array, bias: Callable[[int, int, int], float] | None = None) -> Array:
    """Dense attention of q, k, v [heads, tokens, width] that also takes the `values` of `keys` [heads, prefix, width], without any bias."""
    heads, tokens, width = q.shape
    y = np.zeros((heads, tokens, width))
    for head in range(heads):
        for here in range(tokens):
            weights = [math.exp(float(q[head, here] @ key) / math.sqrt(width)) for key in keys[head]]
            for there in range(tokens):
                added = bias(head, here, there) if bias else 0.0
                weights.append(math.exp(float(q[head, here] @ k[head, there]) / math.sqrt(width) + added))
            for weight, value in zip(weights, [*values[head], *v[head]], strict=True):
                y[head, here] += weight / sum(weights) * value
    return y


def segments(tokens: int, landmarks: int) -> Array:
    """Which token is averaged into which landmark [landmarks, tokens]; landmarks without a token are left out."""
    rows = np.zeros((landmarks, tokens))
    for token in range(tokens):
        rows[math.floor(token * landmarks / tokens), token] = 1
    rows = rows[rows.sum(1) > 0]
    return rows / rows.sum(1, keepdims=True)


def alibi(heads: int) -> Callable[[int, int, int], float]:
    return lambda head, i, j: -(2 ** (-8 * (head + 1) / heads)) * abs(i - j)


def t5_bucket(distance: int, buckets: int, farthest: int) -> int:
    """Half of the buckets a direction (key after query: the second half), half of these for one distance each, the others by logarithm."""
    side = buckets // 2 if distance > 0 else 0
    distance, each, exact = abs(distance), buckets // 2, buckets // 4
    if distance < exact:
        return side + distance
    wide = exact + int(math.log(distance / exact) / math.log(farthest / exact) * (each - exact) + 1e-6)
    return side + min(wide, each - 1)


def relative(q: Array, table: Array) -> Callable[[int, int, int], float]:
    """`table` [2·farthest + 1, width]: the key of each distance."""
    farthest = len(table) // 2

    def bias(head: int, i: int, j: int) -> float:
        return float(q[head, i] @ table[max(-farthest, min(farthest, j - i)) + farthest]) / math.sqrt(q.shape[-1])

    return bias


def rotate(x: Array, frequency: Array, sharpness: float = 1.0) -> Array:
    """x [heads, tokens, width]: coordinates i and i + width/2 are a complex number, turned by token · frequency[i]."""
    y = np.zeros_like(x)
    half = x.shape[-1] // 2
    for head in range(x.shape[0]):
        for token in range(x.shape[1]):
            for pair in range(half):
                angle = token * frequency[pair]
                number = complex(x[head, token, pair], x[head, token, pair + half]) * complex(math.cos(angle), math.sin(angle))
                y[head, token, pair], y[head, token, pair + half] = number.real * sharpness, number.imag * sharpness
    return y


def sinusoid(position: int, coordinate: int, width: int, base: float) -> float:
    angle = position / base ** (2 * (coordinate // 2) / width)
    return math.cos(angle) if coordinate % 2 else math.sin(angle)


def stretched(table: Array, tokens: int) -> Array:
    """`table` [rows, width] for a text of `tokens`: as it is for a short one, else pulled to the text's length."""
    if tokens <= len(table):
        return table[:tokens]
    return np.stack([np.interp(np.linspace(0, len(table) - 1, tokens), np.arange(len(table)), column) for column in table.T], axis=1)


def batchnorm(x: Array, mask: list[int], weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """x [tokens, width] by mean and variance of the tokens whose mask is 1; these two as well."""
    real = x[np.array(mask) == 1]
    mean, variance = real.mean(0), real.var(0)
    return (x - mean) / np.sqrt(variance + eps) * weight + bias, mean, variance
