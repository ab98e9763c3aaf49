"""Two reports compared: what counts as a change, what does not, and the exit code for CI."""

import copy
import json
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.cli import main
from compress.comparison import compare_reports, gate, read_report
from compress.report import schema, write_html, write_markdown
from model.errors import ArtifactError, ConfigError, GateError


def model(name, ms, accuracy=0.8, size=10_000_000, digest="d"):
    return {
        "name": name,
        "digest": digest,
        "bytes": size,
        "quality": {"accuracy": accuracy, "accuracy_interval": [accuracy - 0.01, accuracy + 0.01]},
        "latency_ms": {"median": ms, "interval": [ms * 0.995, ms * 1.005]},
    }


def report(*models, floor=0.02, cpu="EPYC", data="data", width=0.005):
    first = models[0]
    speeds = [(one["name"], first["latency_ms"]["median"] / one["latency_ms"]["median"]) for one in models[1:]]
    return {
        "data": {"name": data, "digest": data},
        "machine": {"cpu": cpu, "cores": 2, "gpu": None, "versions": {"onnxruntime": "1.32.0"}},
        "protocol": {"noise_floor": floor, "threads": 1},
        "models": list(models),
        "comparisons": [
            {"baseline": first["name"], "model": name, "speedup": speed, "speedup_interval": [speed * (1 - width), speed * (1 + width)]}
            for name, speed in speeds
        ],
    }


OLD = report(model("teacher", 10.0), model("student", 0.2))


def verdicts(new, old=OLD):
    return {(change.model, change.figure): change.verdict for change in compare_reports(old, new).changes}


def test_the_same_report_has_not_changed():
    found = compare_reports(OLD, copy.deepcopy(OLD))
    assert {change.verdict for change in found.changes} == {"no clear change"}
    assert not found.notes
    gate(found)


def test_a_slower_student_is_a_regression():
    found = compare_reports(OLD, report(model("teacher", 10.0), model("student", 0.23)))
    with pytest.raises(GateError, match=r"1 figure is worse beyond noise: student, speed-up: 50\.0× → 43\.5×, ×0\.870") as caught:
        gate(found)
    assert caught.value.exit_code == 3
    assert verdicts(report(model("teacher", 10.0), model("student", 0.17)))["student", "speed-up"] == "better"


def test_a_slower_machine_is_not_a_slower_student():
    found = verdicts(report(model("teacher", 13.0), model("student", 0.26)))
    assert found["student", "speed-up"] == "no clear change"
    assert found["teacher", "latency"] == "worse"  # on the same machine: something slows both
    elsewhere = compare_reports(OLD, report(model("teacher", 13.0), model("student", 0.26), cpu="Xeon"))
    assert {change.verdict for change in elsewhere.changes} == {"no clear change"}
    assert "different machines" in elsewhere.notes[0]


@given(st.floats(0.5, 2), st.floats(0, 0.5))
def test_nothing_within_either_noise_floor_counts(ratio, floor):
    for old, new in ((floor, 0.0), (0.0, floor)):
        changed = report(model("teacher", 10.0), model("student", 0.2 / ratio), floor=new)
        found = verdicts(changed, report(*OLD["models"], floor=old))["student", "speed-up"]
        if max(ratio, 1 / ratio) - 1 <= max(floor, 0.02):
            assert found == "no clear change"
        elif max(ratio, 1 / ratio) > 1.03:
            assert found == ("better" if ratio > 1 else "worse")


def test_a_wide_interval_concludes_nothing():
    wide = report(model("teacher", 10.0), model("student", 0.23), width=0.3)
    assert verdicts(wide)["student", "speed-up"] == "no clear change"
    unknown = report(model("teacher", 10.0), model("student", 0.4), floor=None)
    assert verdicts(unknown)["student", "speed-up"] == "no clear change"
    assert "has no noise floor" in compare_reports(OLD, unknown).notes[-1]


def test_accuracy_and_size():
    found = verdicts(report(model("teacher", 10.0), model("student", 0.2, accuracy=0.77, size=12_000_000)))
    assert found["student", "accuracy"] == found["student", "size"] == "worse"
    found = verdicts(report(model("teacher", 10.0), model("student", 0.2, accuracy=0.79, size=10_050_000)))
    assert found["student", "accuracy"] == found["student", "size"] == "no clear change"


