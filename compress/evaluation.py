"""How good and how quick a model is, for a stage's own line; `compress benchmark` measures properly."""

import time
from typing import Any

import numpy as np
import torch

from compress.progress import bar
from compress.tasks import classification_metrics
from compress.training import Corpus, model_inputs
from model.encoder import Encoder

TIMED = 40


@torch.no_grad()
def logits(model: Encoder, corpus: Corpus) -> np.ndarray:
    """Logits [n, labels] float32 of the whole corpus, in its order."""
    model.eval()
    found = np.zeros((len(corpus), model.config.head.labels), np.float32)
    batches = corpus.batches(64)
    with bar("evaluating") as progress:
        for number, rows in enumerate(batches, start=1):
            found[rows] = model(**model_inputs(corpus.batch(rows))).float().numpy()
            progress(number, len(batches), "")
    return found


@torch.no_grad()
def torch_latency_ms(model: Encoder, corpus: Corpus) -> float:
    """Median over a few texts, one at a time and on one thread, of ids → logits in PyTorch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    samples = []
    for row in range(min(TIMED, len(corpus))):
        inputs = model_inputs(corpus.batch([row]))
        started = time.perf_counter()
        model(**inputs)
        samples.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return round(1000 * float(np.median(samples)), 3)


def measure(model: Encoder, corpus: Corpus, *, latency: bool = True) -> dict[str, Any]:
    """What a stage's manifest says of its model: quality on the validation part, parameters, latency in PyTorch."""
    quality = classification_metrics(logits(model, corpus), corpus.labels.numpy())
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.dtype == torch.int8)]
    measured = {"validation": quality, "parameters": sum(tensor.numel() for tensor in tensors)}
    return {**measured, "torch_ms": torch_latency_ms(model, corpus)} if latency else measured
