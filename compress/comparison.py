"""Two reports compared, an older and a newer one: what changed beyond noise, and whether that is a regression.

The two were measured at different times, maybe on different machines. If both have the same first model, that is the yardstick: the
others are judged by their speed-up over it, which leaves out the machine, and it by its own latency, which shows what slowed them all. If
not, latencies are compared as they are, on equal machines only. A change of speed counts where the interval of the ratio leaves out 1
and the ratio lies beyond both noise floors. Torch-free.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from compress.report_tables import metric_text, metric_words
from compress.statistics import LEAST, Interval
from compress.tasks import first_score
from compress.units import factor, milliseconds, percent, size
from model.errors import ArtifactError, ConfigError, GateError

Verdict = Literal["better", "worse", "no clear change"]
Z = 1.96  # of 95 % intervals
SAME_SIZE = 0.01
NOISY = 0.1


class Change(BaseModel):
    """One figure of one model in both reports; `ratio` is new over old, `interval` that of the ratio or of the difference.

    The first metric of a task is `accuracy` where it is that, else `score`, with its name in `metric`.
    """

    model_config = ConfigDict(frozen=True)
    model: str
    figure: Literal["latency", "speed-up", "accuracy", "score", "size"]
    old: float
    new: float
    ratio: float
    interval: Interval | None
    verdict: Verdict
    metric: str | None = None

    def line(self) -> str:
        """For a person."""
        written: dict[str, Callable[[float], str]] = {"latency": milliseconds, "speed-up": factor, "size": size}
        shown = partial(metric_text, self.metric) if self.metric else written[self.figure]
        ends = self.interval and [f"{end * 100:.1f}" if self.metric else f"{end:.3f}" for end in self.interval]
        between = f" ({ends[0]} to {ends[1]})" if ends else ""
        by = f"{(self.new - self.old) * 100:+.1f} points" if self.metric else f"×{self.ratio:.3f}"
        name = metric_words(self.metric) if self.metric else self.figure
        return f"{self.model}, {name}: {shown(self.old)} → {shown(self.new)}, {by}{between}: {self.verdict}"


class Comparison(BaseModel):
    """All changes, the models that only one report has, and notes on what the two measurements do not have in common."""

    model_config = ConfigDict(frozen=True)
    changes: list[Change]
    only_old: list[str]
    only_new: list[str]
    notes: list[str]

    def text(self) -> str:
        """For a person: a line a change, then what else there is to say."""
        lines = [change.line() for change in self.changes]
        lines += [f"Only in the old report: {name}." for name in self.only_old]
        lines += [f"Only in the new report: {name}." for name in self.only_new]
        return "\n".join(lines + self.notes)

    @property
    def regressions(self) -> list[Change]:
        """What is worse beyond noise."""
        return [change for change in self.changes if change.verdict == "worse"]


def read_report(path: Path) -> dict[str, Any]:
    """A report.json, or that of a report's directory; raises ArtifactError if there is none."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} cannot be read: {error}.", "Give the report.json that `compress benchmark` wrote.") from None
    if not isinstance(report, dict) or not {"protocol", "models", "comparisons"} <= report.keys():
        raise ArtifactError(f"{file} is no report.", "Give the report.json that `compress benchmark` wrote.")
    return report


