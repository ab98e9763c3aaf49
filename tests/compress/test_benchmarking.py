"""The orchestration, with workers that keep a fake time; one run through real processes."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.bands import bands
from compress.benchmarking import TWIN, Plan, benchmark
from compress.report import build_report, schema
from compress.sweep import settings
from compress.ways import Way
from model.errors import ConfigError, EnvironmentProblem
from serve.timing import packed

NAMES = ("no", "yes")
TEXTS = [f"text {number}" for number in range(40)]
LABELS = [number % 2 for number in range(40)]


class Fake:
    """A worker whose texts take `ms` each, with a share `noise` of it, and that gets every `wrong`-th text wrong."""

    def __init__(self, name: str, log: list[tuple[str, str]], arguments: dict[str, Any]) -> None:
        self.name, self.log = name, log
        self.ms, self.noise, self.wrong = (arguments.get(key, default) for key, default in (("ms", 1.0), ("noise", 0.01), ("wrong", 0)))
        self.waited = arguments.get("waited", 0.01)
        self.labels = arguments.get("labels", NAMES)
        self.provider = arguments.get("provider", "cpu")
        self.cold_start_ms = 500.0
        self.draws = np.random.default_rng(sum(name.encode()))
        self.texts: list[str] = []

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append((self.name, "closed"))

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """As the real one."""
        self.log.append((self.name, command))
        return getattr(self, f"_{command}")(**arguments)

    def _texts(self, texts: list[str], pairs: list[str] | None) -> dict[str, Any]:
        self.texts = texts
        return {}

    def _warm(self) -> dict[str, Any]:
        return {"seconds_per_text": self.ms / 1000}

    def _round(self) -> dict[str, Any]:
        answer = self.ms / 1000 * self.draws.lognormal(0, self.noise, len(self.texts))
        return {"answer": answer.tolist(), "model": (answer / 2).tolist(), "waited": self.waited}

    def _lengths(self) -> dict[str, Any]:
        return {"lengths": [1 + number % 20 for number in range(len(self.texts))]}

    def _device(self) -> dict[str, Any]:
        return {"device": [self.ms / 4000] * len(self.texts)}

    def _memory(self) -> dict[str, Any]:
        return {"peak_rss_mb": 100.0}

    def _throughput(self, batch: int, seconds: float = 0.5) -> dict[str, Any]:
        return {"texts_per_second": 1000 / self.ms}

    def _scores(self, texts: list[str], pairs: list[str] | None, batch: int) -> dict[str, Any]:
        rows = np.zeros((len(texts), 2))
        for number, text in enumerate(texts):
            right = int(text.split()[1]) % 2
            mistaken = self.wrong and number % self.wrong == 0
            rows[number, self.labels.index(NAMES[1 - right if mistaken else right])] = 1
        return {"logits": packed(rows)}


def starter(log: list[tuple[str, str]]) -> Callable[..., Any]:
    """A `start` that logs who is asked what."""

    def start(name: str, factory: str, arguments: dict[str, Any], text: str, pair: str | None, *, threads: int, timeout: float) -> Fake:
        log.append((name, "started"))
        return Fake(name, log, arguments)

    return start


def way(name: str, **arguments: Any) -> Way:
    """A way with a fake worker."""
    return Way(name, name, "ort", "cpu", "fp32", "session", "module:function", arguments)


WAYS = [way("teacher", ms=10.0, wrong=8), way("copy", ms=10.0, wrong=8), way("student", ms=0.5, wrong=5)]


def run(ways: list[Way] = WAYS, log: list[tuple[str, str]] | None = None, **arguments: Any) -> dict[str, Any]:
    """A benchmark with fake workers."""
    arguments.setdefault("plan", Plan(texts=20, rounds=7))
    return benchmark(ways, TEXTS, LABELS, NAMES, start=starter([] if log is None else log), **arguments)


def test_what_comes_out_is_what_went_in() -> None:
    result = run()
    teacher, _, student = result["models"]
    assert teacher["latency_ms"]["median"] == pytest.approx(10, rel=0.02)
    assert teacher["latency_ms"]["model_only_median"] == pytest.approx(5, rel=0.02)
    assert np.shape(teacher["latency_ms"]["rounds"]) == (7, 20)
    assert "p95" not in teacher["latency_ms"]  # 140 samples
    assert teacher["quality"]["accuracy"] == 35 / 40
    assert student["quality"]["accuracy"] == 32 / 40
    assert student["throughput"] == {"batch": 32, "texts_per_second": 2000.0}
    same, faster = result["comparisons"]
    assert (same["verdict"], same["accuracy_drop_points"], same["mcnemar_p"], same["agreement"]) == ("no clear difference", 0, 1, 1)
    assert faster["verdict"] == "faster"
    assert faster["speedup"] == pytest.approx(20, rel=0.02)
    assert faster["accuracy_drop_points"] == pytest.approx(7.5)
    assert faster["agreement"] == pytest.approx(1 - 11 / 40)  # 5 and 8 mistakes, one in common
    assert 0 < result["protocol"]["noise_floor"] < 0.02


def test_a_report_of_it_follows_the_schema() -> None:
    facts = {one.name: {"digest": "d", "bytes": 10} for one in WAYS}
    report = build_report(run(), task="classification", data={"name": "n", "digest": "d", "test_texts": 40}, facts=facts, command="c")
    jsonschema.validate(report, schema())


def test_ways_take_turns_in_an_order_that_changes_and_all_are_closed() -> None:
    log: list[tuple[str, str]] = []
    run(log=log)
    asked = [name for name, command in log if command == "round"]
    rounds = [asked[start : start + 4] for start in range(0, len(asked), 4)]
    assert len(rounds) == 7
    assert all(sorted(one) == sorted(["teacher", "copy", "student", TWIN]) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 2
    assert {name for name, command in log if command == "closed"} == {"teacher", "copy", "student", TWIN}
    first = [command for name, command in log if name == "student" and command != "round"]
    assert first == ["started", "texts", "warm", "memory", "throughput", "scores", "closed"]


def test_a_machine_on_which_long_runs_waited_is_told_of() -> None:
    protocol = run()["protocol"]
    assert protocol["waiting"] == {"teacher": 0.01, "copy": 0.01, "student": 0.01} and protocol["notes"] == []
    (note,) = run([way("teacher", ms=10.0, waited=0.55), way("student", ms=0.5, waited=0.02)])["protocol"]["notes"]
    assert note.startswith("The machine was busy: teacher waited for a core during 55% of its time, student during 2%. Long runs wait more")
    (note,) = run([way("teacher", waited=0.32)])["protocol"]["notes"]
    assert note.startswith("The machine was busy: teacher waited for a core during 32% of its time. Long")
    assert run([way("teacher", waited=None), way("student", waited=None)])["protocol"]["waiting"] == {}


def test_the_twin_is_of_the_cheapest_way() -> None:
    assert run()["protocol"]["twin"]["model"] == "student"


def test_a_noisy_machine_concludes_nothing_and_says_so() -> None:
    ways = [way("teacher", ms=1.0, noise=2.0), way("student", ms=0.97, noise=2.0)]
    result = run(ways)
    assert result["comparisons"][0]["verdict"] == "no clear difference"
    assert result["protocol"]["notes"][0].startswith("The machine was noisy: two processes of student could not be told to be equal within")


def test_two_baselines_are_compared_with_each_other_once() -> None:
    pairs = [(one["baseline"], one["model"]) for one in run(baselines=["teacher", "copy"])["comparisons"]]
    assert pairs == [("teacher", "copy"), ("teacher", "student"), ("copy", "student")]


def test_a_budget_ends_when_intervals_are_narrow() -> None:
    plan = Plan(texts=20, rounds=5, seconds=1000, width=0.02)
    assert run(plan=plan, clock=lambda: 0.0)["protocol"]["rounds"] == 5


def test_a_budget_goes_on_while_intervals_are_wide_until_it_is_spent() -> None:
    ticks = iter(range(100))
    ways = [way("teacher", noise=2.0), way("student", noise=2.0)]
    plan = Plan(texts=20, rounds=3, seconds=10, width=1e-6)
    assert run(ways, plan=plan, clock=lambda: float(next(ticks)))["protocol"]["rounds"] == 12  # the first three do not look at the clock


def test_progress_ends_where_it_said_it_would() -> None:
    told: list[tuple[int, int, str]] = []
    run(progress=lambda done, total, text: told.append((done, total, text)))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert {total for _, total, _ in told} == {len(told)}
    assert told[0][2] == "starting teacher"


def test_labels_in_another_order_are_matched_by_name() -> None:
    result = run([way("teacher"), way("student", labels=("yes", "no"))])
    assert [model["quality"]["accuracy"] for model in result["models"]] == [1, 1]


@pytest.mark.parametrize(
    ("ways", "arguments", "said"),
    [
        ([way("a"), way("a")], {}, "Two ways have one name: a, a."),
        ([way("a")], {"baselines": ["b"]}, "There is no way 'b' to compare with."),
        ([way("a")], {"plan": Plan(rounds=2)}, "2 rounds were asked for, but an interval needs at least 3."),
        ([way("a", labels=("no", "maybe"))], {}, "a knows the labels no, maybe, but the data has no, yes."),
    ],
)
def test_what_cannot_be_compared_is_refused(ways: list[Way], arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(ways, **arguments)
    assert caught.value.message == said


def test_another_provider_than_asked_for_is_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="a was to run on cpu, but its session runs on cuda"):
        run([way("a", provider="cuda")])


FACTORY = """
import time
import numpy as np

