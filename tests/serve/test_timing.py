"""The worker: exact times by a fake clock, the protocol through real processes, what is said when one dies."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import AlambicError, EnvironmentProblem
from serve import machine
from serve.timing import COMMANDS, Desk, Worker, obey, start_worker, unpacked, waited_seconds

FACTORY = """
import os, sys, time
import numpy as np
from model.errors import ConfigError

class Fake:
    labels, engine, provider, precision = ("no", "yes"), "fake", "cpu", "fp32"

    def __init__(self, die_at):
        self.die_at = die_at

    def encode(self, texts, pairs=None):
        print("a library that prints")
        return {"lengths": np.array([len(text) + len(pair) for text, pair in zip(texts, pairs or [""] * len(texts))])}

    def logits(self, batch):
        if (batch["lengths"] == self.die_at).any():
            print("out of luck", file=sys.stderr)
            os._exit(7)
        return np.stack([3.0 - batch["lengths"], batch["lengths"] * 1.0], axis=1).astype(np.float32)

def build(die_at=-1):
    print("a library that prints")
    os.write(1, b"and one that writes to the descriptor\\n")
    return Fake(die_at)

def refuse():
    raise ConfigError("There is no such thing.", "Ask for another.")

def fail():
    raise RuntimeError("boom")

def sleep():
    time.sleep(60)

def environment():
    fake = Fake(-1)
    fake.labels = tuple(os.environ[name] for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"))
    return fake
"""


class Clock:
    """Moves on only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """Encodes in 1 ms a text and scores in 10 ms a batch, by the clock given."""

    labels, engine, provider, precision = ("no", "yes"), "fake", "cpu", "fp32"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen: list[tuple[Sequence[str], Sequence[str] | None]] = []

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, Any]:
        self.seen.append((texts, pairs))
        self.clock.now += 0.001 * len(texts)
        return {"input_ids": np.zeros((len(texts), 2), dtype=np.int64)}

    def logits(self, batch: dict[str, Any]) -> Any:
        self.clock.now += 0.010
        return np.zeros((len(batch["input_ids"]), 2), dtype=np.float32)


def desk(texts: list[str], pairs: list[str] | None = None) -> tuple[Desk, Slow]:
    """A desk with a slow predictor and its fake clock."""
    clock = Clock()
    predictor = Slow(clock)
    return Desk(predictor, clock, texts, pairs), predictor


def test_a_round_times_every_text_once_after_the_warm_up() -> None:
    one, predictor = desk(["a", "b", "c"])
    reply = COMMANDS["round"](one, warm_seconds=0.02)
    assert reply["answer"] == pytest.approx([0.011] * 3)
    assert reply["model"] == pytest.approx([0.010] * 3)
    assert [texts for texts, _ in predictor.seen] == [["a"], ["b"], ["a"], ["b"], ["c"]]  # two texts fill 20 ms


def test_waiting_for_a_core_is_what_the_scheduler_says(tmp_path: Path) -> None:
    assert waited_seconds(tmp_path / "none") is None
    (tmp_path / "schedstat").write_text("832540531 1298386959 301\n")
    assert waited_seconds(tmp_path / "schedstat") == 1.298386959
    waited = COMMANDS["round"](desk(["a", "b"])[0], warm_seconds=0)["waited"]
    assert waited is None or 0 <= waited <= 1


def test_pairs_go_with_their_texts() -> None:
    one, predictor = desk(["a", "b"], ["x", "y"])
    COMMANDS["round"](one, warm_seconds=0)
    COMMANDS["throughput"](one, batch=2, seconds=0)
    assert predictor.seen == [(["a"], ["x"]), (["b"], ["y"]), (["a", "b"], ["x", "y"]), (["a", "b"], ["x", "y"])]


def test_warming_answers_each_text_and_says_what_one_costs() -> None:
    one, predictor = desk(["a", "b", "c"])
    assert COMMANDS["warm"](one, seconds=0.0)["seconds_per_text"] == pytest.approx(0.011)
    assert len(predictor.seen) == 3


def test_throughput_counts_whole_passes() -> None:
    one, _ = desk(list("abcde"))
    reply = COMMANDS["throughput"](one, batch=2, seconds=0.05)  # a pass: 3 batches of 10 ms, 5 texts of 1 ms
    assert reply["texts_per_second"] == pytest.approx(10 / 0.070)


def test_lengths_are_tokens_where_there_is_a_mask() -> None:
    one, predictor = desk(["a", "b"])
    assert COMMANDS["lengths"](one) == {"lengths": [2, 2]}  # ids without a mask have no padding
    predictor.encode = lambda *_: {"words": np.zeros((1, 3))}  # type: ignore[method-assign]
    assert COMMANDS["lengths"](one) == {"lengths": None}
    masks = iter([[1, 1, 0], [1, 1, 1]])
    predictor.encode = lambda *_: {"attention_mask": np.array([next(masks)])}  # type: ignore[method-assign]
    assert COMMANDS["lengths"](one) == {"lengths": [2, 3]}


def test_device_time_is_the_predictors_own_or_none() -> None:
    one, predictor = desk(["a", "b"])
    assert COMMANDS["device"](one) == {"device": None}
    predictor.device_seconds = lambda batch: 0.25  # type: ignore[attr-defined]
    assert COMMANDS["device"](one) == {"device": [0.25, 0.25]}


