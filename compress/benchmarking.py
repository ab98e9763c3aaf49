"""Models measured against each other in one run: speed in turn, quality on the same texts.

Every way of running a model has a fresh process. In a round each way answers the same texts once, one text at a time, the ways in a
shuffled order, so that a slow phase of the machine falls on all of them. A second process of the cheapest way (the A/A pair) shows how
far two equal things differ on this machine at this moment: the noise floor.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.bands import latency_bands
from compress.disagreements import disagreements
from compress.quality import comparison, quality, retrieval
from compress.statistics import Floats, bootstrap, median, noise_floor, quantile, speedup, verdict
from compress.sweep import sweep
from compress.tasks import PRETRAINING, TASKS
from compress.ways import Way
from model.errors import AlambicError, ConfigError, EnvironmentProblem
from serve.machine import usable_cores
from serve.timing import Worker, start_worker, unpacked

Progress = Callable[[int, int, str], None]

TWIN = "A/A twin"
NOISY = 0.1  # a noise floor that a reader should be told about
BUSY = 0.1  # share of its time for which a way waited for a core, likewise


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    `texts` are timed in each of at least `rounds` rounds; with a budget of `seconds`, rounds go on until every speed-up's interval is
    within ± `width` of it or the budget is spent. `batch` is the batch of throughput and quality, `sweep` the batches of a throughput
    sweep over threads and processes, `timeout` what one command may take (s).
    """

    texts: int = 150
    rounds: int = 7
    seconds: float | None = None
    width: float = 0.02
    threads: int = 1
    batch: int = 32
    sweep: tuple[int, ...] = ()
    seed: int = 0
    timeout: float = 900.0


@dataclass
class Samples:
    """Raw samples of one way, seconds: a row a round, a column a text; and the share of each round in which it waited for a core."""

    answer: list[list[float]] = field(default_factory=list)
    model: list[list[float]] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    @property
    def rounds(self) -> Floats:
        """Text → answer, [rounds, texts]."""
        return np.asarray(self.answer)


def silent(done: int, total: int, text: str) -> None:
    """A progress that nobody watches."""


