"""Pre-training on plain text: what is masked and replaced, the metrics, and both tasks through the stages."""

import json
import random
import re
import signal
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset
from sklearn.metrics import accuracy_score, f1_score
from transformers import BertConfig, BertForMaskedLM

from compress.cli import cli
from compress.lessons import questions
from compress.masking import Masking, fill, masking_for
from compress.report import schema
from compress.sources import open_source
from compress.tasks import masked_metrics, replaced_metrics, trainable
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.errors import ConfigError, DataError
from model.tokenizer import open_tokenizer
from serve.places import at_places
from serve.predictor import open_predictor, predict, scores
from tests.compress.chain import BAD, COMMAND, GOOD, SMALL, environment, write_encoder, write_texts, write_tokenizer
from tests.compress.test_tasks import data_for
from tests.model.tiny import batch, shake, tiny_encoder

LEARNS = (*SMALL, "--learning-rate", "5e-3")


def text(draw: random.Random) -> str:
    """Two words in turn, which always go together."""
    number = draw.randrange(5)
    return " ".join([f"{GOOD[number]} {BAD[number]}"] * draw.randint(2, 6))


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """data/, tokenizer/, encoder.json, and masked/, a language model of these texts."""
    folder = tmp_path_factory.mktemp("pretraining")
    draw = random.Random(0)
    (folder / "data").mkdir()
    for part, count in (("train", 400), ("validation", 60), ("test", 60)):
        (folder / "data" / f"{part}.jsonl").write_text("".join(json.dumps({"text": text(draw)}) + "\n" for _ in range(count)))
    write_tokenizer(folder / "tokenizer")
    write_encoder(folder / "encoder.json", layers=2)
    train(folder, "masked", "masked", "--epochs", 12)
    return folder


def train(folder: Path, task: str, out: str, *arguments: object) -> None:
    base = () if "--base" in arguments else ("--base", folder / "encoder.json", "--tokenizer", folder / "tokenizer")
    run("train", folder / "data", *base, "--task", task, *LEARNS, *arguments, "--out", folder / out)


def masking(task: str, **changes: object) -> Masking:
    words = np.arange(50) >= 5
    return Masking(task, 4, words, np.cumsum(words.astype(float)), **{"seed": 3, **changes})


def many(rows: int = 40, length: int = 60) -> dict[str, torch.Tensor]:
    ids, mask = batch([length] * rows)
    ids[:, 0], ids[:, -1] = 2, 3
    return {"input_ids": ids, "attention_mask": mask}


def test_what_is_masked_is_told_and_the_rest_stays():
    inputs = many()
    lesson = masking("masked")(inputs, list(range(40)), 1)
    before, after, places = inputs["input_ids"].flatten(), lesson["input_ids"].flatten(), lesson["places"]
    assert torch.equal(before[places], lesson["labels"]) and (before[places] >= 5).all()
    others = torch.ones(len(before), dtype=torch.bool)
    others[places] = False
    assert torch.equal(before[others], after[others])
    words = int((before >= 5).sum())
    assert abs(len(places) / words - 0.15) < 0.02
    hidden = (after[places] == 4).float().mean()
    kept = (after[places] == before[places]).float().mean()
    assert abs(hidden - 0.8) < 0.07 and abs(kept - 0.1) < 0.06 and set(after[places].tolist()) > {4}


@pytest.mark.parametrize("task", ["masked", "replaced"])
def test_a_lesson_depends_on_seed_step_and_row_alone(task):
    inputs = many(6, 20)
    whole = masking(task)(inputs, [3, 9, 4, 1, 0, 7], 2)
    part = {name: value[2:4] for name, value in inputs.items()}
    assert torch.equal(masking(task)(part, [4, 1], 2)["input_ids"], whole["input_ids"][2:4])
    assert not torch.equal(masking(task)(inputs, [3, 9, 4, 1, 0, 7], 3)["input_ids"], whole["input_ids"])
    assert not torch.equal(masking(task, seed=4)(inputs, [3, 9, 4, 1, 0, 7], 2)["input_ids"], whole["input_ids"])


