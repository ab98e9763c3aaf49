"""Serving with `alambic[cpu]` alone, installed as a wheel: no torch, no transformers, and none is missed."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "serve", "export", "compress")
TEXTS = ["a good film", "bad, and long", ""]


def test_nothing_of_training_is_there(run):
    names = ["torch", "torchao", "transformers", "datasets", "accelerate", "onnx"]
    found = run(
        ".venv-serve", "python", "-c", f"import importlib.util as i, json; print(json.dumps([n for n in {names} if i.find_spec(n)]))"
    )
    assert json.loads(found.stdout) == []


def test_the_wheel_holds_the_four_packages_whole_and_nothing_else(run):
    listed = run(".venv-serve", "python", "-c", "import importlib.metadata as m; print(*m.files('alambic'), sep='\\n')").stdout.split()
    files = {name for name in listed if "__pycache__" not in name}
    assert {name.split("/")[0] for name in files} == {*PACKAGES, "alambic-0.1.0.dist-info", ".."}
    sources = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    assert {name for name in sources if "__pycache__" not in name} <= files


def test_help_works(run):
    done = run(".venv-serve", "compress", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: compress")


def test_predict_answers_as_the_main_environment_does(run, artifact):
    here, there = (run(environment, "compress", "predict", artifact, *TEXTS) for environment in (".venv-serve", ".venv"))
    assert here.returncode == 0, here.stderr
    assert here.stdout == there.stdout
    assert "pos" in here.stdout or "neg" in here.stdout


def test_inspect_works(run, artifact):
    done = run(".venv-serve", "compress", "inspect", artifact)
    assert done.returncode == 0, done.stderr


def test_training_names_what_to_install(run, tmp_path):
    (tmp_path / "data.csv").write_text("text,label\ngood,pos\nbad,neg\n")
    done = run(".venv-serve", "compress", "train", tmp_path / "data.csv", "--base", "minilm", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "pip install 'alambic[" in done.stderr
    assert not (tmp_path / "out").exists()