def benchmark(
    ways: Sequence[Way],
    texts: Sequence[str],
    truth: Any,
    names: Sequence[str],
    pairs: Sequence[str] | None = None,
    plan: Plan | None = None,
    baselines: Sequence[str] = (),
    progress: Progress = silent,
    start: Callable[..., Worker] = start_worker,
    clock: Callable[[], float] = time.monotonic,
    task: str = "classification",
) -> dict[str, Any]:
    """`protocol`, `models`, `comparisons`, `failed` and `disagreements` (of the first baseline and the last way), as in a report.

    And `outputs`, what each way gave for all texts, by its name.

    `truth` is what `compress.tasks` compares outputs of `task` with (class numbers [n] into `names`, say), `names` are its labels. A model
    that takes the texts of a pair apart is timed on the first of them.
    `baselines` are names of ways (default: the first); every other way is compared with each.
    A seeded choice of `texts` is timed, quality is over all of them. Raises ConfigError for ways or data that cannot be compared, and
    what `serve.timing` raises for a way that does not run; one that `may_fail` stands in `failed` instead, with the reason.
    """
    plan = plan or Plan()
    baselines = tuple(baselines) or (ways[0].name,)
    _check(ways, texts, truth, plan, baselines)
    truth = np.asarray(truth) if isinstance(truth[0], (int, float)) else truth
    chosen = np.sort(np.random.default_rng(plan.seed).permutation(len(texts))[: plan.texts])
    timed = [texts[number] for number in chosen]
    timed_pairs = None if pairs is None or TASKS[task].apart else [pairs[number] for number in chosen]
    steps = _Steps(progress, 1 + (4 + bool(plan.sweep)) * len(ways) + (1 + len(ways)) * plan.rounds)
    failed: list[dict[str, str]] = []

    with ExitStack() as stack:

        def open_way(way: Way, name: str) -> Worker:
            steps.next(f"starting {name}")
            worker = stack.enter_context(
                start(
                    name,
                    way.factory,
                    way.arguments,
                    timed[0],
                    None if timed_pairs is None else timed_pairs[0],
                    threads=plan.threads,
                    timeout=plan.timeout,
                    **way.interpreter,
                )
            )
            if worker.provider != way.provider:
                raise EnvironmentProblem(
                    f"{way.name} was to run on {way.provider}, but its session runs on {worker.provider}.",
                    f"Leave this way out, or install what {way.provider} needs.",
                )
            worker.ask("texts", texts=timed, pairs=timed_pairs)
            return worker

        workers: dict[str, Worker] = {}
        for way in ways:
            try:
                workers[way.name] = open_way(way, way.name)
            except AlambicError as error:
                if not way.may_fail:
                    raise
                failed.append({"name": way.name, "reason": f"{error.message} {error.hint}".strip()})
                steps.total -= 3 + bool(plan.sweep) + plan.rounds
        ways = [way for way in ways if way.name in workers]
        orders = {way.name: _order(way.name, workers[way.name].labels, names) for way in ways}
        costs = {}
        for name, worker in workers.items():
            steps.next(f"warming {name}")
            costs[name] = worker.ask("warm")["seconds_per_text"]
        cheapest = min(costs, key=lambda name: costs[name])
        twin = open_way(next(way for way in ways if way.name == cheapest), TWIN)
        twin.ask("warm")

        lengths = workers[baselines[0]].ask("lengths")["lengths"]
        samples = _rounds({**workers, TWIN: twin}, plan, baselines, steps, clock)
        device = {way.name: workers[way.name].ask("device")["device"] if way.provider != "cpu" else None for way in ways}
        memory = {name: worker.ask("memory")["peak_rss_mb"] for name, worker in workers.items()}
        throughput = {}
        for name, worker in workers.items():
            steps.next(f"throughput of {name}")
            throughput[name] = worker.ask("throughput", batch=plan.batch)["texts_per_second"]
        asked = _Questions(task, list(texts), None if pairs is None else list(pairs), truth, plan)
        outputs = _outputs(workers, costs, orders, asked, steps)
        cold = {name: worker.cold_start_ms for name, worker in workers.items()}
    sweeps = {}
    for way in ways if plan.sweep else ():
        steps.next(f"throughput of {way.name} by batch, threads and processes")
        sweeps[way.name] = sweep(way, plan.sweep, plan.threads, usable_cores(), timed, timed_pairs, start, plan.timeout)

    floor = noise_floor(samples[cheapest].rounds, samples[TWIN].rounds, plan.seed)
    models = [
        {
            "name": way.name,
            "model": way.model,
            "engine": way.engine,
            "provider": way.provider,
            "precision": way.precision,
            "mode": way.mode,
            "quality": {**quality(task, outputs[way.name][0], truth, names, plan.seed), **outputs[way.name][1]},
            "latency_ms": _latency(samples[way.name], device[way.name], plan.seed),
            "throughput": {"batch": plan.batch, "texts_per_second": throughput[way.name]},
            **({"throughput_sweep": sweeps[way.name]} if sweeps else {}),
            **(
                {"bands": latency_bands(samples[way.name].rounds, np.asarray(samples[way.name].model), lengths, plan.seed)}
                if lengths
                else {}
            ),
            "peak_rss_mb": memory[way.name],
            "cold_start_ms": cold[way.name],
        }
        for way in ways
    ]
    comparisons = [
        {
            "baseline": baseline,
            "model": way.name,
            **_faster(samples[baseline], samples[way.name], floor, plan.seed),
            **comparison(task, outputs[baseline][0], outputs[way.name][0], truth, names, plan.seed),
        }
        for number, baseline in enumerate(baselines)
        for way in ways
        if way.name not in baselines[: number + 1]  # two baselines are compared once
    ]
    protocol = _protocol(plan, len(timed), samples, cheapest, floor, baselines)
    if lengths is not None:
        protocol["lengths"] = lengths
    first, last = baselines[0], ways[-1].name
    apart = disagreements(task, texts, pairs, truth, names, outputs[first][0], outputs[last][0])
    return {
        "protocol": protocol,
        "models": models,
        "comparisons": comparisons,
        "failed": failed,
        "disagreements": apart,
        "outputs": {name: given for name, (given, _) in outputs.items()},
    }


