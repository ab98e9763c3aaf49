"""model2vec: static embeddings distilled from the base, and a logistic regression on the training part over them.

python with_model2vec.py BASE OUT TRAIN.json
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def build(base: Path, out: Path, train: Path) -> None:
    """Write the static model and the weights of the head to `out`; TRAIN.json is {"text": [...], "label": [names]}."""
    from model2vec.distill import distill
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    shutil.rmtree(out, ignore_errors=True)
    plain = out / "base"  # with the word vectors and nothing that belongs to sentence-transformers
    AutoModel.from_pretrained(base).save_pretrained(plain)
    AutoTokenizer.from_pretrained(base).save_pretrained(plain)
    model = distill(str(plain), device="cpu")
    model.save_pretrained(str(out / "static"))
    rows = json.loads(train.read_bytes())
    head = LogisticRegression(max_iter=2000).fit(model.encode(rows["text"]), rows["label"])
    weights, bias = (head.coef_, head.intercept_) if len(head.classes_) > 2 else (_two(head.coef_), _two(head.intercept_[:, None])[:, 0])
    np.savez(out / "head.npz", weights=weights, bias=bias, labels=np.array(head.classes_))
    shutil.rmtree(plain)


def _two(row: np.ndarray) -> np.ndarray:
    """Logits of both classes from those of the second."""
    return np.concatenate([np.zeros_like(row), row])


class StaticAnswers:
    """Texts → static embeddings → logits; ids are not seen, so the whole of it counts as the model."""

    provider, engine, precision = "cpu", "model2vec", "fp32"

    def __init__(self, path: Path) -> None:
        from model2vec import StaticModel

        self.model = StaticModel.from_pretrained(str(path / "static"))
        head = np.load(path / "head.npz")
        self.weights, self.bias = head["weights"].T.astype(np.float32), head["bias"].astype(np.float32)
        self.labels = tuple(str(label) for label in head["labels"])

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> dict[str, list[str]]:
        return {"texts": list(texts) if pairs is None else [f"{a} {b}" for a, b in zip(texts, pairs, strict=True)]}

    def logits(self, batch: dict[str, list[str]]) -> np.ndarray:
        return np.asarray(self.model.encode(batch["texts"]) @ self.weights + self.bias, np.float32)


def open_predictor(path: str, precision: str, threads: int) -> StaticAnswers:
    """The factory of the worker."""
    return StaticAnswers(Path(path))


if __name__ == "__main__":
    build(*map(Path, sys.argv[1:]))
