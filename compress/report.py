"""The report of a benchmark: `report.json`, a page that needs nothing else, Markdown for a pull request.

`report.json` is the truth and its JSON Schema (`report.schema.json`) ships; the page and the Markdown say what is in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.units import factor, milliseconds, percent, significant, size
from model.errors import require
from serve.machine import machine_facts

FORMAT = 1
SCHEMA = Path(__file__).with_name("report.schema.json")
TEMPLATE = Path(__file__).with_name("report.html.jinja")

Report = dict[str, Any]


def build_report(
    measured: Mapping[str, Any],
    *,
    task: str,
    data: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Any]],
    command: str,
    final: str = "",
    stages: Sequence[Mapping[str, Any]] = (),
    lineage: Sequence[Mapping[str, Any]] = (),
    machine: Mapping[str, Any] | None = None,
) -> Report:
    """Everything that a report says, as plain JSON values.

    `measured` comes from `compress.benchmarking.benchmark`; `data` is {"name", "digest", "test_texts"[, "synthetic"]}; `facts` gives for
    each way's name {"digest", "bytes"[, "parameters", "integer_linears"]}; `final` is the way that the headline is about (default: the
    last); `stages` are rows {"stage", "name", "digest", "accuracy", "bytes", "seconds"[, "parameters", "latency_ms"]} in order, and
    `lineage` is the artifacts {"name", "stage", "digest", "parents": {role: digest or name}}, each after its parents.
    """
    report = {
        "format": FORMAT,
        "task": task,
        "final": final or measured["models"][-1]["name"],
        "data": data,
        "machine": machine or machine_facts(),
        "protocol": {**measured["protocol"], "command": command},
        "models": [{**model, **facts[model["name"]]} for model in measured["models"]],
        "comparisons": measured["comparisons"],
        "stages": stages,
        "lineage": lineage,
    }
    plain: Report = json.loads(json.dumps(report, default=dict, allow_nan=False))
    return plain


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `report.json`."""
    values: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return values