def test_another_first_model_is_no_yardstick():
    new = report(model("teacher", 5.0, digest="other"), model("student", 0.2))
    found = compare_reports(OLD, new)
    assert {change.figure for change in found.changes} == {"latency", "accuracy", "size"}
    assert "The first models (teacher, then teacher) are not the same" in found.notes[0]


def test_models_that_come_and_go_and_versions():
    new = report(model("teacher", 10.0), model("pruned", 0.1))
    new["machine"]["versions"]["onnxruntime"] = "1.33.0"
    found = compare_reports(OLD, new)
    assert (found.only_old, found.only_new) == (["student"], ["pruned"])
    assert "onnxruntime: 1.32.0 → 1.33.0." in found.notes
    assert "Only in the new report: pruned." in found.text()


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (report(model("teacher", 10.0), data="other"), "The reports are about different data: data and other"),
        (report(model("a", 1.0), model("b", 1.0)), "have no model in common: teacher, student against a, b"),
    ],
)
def test_reports_that_cannot_be_compared(new, said):
    with pytest.raises(ConfigError, match=said):
        compare_reports(OLD, new)


def test_a_file_that_is_no_report(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no report"):
        read_report(tmp_path)


def test_the_command_leaves_with_3_on_a_regression_and_says_it_in_json_too(tmp_path, capsys, monkeypatch):
    for name, content in (("old", OLD), ("new", report(model("teacher", 10.0), model("student", 0.3)))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(content))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["compress", "compare", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            return left.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, out, err = run(tmp_path / "old", tmp_path / "new", "--json")
    assert code == 3
    assert [change["figure"] for change in json.loads(out)["changes"] if change["verdict"] == "worse"] == ["speed-up"]
    assert "Error: 1 figure is worse beyond noise" in err
    code, out, _ = run(tmp_path / "new", tmp_path / "old")
    assert code == 0
    assert "student, speed-up: 33.3× → 50.0×" in out and "better" in out


BEFORE = Path(__file__).parent / "reports" / "before_tasks.json"  # as `compress benchmark` wrote it when it knew one task


def test_a_report_from_before_other_tasks_is_still_read(tmp_path):
    old = read_report(BEFORE)
    assert "score" not in old and "score" not in old["models"][0]["quality"]
    jsonschema.validate(old, schema())
    new = copy.deepcopy(old)
    for one in new["models"]:
        one["quality"] |= {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "score": 0.5, "score_interval": [0.4, 0.6]}
    for one in new["comparisons"]:
        one |= {"score_drop_points": one["accuracy_drop_points"], "score_drop_interval": one["drop_interval"]}
    new["score"] = {"name": "accuracy", "agreement": "same class"}
    jsonschema.validate(new, schema())
    found = {(change.model, change.figure): change for change in compare_reports(old, new).changes}
    assert {change.verdict for (_, figure), change in found.items() if figure == "accuracy"} == {"worse"}
    assert found["onnx", "accuracy"].line() == "onnx, accuracy: 100.0 % → 50.0 %, -50.0 points (-60.0 to -40.0): worse"
    for report in (old, new):
        write_html(report, tmp_path / "report.html")
        assert "accuracy lost, points" in write_markdown(report)


def test_another_task_has_its_own_score():
    def scored(value, task="regression"):
        one = model("teacher", 10.0)
        one["quality"] = {"spearman": value, "spearman_interval": [value - 0.01, value + 0.01], "rmse": 0.4}
        return report(one) | {"task": task}

    change = next(change for change in compare_reports(scored(0.8), scored(0.7)).changes if change.figure == "score")
    assert change.line() == "teacher, Spearman: 0.800 → 0.700, -10.0 points (-11.4 to -8.6): worse"
    with pytest.raises(ConfigError) as caught:
        compare_reports(scored(0.8), scored(0.8, "embedding"))
    assert caught.value.message == "The reports are about different tasks: regression and embedding."
    assert caught.value.hint == "Compare reports of one task."
