"""What the headline's rows are, what seeds and peers make of them, and the picture."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import headline, peers
from benchmarks.headline import EAGER, ORT, exports, kind_of, measure, our_front, picture, points_of, share, table, verdicts
from compress.benchmarking import Plan
from compress.cli import cli
from compress.data import load_data
from export.torch_predictor import open_torch_predictor
from model.artifact import open_artifact, seal
from model.errors import ArtifactError
from serve.predictor import open_predictor, scores
from tests.compress.chain import write_data, write_encoder, write_tokenizer

RECIPE = """
data = "{folder}/data"

[[defaults]]
max_length = 24

[[defaults]]
run = ["train", "distill"]
batch_size = 16
learning_rate = 5e-3
threads = 1
epochs = 2

[[stage]]
run = "train"
out = "teacher"
base = "{folder}/encoder.json"
tokenizer = "{folder}/tokenizer"
seed = 0

[[stage]]
run = "distill"
out = "static"
teacher = "teacher"
student = "static:16"
learning_rate = 1e-2

[[stage]]
run = "quantize"
out = "static-int8"
model = "static"

[[stage]]
run = "export"
out = "static-onnx"
model = "static-int8"

[[stage]]
run = "train"
out = "alone"
base = "{folder}/encoder.json"
tokenizer = "{folder}/tokenizer"
depth = 2
seed = 0

