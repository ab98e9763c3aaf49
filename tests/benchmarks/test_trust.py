"""The model that is slower on purpose is so by what it says."""

import numpy as np
import pytest

from benchmarks.trust import Slowed


class Ticking:
    """A predictor and its clock: encoding takes 2 s, the model 8 s, and looking at the clock 1 ms."""

    labels, engine, provider, precision = ("a",), "ort", "cpu", "fp32"

    def __init__(self):
        self.now = 0.0

    def clock(self):
        self.now += 0.001
        return self.now

    def encode(self, texts, pairs=None):
        self.now += 2
        return {}

    def logits(self, batch):
        self.now += 8
        return np.zeros((1, 1))


@pytest.mark.parametrize("factor", [1.0, 1.05, 2.0])
def test_it_takes_as_much_longer_as_asked(factor):
    inner = Ticking()
    slowed = Slowed(inner, factor, inner.clock)
    slowed.logits(slowed.encode(["a"]))
    assert inner.now == pytest.approx(10 * factor, abs=0.02)
