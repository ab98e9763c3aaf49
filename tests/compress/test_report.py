"""The report: its shape, what it says, and a page that needs nothing else."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress import charts, units
from compress.report import build_report, headline, lineage_tree, schema, write_html, write_json, write_markdown
from compress.report_tables import (
    band_rows,
    class_rows,
    comparison_rows,
    cost_rows,
    model_rows,
    peer_sentence,
    score_text,
    stage_rows,
    sweep_rows,
)
from compress.statistics import bootstrap, median

NAMES = ("negative", "neutral", "positive")
# name, model, engine, precision, mode, median ms, accuracy, bytes, texts a second
WAYS = (
    ("teacher-torch", "teacher", "transformers", "fp32", "eager", 13.1, 0.804, 90_900_000, 160.0),
    ("teacher-ort", "teacher", "ort", "fp32", "session", 5.61, 0.8039, 90_400_000, 240.0),
    ("student", "student", "ort", "fp32", "session", 0.412, 0.799, 61_000_000, 4100.0),
    ("pruned", "pruned", "ort", "fp32", "session", 0.214, 0.794, 48_200_000, 7900.0),
    ("quantized", "onnx", "ort", "int8", "session", 0.1597, 0.791, 12_300_000, 13400.0),
)
STAGES = ("train", "distill", "prune", "quantize", "export")


def measured(rounds: int = 7, texts: int = 150) -> dict[str, Any]:
    """What `benchmark` returns, for five ways with made-up samples."""
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(0, 0.3, texts)
    models, samples = [], {}
    for name, model, engine, precision, mode, ms, accuracy, _, speed in WAYS:
        drawn = ms * lengths / np.median(lengths) * generator.lognormal(0, 0.06, (rounds, texts))
        samples[name] = np.median(drawn, axis=1)
        latency = {
            "median": float(np.median(drawn)),
            "interval": bootstrap(median, drawn),
            "p95": float(np.quantile(drawn, 0.95)),
            "model_only_median": ms * 0.9,
            "rounds": drawn.round(4).tolist(),
            "model_only_rounds": (drawn * 0.9).round(4).tolist(),
        }
        classes = [
            {"label": label, "precision": accuracy, "recall": accuracy, "f1": accuracy + shift, "support": 1100 + 37 * number}
            for number, (label, shift) in enumerate(zip(NAMES, (-0.02, -0.05, 0.04), strict=True))
        ]
        quality = {
            "accuracy": accuracy,
            "accuracy_interval": (accuracy - 0.0135, accuracy + 0.0135),
            "macro_f1": accuracy - 0.01,
            "per_class": classes,
        }
        models.append(
            {"name": name, "model": model, "engine": engine, "provider": "cpu", "precision": precision, "mode": mode}
            | {"quality": quality, "latency_ms": latency, "throughput": {"batch": 32, "texts_per_second": speed}}
            | {"peak_rss_mb": 612.0 if engine == "transformers" else 140.0, "cold_start_ms": 5120.0 if engine == "transformers" else 412.0}
        )
    comparisons = []
    for number, baseline in enumerate(WAYS[:2], start=1):
        for way in WAYS[number:]:
            ratios = samples[baseline[0]] / samples[way[0]]
            ratio, drop = float(np.median(ratios)), (baseline[6] - way[6]) * 100
            comparisons.append(
                {"baseline": baseline[0], "model": way[0], "speedup": ratio, "speedup_interval": bootstrap(median, ratios)}
                | {"accuracy_drop_points": drop, "drop_interval": (drop - 0.9, drop + 0.9), "mcnemar_p": 0.012, "agreement": 0.953}
                | {"verdict": "faster" if ratio > 1 else "slower"}
            )
    protocol = {"batch": 1, "threads": 1, "texts": texts, "rounds": rounds, "seed": 0, "noise_floor": 0.021, "notes": []}
    return {
        "protocol": {**protocol, "twin": {"model": "quantized", "ratio": 1.004, "interval": (0.99, 1.021)}},
        "models": models,
        "comparisons": comparisons,
    }


def sample(**changes: Any) -> dict[str, Any]:
    """A report such as the demo's, with `changes` to what was measured."""
    digests = {stage: f"{number:x}" * 64 for number, stage in enumerate(STAGES, start=10)}
    names = ("teacher", "student", "pruned", "quantized", "onnx")
    parents: tuple[dict[str, str], ...] = (
        {"base": "minilm"},
        {"teacher": digests["train"]},
        {"model": digests["distill"], "teacher": digests["train"]},
        {"model": digests["prune"], "teacher": digests["train"]},
        {"model": digests["quantize"]},
    )
    return build_report(
        measured() | changes,
        task="classification",
        data={"name": "tweets", "digest": "5b" * 32, "test_texts": 3411},
        facts={
            way[0]: {"digest": digests["export"], "bytes": way[7], "parameters": way[7] // 4}
            | ({"integer_linears": {"integer": 12, "total": 12}} if way[3] == "int8" else {})
            for way in WAYS
        },
        command="compress benchmark runs/demo/teacher runs/demo/onnx --data tweets --texts 150 --rounds 7 --out runs/demo/report",
        stages=[
            {"stage": stage, "name": name, "digest": digests[stage], "accuracy": 0.804 - 0.003 * number, "seconds": 37.5 * (6 - number)}
            | {"bytes": 90_900_000 // (1 + 2 * number), "parameters": 22_700_000 // (1 + number)}
            for number, (stage, name) in enumerate(zip(STAGES, names, strict=True))
        ],
        lineage=[
            {"name": name, "stage": stage, "digest": digests[stage], "parents": parent}
            for name, stage, parent in zip(names, STAGES, parents, strict=True)
        ],
        machine={
            "cpu": "AMD EPYC 9B45",
            "cores": 2,
            "gpu": None,
            "memory_gb": 24.0,
            "system": "Linux 6.1.0",
            "versions": {"python": "3.11.9", "torch": "2.13.0", "onnxruntime": "1.32.0", "tokenizers": "0.23.3"},
        },
    )


def compared(**changes: Any) -> dict[str, Any]:
    """A report whose only comparison is the final model's with the teacher, changed."""
    last = [one for one in measured()["comparisons"] if one["model"] == "quantized"][:1]
    return sample(comparisons=[last[0] | changes])


EXAMPLE = {"text": "so <b>late</b> again", "truth": "negative", "baseline": "negative", "model": "neutral", "probability": 0.93}
BANDS = ((1, 8), (9, 16), (17, 32))


def whole(*, peers: tuple[tuple[str, float, float], ...] = (("peer-int8", 2.4, 0.8), ("peer-static", 0.1, 0.75)), **changes: Any) -> Any:
    """A report with everything that a report may have; `peers` are name, median and accuracy."""
    report: Any = sample(disagreements=[EXAMPLE]) | {
        "price_per_hour": 0.1,
        "failed": [{"name": "other-int4", "reason": "It does not build."}],
    }
    for model in report["models"]:
        median_ = model["latency_ms"]["median"]
        model["bands"] = [
            {
                "tokens": list(band),
                "texts": 9,
                "median_ms": median_ * band[1] / 16,
                "interval": None if band[0] == 1 else [median_ / 3, median_ * 3],
            }
            for band in BANDS
        ]
        model["throughput_sweep"] = [
            {"batch": batch, "threads": threads, "processes": 1, "texts_per_second": 1000 * batch**0.2 * threads / median_}
            for batch in (1, 8)
            for threads in (1, 2)
        ]
    for name, median_, accuracy in peers:
        peer = json.loads(json.dumps(report["models"][1])) | {"name": name, "peer": True, "note": "its own quantizer"}
        peer["latency_ms"]["median"] = median_
        peer["quality"] |= {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.01, accuracy + 0.01]}
        del peer["bands"], peer["throughput_sweep"]
        report["models"].append(peer)
    return report | changes


def test_everything_that_a_report_may_have_follows_the_schema_and_is_shown(tmp_path: Path) -> None:
    report = whole()
    jsonschema.validate(report, schema())
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open and not page.fetched and len(page.ids) == len(set(page.ids)) and set(page.links) <= set(page.ids)
    assert {"lengths", "throughput", "cost", "disagreements"} <= set(page.links)
    for said in (
        "other-int4",
        "It does not build.",
        "17–32",
        "batch 8, threads 2, processes 1",
        "At 0.10 an hour",
        "so &lt;b&gt;late&lt;/b&gt; again",
    ):
        assert said in text
    assert "another tool" in text and "its own quantizer" in text and "93.0 % sure" in text
    markdown = write_markdown(report)
    assert "- not measured: other-int4: It does not build." in markdown and "| 17–32 tokens |" in markdown and "late" not in markdown


def test_a_report_without_them_has_no_empty_sections(tmp_path: Path) -> None:
    write_html(sample(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'id="(lengths|throughput|cost|disagreements)"|not be measured|another tool|on the device', text)
    assert "disagreements" not in build_report(measured() | {"disagreements": [EXAMPLE]}, examples=False, **REST)
    assert "disagreements" in build_report(measured() | {"disagreements": [EXAMPLE]}, **REST)


REST: Any = {"task": "t", "data": {}, "facts": {way[0]: {} for way in WAYS}, "command": "c", "machine": {"cpu": "x"}}


def test_cost_is_price_times_mean_time() -> None:
    report = whole(peers=(), price_per_hour=3.6)
    report["models"][0]["latency_ms"]["rounds"] = [[1.0, 3.0], [2.0, 2.0]]
    row = cost_rows(report)[0]
    assert row == {"model": "teacher-torch", "mean time of a request": "2.00 ms", "a million requests": "0.556 h", "cost": "2.00"}
    assert cost_rows(sample()) == []


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        (("slow", 9.0, 0.79), "No peer lies above and to the left of our front"),
        (("best", 0.1, 0.9), "best (faster and better than all of ours)"),
        (("static", 0.1, 0.7), "Beyond our front: static (faster than all of ours)."),
        (("between", 0.3, 0.798), "between (better than pruned, faster than student)"),
        (("exact", 20.0, 0.9), "exact (better than all of ours)"),
    ],
)
def test_a_peer_beyond_our_front_is_named_with_its_neighbours(peer: tuple[str, float, float], said: str) -> None:
    assert said in peer_sentence(whole(peers=(peer,)))