[[stage]]
run = "export"
out = "alone-onnx"
model = "alone"
"""


def test_the_share_is_the_ratio_of_accuracies():
    generator = np.random.default_rng(0)
    student, teacher = generator.random((5, 40)) < 0.7, generator.random((5, 40)) < 0.9
    found = share(student.astype(float), teacher.astype(float))
    assert found == pytest.approx([sum(one) / sum(other) for one, other in zip(student.tolist(), teacher.tolist(), strict=True)])


def artifact(folder, kind, parents=None, ancestors=None):
    folder.mkdir(parents=True)
    (folder / "model").write_text(str(folder))
    plan = {"stage": "export", "options": {}, "parents": parents or {}, "data": None}
    seal(folder, kind=kind, task="classification", labels=["a", "b"], metrics={}, made_by={}, ancestors=ancestors or {}, **plan)
    return open_artifact(folder)


def test_rows_are_the_exported_artifacts_beside_their_teacher(tmp_path):
    for name, kind in (("teacher", "torch"), ("pruned", "torch"), ("onnx", "onnx"), ("teacher-ort", "onnx"), ("seed-1/onnx", "onnx")):
        artifact(tmp_path / name, kind)
    assert [found.path.name for found in exports(tmp_path)] == ["onnx"]
    shutil.rmtree(tmp_path / "onnx")
    with pytest.raises(ArtifactError, match="holds no teacher with an exported student"):
        exports(tmp_path)


def test_what_a_model_is_is_read_from_its_lineage(tmp_path):
    teacher = artifact(tmp_path / "teacher", "torch", {"base": "1"})
    known = {teacher.digest: teacher.manifest.summary()}
    taught = {"2": {"stage": "distill", "parents": {"teacher": teacher.digest}}}
    alone = {"3": {"stage": "train", "parents": {"base": "1"}}}
    lineages = {
        "student": ({"model": "2"}, {**known, **taught}),
        "taught last": ({"model": "3", "teacher": teacher.digest}, {**known, **alone}),
        "teacher-int8": ({"model": teacher.digest}, known),
        "alone": ({"model": "3"}, alone),
    }
    found = [kind_of(artifact(tmp_path / name, "onnx", *lineage), teacher) for name, lineage in lineages.items()]
    assert found == ["student", "student", "teacher", "without a teacher"]


def in_process(ways, texts, labels, names, pairs, plan, baselines, progress):
    """A benchmark without processes or clocks: the answers are real, each way takes as many ms as its place."""
    outputs, latency = {}, {way.name: 10.0 / number for number, way in enumerate(ways, start=1)}
    for way in ways:
        path = way.arguments["path"]
        outputs[way.name] = scores(open_predictor(path) if way.engine == "ort" else open_torch_predictor(path, "torch"), texts)
    comparisons = [
        {"baseline": one, "model": way.name, "speedup": latency[one] / latency[way.name], "speedup_interval": None}
        for one in baselines
        for way in ways
    ]
    models = [{"name": name, "latency_ms": {"median": ms}} for name, ms in latency.items()]
    return {"models": models, "comparisons": comparisons, "outputs": outputs, "failed": [], "protocol": {"noise_floor": 0.02}}


def test_a_set_is_measured_with_other_seeds_and_without_the_peers_that_do_not_build(tmp_path, monkeypatch):
    write_data(tmp_path / "data")
    write_tokenizer(tmp_path / "tokenizer")
    write_encoder(tmp_path / "encoder.json")
    (tmp_path / "tiny.toml").write_text(RECIPE.format(folder=tmp_path))
    for seed in ((), ("--seed", "1")):
        command = ["run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "runs"), *seed]
        done = CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)
        assert done.exception is None, done.output

    def environment(name):
        raise peers.BuildError("no network")

    monkeypatch.setattr(peers, "environment", environment)
    monkeypatch.setattr(headline, "benchmark", in_process)
    data = load_data(str(tmp_path / "data"))
    asked = [peer for peer in peers.PEERS if peer.name == "model2vec"]
    facts, rows = measure("tiny", tmp_path / "runs", data, Plan(texts=10, rounds=3), asked)
    assert {row["student"]: row["kind"] for row in rows} == {
        "static-onnx": "student",
        "alone-onnx": "without a teacher",
        "teacher-int8": "teacher",
    }
    assert [one["name"] for one in facts["failed"]] == ["model2vec"] and "no network" in facts["failed"][0]["reason"]
    by_name = {row["student"]: row for row in rows}
    labels, texts = data.splits["test"]["label"], data.splits["test"]["text"][:]
    right = [
        (scores(open_predictor(tmp_path / "runs" / place), texts).argmax(1) == labels).mean()
        for place in ("teacher-ort", "static-onnx", "seed-1/static-onnx")
    ]
    static = by_name["static-onnx"]
    assert static["seeds"] == pytest.approx([right[1] / right[0], right[2] / right[0]])
    assert static["share_of_teacher"] == pytest.approx((right[1] + right[2]) / 2 / right[0])
    assert static["interval"][0] <= static["share_of_teacher"] <= static["interval"][1]
    assert len(by_name["alone-onnx"]["seeds"]) == 1
    lines = table({"rows": rows})
    assert "; 2 seeds " in lines and "| without a teacher |" in lines
    assert verdicts({"rows": rows, "sets": {"tiny": facts}})[-1] == "tiny: not measured: model2vec: no network"


def row(name, kind, ms, part, **more):
    values = {
        "data": "sst2",
        "student": name,
        "kind": kind,
        "latency_ms": ms,
        "share_of_teacher": part,
        "interval": [part - 0.01, part + 0.01],
    }
    values |= {"speedup_torch": 10 / ms, "speedup_torch_interval": None, "speedup_ort": 4 / ms, "speedup_ort_interval": None}
    return values | {"seeds": [part], "bytes": 10_000_000, "accuracy": 0.9 * part} | more


def found(*rows):
    teacher = {EAGER: {"accuracy": 0.9, "latency_ms": 10.0}, ORT: {"accuracy": 0.9, "latency_ms": 4.0}}
    return {"rows": list(rows), "sets": {"sst2": {"data": {"texts": 100}, "teacher": teacher, "failed": []}}}


def test_a_row_says_what_was_measured():
    measured = {"speedup_torch": 142.46, "speedup_torch_interval": [140.1, 150.2], "speedup_ort": 60.2, "interval": [0.98, 1.0]}
    line = table(found(row("onnx", "student", 0.0891, 0.9902, accuracy=0.892, **measured))).splitlines()[-1]
    assert line == "| sst2 | onnx | student | 0.089 | 142.5× (140–150) | 60.2× | 99.0 (98–100) | 89.2 | 10.0 |"


def test_peers_and_models_without_a_teacher_stand_against_our_front():
    front = (row("pruned-onnx", "student", 0.1, 0.99), row("static-onnx", "student", 0.02, 0.94))
    below = (row("model2vec", "peer", 0.05, 0.8), row("alone-onnx", "without a teacher", 0.1, 0.97))
    quiet = found(*front, *below)
    assert verdicts(quiet)[0].startswith("sst2: No peer lies above and to the left of our front")
    points = points_of(quiet["sets"]["sst2"], quiet["rows"])
    assert [points[one]["label"] for one in our_front(points)] == ["static 500×", "pruned 100×", "ORT fp32 2.50×"]
    beyond = verdicts(found(*front, *below, row("else", "without a teacher", 0.05, 0.98)))
    assert beyond == ["sst2: Beyond our front: else 200× (better than static 500×, faster than pruned 100×)."]


def test_the_picture_names_every_point_once_and_no_label_is_on_another(tmp_path):
    rows = [
        row("pruned-onnx", "student", 0.1, 0.99),
        row("alone-onnx", "without a teacher", 0.1, 0.97),
        row("model2vec", "peer", 0.05, 0.8),
    ]
    both = found(*rows, *({**one, "data": "trec"} for one in rows))
    both["sets"]["trec"] = both["sets"]["sst2"]
    drawn = []
    keep = headline.label_points

    def label_points(axes, *arguments, **more):
        keep(axes, *arguments, **more)
        drawn.append([text.get_window_extent() for text in axes.texts])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headline, "label_points", label_points)
        picture(both, tmp_path / "headline.png")
    assert [len(boxes) for boxes in drawn] == [5, 5]
    assert not any(one.overlaps(other) for boxes in drawn for number, one in enumerate(boxes) for other in boxes[:number])
    for name in ("one.svg", "two.svg"):
        picture(both, tmp_path / name)
    drawing = (tmp_path / "one.svg").read_text()
    assert drawing == (tmp_path / "two.svg").read_text() and "<svg" in drawing