def test_what_is_replaced_is_told_for_every_word():
    inputs = many()
    lesson = masking("replaced", share=0.3)(inputs, list(range(40)), 1)
    before, after, places = inputs["input_ids"].flatten(), lesson["input_ids"].flatten(), lesson["places"]
    assert places.tolist() == (before >= 5).nonzero()[:, 0].tolist()
    assert torch.equal(lesson["labels"], (before != after)[places].float()) and 0.2 < lesson["labels"].mean() < 0.3
    assert (after[before != after] >= 5).all()


def test_replacements_come_as_often_as_words_or_from_the_generator(tmp_path):
    tokenizer = open_tokenizer(write_tokenizer(tmp_path / "tokenizer"), 24)
    made = masking_for("replaced", tokenizer, tokenizer.ids(["good good good bad"] * 3))
    drawn = made._drawn(np.linspace(0, 0.999, 1000))
    names, counts = np.unique([tokenizer.tokens[number] for number in drawn], return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"bad": 250, "good": 750}
    generator = tiny_encoder(head={"kind": "masked"})
    inputs = many(4, 12)
    inputs = {"input_ids": inputs["input_ids"][:, :12], "attention_mask": inputs["attention_mask"][:, :12]}
    lesson = masking("replaced", generator=generator)(inputs, [0, 1, 2, 3], 1)
    chosen = masking("masked")(inputs, [0, 1, 2, 3], 1)["places"]  # the same places
    changed = (lesson["input_ids"] != inputs["input_ids"]).flatten().nonzero()[:, 0]
    assert set(changed.tolist()) <= set(chosen.tolist()) and len(changed)


def test_masks_are_filled_by_the_likeliest_or_as_drawn():
    model = tiny_encoder(head={"kind": "masked"})
    ids, mask = batch([7, 4])
    inputs, places = {"input_ids": ids, "attention_mask": mask}, torch.tensor([1, 5, 8])
    logits = model(ids, mask).flatten(0, 1)[places].detach().double()
    assert fill(model, inputs, places).tolist() == logits.argmax(1).tolist()
    uniform = torch.tensor([0.0, 0.5, 0.999])
    for place, (row, number) in enumerate(zip(logits.softmax(1).numpy(), uniform.tolist(), strict=True)):
        total, expected = 0.0, 0
        while total + row[expected] <= number:
            total, expected = total + row[expected], expected + 1
        assert fill(model, inputs, places, uniform)[place] == expected
    allowed = np.zeros(50, bool)
    allowed[[7, 9]] = True
    assert set(fill(model, inputs, places, uniform, allowed).tolist()) <= {7, 9}


def test_metrics_are_those_of_sklearn():
    random_ = np.random.default_rng(0)
    outputs = np.stack((random_.normal(size=60), random_.random(60) < 0.3), axis=1)
    found, truth = outputs[:, 0] > 0, outputs[:, 1] > 0
    metrics = replaced_metrics(outputs)
    assert metrics["replaced_f1"] == pytest.approx(f1_score(truth, found))
    assert metrics["replaced_accuracy"] == pytest.approx(accuracy_score(truth, found))
    logs = np.log(np.array([[0.5, 0.5], [0.1, 0.6], [0.2, 0.2]]))
    assert masked_metrics(logs) == {"masked_accuracy": pytest.approx(2 / 3), "perplexity": pytest.approx((0.5 * 0.1 * 0.2) ** (-1 / 3))}