class _Steps:
    """Counts what is done for a Progress."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self, text: str, more: int = 0) -> None:
        """Tell what begins now; `more` steps were not foreseen."""
        self.total += more
        self.progress(self.done, self.total, text)
        self.done += 1


def _check(ways: Sequence[Way], texts: Sequence[str], truth: Any, plan: Plan, baselines: Iterable[str]) -> None:
    names = [way.name for way in ways]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two ways have one name: {', '.join(names)}.", "Give each way its own name.")
    if unknown := [name for name in baselines if name not in names]:
        raise ConfigError(f"There is no way {unknown[0]!r} to compare with.", f"Name one of these as the baseline: {', '.join(names)}.")
    if plan.rounds < 3:
        raise ConfigError(f"{plan.rounds} rounds were asked for, but an interval needs at least 3.", "Ask for 3 rounds or more.")
    if len(texts) != len(truth) or not texts:
        raise ConfigError(f"There are {len(texts)} texts and {len(truth)} labels.", "Give one label a text, and at least one text.")


def _order(name: str, labels: Sequence[str], names: Sequence[str]) -> list[int]:
    """For each of the data's `names` its number among the model's labels; raises ConfigError if they are other labels."""
    if not names:  # vectors, or the tokens of a vocabulary
        return []
    if sorted(labels) != sorted(names):
        raise ConfigError(
            f"{name} knows the labels {', '.join(labels)}, but the data has {', '.join(names)}.",
            "Measure it on the data that it was trained for.",
        )
    return [list(labels).index(label) for label in names]


def _rounds(
    workers: dict[str, Worker], plan: Plan, baselines: Sequence[str], steps: _Steps, clock: Callable[[], float]
) -> dict[str, Samples]:
    order = np.random.default_rng(plan.seed)
    samples = {name: Samples() for name in workers}
    begin, done = clock(), 0
    while done < plan.rounds or (plan.seconds and clock() - begin < plan.seconds and not _narrow(samples, baselines, plan)):
        for name in order.permutation(list(workers)).tolist():
            steps.next(f"round {done + 1}: {name}", more=int(done >= plan.rounds))
            reply = workers[name].ask("round")
            samples[name].answer.append(reply["answer"])
            samples[name].model.append(reply["model"])
            if reply["waited"] is not None:
                samples[name].waited.append(reply["waited"])
        done += 1
    return samples


def _narrow(samples: dict[str, Samples], baselines: Sequence[str], plan: Plan) -> bool:
    """Whether every speed-up's interval, the twin's too, is within ± `plan.width` of it."""
    for baseline in baselines:
        for name in samples:
            ratio, interval = speedup(samples[baseline].rounds, samples[name].rounds, plan.seed)
            if interval is None or (interval[1] - interval[0]) / 2 > plan.width * ratio:
                return False
    return True


@dataclass(frozen=True)
class _Questions:
    """What every way is asked for its quality."""

    task: str
    texts: list[str]
    pairs: list[str] | None
    truth: Any
    plan: Plan

    def ask(self, worker: Worker, order: Sequence[int]) -> tuple[NDArray[Any], dict[str, float]]:
        """Outputs as `compress.tasks` has them, in the order of the data's labels; of embedded pairs how they are found, too."""

        def scores(texts: list[str], pairs: list[str] | None) -> NDArray[Any]:
            return unpacked(worker.ask("scores", texts=texts, pairs=pairs, batch=self.plan.batch)["logits"])

        if self.task in PRETRAINING:
            lessons = [{"ids": one.ids, "places": one.places, "right": one.right} for one in self.truth]
            return unpacked(worker.ask("lessons", lessons=lessons, batch=self.plan.batch)["outputs"]), {}
        if TASKS[self.task].apart and self.pairs is not None:
            first, second = (scores(side, None) for side in (self.texts, self.pairs))
            cosines: NDArray[Any] = (first * second).sum(axis=1, keepdims=True)
            return cosines, retrieval(first, second, self.texts, self.pairs, self.truth)
        found = scores(self.texts, self.pairs)
        return found[..., list(order)] if order else found, {}


