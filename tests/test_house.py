"""The rules of the house that no linter holds: who may import whom, what stays free of torch, how files are named and sized."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "serve", "export", "compress")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted(
    path
    for folder in ("tests", "environments", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith(".venv") for part in path.parts)  # environments that the benchmarks make
)
HEAVY = {"torch", "torchao", "transformers", "datasets"}
ENGINES = HEAVY | {"matplotlib", "onnx", "onnxruntime", "pandas", "pyarrow", "sklearn"}

# What serving and the command line need before a stage runs.
TORCH_FREE = [
    "model.errors",
    "model.config",
    "model.kinds",
    "model.artifact",
    "model.tokenizer",
    *(f"serve.{path.stem}" for path in sorted((ROOT / "serve").glob("*.py")) if path.stem != "__init__"),
    "compress.augmentation",
    "compress.config",
    "compress.cache",
    "compress.unlabelled",
    "compress.stage",
    "compress.recipe",
    "compress.comparison",
    "compress.statistics",
    "compress.quality",
    "compress.auditing",
    "compress.report",
    "compress.cli",
]


def python(code: str) -> str:
    """What `code` prints in a Python of its own."""
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(path: Path) -> Iterator[str]:
    """The top-level names that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import: write the full name"
            yield str(node.module).split(".")[0]


def test_imports_keep_to_the_contracts():
    """compress → export → serve → model; slots and stages do not know each other (contracts in pyproject.toml)."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nobody_imports_tests_or_benchmarks():
    assert not [path for path in MODULES if {"tests", "benchmarks", "environments"} & set(imported(path))]


def test_serving_and_the_command_line_load_no_torch():
    lines = python(
        "import importlib, sys\n"
        f"for name in {TORCH_FREE!r}:\n"
        "    importlib.import_module(name)\n"
        f"    if loaded := sorted({HEAVY!r} & sys.modules.keys()):\n"
        "        print(name, 'loads', *loaded)\n"
        "        break\n"
    )
    assert lines == ""


def test_help_loads_no_engine():
    """The help is there at once: neither torch nor ONNX Runtime nor the plotting library is loaded for it."""
    lines = python(
        "import sys\n"
        "from compress.cli import main\n"
        "sys.argv = ['compress', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as left:\n"
        "    assert not left.code\n"
        f"print('loaded:', *sorted({ENGINES!r} & sys.modules.keys()))\n"
    )
    assert lines.splitlines()[0].startswith("Usage: ")
    assert lines.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("command", [["--help"], ["options"], ["run", "--help"]], ids=" ".join)
def test_the_command_works_beside_foreign_files_of_our_names(command, tmp_path):
    for name in PACKAGES:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('this is somebody else\\'s {name}.py')\n")
    script = Path(sys.executable).with_name("compress")
    done = subprocess.run([script, *command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_packages_are_empty_boxes():
    assert not [path for path in MODULES if path.name == "__init__.py" and path.read_text(encoding="utf-8")]
    assert [package for package in PACKAGES if (ROOT / package / "__init__.py").exists()] == list(PACKAGES)
    assert [package for package in PACKAGES if (ROOT / package / "py.typed").exists()] == list(PACKAGES)


@pytest.mark.parametrize(("files", "most"), [(MODULES, 400), (TESTS, 600)], ids=["code", "tests"])
def test_files_are_short(files, most):
    long = {str(path.relative_to(ROOT)): lines for path in files if (lines := len(path.read_text(encoding="utf-8").splitlines())) > most}
    assert not long, f"longer than {most} lines"


def test_no_drawers():
    """A file is named after the one thing that it holds."""
    drawers = {"util", "utils", "helper", "helpers", "common", "misc"}
    assert not [path for path in MODULES + TESTS if drawers & {part.strip("_") for part in (*path.relative_to(ROOT).parts[:-1], path.stem)}]


def test_no_file_shadows_what_its_folder_imports():
    """A script's folder comes first in `sys.path`: a neighbour called `onnx.py` or `statistics.py` would be taken for the library."""
    for folder in {path.parent for path in MODULES}:
        files = [path for path in MODULES if path.parent == folder]
        foreign = {name for path in files for name in imported(path)} - set(PACKAGES)
        shadows = {path.stem for path in files} & foreign
        assert not shadows, f"in {folder.relative_to(ROOT)}"