def write_json(report: Report, path: Path) -> None:
    """Write `report.json`, indented, each list of numbers on one line."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+(-?\d[^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def highlights(report: Report) -> list[dict[str, str]]:
    """What matters, as a `figure` and the `text` that goes on from it: speed, accuracy, size of the final model."""
    final = _model(report, report["final"])
    pairs = [(one, _model(report, one["baseline"])) for one in report["comparisons"] if one["model"] == final["name"]]
    accuracy, bytes_ = percent(final["quality"]["accuracy"]), size(final["bytes"])
    if not pairs:
        return [
            {"figure": milliseconds(final["latency_ms"]["median"]), "text": f"a text, {final['name']}, median"},
            {"figure": accuracy, "text": "accuracy"},
            {"figure": bytes_, "text": "on disk"},
        ]
    (first, baseline), *others = pairs
    speed, interval = first["speedup"], first["speedup_interval"]
    if first["verdict"] == "slower":
        speed, interval = 1 / speed, [1 / interval[1], 1 / interval[0]]
    words = {"faster": f"faster than {baseline['name']}", "slower": f"slower than {baseline['name']}"}
    verdict = words.get(first["verdict"], f"the speed of {baseline['name']}: no clear difference")
    speeds = "".join(f"; {factor(one['speedup'])} {model['name']}" for one, model in others)
    drop, ratio = first["accuracy_drop_points"], baseline["bytes"] / final["bytes"]
    lost = f"{abs(drop):.1f} points {'less' if drop > 0 else 'more'} than {baseline['name']}{_points(first['drop_interval'])}"
    against = f"{factor(ratio)} smaller" if ratio >= 1 else f"{factor(1 / ratio)} larger"
    return [
        {"figure": factor(speed), "text": f"{verdict}{_interval(interval)}{speeds}"},
        {"figure": accuracy, "text": f"accuracy, {lost}"},
        {"figure": bytes_, "text": f"on disk, {against} than {baseline['name']} ({size(baseline['bytes'])})"},
    ]


def headline(report: Report) -> list[str]:
    """The three lines that matter: speed-up, accuracy, size."""
    return [f"{line['figure']} {line['text']}" for line in highlights(report)]


def write_markdown(report: Report) -> str:
    """The report in short, for a pull request."""
    protocol, data = report["protocol"], report["data"]
    parts = [
        "\n".join(f"- {line}" for line in headline(report)),
        _markdown_table(model_rows(report)),
        _markdown_table(comparison_rows(report)),
        _markdown_table(stage_rows(report)),
        f"{data['name']}, {data['test_texts']:,} test texts; {sentence(report)}",
        *(f"Note: {note}" for note in protocol["notes"]),
        f"```\n{protocol['command']}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sentence(report: Report) -> str:
    """How it was measured, and on what, in one sentence."""
    protocol, machine = report["protocol"], report["machine"]
    floor = "unknown" if protocol["noise_floor"] is None else percent(protocol["noise_floor"])
    return (
        f"{protocol['texts']} texts in {protocol['rounds']} rounds, batch {protocol['batch']}, threads {protocol['threads']}, "
        f"noise floor {floor}; {machine['gpu'] or machine['cpu']}, {machine['cores']} cores."
    )


def model_rows(report: Report) -> list[dict[str, str]]:
    """The table of models; a column that no model has is left out."""
    rows = []
    for model in report["models"]:
        latency, quality, linears = model["latency_ms"], model["quality"], model.get("integer_linears")
        rows.append(
            {
                "model": model["name"],
                "runs as": f"{model['engine']} {model['precision']}, {model['provider']}, {model['mode']}",
                "accuracy": f"{percent(quality['accuracy'])}{_shares(quality['accuracy_interval'])}",
                "macro F1": percent(quality["macro_f1"]),
                "median": f"{milliseconds(latency['median'])}{_interval(latency['interval'])}",
                "p95": milliseconds(latency["p95"]) if "p95" in latency else "",
                "p99": milliseconds(latency["p99"]) if "p99" in latency else "",
                "ids → logits": milliseconds(latency["model_only_median"]),
                f"texts/s, batch {model['throughput']['batch']}": significant(model["throughput"]["texts_per_second"]),
                "size": size(model["bytes"]),
                "parameters": f"{significant(model['parameters'] / 1e6)} M" if "parameters" in model else "",
                "peak memory": f"{significant(model['peak_rss_mb'])} MB",
                "cold start": f"{significant(model['cold_start_ms'])} ms",
                "integer linears": f"{linears['integer']} of {linears['total']}" if linears else "",
            }
        )
    return _filled(rows)


def comparison_rows(report: Report) -> list[dict[str, str]]:
    """The table of comparisons."""
    return [
        {
            "model": one["model"],
            "against": one["baseline"],
            "speed-up": f"{factor(one['speedup'])}{_interval(one['speedup_interval'])}",
            "verdict": one["verdict"],
            "accuracy lost, points": f"{_tenth(one['accuracy_drop_points'])}{_points(one['drop_interval'])}",
            "McNemar p": "< 0.001" if one["mcnemar_p"] < 0.001 else f"{one['mcnemar_p']:.3f}",
            "same answer": percent(one["agreement"]),
        }
        for one in report["comparisons"]
    ]


def stage_rows(report: Report) -> list[dict[str, str]]:
    """The table of stages: what each did to accuracy, latency and size."""
    rows, before = [], None
    for stage in report["stages"]:
        accuracy = stage.get("accuracy")
        change = "" if accuracy is None or before is None else f" ({(accuracy - before) * 100:+.1f})"
        before = before if accuracy is None else accuracy
        rows.append(
            {
                "stage": stage["stage"],
                "artifact": stage.get("name", ""),
                "accuracy": "" if accuracy is None else f"{percent(accuracy)}{change}",
                "latency": milliseconds(stage["latency_ms"]) if stage.get("latency_ms") else "",
                "parameters": f"{significant(stage['parameters'] / 1e6)} M" if stage.get("parameters") else "",
                "size": size(stage["bytes"]),
                "took": "" if stage["seconds"] is None else _duration(stage["seconds"]),
                "digest": stage["digest"][:12],
            }
        )
    return _filled(rows)


def class_rows(report: Report) -> list[dict[str, Any]]:
    """F1 of every class: {"label", "support", "f1": [a share or None a model]}."""
    classes = [model["quality"]["per_class"] for model in report["models"]]
    return [
        {"label": row[0]["label"], "support": row[0]["support"], "f1": [one["f1"] for one in row]} for row in zip(*classes, strict=True)
    ]


def lineage_tree(report: Report) -> list[dict[str, Any]]:
    """The artifacts as trees {"name", "stage", "digest", "others", "children"}.

    Each stands below the first of its parents that is here; `others` names the rest of them.
    """
    nodes: dict[str, dict[str, Any]] = {}
    roots: list[dict[str, Any]] = []
    for artifact in report["lineage"]:
        parents = list(artifact["parents"].items())
        above = next((digest for _, digest in parents if digest in nodes), None)
        others = [f"{role}: {nodes[digest]['name'] if digest in nodes else digest}" for role, digest in parents if digest != above]
        node = {"name": artifact["name"], "stage": artifact["stage"], "digest": artifact["digest"], "others": others, "children": []}
        (nodes[above]["children"] if above else roots).append(node)
        nodes[artifact["digest"]] = node
    return roots


def write_html(report: Report, path: Path) -> None:
    """Write the page: one file, nothing fetched. Raises EnvironmentProblem without the extra `report`."""
    require("report", "matplotlib", "jinja2")
    import jinja2

    from compress import charts

    models = report["models"]
    spoken = ", ".join(
        f"{model['name']} {percent(model['quality']['accuracy'])} at {milliseconds(model['latency_ms']['median'])}" for model in models
    )
    rows = 0.7 + 0.7 * len(models)  # inches
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(percent=percent, size=size)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        final=_model(report, report["final"]),
        highlights=highlights(report),
        sentence=sentence(report),
        models=model_rows(report),
        comparisons=comparison_rows(report),
        stages=stage_rows(report),
        classes=class_rows(report),
        tree=lineage_tree(report),
        pareto=[charts.draw(charts.pareto, models, f"Accuracy against latency: {spoken}", *box) for box in ((10, 5), (4.4, 4.6))],
        distribution=[charts.draw(charts.distribution, models, f"Latency samples: {spoken}", *box) for box in ((10, rows), (4.4, rows))],
    )
    path.write_text(page, encoding="utf-8")


def _model(report: Report, name: str) -> dict[str, Any]:
    return next(model for model in report["models"] if model["name"] == name)


def _interval(interval: Sequence[float] | None) -> str:
    return f" ({significant(interval[0])}–{significant(interval[1])})" if interval else ""


def _points(interval: Sequence[float] | None) -> str:
    return f" ({_tenth(interval[0])} to {_tenth(interval[1])})" if interval else ""


def _tenth(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}"  # no -0.0


def _shares(interval: Sequence[float] | None) -> str:
    return f" ({interval[0] * 100:.1f}–{interval[1] * 100:.1f})" if interval else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{significant(seconds, 2)} s"


def _filled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without the columns that are empty in every row."""
    return [{name: value for name, value in row.items() if any(other[name] for other in rows)} for row in rows]


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
