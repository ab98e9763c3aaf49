"""The benchmark for GPUs, rehearsed on the CPU, and what it says where there is no GPU."""

import json
import sys

import numpy as np
import pytest

from benchmarks import gpu_benchmark
from benchmarks.gpu_benchmark import Run, aims, markdown, measure_model
from tests.serve.tiny_graph import write_artifact

TEXTS = {"text": ["good film", "bad", "x"], "label": ["good", "bad", "fine"]}


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_benchmark.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        gpu_benchmark.main()
    return left.value.code


def test_without_a_gpu_it_says_so_and_ends_with_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("serve.machine._gpu", lambda: None)
    assert command(monkeypatch, "measure", "--name", "none", "--out", tmp_path) == 2
    assert "Error: There is no GPU here (nvidia-smi finds none), so nothing was measured." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_models_it_says_how_to_make_them(monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, "measure", "--name", "none", "--provider", "cpu", "--models", tmp_path / "none") == 2
    assert "gpu_benchmark.py prepare" in capsys.readouterr().err


def test_every_way_that_runs_is_measured_and_every_other_says_why(tmp_path):
    path = str(write_artifact(tmp_path / "tiny" / "fp32"))
    factory = "serve.gpu:open_gpu_predictor"
    ways = [
        Run("ort:fp32", factory, {"path": path, "way": "ort", "provider": "cpu"}),
        Run("ort-iobinding:fp32", factory, {"path": path, "way": "ort-iobinding", "provider": "cpu"}),
        Run("ort-cuda-graph:fp32", factory, {"path": path, "way": "ort-cuda-graph", "provider": "cpu"}),
    ]
    found = measure_model(tmp_path / "tiny", ways, [(1, 4), (3, 8)], rounds=3, samples=2, texts=TEXTS, provider="cpu", vocabulary=50)
    assert [(row["name"], "needs a GPU" in row["reason"]) for row in found["failed"]] == [("ort-cuda-graph:fp32", True)]
    assert {(row["way"], row["batch"], row["length"]) for row in found["rows"]} == {
        (way, batch, length) for way in ("ort:fp32", "ort-iobinding:fp32") for batch, length in ((1, 4), (3, 8))
    }
    assert all(np.shape(row["rounds_ms"]) == (3, 2) for row in found["rows"])
    assert [row["device_ms"] is None for row in found["rows"] if row["way"] == "ort:fp32"] == [True, True]
    assert {row["way"]: row["same_answers"] for row in found["agreement"]} == {"ort:fp32": 1, "ort-iobinding:fp32": 1}
    assert [row["noise_floor"] >= 0 for row in found["floors"]] == [True, True]
    report = {"machine": {"gpu": None, "cpu": "CPU"}, "rounds": 3, "samples": 2, "command": "c", "aims": [], "models": [found]}
    assert "- not measured: ort-cuda-graph:fp32" in markdown(report)
    assert json.loads(json.dumps(found)) == found


def test_aims_are_ratios_of_what_was_measured():
    def model(name, **ways):
        rows = [
            {"way": way.replace("__", ":"), "batch": 1, "length": 16, "rounds_ms": [[ms, ms]] * 5}
            for way, ms in ((way.replace("_graph", "-graph").replace("_cuda", "-cuda"), ms) for way, ms in ways.items())
        ]
        return {"model": name, "rows": rows, "floors": [{"batch": 1, "length": 16, "noise_floor": 0.02}]}

    found = aims([model("minilm", transformers__fp16=4.0, ort_cuda_graph__fp16=1.0), model("student", ort_cuda_graph__fp16=0.25)])
    assert [(row["ratio"], row["aim"], row["verdict"]) for row in found] == [(4.0, 3.0, "faster"), (4.0, 2.0, "faster")]
