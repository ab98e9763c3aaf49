"""Every task through the chain in small, from train to benchmark, on texts whose answers are in their words."""

import json
import random
import re

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.report import schema
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from model.errors import ConfigError, DataError
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
    if task == "regression":  # the second text of a pair has types of its own
        np.testing.assert_allclose(scores(theirs, texts, texts[::-1]), scores(ours, texts, texts[::-1]), atol=1e-4)
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


QUICK = ("--texts", 10, "--rounds", 3)
HAS = {
    "multilabel": {"micro_f1", "macro_f1", "exact_match", "per_class"},
    "regression": {"spearman", "pearson", "rmse", "errors", "points"},
    "tagging": {"entity_f1", "word_accuracy", "precision", "recall", "per_class"},
    "embedding": {"spearman", "pearson", "recall_at_1", "mrr", "points"},
}
AGREE = {"multilabel": "same labels", "regression": "rank correlation", "tagging": "same tags", "embedding": "rank correlation"}
SAYS = {
    "multilabel": ("micro F1 against latency", "Quality per label", "exact match"),
    "regression": ("Spearman against latency", "Answers against the truth", "of texts within", "RMSE"),
    "tagging": ("entity F1 against latency".replace("entity", "Entity"), "Quality per type of entity", "word accuracy"),
    "embedding": ("Spearman against latency", "Only the order of the answers counts", "recall@1"),
}


@pytest.fixture(scope="module")
def report(chain):
    """Task, folder and what `compress benchmark` measured of the teacher in two ways, and of the quantized student."""
    task, folder = chain
    run("benchmark", folder / "teacher", folder / "quantized", "--data", folder / "data", *QUICK, "--out", folder / "report")
    return task, folder, json.loads((folder / "report" / "report.json").read_text())


def test_benchmark_measures_every_task(report):
    task, folder, found = report
    jsonschema.validate(found, schema())
    assert (found["task"], found["score"]) == (task, {"name": SCORE[task], "agreement": AGREE[task]})
    assert [model["engine"] for model in found["models"]] == ["transformers", "ort", "ort"]
    for model in found["models"]:
        assert HAS[task] <= model["quality"].keys()
        low, high = model["quality"]["score_interval"]
        assert low <= model["quality"]["score"] == model["quality"][SCORE[task]] <= high
    lost = {one["model"]: one for one in found["comparisons"] if one["baseline"] == "teacher-transformers"}
    same = lost["teacher-ort"]  # one model in two engines
    assert same["agreement"] == pytest.approx(1, abs=1e-3) and abs(same["score_drop_points"]) < 0.2
    assert lost["quantized"]["agreement"] <= 1 and "accuracy_drop_points" not in lost["quantized"]
    named = [stage for stage in found["stages"] if stage["name"] == "teacher"]
    assert named[0]["score"] == open_artifact(folder / "teacher").manifest.metrics["validation"][SCORE[task]]
    manifest = open_artifact(folder / "report").manifest
    assert manifest.task == task and len(manifest.metrics["headline"]) == 3


def test_the_page_and_the_markdown_speak_of_the_task(report):
    task, folder, found = report
    page, markdown = ((folder / "report" / name).read_text() for name in ("report.html", "report.md"))
    for said in SAYS[task]:
        assert said.lower() in page.lower(), said
    assert "accuracy by text" not in page and not re.findall(r"\bNone\b|\bnan\b|undefined", page)
    assert AGREE[task] in markdown and "McNemar" not in markdown
    if found.get("disagreements"):
        assert found["disagreements"][0]["truth"] in page


def test_reports_of_a_task_are_compared(report):
    task, folder, found = report
    other = json.loads(json.dumps(found))
    other["models"][-1]["quality"] |= {SCORE[task]: 0.01, f"{SCORE[task]}_interval": [0.0, 0.02]}
    (folder / "worse.json").write_text(json.dumps(other))
    changes = json.loads(run("compare", folder / "worse.json", folder / "report", "--json"))["changes"]
    scored = {change["model"]: change for change in changes if change["figure"] == "score"}
    assert scored["quantized"]["verdict"] == "better" and scored["quantized"]["metric"] == SCORE[task]
    assert scored["teacher-ort"]["verdict"] == "no clear change"


def test_models_of_another_task_or_other_data_are_refused(chain, house):
    task, folder = chain
    with pytest.raises(ConfigError) as caught:
        run("benchmark", folder / "teacher", house / "onnx", "--data", folder / "data", "--out", folder / "mixed")
    assert caught.value.message == f"The models are not for one task: teacher is for {task}, onnx is for classification."
    assert caught.value.hint == "Measure models of one task against each other."
    with pytest.raises(DataError, match=f"A model for {task} cannot learn from data, which is a set for classification"):
        run("benchmark", folder / "teacher", "--data", house / "data", "--out", folder / "mixed")


def test_a_recipe_ends_in_a_benchmark(chain):
    task, folder = chain
    small = "batch_size = 16\nmax_length = 24\nthreads = 1\nlearning_rate = 4e-3\nepochs = 1"
    kind = '\ntask = "embedding"' if task == "embedding" else ""
    base = f'base = "{folder / "encoder.json"}"\ntokenizer = "{folder / "tokenizer"}"'
    (folder / "recipe.toml").write_text(
        f'data = "{folder / "data"}"\n\n[[stage]]\nrun = "train"\nout = "teacher"\n{base}{kind}\n{small}\n\n'
        '[[stage]]\nrun = "export"\nout = "onnx"\nmodel = "teacher"\n\n'
        '[[stage]]\nrun = "benchmark"\nout = "report"\nmodels = ["teacher", "onnx"]\ntexts = 10\nrounds = 3\nway = "torch"\n'
    )
    found = json.loads(run("run", folder / "recipe.toml", "--out", folder / "made", "--json"))
    assert found["task"] == task and found["score"]["name"] == SCORE[task]
