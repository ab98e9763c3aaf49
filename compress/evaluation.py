"""How good and how quick a model is, for a stage's own line; `compress benchmark` measures properly."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compress.tasks import TASKS
from compress.training import Corpus, Inputs, model_inputs
from model.build import Model
from serve.tasks import outputs_by_text, stacked

TIMED = 40


@torch.no_grad()
def outputs(model: Model, corpus: Corpus) -> np.ndarray:
    """What the model gives for the whole corpus, float32 in its order, in the form that `compress.tasks` has for its task."""
    model.eval()
    if corpus.lesson is not None:
        return np.concatenate([_of_lesson(model, corpus.batch(rows)) for rows in corpus.batches(64)])
    found: dict[int, np.ndarray] = {}
    for rows in corpus.batches(64):
        given = model(**model_inputs(corpus.batch(rows))).float().numpy()
        padded = corpus.tokenizer.pad([corpus.encodings[row] for row in rows])
        found |= zip(rows, outputs_by_text(model.config.head.kind, given, padded, corpus.seconds is not None), strict=True)
    return stacked([found[row] for row in range(len(corpus))])


def _of_lesson(model: Model, inputs: Inputs) -> np.ndarray:
    """[P, 2]: for a masked language model the log-probabilities of the truth and of the likeliest; else the logit and the truth."""
    given, truth = model(**model_inputs(inputs)).float(), inputs["labels"]
    if model.config.head.kind != "masked":
        return np.stack((given[:, 0].numpy(), truth.numpy()), axis=1)
    scores = given.log_softmax(dim=-1)
    return np.stack((scores.gather(1, truth[:, None])[:, 0].numpy(), scores.amax(dim=1).numpy()), axis=1)


@torch.no_grad()
def torch_latency_ms(model: Model, corpus: Corpus) -> float:
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


def measure(model: Model, corpus: Corpus, labels: Sequence[str], *, latency: bool = True) -> dict[str, Any]:
    """What a stage's manifest says of its model: quality on the validation part, parameters, latency in PyTorch."""
    quality = TASKS[model.config.head.kind].metrics(outputs(model, corpus), corpus.truth, labels)
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.dtype == torch.int8)]
    measured = {"validation": quality, "parameters": sum(tensor.numel() for tensor in tensors)}
    return {**measured, "torch_ms": torch_latency_ms(model, corpus)} if latency else measured
