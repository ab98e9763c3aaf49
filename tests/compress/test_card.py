"""The model card: what the hub reads in it, and that it says nothing about when and where it was made."""

import json
from typing import Any

import pytest

from compress import builtin
from compress.card import HUB, write_card
from model.artifact import directory_digest, open_artifact

(MINILM,) = HUB
DATA = {"name": "tweets", "digest": "d", "counts": {"train": 1200, "test": 80}}
TRAIN = {"stage": "train", "parents": {"base": MINILM}, "data": DATA, "seconds": 71.3, "metrics": {"torch_ms": 17.7}}
PRUNE = {"stage": "prune", "parents": {"model": "b" * 64, "teacher": "a" * 64}, "data": DATA}
ANCESTORS = {
    MINILM: {"stage": "base", "name": "somewhere", "parents": {}},
    "a" * 64: TRAIN,
    "b" * 64: {"stage": "distill", "parents": {"teacher": "a" * 64}, "data": DATA},
    "c" * 64: PRUNE,
    "e" * 64: {"stage": "quantize", "parents": {"model": "c" * 64}, "data": DATA},
}


def card(**changes: Any) -> tuple[dict[str, Any], str]:
    """The metadata and the text of a card of an exported model."""
    given: dict[str, Any] = {
        "kind": "onnx",
        "stage": "export",
        "options": {"opset": None},
        "task": "classification",
        "labels": ["no", "yes"],
        "data": DATA,
        "metrics": {"validation": {"accuracy": 0.8125, "f1": [0.8, None]}, "parameters": 1234567, "ort_ms": 0.123},
        "parents": {"model": "e" * 64},
        "ancestors": ANCESTORS,
    }
    text = write_card(**given | changes)
    _, header, body = text.split("---\n", 2)
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in header.splitlines())}, body


def test_the_hub_reads_base_relation_task_and_figures() -> None:
    header, body = card()
    assert header["base_model"] == "sentence-transformers/all-MiniLM-L6-v2" and header["base_model_relation"] == "quantized"
    assert (header["library_name"], header["pipeline_tag"], header["tags"]) == (
        "alambic",
        "text-classification",
        ["alambic", "export", "onnx"],
    )
    (result,) = header["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.8125}] and result["dataset"]["name"] == "tweets"
    assert not {"license", "language", "datasets"} & set(header)  # nobody told
    assert "parameters: 1,234,567" in body


def test_the_lineage_is_told_from_the_beginning() -> None:
    _, body = card()
    told = [line for line in body.splitlines() if line[:1].isdigit()]
    assert told == [
        f"1. began with sentence-transformers/all-MiniLM-L6-v2 (`{MINILM[:12]}`)",
        "2. fine-tuned on tweets (`aaaaaaaaaaaa`)",
        "3. distilled from its teacher on tweets (`bbbbbbbbbbbb`)",
        "4. pruned (heads and FFN neurons removed) and recovered on tweets with the teacher `aaaaaaaaaaaa` (`cccccccccccc`)",
        "5. quantized to int8 (`eeeeeeeeeeee`)",
        "6. exported to ONNX: this model",
    ]


def test_every_teacher_of_an_ensemble_is_told() -> None:
    taught = {"stage": "distill", "parents": {"teacher": "a" * 64, "also-1": "d" * 64}, "data": DATA}
    _, body = card(ancestors={**ANCESTORS, "d" * 64: TRAIN, "b" * 64: taught})
    assert "3. distilled from its teacher on tweets with the teachers `aaaaaaaaaaaa`, `dddddddddddd` (`bbbbbbbbbbbb`)" in body


@pytest.mark.parametrize(("name", "known"), [("google/electra-small", "google/electra-small"), ("encoder.json", None)])
def test_only_a_name_of_the_hub_is_a_base(name: str, known: str | None) -> None:
    ancestors = {"f" * 64: {"stage": "base", "name": name, "parents": {}}}
    header, body = card(stage="train", kind="torch", parents={"base": "f" * 64}, ancestors=ancestors)
    assert header.get("base_model") == known and header.get("base_model_relation") == (known and "finetune")
    assert f"1. began with {known or 'a base'} (`ffffffffffff`)" in body


def test_a_set_of_the_hub_is_named() -> None:
    header, _ = card(data=DATA | {"name": "stanfordnlp/sst2:plain"})
    assert header["datasets"] == ["stanfordnlp/sst2"]


def test_a_card_knows_no_times_and_no_paths() -> None:
    later = {digest: dict(known) | {"seconds": 5, "metrics": {}, "name": "elsewhere"} for digest, known in ANCESTORS.items()}
    assert card() == card(ancestors=later)
    assert "somewhere" not in str(card()) and "0.123" not in str(card())


def test_a_report_has_no_base() -> None:
    header, body = card(kind="report", stage="benchmark", metrics={}, parents={"teacher": "a" * 64})
    assert "base_model" not in header and "Where it comes from" not in body


def test_the_built_in_base_is_known_by_its_files() -> None:
    assert directory_digest(builtin.base_directory("minilm")) == MINILM


def test_the_card_of_a_made_artifact(house) -> None:
    text = (open_artifact(house / "onnx").path / "README.md").read_text(encoding="utf-8")
    assert "1. began with a base" in text and "5. quantized to int8" in text and "encoder.json" not in text
