"""The schemes of int8 through the command line: quantized, exported and audited for TensorRT, and what is refused."""

import json

from serve.predictor import open_predictor, predict
from tests.compress.test_cli import run


def test_from_quantize_to_audit(capsys, house, tmp_path):
    arguments = ("--data", house / "data", "--scheme", "tensorrt", "--max-length", 24, "--out", tmp_path / "quantized")
    code, _, err = run(capsys, "quantize", house / "student", *arguments)
    assert code == 0, err
    code, _, err = run(capsys, "export", tmp_path / "quantized", "--out", tmp_path / "onnx")
    assert code == 0, err
    config = json.loads((tmp_path / "onnx" / "config.json").read_bytes())["alambic"]["quantization"]
    assert (config["scheme"], config["embeddings"], len(config["linears"])) == ("tensorrt", "fp32", 8)
    metrics = json.loads((tmp_path / "onnx" / "manifest.json").read_bytes())["metrics"]
    assert metrics["tensorrt_linears"] == metrics["plan"]["symmetric"] == 8 and metrics["parity"]["least_signal_db"] > 25
    code, out, _ = run(capsys, "audit", tmp_path / "onnx")
    assert code == 0 and "8 of 8 quantized linears are as TensorRT takes them" in " ".join(out.split())
    assert "! This is int8 for TensorRT: on cpu 8 of its 8 quantized linears run in float" in " ".join(out.split())
    assert predict(open_predictor(tmp_path / "onnx"), ["a good film"])[0].label in ("good", "bad")


def test_int8_is_not_exported_in_fp16(capsys, house, tmp_path):
    code, _, err = run(capsys, "export", house / "quantized", "--precision", "fp16", "--out", tmp_path / "half")
    assert code == 2 and "A quantized model cannot be exported in fp16." in err
