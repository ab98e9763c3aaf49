"""The predictor of a peer whose model is a graph over token ids: its own session, our tokenizer (the faster of the two, for all)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.tokenizer import open_tokenizer


class GraphAnswers:
    """`run` takes the inputs as arrays, int64 [texts, longest], and gives logits [texts, labels]."""

    provider = "cpu"

    def __init__(self, folder: Path, engine: str, precision: str, run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> None:
        config = json.loads((folder / "config.json").read_bytes())
        self.labels = tuple(name for _, name in sorted(config["id2label"].items(), key=lambda item: int(item[0])))
        self.tokenizer = open_tokenizer(folder, config["text_length"])
        self.engine, self.precision, self.run = engine, precision, run

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Any:
        return self.tokenizer.encode(texts, pairs, types=True)

    def logits(self, batch: Any) -> np.ndarray:
        return np.asarray(self.run(batch), np.float32)


def session_answers(graph: Path, folder: Path, engine: str, precision: str, threads: int) -> GraphAnswers:
    """The predictor of a graph that ONNX Runtime runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    takes = [entry.name for entry in session.get_inputs()]
    return GraphAnswers(folder, engine, precision, lambda batch: session.run(None, {name: batch[name] for name in takes})[0])
