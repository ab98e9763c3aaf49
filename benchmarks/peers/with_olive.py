"""Olive: the plain graph through its transformer optimization and its dynamic int8 quantization.

python with_olive.py PLAIN OUT fp32|int8
"""

import shutil
import sys
from pathlib import Path

from graph_answers import GraphAnswers, session_answers

PASSES = {
    "fp32": {"optimize": {"type": "OrtTransformersOptimization", "model_type": "bert", "opt_level": 1}},
    "int8": {"quantize": {"type": "OnnxDynamicQuantization", "weight_type": "QInt8", "per_channel": True}},
}


def build(plain: Path, out: Path, form: str) -> None:
    """Run Olive's workflow, and put its graph with configuration and tokenizer into `out`."""
    from olive.workflows import run

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(plain / "model.onnx")},
            "systems": {
                "local": {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}
            },
            "target": "local",
            "passes": PASSES[form],
            "output_dir": str(out / "olive"),
            "cache_dir": str(out / "cache"),
        }
    )
    found = sorted((out / "olive").rglob("*.onnx"))
    shutil.copy(found[0], out / "model.onnx")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / name, out)


def open_predictor(path: str, precision: str, threads: int) -> GraphAnswers:
    """The factory of the worker."""
    return session_answers(Path(path) / "model.onnx", Path(path), "olive", precision, threads)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