def compare_reports(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Every model that both reports have, by name.

    Raises ConfigError if they have none in common, or are about other data or another task.
    """
    if old["data"]["digest"] != new["data"]["digest"]:
        raise ConfigError(
            f"The reports are about different data: {old['data']['name']} and {new['data']['name']}.", "Measure both on the same data."
        )
    tasks = [report.get("task", "classification") for report in (old, new)]
    if tasks[0] != tasks[1]:
        raise ConfigError(f"The reports are about different tasks: {tasks[0]} and {tasks[1]}.", "Compare reports of one task.")
    before, after = ({model["name"]: model for model in report["models"]} for report in (old, new))
    shared = [name for name in before if name in after]
    if not shared:
        raise ConfigError(
            f"The reports have no model in common: {', '.join(before)} against {', '.join(after)}.", "Models are told apart by their names."
        )
    first = old["models"][0]["name"]
    yardstick = (first, old["models"][0]["digest"]) == (new["models"][0]["name"], new["models"][0]["digest"])
    notes = list(_notes(old, new, yardstick))
    floor = max(_floor(old), _floor(new), LEAST)
    changes: list[Change] = []
    for name in shared:
        if yardstick and name != first:
            speeds = [_speedup(report, name) for report in (old, new)]
            changes.append(_times("speed-up", name, speeds[0], speeds[1], floor))
        elif _machine(old) == _machine(new):
            latencies = [(one["latency_ms"]["median"], one["latency_ms"]["interval"]) for one in (before[name], after[name])]
            changes.append(_times("latency", name, latencies[0], latencies[1], floor))
        changes += _of_model(name, before[name], after[name])
    return Comparison(
        changes=changes,
        only_old=[name for name in before if name not in after],
        only_new=[name for name in after if name not in before],
        notes=notes,
    )


def gate(comparison: Comparison) -> None:
    """Raise GateError with everything that is worse beyond noise."""
    if worse := comparison.regressions:
        raise GateError(
            f"{len(worse)} {'figure is' if len(worse) == 1 else 'figures are'} worse beyond noise: "
            + "; ".join(change.line().removesuffix(": worse") for change in worse)
            + ".",
            "Look for what changed with `compress diff`, or measure again if the machine was busy.",
        )


def _of_model(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """What does not depend on the machine."""
    first = [first_score(one["quality"]) for one in (old, new)]
    if first[0] and first[1] and first[0][0] == first[1][0]:
        yield _score(name, first[0][0], old["quality"], new["quality"])
    ratio = new["bytes"] / old["bytes"]
    verdict: Verdict = "no clear change" if abs(ratio - 1) <= SAME_SIZE else "worse" if ratio > 1 else "better"
    yield Change(model=name, figure="size", old=old["bytes"], new=new["bytes"], ratio=ratio, interval=None, verdict=verdict)


def _times(
    figure: Literal["latency", "speed-up"],
    name: str,
    old: tuple[float, Sequence[float] | None],
    new: tuple[float, Sequence[float] | None],
    floor: float,
) -> Change:
    """The ratio of two medians; its interval adds the relative errors of both, on the logarithm, in squares."""
    ratio = new[0] / old[0]
    spread = [_relative(interval) for _, interval in (old, new)]
    verdict: Verdict = "no clear change"
    interval: Interval | None = None
    if spread[0] is not None and spread[1] is not None:
        error = Z * math.hypot(spread[0], spread[1])
        interval = (ratio * math.exp(-error), ratio * math.exp(error))
        if not interval[0] <= 1 <= interval[1] and max(ratio, 1 / ratio) - 1 > floor:
            verdict = "better" if (ratio > 1) == (figure == "speed-up") else "worse"
    return Change(model=name, figure=figure, old=old[0], new=new[0], ratio=ratio, interval=interval, verdict=verdict)


def _score(name: str, metric: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """The difference of two scores on the same texts, as if they were independent: wider than the truth, so careful."""
    difference = new[metric] - old[metric]
    interval: Interval | None = None
    verdict: Verdict = "no clear change"
    bounds = [found for one in (old, new) if (found := one.get(f"{metric}_interval"))]
    if len(bounds) == 2:
        halves = [(high - low) / 2 for low, high in bounds]
        interval = (difference - math.hypot(*halves), difference + math.hypot(*halves))
        if not interval[0] <= 0 <= interval[1]:
            verdict = "better" if difference > 0 else "worse"
    ratio = new[metric] / old[metric] if old[metric] else math.inf
    figure: Literal["accuracy", "score"] = "accuracy" if metric == "accuracy" else "score"
    return Change(
        model=name, figure=figure, old=old[metric], new=new[metric], ratio=ratio, interval=interval, verdict=verdict, metric=metric
    )


def _relative(interval: Sequence[float] | None) -> float | None:
    """The standard error of a logarithm from the 95 % interval of a positive number."""
    return None if not interval or interval[0] <= 0 else math.log(interval[1] / interval[0]) / (2 * Z)


def _speedup(report: Mapping[str, Any], name: str) -> tuple[float, Sequence[float] | None]:
    """Of a model over the report's first model, with its interval."""
    pair = (report["models"][0]["name"], name)
    return next((one["speedup"], one["speedup_interval"]) for one in report["comparisons"] if (one["baseline"], one["model"]) == pair)


def _floor(report: Mapping[str, Any]) -> float:
    floor = report["protocol"]["noise_floor"]
    return math.inf if floor is None else float(floor)


def _machine(report: Mapping[str, Any]) -> tuple[Any, ...]:
    machine = report["machine"]
    return machine["cpu"], machine["cores"], machine["gpu"], report["protocol"]["threads"]


def _notes(old: Mapping[str, Any], new: Mapping[str, Any], yardstick: bool) -> Iterator[str]:
    if _machine(old) != _machine(new):
        yield "The reports come from different machines or numbers of threads, so latencies are not compared."
    if not yardstick:
        names = [report["models"][0]["name"] for report in (old, new)]
        yield f"The first models ({names[0]}, then {names[1]}) are not the same, so speed-ups over them are not compared."
    versions = [report["machine"]["versions"] for report in (old, new)]
    for package in sorted(versions[0].keys() & versions[1].keys()):
        if versions[0][package] != versions[1][package]:
            yield f"{package}: {versions[0][package]} → {versions[1][package]}."
    for report, which in ((old, "old"), (new, "new")):
        floor = report["protocol"]["noise_floor"]
        if floor is None:
            yield f"The {which} report has no noise floor, so no speed is concluded: measure it with more rounds."
        elif floor > NOISY:
            yield f"The machine was noisy for the {which} report: no difference in speed under {percent(floor)} is concluded."
