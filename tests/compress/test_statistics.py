"""Intervals and tests, against scipy and by their properties."""

import warnings
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from compress import statistics
from compress.statistics import bootstrap, mcnemar, mean, median, noise_floor, quantile, speedup, verdict


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(1).exponential(size=200)
    low, high = bootstrap(mean, values, resamples=8000) or (0, 0)
    other = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=8000, rng=2).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), rel=0.01)


def test_the_paired_interval_is_scipys() -> None:
    generator = np.random.default_rng(3)
    one = generator.normal(5, 1, 300)
    other = one + generator.normal(0.2, 0.1, 300)

    def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return b.mean(axis=-1) - a.mean(axis=-1)

    low, high = bootstrap(difference, one, other, resamples=6000) or (0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = scipy.stats.bootstrap(
            (one, other), lambda a, b, axis: np.mean(b - a, axis=axis), paired=True, method="percentile", n_resamples=6000, rng=4
        ).confidence_interval
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=0.01)
    assert high - low < 0.04  # unpaired it would be 0.3


def test_intervals_cover_what_they_should() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        low, high = bootstrap(mean, generator.normal(1.0, 1.0, 60), resamples=400, seed=seed) or (0, 0)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_the_same_seed_gives_the_same_interval_whatever_is_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).normal(size=(9, 20))
    whole = bootstrap(median, values, resamples=500, seed=3)
    assert whole == bootstrap(median, values, resamples=500, seed=3)
    assert whole != bootstrap(median, values, resamples=500, seed=4)
    monkeypatch.setattr(statistics, "CELLS", 1000)
    pieces = bootstrap(median, values, resamples=500, seed=3)
    assert pieces == pytest.approx(whole, abs=0.05)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
@settings(max_examples=30)
def test_an_interval_lies_within_the_values(values: list[float]) -> None:
    low, high = bootstrap(mean, values, resamples=200) or (0, 0)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_one_round_has_no_interval() -> None:
    assert bootstrap(mean, [1.0]) is None
    assert speedup(np.ones((1, 5)) * 2, np.ones((1, 5))) == (2.0, None)
    assert noise_floor(np.ones((1, 5)), np.ones((1, 5))) is None


def test_a_speedup_is_paired_by_round() -> None:
    generator = np.random.default_rng(7)
    phases = generator.choice([1.0, 3.0], (20, 1))  # the machine is three times slower in some rounds
    baseline, model = (phases * ms * generator.lognormal(0, 0.02, (20, 40)) for ms in (10.0, 2.0))
    ratio, interval = speedup(baseline, model)
    assert ratio == pytest.approx(5, rel=0.01)
    assert interval is not None
    assert 4.9 < interval[0] <= ratio <= interval[1] < 5.1


def test_one_spoilt_round_does_not_move_a_speedup() -> None:
    baseline, model = np.full((7, 5), 10.0), np.full((7, 5), 2.0)
    model[3] *= 50
    assert speedup(baseline, model)[0] == 5.0


def test_the_noise_floor_is_the_furthest_end_either_way_round() -> None:
    one = np.tile([[1.0], [1.1], [1 / 1.1]], (1, 3))
    assert noise_floor(one, np.ones((3, 3))) == pytest.approx(0.1)
    assert noise_floor(np.ones((3, 3)), one) == pytest.approx(0.1)
    assert noise_floor(np.ones((3, 3)), np.ones((3, 3))) == 0


@pytest.mark.parametrize(
    ("ratio", "interval", "floor", "expected"),
    [
        (1.30, (1.25, 1.35), 0.02, "faster"),
        (0.70, (0.68, 0.72), 0.02, "slower"),
        (1.01, (1.005, 1.015), 0.02, "no clear difference"),
        (1.015, (1.012, 1.018), 0.001, "no clear difference"),  # less than processes of one file differ by
        (1 / 1.01, (0.985, 0.995), 0.02, "no clear difference"),
        (1.30, (0.95, 1.60), 0.02, "no clear difference"),
        (1.30, None, 0.02, "no clear difference"),
        (1.30, (1.25, 1.35), None, "no clear difference"),
    ],
)
def test_verdicts(ratio: float, interval: tuple[float, float] | None, floor: float | None, expected: str) -> None:
    assert verdict(ratio, interval, floor) == expected


def test_two_copies_are_not_told_apart_and_five_percent_are() -> None:
    generator = np.random.default_rng(8)
    verdicts: Counter[tuple[str, str]] = Counter()
    for _ in range(20):
        phases = generator.lognormal(0, 0.1, (25, 1))
        draws = [phases * speed * generator.lognormal(0, 0.08, (25, 150)) for speed in (1.0, 1.0, 1.0, 1.05)]
        floor = noise_floor(draws[0], draws[1])
        for kind, model in (("copy", draws[2]), ("slow", draws[3])):
            verdicts[kind, verdict(*speedup(draws[0], model), floor)] += 1
    assert verdicts["copy", "no clear difference"] == 20
    assert verdicts["slow", "slower"] >= 18


@pytest.mark.parametrize(("count", "share", "claimed"), [(199, 0.95, False), (200, 0.95, True), (999, 0.99, False), (1000, 0.99, True)])
def test_quantiles_need_ten_samples_beyond_them(count: int, share: float, claimed: bool) -> None:
    values = np.random.default_rng(9).normal(size=count)
    expected = pytest.approx(np.quantile(values, share)) if claimed else None
    assert quantile(values, share) == expected


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
@settings(max_examples=60)
def test_mcnemar_is_the_binomial_test(first: int, second: int, both: int) -> None:
    one = [True] * first + [False] * second + [True] * both
    other = [False] * first + [True] * second + [True] * both
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(one, other) == mcnemar(other, one)


def test_mcnemar_with_many_texts() -> None:
    one = np.array([True] * 1400 + [False] * 1600)
    assert mcnemar(one, ~one) == pytest.approx(scipy.stats.binomtest(1400, 3000).pvalue, rel=1e-9)
