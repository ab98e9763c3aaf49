"""OpenVINO with NNCF: the plain graph, quantized to static int8 with texts of the training part, run by OpenVINO.

python with_openvino.py PLAIN OUT TEXTS.json
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from graph_answers import GraphAnswers

from model.tokenizer import open_tokenizer

CALIBRATION = 300  # texts, NNCF's own default


def build(plain: Path, out: Path, texts: Path) -> None:
    """Write model.xml and model.bin with configuration and tokenizer to `out`."""
    import nncf
    import openvino

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(plain / name, out)
    length = json.loads((plain / "config.json").read_bytes())["text_length"]
    tokenizer = open_tokenizer(plain, length)
    rows = [dict(tokenizer.encode([text], types=True)) for text in json.loads(texts.read_bytes())[:CALIBRATION]]
    model = openvino.Core().read_model(plain / "model.onnx")
    quantized = nncf.quantize(model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
    openvino.save_model(quantized, out / "model.xml")


def open_predictor(path: str, precision: str, threads: int) -> GraphAnswers:
    """The factory of the worker."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    model = openvino.Core().compile_model(Path(path) / "model.xml", "CPU", settings)
    takes = [entry.get_any_name() for entry in model.inputs]
    request = model.create_infer_request()

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = request.infer({name: batch[name] for name in takes})[0]
        return found

    return GraphAnswers(Path(path), "openvino", precision, run)


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
