"""The report of a benchmark: `report.json`, a page that needs nothing else, Markdown for a pull request.

`report.json` is the truth and its JSON Schema (`report.schema.json`) ships; the page and the Markdown say what is in it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.report_tables import (
    PER,
    band_rows,
    bounds,
    class_rows,
    comparison_rows,
    cost_rows,
    drop,
    error_rows,
    model_rows,
    peer_sentence,
    points,
    score,
    score_text,
    stage_rows,
    sweep_rows,
)
from compress.tasks import TASKS
from compress.units import factor, milliseconds, percent, size
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
    failed: Sequence[Mapping[str, str]] = (),
    price_per_hour: float | None = None,
    examples: bool = True,
) -> Report:
    """Everything that a report says, as plain JSON values.

    `measured` comes from `compress.benchmarking.benchmark`; `data` is {"name", "digest", "test_texts"[, "synthetic"]}; `facts` gives for
    each way's name {"digest", "bytes"[, "parameters", "integer_linears"]}; `final` is the way that the headline is about (default: the
    last); `stages` are rows {"stage", "name", "digest", "accuracy" or "score", "bytes", "seconds"[, "parameters", "latency_ms"]}, and
    `lineage` is the artifacts {"name", "stage", "digest", "parents": {role: digest or name}}, each after its parents.
    `failed` is what could not be measured, {"name", "reason"}; `price_per_hour` is what the machine costs, in the user's currency.
    Without `examples` no text of the data is in the report.
    """
    report = {
        "format": FORMAT,
        "task": task,
        **({"score": {"name": TASKS[task].score, "agreement": TASKS[task].same}} if task in TASKS else {}),
        "final": final or measured["models"][-1]["name"],
        "data": data,
        "machine": machine or machine_facts(),
        "protocol": {**measured["protocol"], "command": command},
        "models": [{**model, **facts[model["name"]]} for model in measured["models"]],
        "comparisons": measured["comparisons"],
        "stages": stages,
        "lineage": lineage,
        **({"failed": failed} if failed else {}),
        **({"price_per_hour": price_per_hour} if price_per_hour is not None else {}),
        **({"disagreements": measured["disagreements"]} if examples and measured.get("disagreements") else {}),
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
    """What matters, as a `figure` and the `text` that goes on from it: speed, score, size of the final model."""
    final = _model(report, report["final"])
    pairs = [(one, _model(report, one["baseline"])) for one in report["comparisons"] if one["model"] == final["name"]]
    name, value, bytes_ = score(final)[0], score_text(final), size(final["bytes"])
    if not pairs:
        return [
            {"figure": milliseconds(final["latency_ms"]["median"]), "text": f"a text, {final['name']}, median"},
            {"figure": value, "text": name},
            {"figure": bytes_, "text": "on disk"},
        ]
    (first, baseline), *others = pairs
    speed, interval = first["speedup"], first["speedup_interval"]
    if first["verdict"] == "slower":
        speed, interval = 1 / speed, [1 / interval[1], 1 / interval[0]]
    words = {"faster": f"faster than {baseline['name']}", "slower": f"slower than {baseline['name']}"}
    verdict = words.get(first["verdict"], f"the speed of {baseline['name']}: no clear difference")
    speeds = "".join(f"; {factor(one['speedup'])} {model['name']}" for one, model in others)
    ratio, (lost, within) = baseline["bytes"] / final["bytes"], drop(first)
    change = ""
    if lost is not None:
        between = points([-end for end in reversed(within)] if within and lost <= 0 else within)
        change = f", {abs(lost):.1f} points {'less' if lost > 0 else 'more'} than {baseline['name']}{between}"
    against = f"{factor(ratio)} smaller" if ratio >= 1 else f"{factor(1 / ratio)} larger"
    return [
        {"figure": factor(speed), "text": f"{verdict}{bounds(interval)}{speeds}"},
        {"figure": value, "text": f"{name}{change}"},
        {"figure": bytes_, "text": f"on disk, {against} than {baseline['name']} ({size(baseline['bytes'])})"},
    ]


def headline(report: Report) -> list[str]:
    """The three lines that matter: speed-up, score, size."""
    return [f"{line['figure']} {line['text']}" for line in highlights(report)]


def write_markdown(report: Report) -> str:
    """The report in short, for a pull request."""
    protocol, data = report["protocol"], report["data"]
    parts = [
        "\n".join(f"- {line}" for line in headline(report)),
        _markdown_table(model_rows(report)),
        peer_sentence(report),
        _markdown_table(comparison_rows(report)),
        _markdown_table(band_rows(report)),
        _markdown_table(sweep_rows(report)),
        _markdown_table(cost_rows(report)),
        _markdown_table(stage_rows(report)),
        _markdown_table(error_rows(report)),
        "\n".join(f"- not measured: {one['name']}: {one['reason']}" for one in report.get("failed", ())),
        f"{data['name']}, {data['test_texts']:,} test texts; {sentence(report)}",
        *(f"Note: {note}" for note in protocol.get("notes", ())),
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
    banded = [model for model in models if len(model.get("bands", ())) > 1]  # one point is no line
    swept = [model for model in models if len({one["batch"] for one in model.get("throughput_sweep", ())}) > 1]
    scattered = [model for model in models if model["quality"].get("points")]
    rows = 0.7 + 0.7 * len(models)  # inches

    def picture(kind: charts.Picture, of: Sequence[Report], label: str, height: float, narrow: float | None = None) -> list[str]:
        """Twice: for a page that is wide, and for a narrow one."""
        return [charts.draw(kind, of, f"{label}: {spoken}", *box) for box in ((10, height), (4.4, narrow or height))] if of else []

    spoken = ", ".join(f"{model['name']} {score_text(model)} at {milliseconds(model['latency_ms']['median'])}" for model in models)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(percent=percent, size=size)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        final=_model(report, report["final"]),
        score=score(models[0])[0],
        per=PER.get(report["task"], "class"),
        errors=error_rows(report),
        highlights=highlights(report),
        sentence=sentence(report),
        models=model_rows(report),
        peers=peer_sentence(report),
        failed=report.get("failed", ()),
        comparisons=comparison_rows(report),
        bands=band_rows(report),
        sweep=sweep_rows(report),
        costs=cost_rows(report),
        disagreements=report.get("disagreements", ()),
        stages=stage_rows(report),
        classes=class_rows(report),
        tree=lineage_tree(report),
        pareto=picture(charts.pareto, models, "Quality against latency", 5, 4.6),
        distribution=picture(charts.distribution, models, "Latency samples", rows),
        banded=picture(charts.bands, banded, "Latency against length", 4.6),
        scattered=picture(charts.scatter, scattered, "Answers against the truth", 4.6, 4.2),
        swept=picture(charts.sweep, swept, "Texts a second against the batch", 4.2),
    )
    path.write_text(page, encoding="utf-8")


def _model(report: Report, name: str) -> dict[str, Any]:
    return next(model for model in report["models"] if model["name"] == name)


def _markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