def test_a_model_without_a_teacher_is_no_other_tools() -> None:
    report = whole(peers=(("alone", 2.4, 0.8),))
    report["models"][-1]["maker"] = "alambic, without a teacher"
    jsonschema.validate(report, schema())
    assert [row["made by"] for row in model_rows(report)] == ["alambic"] * (len(report["models"]) - 1) + ["alambic, without a teacher"]


def test_no_peers_no_sentence() -> None:
    assert peer_sentence(sample()) == ""


def test_bands_and_sweeps_have_a_place_for_what_one_model_lacks() -> None:
    report = whole()
    del report["models"][0]["bands"][1], report["models"][0]["throughput_sweep"][3]
    first, second = band_rows(report)[:2]
    assert (
        list(first) == list(second) == ["model", "1–8 tokens", "9–16 tokens", "17–32 tokens"]
        and first["9–16 tokens"] == "" != second["9–16 tokens"]
    )
    rows = sweep_rows(report)
    assert [row["run as"] for row in rows][:2] == ["batch 1, threads 1, processes 1", "batch 8, threads 1, processes 1"]
    assert [bool(row["teacher-torch"]) for row in rows] == [True, True, True, False]


def test_another_task_has_its_own_score(tmp_path: Path) -> None:
    report = whole(peers=(), task="regression")
    for number, model in enumerate(report["models"]):
        model["quality"] = {"spearman": 0.8 - number / 100, "spearman_interval": [0.7, 0.9], "pearson": 0.81}
    jsonschema.validate(report, schema())
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (
        "Spearman against latency" in text
        and "accuracy" not in text.partition("<main>")[2].partition("Comparisons</h2>")[0]
        and 'id="classes"' not in text
    )
    assert score_text(report["models"][0]) == "0.800" and class_rows(report) == []
    assert model_rows(report)[0]["Spearman"] == "0.800 (0.700–0.900)" and headline(report)[1].startswith("0.760 Spearman, ")
    assert "Spearman lost, points" in comparison_rows(report)[0]