def test_a_shape_is_timed_without_the_tokenizer() -> None:
    one, predictor = desk(["a"])
    reply = COMMANDS["shape"](one, batch=3, length=5, samples=4)
    assert reply["model"] == pytest.approx([0.010] * 4)
    assert reply["device"] is None
    assert not predictor.seen
    assert one.clock() == pytest.approx(0.070)  # three before it counts


def test_the_peak_of_memory_is_this_process_alone() -> None:
    peak = COMMANDS["memory"](desk(["a"])[0])["peak_rss_mb"]
    assert 5 < peak < 20_000


def test_an_unknown_factory_is_not_answered() -> None:
    replies = io.StringIO()
    opening = json.dumps({"factory": "no_such_module:build", "arguments": {}, "text": "a", "pair": None})
    with pytest.raises(ModuleNotFoundError):
        obey(io.StringIO(opening), replies)
    assert replies.getvalue() == ""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of factories that workers can import, and a serve.py of somebody else in the working directory."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "fake_factories.py").write_text(FACTORY)
    (tmp_path / "serve.py").write_text("raise SystemExit('the wrong serve')")
    monkeypatch.syspath_prepend(str(tmp_path / "library"))
    monkeypatch.chdir(tmp_path)
    yield "fake_factories"
    sys.modules.pop("fake_factories", None)


def start(factory: str, function: str, timeout: float = 60, **arguments: Any) -> Worker:
    """A worker with a predictor of `function`."""
    return start_worker("way", f"{factory}:{function}", arguments, "text", timeout=timeout)


def test_a_worker_answers_whatever_libraries_print(factory: str) -> None:
    with start(factory, "build") as worker:
        assert (worker.labels, worker.engine, worker.provider) == (("no", "yes"), "fake", "cpu")
        assert worker.cold_start_ms > 0
        worker.ask("texts", texts=["a", "née", "c"], pairs=None)
        assert worker.ask("warm", seconds=0)["seconds_per_text"] > 0
        reply = worker.ask("round", warm_seconds=0)
        assert [len(reply[kind]) for kind in ("answer", "model")] == [3, 3]
        assert all(0 < model < answer for model, answer in zip(reply["model"], reply["answer"], strict=True))
        assert unpacked(worker.ask("scores", texts=["12345", "1"], pairs=None, batch=32)["logits"]).tolist() == [[-2, 5], [2, 1]]
        assert worker.ask("memory")["peak_rss_mb"] > 5
        assert worker.process.poll() is None
    assert worker.process.returncode == 0


def test_another_interpreter_imports_from_its_own_folders(factory: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH" > {tmp_path}/path\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    folders = [str(Path(machine.__file__).parents[1]), str(tmp_path / "library")]
    with start_worker("peer", f"{factory}:build", {}, "text", python=str(python), folders=folders) as worker:
        assert worker.labels == ("no", "yes")
    assert (tmp_path / "path").read_text().strip() == ":".join(folders)


def test_the_threads_are_set_before_the_worker_imports_anything(factory: str) -> None:
    with start_worker("way", f"{factory}:environment", {}, "text", threads=3) as worker:
        assert worker.labels == ("3", "false")


def test_what_the_factory_refuses_comes_back_as_it_was_said(factory: str) -> None:
    with pytest.raises(AlambicError) as caught:
        start(factory, "refuse")
    assert (caught.value.message, caught.value.hint) == ("Timing way: There is no such thing.", "Ask for another.")


def test_a_bug_in_the_factory_shows_its_traceback(factory: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"(?s)times way ended with exit code 1 \(at the command 'open'\).*RuntimeError: boom"):
        start(factory, "fail")


def test_a_worker_that_dies_in_a_round(factory: str) -> None:
    with start(factory, "build", die_at=9) as worker:
        worker.ask("texts", texts=["fine", "123456789"])
        with pytest.raises(EnvironmentProblem, match=r"(?s)ended with exit code 7 \(at the command 'round'\).*out of luck"):
            worker.ask("round", warm_seconds=0)
        with pytest.raises(EnvironmentProblem, match="exit code 7"):
            worker.ask("memory")


def test_a_worker_that_is_killed(factory: str) -> None:
    with start(factory, "build") as worker:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(EnvironmentProblem, match="was ended by SIGKILL"):
            worker.ask("memory")


def test_a_worker_that_takes_too_long(factory: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"gave no answer within 0\.5 s \(at the command 'open'\)") as caught:
        start(factory, "sleep", timeout=0.5)
    assert caught.value.hint == "Time fewer texts or ways at once."


def test_the_cold_start_is_counted_by_the_clock_given(factory: str) -> None:
    ticks = iter([2.0, 2.75])
    with start_worker("way", f"{factory}:build", {}, "text", clock=lambda: next(ticks)) as worker:
        assert worker.cold_start_ms == 750.0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({}, 8),
    ],
)
def test_cores_respect_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n")
    assert machine.usable_cores(tmp_path) == cores


def test_memory_respects_the_limit(tmp_path: Path) -> None:
    whole = machine.usable_memory(tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    assert machine.usable_memory(tmp_path) == 1_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.usable_memory(tmp_path) == whole


def test_machine_facts_are_plain_values() -> None:
    facts = machine.machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] >= 1
    assert facts["versions"]["numpy"] == np.__version__
