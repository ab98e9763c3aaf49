"""Optimum: the plain graph through its optimizer (O1, O2, O3) or its dynamic int8 quantizer, and run by its own model class.

python with_optimum.py PLAIN OUT O1|O2|O3|int8
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def build(plain: Path, out: Path, form: str) -> None:
    """Write the graph of one form, with configuration and tokenizer, to `out`."""
    from optimum.onnxruntime import ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig, AutoQuantizationConfig

    shutil.rmtree(out, ignore_errors=True)
    if form == "int8":
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        ORTQuantizer.from_pretrained(plain).quantize(save_dir=out, quantization_config=config)
    else:
        ORTOptimizer.from_pretrained(plain).optimize(getattr(AutoOptimizationConfig, form)(), save_dir=out)
    shutil.copy(plain / "config.json", out)


class OptimumAnswers:
    """ORTModelForSequenceClassification with AutoTokenizer, as Optimum's documentation has them."""

    provider, engine = "cpu", "optimum"

    def __init__(self, path: str, precision: str, threads: int) -> None:
        import onnxruntime
        from optimum.onnxruntime import ORTModelForSequenceClassification
        from transformers import AutoTokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        folder = Path(path)
        graph = next(folder.glob("*.onnx")).name
        self.model = ORTModelForSequenceClassification.from_pretrained(folder, file_name=graph, session_options=options)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        config = json.loads((folder / "config.json").read_bytes())
        self.labels = tuple(name for _, name in sorted(config["id2label"].items(), key=lambda item: int(item[0])))
        self.precision, self.length = precision, config["text_length"]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        seconds = [list(pairs)] if pairs else []
        return self.tokenizer(list(texts), *seconds, padding=True, truncation=True, max_length=self.length, return_tensors="np")

    def logits(self, batch: Any) -> np.ndarray:
        return np.asarray(self.model(**batch).logits, np.float32)


def open_predictor(path: str, precision: str, threads: int) -> OptimumAnswers:
    """The factory of the worker."""
    return OptimumAnswers(path, precision, threads)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
