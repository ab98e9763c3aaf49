"""`compress audit` and the gate of `compress export`, through the command line."""

import io
import json

import pytest
from rich.console import Console

from compress.auditing import examine, gate, show
from export import graph, plan
from model.artifact import open_artifact
from model.errors import GateError
from tests.compress.test_cli import run


def shown(found, every=False, width=100):
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(show(found, every))
    return console.file.getvalue()


@pytest.fixture(scope="module")
def found(house):
    return examine(open_artifact(house / "onnx"))


def test_an_audit_says_where_the_time_goes(found):
    assert json.loads(json.dumps(found)) == found
    assert found["plan"]["integer"] == found["counts"]["integer_linears"] == 8 and found["problems"] == []
    assert [(shape["batch"], shape["length"]) for shape in found["shapes"]] == [(1, 16), (1, 24), (8, 24)]
    assert {"layers.0.attention.qkv", "head.output"} <= {node["module"] for node in found["nodes"]}
    assert found["single"]["integer_linears"] == 8 and found["single"]["nodes"] < found["counts"]["nodes"] - 10
    text = shown(found)
    assert "for one text at a time (model.onnx.single): " in text.replace("\n", " ")
    assert "8 of 9 linears run as integers (8 planned); in float as planned: head.output" in text
    assert "one node each: Gelu × 2, FusedMatMul × 2, LayerNormalization × 5" in text
    assert "✓ runs as planned" in text and "The 12 slowest nodes" in text and "1×24" in text
    assert all(node["name"] in shown(found, every=True, width=160) or node["module"] for node in found["nodes"])


def test_what_is_found_is_said_and_only_broken_promises_are_refused(found):
    slow = {"message": "It is slow.", "hint": "Wait.", "broken": False}
    lost = {"message": "2 linears run in float.", "hint": "Export again.", "broken": True}
    gate(found | {"problems": [slow]})
    assert "! It is slow. Wait." in shown(found | {"problems": [slow]}) and "as planned\n" not in shown(found | {"problems": [slow]})
    with pytest.raises(GateError, match="2 linears run in float. Export again.") as error:
        gate(found | {"problems": [lost, slow]})
    assert error.value.exit_code == 3 and "slow" not in error.value.message
    assert "✗ 2 linears run in float. Export again." in shown(found | {"problems": [lost]})


def test_another_provider_shows_what_fell_back(found):
    elsewhere = found | {"provider": "cuda", "counts": found["counts"] | {"fallen_back": 3, "fused_attention": 2}}
    text = shown(elsewhere)
    assert "3 nodes fell back to the CPU; 2 of 2 layers have fused attention" in text and "its launch" in text


def test_the_command(capsys, house, monkeypatch):
    code, out, _ = run(capsys, "audit", house / "onnx", "--json")
    assert code == 0 and json.loads(out)["digest"] == open_artifact(house / "onnx").digest
    code, out, err = run(capsys, "audit", house / "onnx", "--provider", "cuda")
    assert (code, out) == (2, "") and "CUDA was asked for" in err
    code, out, err = run(capsys, "audit", house / "teacher")
    assert (code, out) == (2, "") and "an exported model (of export) is needed here" in err
    monkeypatch.setitem(plan.FEEDFORWARD, "mlp", 0)
    code, out, err = run(capsys, "audit", house / "onnx")
    assert code == 3 and "✗ There are" in out and "at most were expected" in err


def test_an_export_that_lost_its_integers_is_not_written(capsys, house, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_integer_biases", lambda model: None)
    code, out, err = run(capsys, "export", house / "quantized", "--out", tmp_path / "onnx")
    assert (code, out) == (3, "") and "8 quantized linears run in float because of a float bias" in err and "Nothing was written" in err
    assert not (tmp_path / "onnx").exists()