def test_more_models_than_classes_stand_below_each_other(tmp_path: Path) -> None:
    write_html(sample(), tmp_path / "report.html")  # 5 models, 3 classes
    assert "1,100 texts</span>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_follows_its_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(sample(), schema())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("models", 0, "latency_ms", "median"), "13 ms"),
        (("models", 0, "quality", "accuracy"), 80.4),
        (("comparisons", 0, "verdict"), "much faster"),
        (("format",), 2),
    ],
)
def test_the_schema_refuses_what_is_not_a_report(path: tuple[str | int, ...], value: Any) -> None:
    report: Any = sample()
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, schema())


def test_intervals_may_be_missing_and_nothing_breaks(tmp_path: Path) -> None:
    values = measured(rounds=1)
    for one in values["comparisons"]:
        one |= {"speedup_interval": None, "drop_interval": None, "verdict": "no clear difference"}
    for model in values["models"]:
        model["latency_ms"]["interval"] = model["quality"]["accuracy_interval"] = None
        del model["latency_ms"]["p95"]
    values["protocol"]["noise_floor"] = None
    report = sample(**values)
    report["stages"][0] |= {"accuracy": None, "seconds": None}
    jsonschema.validate(report, schema())
    write_html(report, tmp_path / "report.html")
    assert "noise floor unknown" in write_markdown(report)