def _outputs(
    workers: dict[str, Worker], costs: dict[str, float], orders: dict[str, list[int]], asked: _Questions, steps: _Steps
) -> dict[str, tuple[NDArray[Any], dict[str, float]]]:
    """What every way gives. Nothing is timed here: the processes share the cores."""

    def ask(name: str) -> tuple[NDArray[Any], dict[str, float]]:
        steps.next(f"quality of {name}")
        return asked.ask(workers[name], orders[name])

    slowest_first = sorted(workers, key=lambda name: -costs[name])
    with ThreadPoolExecutor(max(1, usable_cores() // asked.plan.threads)) as pool:
        return dict(zip(slowest_first, pool.map(ask, slowest_first), strict=True))


def _latency(samples: Samples, device: list[float] | None, seed: int) -> dict[str, Any]:
    """Milliseconds; p95 and p99 stand only where there are enough samples for them."""
    rounds = samples.rounds * 1000
    ends = {"p95": quantile(rounds, 0.95), "p99": quantile(rounds, 0.99)}
    return {
        "median": float(np.median(rounds)),
        "interval": bootstrap(median, rounds, seed=seed),
        **{name: value for name, value in ends.items() if value is not None},
        "model_only_median": float(np.median(samples.model) * 1000),
        **({"device_median": float(np.median(device) * 1000)} if device else {}),
        "rounds": np.round(rounds, 4).tolist(),
        "model_only_rounds": np.round(np.asarray(samples.model) * 1000, 4).tolist(),
    }


def _faster(baseline: Samples, model: Samples, floor: float | None, seed: int) -> dict[str, Any]:
    ratio, interval = speedup(baseline.rounds, model.rounds, seed)
    return {"speedup": ratio, "speedup_interval": interval, "verdict": verdict(ratio, interval, floor)}


def _protocol(
    plan: Plan, texts: int, samples: dict[str, Samples], cheapest: str, floor: float | None, baselines: Sequence[str]
) -> dict[str, Any]:
    ratio, interval = speedup(samples[cheapest].rounds, samples[TWIN].rounds, plan.seed)
    notes = []
    if floor is not None and floor > NOISY:
        notes.append(
            f"The machine was noisy: two processes of {cheapest} could not be told to be equal within {floor:.0%}. "
            "Smaller differences are not concluded; measure again on a quiet machine or with more rounds."
        )
    waiting = {name: float(np.median(one.waited)) for name, one in samples.items() if one.waited and name != TWIN}
    if max(waiting.values(), default=0) > BUSY:
        most, least = max(waiting, key=lambda name: waiting[name]), min(waiting, key=lambda name: waiting[name])
        besides = f", {least} during {waiting[least]:.0%}" if len(waiting) > 1 else ""
        notes.append(
            f"The machine was busy: {most} waited for a core during {waiting[most]:.0%} of its time{besides}. "
            "Long runs wait more than short ones, so speed-ups are off by up to that much: measure again where nothing else runs."
        )
    narrow = _narrow(samples, baselines, plan)
    if plan.seconds and not narrow:
        notes.append(f"{plan.seconds:g} s were spent before every speed-up was known to ± {plan.width:.0%}.")
    return {
        "batch": 1,
        "threads": plan.threads,
        "texts": texts,
        "rounds": len(samples[TWIN].answer),
        "seed": plan.seed,
        "budget": {"seconds": plan.seconds, "width": plan.width, "narrow": narrow},
        "noise_floor": floor,
        "twin": {"model": cheapest, "ratio": ratio, "interval": interval},
        "waiting": waiting,
        "notes": notes,
    }
