"""Damage in any byte of any file is found and the file named; the digest is the identity and nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.artifact import FORMAT, MANIFEST, directory_digest, open_artifact, seal
from model.errors import ArtifactError

FIELDS = {
    "kind": "torch",
    "stage": "train",
    "options": {"epochs": 1.0, "précis": "ü"},
    "task": "classification",
    "labels": ["a", "b"],
    "parents": {"base": "0" * 64},
    "data": {"name": "tweets", "counts": {"train": 3}},
    "metrics": {"validation": {"accuracy": 0.75}},
    "made_by": {"versions": {"alambic": "0.1.0"}},
}


def write(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 3)
    (folder / "config.json").write_text('{"width": 3}')
    seal(folder, **{**FIELDS, **changes})
    return folder


def test_round_trip(tmp_path):
    artifact = open_artifact(write(tmp_path / "a"), "torch")
    assert artifact.manifest.options == FIELDS["options"]
    assert set(artifact.manifest.files) == {"model.safetensors", "config.json"}
    assert artifact.manifest.files["model.safetensors"].bytes == 768


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_changed_byte_anywhere_is_found_and_named(tmp_path, data):
    folder = tmp_path / "flip"
    if not folder.exists():
        write(folder)
    file = folder / data.draw(st.sampled_from(["model.safetensors", "config.json", MANIFEST]))
    whole = file.read_bytes()
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    file.write_bytes(whole[:place] + bytes([whole[place] ^ byte]) + whole[place + 1 :])
    try:
        with pytest.raises(ArtifactError) as error:
            open_artifact(folder)
        assert file.name in error.value.message or "is written in format" in error.value.message
    finally:
        file.write_bytes(whole)


def test_a_missing_and_a_cut_file_are_named(tmp_path):
    folder = write(tmp_path / "a")
    (folder / "model.safetensors").write_bytes(b"short")
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match="config.json is missing; model.safetensors is damaged .5 bytes instead of 768"):
        open_artifact(folder)


def test_the_digest_is_what_was_made_not_when_or_how_good(tmp_path):
    first = open_artifact(write(tmp_path / "a")).digest
    assert open_artifact(write(tmp_path / "b", metrics={}, made_by={"cores": 64}, ancestors={"x": {}})).digest == first
    for change in ({"options": {"epochs": 2.0}}, {"parents": {}}, {"labels": ["a", "c"]}, {"data": None}, {"stage": "prune"}):
        assert open_artifact(write(tmp_path / f"c{hash(str(change))}", **change)).digest != first


def test_a_newer_format_is_refused_with_the_version_that_reads_it(tmp_path):
    folder = write(tmp_path / "a")
    values = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**values, "format": FORMAT + 1, "news": 1, "made_by": {"versions": {"alambic": "7.0"}}}))
    with pytest.raises(ArtifactError, match=f"format {FORMAT + 1}; this version of alambic reads up to {FORMAT}") as error:
        open_artifact(folder)
    assert "7.0" in error.value.hint


def test_what_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="There is no artifact at"):
        open_artifact(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"has no manifest.json"):
        open_artifact(tmp_path / "empty")
    (tmp_path / "empty.partial").mkdir()
    with pytest.raises(ArtifactError) as error:
        open_artifact(tmp_path / "empty")
    assert "unfinished" in error.value.hint


def test_the_wrong_kind_says_what_is_needed(tmp_path):
    with pytest.raises(ArtifactError, match="is a PyTorch model .*, but an exported model .* is needed") as error:
        open_artifact(write(tmp_path / "a"), "onnx")
    assert "compress export" in error.value.hint


def test_a_foreign_directory_has_a_digest_of_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
        (tmp_path / name / "notes.md").write_text(name)  # no part of the model
    assert directory_digest(tmp_path / "a") == directory_digest(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"2")
    assert directory_digest(tmp_path / "a") != directory_digest(tmp_path / "b")