def test_the_json_file_is_the_report_with_samples_on_one_line(tmp_path: Path) -> None:
    report = sample()
    write_json(report, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report
    assert len(text.splitlines()) < 700
    assert re.search(r'"accuracy_interval": \[0\.7\d+, 0\.8\d+\]', text)


def test_the_headline_has_speed_accuracy_and_size() -> None:
    speed, accuracy, size = headline(sample())
    assert re.fullmatch(r"8\d\.\d× faster than teacher-torch \(\d\d\.\d–8\d\.\d\); 3\d\.\d× teacher-ort", speed)
    assert accuracy == "79.1 % accuracy, 1.3 points less than teacher-torch (0.4 to 2.2)"
    assert size == "12.3 MB on disk, 7.39× smaller than teacher-torch (90.9 MB)"


def test_the_headline_concludes_nothing_that_the_verdict_does_not() -> None:
    speed = headline(compared(speedup=1.01, speedup_interval=(0.98, 1.04), verdict="no clear difference"))[0]
    assert speed == "1.01× the speed of teacher-torch: no clear difference (0.980–1.04)"
    assert (
        headline(compared(speedup=0.5, speedup_interval=(0.4, 0.6), verdict="slower"))[0] == "2.00× slower than teacher-torch (1.67–2.50)"
    )


def test_a_gain_has_its_interval_the_same_way_round() -> None:
    line = headline(compared(accuracy_drop_points=-3.8, drop_interval=(-8.8, 0.0)))[1]
    assert line == "79.1 % accuracy, 3.8 points more than teacher-torch (0.0 to 8.8)"


def test_one_band_or_batch_is_no_line(tmp_path: Path) -> None:
    report = whole()
    for model in report["models"][:5]:
        del model["bands"][1:], model["throughput_sweep"][1:]
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1–8 tokens" in text and "batch 1, threads 1, processes 1" in text and "log scale)</text>" in text
    assert "tokens of the text" not in text and "texts in a batch" not in text


def test_the_headline_without_a_comparison() -> None:
    assert headline(sample(comparisons=[])) == [headline(sample(comparisons=[]))[0], "79.1 % accuracy", "12.3 MB on disk"]


def test_stages_say_what_changed() -> None:
    rows = stage_rows(sample())
    assert [row["accuracy"] for row in rows[:2]] == ["80.4 %", "80.1 % (-0.3)"]
    assert rows[0]["took"] == "3 min 45 s"
    assert "latency" not in rows[0]


def test_lineage_hangs_each_artifact_below_its_first_parent_once() -> None:
    (teacher,) = lineage_tree(sample())
    assert (teacher["name"], teacher["others"]) == ("teacher", ["base: minilm"])
    (student,) = teacher["children"]
    (pruned,) = student["children"]
    assert (pruned["name"], pruned["others"]) == ("pruned", ["teacher: teacher"])


def test_markdown_has_the_headline_tables_and_the_command() -> None:
    text = write_markdown(sample())
    assert text.startswith("- 8")
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == (2 + 5) + (2 + 7) + (2 + 5)
    assert "compress benchmark runs/demo/teacher" in text


class Page(html.parser.HTMLParser):
    """Collects what a page would fetch and run, its ids and links, and whether its elements close."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "xlink:href") and (value or "").startswith("#"):
                self.links.append((value or "")[1:])
            elif name in ("src", "href", "xlink:href", "srcset", "action") or tag in ("script", "link", "iframe"):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    write_html(sample(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.open
    assert not page.fetched
    assert len(page.ids) == len(set(page.ids))
    assert set(page.links) <= set(page.ids)
    assert not re.findall(r"@import|url\((?!#)|#0[1-6]0[2-7]0[3-8]|NaN|None|undefined", text)
    for said in ("teacher-torch", "12.3 MB", "compress benchmark", "AMD EPYC", "macro F1", "prefers-color-scheme"):
        assert said in text


def test_names_are_escaped(tmp_path: Path) -> None:
    report = json.loads(json.dumps(sample()).replace("quantized", "<i>$x$ & y"))
    write_html(report, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<i>$" not in text
    assert "&lt;i&gt;$x$ &amp; y" in text


def test_the_front_is_what_no_other_beats() -> None:
    assert charts.front([3.0, 1.0, 2.0, 2.0], [0.9, 0.7, 0.8, 0.6]) == [1, 2, 0]


@given(st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 1)), min_size=1, max_size=12))
def test_everything_off_the_front_is_beaten(points: list[tuple[float, float]]) -> None:
    latency, accuracy = zip(*points, strict=True)
    best = charts.front(latency, accuracy)
    for number, (slow, good) in enumerate(points):
        beaten = any(latency[one] <= slow and accuracy[one] >= good for one in best)
        assert number in best or beaten


@given(st.floats(1e-6, 1e9))
def test_three_significant_digits_are_kept(value: float) -> None:
    text = units.significant(value).replace(",", "")
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (830, "830 B"), (999_999, "1.00 MB"), (10_123_456, "10.1 MB"), (2.5e9, "2.50 GB"), (999.7, "1.00 kB")]
)
def test_sizes(value: float, text: str) -> None:
    assert units.size(value) == text
