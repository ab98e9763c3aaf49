"""The tables of a report: rows as dictionaries of column → text, a column that every row leaves empty left out. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compress.tasks import TASKS, first_score
from compress.units import factor, milliseconds, percent, significant, size

Report = Mapping[str, Any]
Model = Mapping[str, Any]
Row = dict[str, str]

NUMBERS = ("spearman", "pearson", "rmse", "mcc", "mrr", "perplexity")  # metrics that are not shares
WORDS = {
    "mcc": "MCC",
    "mrr": "MRR",
    "rmse": "RMSE",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "recall_at_1": "recall@1",
}
PER = {"multilabel": "label", "tagging": "type of entity"}  # what `per_class` is about; else a class


def score(model: Model) -> tuple[str, float, Sequence[float] | None]:
    """The metric that stands for a model: its name in words, its value (0 where it is not defined), its interval."""
    name = _metric(model)
    return metric_words(name), model["quality"].get(name) or 0.0, model["quality"].get(f"{name}_interval")


def score_text(model: Model) -> str:
    """The value of `score`: shares in percent, correlations as they are."""
    name = _metric(model)
    return metric_text(name, model["quality"].get(name))


def is_share(model: Model) -> bool:
    """Whether the score of `score` is written in percent."""
    return _metric(model) not in NUMBERS


def metric_text(name: str, value: float | None) -> str:
    """The value of a metric: 81.2 %, 0.812."""
    return "undefined" if value is None else f"{value:.3f}" if name in NUMBERS else percent(value)


def metric_words(name: str) -> str:
    """The name of a metric: macro F1, MCC."""
    return WORDS.get(name, name.replace("_", " ").replace("f1", "F1"))


def _metric(model: Model) -> str:
    known = first_score(model["quality"])
    return known[0] if known else next((task.score for task in TASKS.values() if task.score in model["quality"]), "accuracy")


def model_rows(report: Report) -> list[Row]:
    """What each model is, how good and how quick."""
    rows, peers = [], any(model.get("peer") for model in report["models"])
    for model in report["models"]:
        latency, quality, linears = model["latency_ms"], model["quality"], model.get("integer_linears")
        first, (name, _, interval) = _metric(model), score(model)
        others = {metric_words(other): metric_text(other, value) for other, value in quality.items() if isinstance(value, float)}
        others = {other: text for other, text in others.items() if other not in (name, "score")}
        rows.append(
            {
                "model": model["name"],
                "runs as": f"{model['engine']} {model['precision']}, {model['provider']}, {model['mode']}",
                "made by": model.get("maker", "another tool" if model.get("peer") else "alambic") if peers else "",
                name: f"{score_text(model)}{bounds(interval) if first in NUMBERS else shares(interval)}",
                **others,
                "median": f"{milliseconds(latency['median'])}{bounds(latency['interval'])}",
                "p95": milliseconds(latency["p95"]) if "p95" in latency else "",
                "p99": milliseconds(latency["p99"]) if "p99" in latency else "",
                "ids → logits": milliseconds(latency["model_only_median"]),
                "on the device": milliseconds(latency["device_median"]) if "device_median" in latency else "",
                f"texts/s, batch {model['throughput']['batch']}": significant(model["throughput"]["texts_per_second"]),
                "size": size(model["bytes"]),
                "parameters": f"{significant(model['parameters'] / 1e6)} M" if "parameters" in model else "",
                "peak memory": f"{significant(model['peak_rss_mb'])} MB",
                "cold start": f"{significant(model['cold_start_ms'])} ms",
                "integer linears": f"{linears['integer']} of {linears['total']}" if linears else "",
                "note": model.get("note", ""),
            }
        )
    return filled(rows)


def comparison_rows(report: Report) -> list[Row]:
    """Each model against each baseline."""
    lost = "points lost" if not report["models"] else f"{score(report['models'][0])[0]} lost, points"
    rows = [
        {
            "model": one["model"],
            "against": one["baseline"],
            "speed-up": f"{factor(one['speedup'])}{bounds(one['speedup_interval'])}",
            "verdict": one["verdict"],
            lost: "" if drop(one)[0] is None else f"{tenth(drop(one)[0])}{points(drop(one)[1])}",
            "McNemar p": _probability(one.get("mcnemar_p")),
            **_agreement(report, one),
        }
        for one in report["comparisons"]
    ]
    return filled(rows)


def drop(comparison: Mapping[str, Any]) -> tuple[Any, Sequence[float] | None]:
    """Points that the model lost, None where a score is not defined, with their interval; reports of old have them of accuracy alone."""
    if "score_drop_points" in comparison:
        return comparison["score_drop_points"], comparison["score_drop_interval"]
    return comparison["accuracy_drop_points"], comparison["drop_interval"]


def _agreement(report: Report, comparison: Mapping[str, Any]) -> Row:
    value, same = comparison.get("agreement"), report.get("score", {}).get("agreement", "same answer")
    return {same: "" if value is None else f"{value:.3f}" if same == "rank correlation" else percent(value)}


def stage_rows(report: Report) -> list[Row]:
    """What each stage did to the score, latency and size."""
    rows, before = [], None
    metric = report.get("score", {}).get("name", "accuracy")
    for stage in report["stages"]:
        value = stage.get("score", stage.get("accuracy"))
        change = "" if value is None or before is None else f" ({(value - before) * 100:+.1f})"
        before = before if value is None else value
        rows.append(
            {
                "stage": stage["stage"],
                "artifact": stage.get("name", ""),
                metric_words(metric): "" if value is None else f"{metric_text(metric, value)}{change}",
                "latency": milliseconds(stage["latency_ms"]) if stage.get("latency_ms") else "",
                "parameters": f"{significant(stage['parameters'] / 1e6)} M" if stage.get("parameters") else "",
                "size": size(stage["bytes"]),
                "took": "" if stage["seconds"] is None else _duration(stage["seconds"]),
                "digest": stage["digest"][:12],
            }
        )
    return filled(rows)


def class_rows(report: Report) -> list[dict[str, Any]]:
    """F1 of every class: {"label", "support", "f1": [a share or None a model]}; nothing for a task without classes."""
    classes = [model["quality"].get("per_class") or [] for model in report["models"]]
    return [
        {"label": row[0]["label"], "support": row[0]["support"], "f1": [one["f1"] for one in row]} for row in zip(*classes, strict=False)
    ]


def error_rows(report: Report) -> list[Row]:
    """How far the answers are from the truth, a row a model; nothing for a task whose answers are no numbers."""
    return [
        {"model": model["name"]} | {f"{percent(one['share'], 0)} of texts within": significant(one["error"]) for one in errors}
        for model in report["models"]
        if (errors := model["quality"].get("errors"))
    ]


def band_rows(report: Report) -> list[Row]:
    """Median latency in bands of real length, a row a model."""
    rows = [
        {"model": model["name"]}
        | {f"{low}–{high} tokens": milliseconds(band["median_ms"]) for band in model["bands"] for low, high in (band["tokens"],)}
        for model in report["models"]
        if model.get("bands")
    ]
    columns = {
        f"{low}–{high} tokens": (low, high)
        for model in report["models"]
        for band in model.get("bands", [])
        for low, high in (band["tokens"],)
    }
    ordered = sorted(columns, key=columns.__getitem__)
    return [{"model": row["model"], **{name: row.get(name, "") for name in ordered}} for row in rows]


def sweep_rows(report: Report) -> list[Row]:
    """Texts a second by batch, threads and processes, a column a model."""
    measured = {model["name"]: model["throughput_sweep"] for model in report["models"] if model.get("throughput_sweep")}
    points_ = sorted({(one["processes"], one["threads"], one["batch"]) for sweep in measured.values() for one in sweep})
    found = {
        (name, one["processes"], one["threads"], one["batch"]): one["texts_per_second"] for name, sweep in measured.items() for one in sweep
    }
    return [
        {"run as": f"batch {batch}, threads {threads}, processes {processes}"}
        | {
            name: significant(found[name, processes, threads, batch]) if (name, processes, threads, batch) in found else ""
            for name in measured
        }
        for processes, threads, batch in points_
    ]


def cost_rows(report: Report) -> list[Row]:
    """What a million requests cost at the price that was given, one after the other at batch 1; empty without a price."""
    price = report.get("price_per_hour")
    if price is None:
        return []
    seconds = {model["name"]: float(np.mean(np.concatenate(model["latency_ms"]["rounds"]))) / 1000 for model in report["models"]}
    return [
        {
            "model": name,
            "mean time of a request": milliseconds(1000 * mean),
            "a million requests": f"{significant(mean * 1e6 / 3600)} h",
            "cost": significant(price / 3600 * mean * 1e6),
        }
        for name, mean in seconds.items()
    ]


def peer_sentence(report: Report) -> str:
    """Which peers no model of ours matches in speed and quality at once; nothing where no peer was measured."""
    ours = [model for model in report["models"] if not model.get("peer")]
    peers = [model for model in report["models"] if model.get("peer")]
    if not peers:
        return ""
    beyond = [f"{peer['name']} ({_place(peer, ours)})" for peer in peers if not any(_at_least(model, peer) for model in ours)]
    if beyond:
        return f"Beyond our front: {'; '.join(beyond)}."
    return "No peer lies above and to the left of our front: for each there is a model here at least as fast and as good."


def _place(peer: Model, ours: Sequence[Model]) -> str:
    """Where a peer beyond our front stands to the models of ours that are next to it."""
    quicker = [model for model in ours if model["latency_ms"]["median"] <= peer["latency_ms"]["median"]]
    better = [model for model in ours if score(model)[1] >= score(peer)[1]]
    if not (quicker and better):
        return " and ".join(["faster"] * (not quicker) + ["better"] * (not better)) + " than all of ours"
    best, nearest = max(quicker, key=lambda model: score(model)[1]), min(better, key=lambda model: model["latency_ms"]["median"])
    return f"better than {best['name']}, faster than {nearest['name']}"


def filled(rows: list[Row]) -> list[Row]:
    """The rows with the same columns each, without those that are empty in every row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in names if any(other.get(name) for other in rows)} for row in rows]


def bounds(interval: Sequence[float] | None) -> str:
    """An interval of three digits in brackets, or nothing."""
    return f" ({significant(interval[0])}–{significant(interval[1])})" if interval else ""


def points(interval: Sequence[float] | None) -> str:
    """An interval of points in brackets, or nothing."""
    return f" ({tenth(interval[0])} to {tenth(interval[1])})" if interval else ""


def shares(interval: Sequence[float] | None) -> str:
    """An interval of shares in percent, in brackets, or nothing."""
    return f" ({interval[0] * 100:.1f}–{interval[1] * 100:.1f})" if interval else ""


def tenth(value: float) -> str:
    """One decimal, never -0.0."""
    return f"{round(value, 1) + 0.0:.1f}"


def _at_least(one: Model, other: Model) -> bool:
    """Whether `one` is at least as fast and as good as `other`."""
    return one["latency_ms"]["median"] <= other["latency_ms"]["median"] and score(one)[1] >= score(other)[1]


def _probability(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{significant(seconds, 2)} s"