def test_a_masked_model_learns_exports_and_answers(folder):
    manifest = open_artifact(folder / "masked").manifest
    quality = manifest.metrics["validation"]
    assert (manifest.task, manifest.labels) == ("masked", [])
    assert quality["masked_accuracy"] > 0.5 and quality["perplexity"] < 6  # of 76 tokens
    run("export", folder / "masked", "--out", folder / "onnx")
    texts = ["good [MASK] good bad", "great awful", "<mask> dull lovely [MASK]"]
    ours, onnx = open_torch_predictor(folder / "masked", "torch"), open_predictor(folder / "onnx")
    assert onnx.labels[onnx.tokenizer.special_ids["mask_token"]] == "[MASK]" and len(onnx.labels) == onnx.tokenizer.vocabulary
    np.testing.assert_allclose(scores(onnx, texts), scores(ours, texts), atol=1e-4)
    theirs = open_torch_predictor(folder / "masked", "transformers")
    np.testing.assert_allclose(theirs.logits(theirs.encode(["good film"])), ours.logits(ours.encode(["good film"])), atol=1e-4)
    answers = predict(onnx, texts)
    assert [len(answer.masks) for answer in answers] == [1, 0, 2]
    assert answers[0].masks[0][0].token == "bad" and answers[2].cells() == {"words": "lovely|dull"}
    found = json.loads(run("predict", folder / "onnx", "good [MASK] good", "--json"))
    assert found["masks"][0][0]["token"] == "bad" and len(found["masks"][0]) == 5
    assert run("predict", folder / "onnx", "good [MASK] good") == "bad\tgood [MASK] good\n"


def test_a_student_a_smaller_and_an_int8_language_model(folder):
    data = ("--data", folder / "data", *SMALL)
    run("distill", folder / "masked", "--depth", 1, *data, "--epochs", 2, "--out", folder / "student")
    assert open_artifact(folder / "student").manifest.metrics["validation"]["perplexity"] < 40
    run("prune", folder / "student", *data, "--heads", 2, "--neurons", 24, "--out", folder / "pruned")
    with pytest.raises(ConfigError, match="the token table is what a tied masked head answers with, so it cannot be int8") as error:
        run("quantize", folder / "pruned", *data, "--out", folder / "quantized")
    assert "quantize with embeddings fp32" in error.value.message
    run("quantize", folder / "pruned", *data, "--embeddings", "fp32", "--out", folder / "quantized")
    run("export", folder / "quantized", "--out", folder / "small")
    assert len(predict(open_predictor(folder / "small"), ["good [MASK]"])[0].masks) == 1


def test_more_pretraining_keeps_the_head_and_other_tasks_start_from_the_body(folder):
    train(folder, "masked", "more", "--base", folder / "masked", "--train-texts", 16)
    assert open_artifact(folder / "more").manifest.metrics["validation"]["masked_accuracy"] > 0.5
    write_texts(folder / "labelled.jsonl", 60, 0)
    other = ("--base", folder / "masked", *SMALL, "--out", folder / "other")
    run("train", folder / "labelled.jsonl", *other)
    assert open_artifact(folder / "other").manifest.task == "classification"


def test_replaced_words_are_found_with_a_generator_or_without(folder):
    train(folder, "replaced", "unigram", "--base", folder / "masked", "--epochs", 10)
    train(folder, "replaced", "electra", "--base", folder / "masked", "--generator", folder / "masked", "--epochs", 1)
    manifest = open_artifact(folder / "electra").manifest
    assert manifest.labels == ["replaced"] and set(manifest.parents) == {"base", "generator"}
    quality = open_artifact(folder / "unigram").manifest.metrics["validation"]
    assert quality["replaced_f1"] > 0.5 and quality["replaced_accuracy"] > 0.85
    run("export", folder / "unigram", "--out", folder / "found")
    onnx, ours = open_predictor(folder / "found"), open_torch_predictor(folder / "unigram", "torch")
    texts = ["good bad good grim good bad", "good bad"]
    np.testing.assert_allclose(scores(onnx, texts), scores(ours, texts), atol=1e-4)
    answer = predict(onnx, texts)[0]
    assert answer.words == texts[0].split() and int(np.argmax(answer.probabilities)) == 3
    pairs = zip(answer.words, answer.probabilities, strict=True)
    assert answer.replaced == [word for word, probability in pairs if probability > 0.5]
    assert len(predict(onnx, ["good " * 60])[0].probabilities) == 60