class Sleeper:
    labels, engine, provider, precision = ("no", "yes"), "ort", "cpu", "fp32"

    def __init__(self, ms):
        self.ms = ms

    def encode(self, texts, pairs=None):
        return {"input_ids": np.array([[int(text.split()[1])] for text in texts]), "attention_mask": np.ones((len(texts), 1))}

    def logits(self, batch):
        time.sleep(self.ms / 1000)
        yes = batch["input_ids"][:, 0] % 2
        return np.stack([1 - yes, yes], axis=1).astype(np.float32)
"""


def test_a_run_through_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sleepers.py").write_text(FACTORY)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    ways = [Way(f"sleep {ms}", "m", "ort", "cpu", "fp32", "session", "sleepers:Sleeper", {"ms": ms}) for ms in (8, 1)]
    result = benchmark(ways, TEXTS, LABELS, NAMES, plan=Plan(texts=5, rounds=3))
    assert [model["quality"]["accuracy"] for model in result["models"]] == [1, 1]
    assert result["models"][0]["latency_ms"]["median"] >= 8
    assert result["comparisons"][0]["speedup"] > 1


def test_a_way_that_may_fail_is_a_row_that_says_why() -> None:
    def start(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "peer":
            raise EnvironmentProblem("It did not build.", "Install a compiler.")
        return starter([])(name, *arguments, **named)

    peer = Way("peer", "peer", "other", "cpu", "fp32", "session", "module:function", may_fail=True)
    told: list[tuple[int, int]] = []
    plan = Plan(texts=20, rounds=5)
    result = benchmark(
        [*WAYS, peer], TEXTS, LABELS, NAMES, start=start, plan=plan, progress=lambda done, total, _: told.append((done, total))
    )
    assert result["failed"] == [{"name": "peer", "reason": "It did not build. Install a compiler."}]
    assert [one["name"] for one in result["models"]] == ["teacher", "copy", "student"]
    assert told[-1][0] == told[-1][1] - 1
    with pytest.raises(EnvironmentProblem, match="It did not build"):
        benchmark([*WAYS, replace(peer, may_fail=False)], TEXTS, LABELS, NAMES, start=start, plan=plan)


def test_another_interpreter_gets_its_own_folders() -> None:
    asked: list[dict[str, Any]] = []

    def start(name: str, *arguments: Any, python: str = "", folders: tuple[str, ...] = (), **named: Any) -> Any:
        asked.append({name: (python, folders)})
        return starter([])(name, *arguments, **named)

    peer = replace(way("peer"), python="/venv/bin/python", folders=("/root", "/peers"))
    benchmark([*WAYS, peer], TEXTS, LABELS, NAMES, start=start, plan=Plan(texts=5, rounds=3))
    assert {"peer": ("/venv/bin/python", ("/root", "/peers"))} in asked
    assert {"teacher": ("", ())} in asked


def test_bands_of_real_length() -> None:
    student = run()["models"][2]
    assert [(band["tokens"], band["texts"]) for band in student["bands"]] == [([1, 8], 8), ([9, 16], 8)]  # 17 to 20 have only four
    assert student["bands"][0]["median_ms"] == pytest.approx(0.5, rel=0.05)
    assert student["bands"][0]["model_only_median_ms"] == pytest.approx(0.25, rel=0.05)
    assert len(run()["protocol"]["lengths"]) == 20


def test_a_sweep_over_batches_threads_and_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.benchmarking.usable_cores", lambda: 4)
    told: list[tuple[int, int]] = []
    plan = Plan(texts=20, rounds=3, sweep=(1, 32))
    result = run(plan=plan, progress=lambda done, total, _: told.append((done, total)))
    cells = result["models"][2]["throughput_sweep"]
    assert [(cell["threads"], cell["processes"]) for cell in cells[::2]] == [(1, 1), (2, 1), (4, 1), (1, 2), (1, 4)]
    assert [cell["batch"] for cell in cells[:2]] == [1, 32]
    assert [cell["texts_per_second"] for cell in cells if cell["processes"] == 4] == [8000, 8000]
    assert told[-1][0] == told[-1][1] - 1
    assert settings(2, 2) == [(2, 1), (1, 1), (1, 2)]


def test_device_time_stands_beside_host_time_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [way("cpu"), replace(way("gpu", provider="cuda"), provider="cuda")]
    cpu, gpu = run(ways)["models"]
    assert "device_median" not in cpu["latency_ms"]
    assert gpu["latency_ms"]["device_median"] == pytest.approx(0.25)


def test_a_budget_that_is_spent_says_what_is_not_known() -> None:
    ticks = iter(range(100))
    ways = [way("teacher", noise=2.0), way("student", noise=2.0)]
    result = run(ways, plan=Plan(texts=20, rounds=3, seconds=5, width=1e-6), clock=lambda: float(next(ticks)))
    assert result["protocol"]["budget"] == {"seconds": 5, "width": 1e-6, "narrow": False}
    assert "5 s were spent before every speed-up was known" in result["protocol"]["notes"][-1]


@given(st.lists(st.integers(1, 600), max_size=60))
def test_bands_do_not_overlap_and_hold_enough(lengths: list[int]) -> None:
    found = bands(lengths)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(found))
    assert all(sum(low <= length <= high for length in lengths) >= 5 for low, high in found)
