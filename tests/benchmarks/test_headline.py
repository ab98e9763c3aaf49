"""The share of a teacher's accuracy, and which artifacts are its students."""

import shutil

import numpy as np
import pytest

from benchmarks.headline import share, students, table
from model.artifact import seal
from model.errors import ArtifactError


def test_the_share_is_the_ratio_of_accuracies():
    generator = np.random.default_rng(0)
    student, teacher = generator.random((5, 40)) < 0.7, generator.random((5, 40)) < 0.9
    found = share(student.astype(float), teacher.astype(float))
    assert found == pytest.approx([sum(one) / sum(other) for one, other in zip(student.tolist(), teacher.tolist(), strict=True)])


def artifact(folder, kind):
    folder.mkdir()
    (folder / "model").write_text(kind)
    plan = {"stage": "export", "options": {}, "parents": {}, "data": None}
    seal(folder, kind=kind, task="classification", labels=["a", "b"], metrics={}, made_by={}, ancestors={}, **plan)


def test_students_are_the_exported_artifacts_beside_their_teacher(tmp_path):
    for name, kind in (("teacher", "torch"), ("pruned", "torch"), ("onnx", "onnx"), ("teacher-ort", "onnx")):
        artifact(tmp_path / name, kind)
    assert [found.path.name for found in students(tmp_path)] == ["onnx"]
    shutil.rmtree(tmp_path / "onnx")
    with pytest.raises(ArtifactError, match="holds no teacher with an exported student"):
        students(tmp_path)


def test_a_row_says_what_was_measured():
    row = {"data": "sst2", "student": "onnx", "speedup_torch": 142.46, "speedup_torch_interval": [140.1, 150.2], "speedup_ort": 60.2}
    row |= {"speedup_ort_interval": None, "share_of_teacher": 0.9902, "interval": [0.98, 1.0], "accuracy": 0.892, "latency_ms": 0.0891}
    line = table({"rows": [{**row, "bytes": 10_000_000}], "sets": {}}).splitlines()[-1]
    assert line == "| sst2 | onnx | 0.089 | 142.5× (140–150) | 60.2× | 99.0 (98–100) | 89.2 | 10.0 |"