def test_killed_and_resumed_gives_the_same_bytes(folder):
    base = ("--base", folder / "encoder.json", "--tokenizer", folder / "tokenizer", "--task", "masked")
    command = [*COMMAND, *map(str, ("train", folder / "data", *base, *LEARNS, "--epochs", 4, "--checkpoint-every", 5, "--out"))]
    subprocess.run([*command, str(folder / "whole")], env=environment(), check=True, capture_output=True)
    process = subprocess.Popen([*command, str(folder / "killed")], env=environment(), stderr=subprocess.DEVNULL)
    while not list((folder / "killed.partial").glob("work/checkpoint-*/complete")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "killed").exists()
    subprocess.run([*command, str(folder / "killed")], env=environment(), check=True, capture_output=True)
    assert open_artifact(folder / "killed").digest == open_artifact(folder / "whole").digest


def test_a_checkpoint_of_transformers_goes_on_with_its_own_head(folder):
    write_tokenizer(folder / "bert")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
    model = BertForMaskedLM(BertConfig(vocab_size=90, **sizes, max_position_embeddings=32))
    shake(model)
    model.eval().save_pretrained(folder / "bert")
    run(
        "train",
        folder / "data",
        "--base",
        folder / "bert",
        "--task",
        "masked",
        *SMALL,
        "--learning-rate",
        "1e-12",
        "--out",
        folder / "kept",
    )
    ids, mask = batch([9, 4])
    assert torch.allclose(load_model(folder / "kept")(ids, mask)[mask.bool()], model(ids, mask).logits[mask.bool()], atol=1e-4)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("masked", ("--generator", "masked"), "--generator is given, but the task is masked: nothing is replaced"),
        ("replaced", ("--generator", "encoder.json"), "encoder.json has no masked language model"),
        ("replaced", ("--generator", "other-kind"), "is a model for replaced: it cannot fill in words"),
        ("replaced", ("--generator", "foreign"), "The generator .* has a tokenizer of its own"),
    ],
    ids=["masked", "no weights", "replaced", "other tokenizer"],
)
def test_generators_that_cannot_be(folder, task, arguments, message):
    if arguments[1] == "other-kind" and not (folder / "other-kind").exists():
        train(folder, "replaced", "other-kind", "--train-texts", 16)
    if arguments[1] == "foreign" and not (folder / "foreign").exists():
        write_tokenizer(folder / "foreign")
        path = folder / "foreign" / "tokenizer.json"
        path.write_text(path.read_text().replace('"film"', '"movie"'))
        BertForMaskedLM(BertConfig(vocab_size=90, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
            folder / "foreign"
        )
    with pytest.raises(ConfigError, match=message) as error:
        train(folder, task, "x", arguments[0], folder / arguments[1])
    assert error.value.hint and not (folder / "x").exists()


def test_what_cannot_be_pretrained(folder, tmp_path):
    assert [trainable(data_for(kind), "masked") for kind in ("text", "classification", "regression")] == ["masked"] * 3
    with pytest.raises(DataError, match="A model for masked cannot learn from reviews, which is a set for tagging"):
        trainable(data_for("tagging"), "masked")
    write_tokenizer(tmp_path / "maskless")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / "maskless" / name
        path.write_text(path.read_text().replace("[MASK]", "[GONE]"))
    tokenizer = open_tokenizer(tmp_path / "maskless", 24)
    if "mask_token" not in tokenizer.special:
        with pytest.raises(ConfigError, match="The tokenizer has no mask token, which hides a word"):
            masking_for("masked", tokenizer, [])
    for changes, message in (
        ({"head": {"kind": "masked"}, "norm": {"kind": "batchnorm"}}, "a masked head with a norm, but batchnorm cannot be that norm"),
        ({"head": {"labels": 2, "hidden_norm": True}}, "hidden_norm is a norm after the hidden layer, but there is none"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny_encoder(**changes)


MEASURE = ("--texts", 10, "--rounds", 3)


def report(folder: Path, *arguments: object) -> dict:
    run("benchmark", *arguments, "--data", folder / "data", *MEASURE, "--overwrite", "--out", folder / "report")
    found = json.loads((folder / "report" / "report.json").read_text())
    jsonschema.validate(found, schema())
    for name in ("report.html", "report.md"):
        assert not re.findall(r"\bNone\b|\bnan\b|undefined", (folder / "report" / name).read_text())
    return found


def asked(folder: Path, model: str, part: str = "test", seed: int = 0, task: str = "masked"):
    rows = [json.loads(line) for line in (folder / "data" / f"{part}.jsonl").read_text().splitlines()]
    return questions(task, Dataset.from_list(rows), [], {model: open_source(str(folder / model))}, seed)


def test_a_benchmark_of_masked_models_finds_what_their_training_found(folder):
    train(folder, "masked", "weak", "--epochs", 2)
    found = report(folder, folder / "masked", folder / "weak", "--split", "validation")
    assert (found["task"], found["score"]) == ("masked", {"name": "masked_accuracy", "agreement": "same tokens"})
    assert [model["engine"] for model in found["models"]] == ["transformers", "ort", "ort"]
    for model, name in zip(found["models"], ("masked", "masked", "weak"), strict=True):
        said = open_artifact(folder / name).manifest.metrics["validation"]
        assert {metric: model["quality"][metric] for metric in said} == pytest.approx(said, rel=1e-4)
        low, high = model["quality"]["masked_accuracy_interval"]
        assert low <= said["masked_accuracy"] <= high and (low < high or low == 1)
    same, smaller = (one for one in found["comparisons"] if one["baseline"] == "masked-transformers")
    assert same["agreement"] == 1 and same["score_drop_points"] == 0
    assert smaller["score_drop_points"] == pytest.approx(
        100 * (found["models"][0]["quality"]["score"] - found["models"][2]["quality"]["score"])
    )
    example = found["disagreements"][0]
    assert "[CLS]" not in example["text"] and example["baseline"] != example["model"]
    assert any("[MASK]" in one["text"] for one in found["disagreements"])
    assert "perplexity" in (folder / "report" / "report.md").read_text()


def test_what_is_hidden_for_a_benchmark_depends_on_its_seed_alone(folder):
    texts, pairs, lessons = asked(folder, "masked")
    assert pairs is None and lessons == asked(folder, "masked").truth != asked(folder, "masked", seed=1).truth
    tokenizer = open_tokenizer(folder / "masked", 24)
    mask = tokenizer.special_ids["mask_token"]
    assert [text.count("[MASK]") for text in texts] == [lesson.ids.count(mask) for lesson in lessons]
    assert tokenizer.ids([texts[0]])[0].ids == lessons[0].ids


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_what_is_said_at_places_is_what_torch_says_of_each_text_alone(folder, batch):
    if not (folder / "onnx").exists():
        run("export", folder / "masked", "--out", folder / "onnx")
    lessons = asked(folder, "masked").truth
    values = [{"ids": one.ids, "places": one.places, "right": one.right} for one in lessons]
    model = load_model(folder / "masked")
    for predictor in (open_predictor(folder / "onnx"), open_torch_predictor(folder / "masked", "torch")):
        found = at_places(predictor, values, batch)
        for row, lesson in zip(found, lessons, strict=True):
            scores_ = model(torch.tensor([lesson.ids]), torch.ones(1, len(lesson.ids), dtype=torch.int64))[0].log_softmax(1)[lesson.places]
            chosen = scores_[torch.arange(len(lesson.right)), torch.tensor(lesson.right)]
            expected = torch.stack((chosen, scores_.amax(1), scores_.argmax(1).float()), dim=1)
            np.testing.assert_allclose(row[: len(lesson.places)], expected.detach(), atol=1e-4)
            assert np.isnan(row[len(lesson.places) :]).all()


def test_a_benchmark_of_replaced_words_has_the_f1_of_sklearn(folder):
    if not (folder / "unigram").exists():
        train(folder, "replaced", "unigram", "--base", folder / "masked", "--epochs", 6)
    found = report(folder, folder / "unigram")
    assert found["score"] == {"name": "replaced_f1", "agreement": "same tokens"}
    model, truth, answers = load_model(folder / "unigram"), [], []
    for lesson in asked(folder, "unigram", task="replaced").truth:
        logits = model(torch.tensor([lesson.ids]), torch.ones(1, len(lesson.ids), dtype=torch.int64))[0, lesson.places, 0]
        truth += lesson.right
        answers += (logits > 0).int().tolist()
    for one in found["models"]:
        quality = one["quality"]
        assert quality["score"] == pytest.approx(f1_score(truth, answers)) and quality["replaced_accuracy"] == pytest.approx(
            accuracy_score(truth, answers)
        )
        assert quality["score_interval"][0] <= quality["score"] <= quality["score_interval"][1]
    assert [one["agreement"] for one in found["comparisons"]] == [1]


def test_models_that_split_texts_differently_are_not_compared_by_token(folder):
    other = folder / "other-tokenizer"
    write_tokenizer(other)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"film"', '"movie"'))
    base = ("--base", folder / "encoder.json", "--tokenizer", other)
    train(folder, "masked", "movies", *base, "--train-texts", 16)
    with pytest.raises(ConfigError, match=r"The models split texts differently: masked by [0-9a-f]{12}…, movies by") as error:
        report(folder, folder / "masked", folder / "movies")
    assert "compares models of one tokenizer" in error.value.hint
    with pytest.raises(DataError, match="None of the 2 texts has a word to hide") as nothing:
        questions("masked", Dataset.from_list([{"text": "…"}] * 2), [], {"masked": open_source(str(folder / "masked"))}, 0)
    assert "words that the tokenizer knows" in nothing.value.hint


def test_an_encoder_that_is_no_bert_is_told_so_before_anything_is_measured(folder):
    values = json.loads((folder / "encoder.json").read_text())
    (folder / "rotary.json").write_text(json.dumps({**values, "positions": {"kind": "rotary"}, "norm_first": True}))
    train(folder, "masked", "rotary", "--base", folder / "rotary.json", "--tokenizer", folder / "tokenizer", "--train-texts", 16)
    with pytest.raises(ConfigError, match=r"rotary is no BERT: it has rotary positions, norms before \(norm_first\)") as error:
        report(folder, folder / "rotary")
    assert error.value.hint.endswith("--way torch,ort.") and not (folder / "report.partial").exists()


def test_a_recipe_of_pretraining_ends_in_a_benchmark(folder):
    small = "batch_size = 16\nmax_length = 24\nthreads = 1\nlearning_rate = 4e-3\nepochs = 1"
    base = f'base = "{folder / "encoder.json"}"\ntokenizer = "{folder / "tokenizer"}"'
    (folder / "recipe.toml").write_text(
        f'data = "{folder / "data"}"\n\n[[stage]]\nrun = "train"\nout = "model"\n{base}\ntask = "masked"\n{small}\n\n'
        '[[stage]]\nrun = "export"\nout = "onnx"\nmodel = "model"\n\n'
        '[[stage]]\nrun = "benchmark"\nout = "report"\nmodels = ["model", "onnx"]\ntexts = 10\nrounds = 3\nway = "torch"\n'
    )
    found = json.loads(run("run", folder / "recipe.toml", "--out", folder / "made", "--json"))
    assert found["task"] == "masked" and found["score"]["name"] == "masked_accuracy"
