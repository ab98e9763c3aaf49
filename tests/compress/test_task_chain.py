"""Every task through the chain in small: train, distill, prune, quantize, export, predict, on texts whose answers are in their words."""

import json
import random

import numpy as np
import pytest
from click.testing import CliRunner

from compress.cli import cli
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from serve.predictor import open_predictor, predict, scores
from tests.compress.chain import BAD, GOOD, OTHER, SMALL, write_encoder, write_tokenizer

WORDS = (*GOOD, *BAD, *OTHER)


def words(random_: random.Random, count: int) -> list[str]:
    return [random_.choice(WORDS) for _ in range(count)]


def several(random_: random.Random) -> dict[str, object]:
    """Any of: speaks of music, is good, is bad."""
    text = words(random_, 5)
    labels = [name for name, known in (("bad", BAD), ("good", GOOD), ("music", ("music",))) if set(known) & set(text)]
    return {"text": " ".join(text), "label": labels}


def score(random_: random.Random) -> dict[str, object]:
    """How good: a number that is not whole."""
    text = words(random_, 6)
    return {"text": " ".join(text), "label": sum((word in GOOD) - (word in BAD) for word in text) + 2.5}


def tagged(random_: random.Random) -> dict[str, object]:
    """Runs of good words are GOOD, of bad ones BAD; some words are several tokens."""
    tokens = [random_.choice((*WORDS, "zzgood", "xaxa")) for _ in range(random_.randint(2, 9))]
    kinds = ["GOOD" if word in GOOD else "BAD" if word in BAD else "" for word in tokens]
    begins = [kind and ("I-" if place and kinds[place - 1] == kind else "B-") for place, kind in enumerate(kinds)]
    return {"tokens": tokens, "tags": [begin + kind if kind else "O" for begin, kind in zip(begins, kinds, strict=True)]}


def similar(random_: random.Random) -> dict[str, object]:
    """Two texts; alike if both are good, or both bad."""
    sides = [random_.choice((GOOD, BAD)) for _ in range(2)]
    one, other = (" ".join(random_.choice(side) for _ in range(3)) for side in sides)
    return {"text": one, "text_b": other, "label": 4.5 if sides[0] is sides[1] else 0.5 + random_.random()}


MAKE = {"multilabel": several, "regression": score, "tagging": tagged, "embedding": similar}
SCORE = {"multilabel": "micro_f1", "regression": "spearman", "tagging": "entity_f1", "embedding": "spearman"}


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return done.stdout


@pytest.fixture(scope="module", params=MAKE)
def chain(request, tmp_path_factory):
    """The task, and a folder with its data and artifacts."""
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    random_ = random.Random(3)
    (folder / "data").mkdir()
    for part, count in (("train", 320), ("validation", 50), ("test", 60)):
        rows = [json.dumps(MAKE[task](random_)) for _ in range(count)]
        (folder / "data" / f"{part}.jsonl").write_text("\n".join(rows) + "\n")
    write_tokenizer(folder / "tokenizer")
    write_encoder(folder / "encoder.json", layers=2)
    data, base = folder / "data", ("--base", folder / "encoder.json", "--tokenizer", folder / "tokenizer")
    kind = ("--task", "embedding") if task == "embedding" else ()
    run("train", data, *base, *kind, "--epochs", 5, *SMALL, "--learning-rate", "4e-3", "--out", folder / "teacher")
    run("distill", folder / "teacher", "--data", data, "--depth", 1, "--epochs", 4, *SMALL, "--out", folder / "student")
    cut = ("--teacher", folder / "teacher", "--neurons", 24, "--heads", 3)
    run("prune", folder / "student", *cut, "--data", data, "--epochs", 1, *SMALL, "--out", folder / "pruned")
    run("quantize", folder / "pruned", "--data", data, "--max-length", 24, "--out", folder / "quantized")
    run("export", folder / "teacher", "--out", folder / "onnx")
    return task, folder


def test_each_stage_knows_its_task_and_keeps_its_quality(chain):
    task, folder = chain
    for name, least in {"teacher": 0.7, "student": 0.6, "pruned": 0.55, "quantized": 0.5, "onnx": 0.7}.items():
        manifest = open_artifact(folder / name).manifest
        assert manifest.task == task
        assert manifest.metrics["validation"][SCORE[task]] > least, name


def test_the_file_answers_as_pytorch_does(chain):
    task, folder = chain
    rows = [json.loads(line) for line in (folder / "data" / "test.jsonl").read_text().splitlines()[:20]]
    texts = [" ".join(row["tokens"]) if task == "tagging" else row["text"] for row in rows]
    pairs = [row["text_b"] for row in rows] if task == "embedding" else None
    ours = open_torch_predictor(folder / "teacher", "torch")
    theirs = open_torch_predictor(folder / "teacher", "transformers")
    onnx = open_predictor(folder / "onnx")
    assert ours.task == theirs.task == onnx.task == task
    expected = scores(ours, texts, pairs)
    shape = {"multilabel": (20, 3), "regression": (20, 1), "embedding": (20, 1)}
    assert expected.shape == shape.get(task, (20, max(len(text.split()) for text in texts), 5))
    for other in (theirs, onnx):
        np.testing.assert_allclose(scores(other, texts, pairs), expected, atol=1e-4)
    if task == "embedding":
        vectors = scores(onnx, texts)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose((vectors * scores(onnx, pairs)).sum(1), expected[:, 0], atol=1e-5)


ANSWERS = {
    "multilabel": lambda found: "good" in found["labels"] and set(found["probabilities"]) == {"bad", "good", "music"},
    "regression": lambda found: found["score"] > 2,
    "tagging": lambda found: found["entities"][0]["type"] == "GOOD" and found["words"] == ["good", "good"],
    "embedding": lambda found: len(found["embedding"]) == 32,
}


def test_predict_speaks_of_the_task(chain):
    task, folder = chain
    assert ANSWERS[task](json.loads(run("predict", folder / "onnx", "good good", "--json")))
    assert run("predict", folder / "onnx", "good good").endswith("\tgood good\n")
    assert len(predict(open_predictor(folder / "onnx"), ["good", "a bad film"])) == 2


def test_a_long_sentence_keeps_its_words(chain):
    task, folder = chain
    if task == "tagging":
        found = json.loads(run("predict", folder / "onnx", " ".join(["good"] * 40), "--json"))
        assert len(found["tags"]) == 40 and found["tags"][-1] is None and found["tags"][0] == "B-GOOD"
