"""What a user sees: exact lines for what went wrong, exit codes, and nothing lost or half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.cli import EXAMPLES, cli, main
from compress.recipe import read_recipe, shipped
from compress.stage import STAGES
from model.artifact import MANIFEST, open_artifact
from tests.compress.chain import SMALL, compress, environment, write_data


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """`compress` in this process, through its boundary: exit code, stdout, stderr."""
    sys.argv = ["compress", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, " ".join(err.split())


@pytest.fixture
def failing(capsys, tmp_path, house):
    """Run a command that must fail with exit code 2 and write nothing; gives its Error and Hint."""

    def check(*arguments: object) -> str:
        before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "") and err.count("Error: ") == 1 and "Hint: " in err and "Traceback" not in err, err
        assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
        return err

    return check


def base(house: Path) -> tuple[object, ...]:
    return "--base", house / "encoder.json", "--tokenizer", house / "tokenizer", *SMALL


@pytest.mark.parametrize("name", [*STAGES, "run", "inspect", "diff", "audit", "predict", "compare"])
def test_every_command_has_help_with_examples(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0 and f"compress {name}" in out.split("Examples:")[1]


def test_the_help_names_each_option_with_its_default(capsys):
    _, out, _ = run(capsys, "prune", "--help")
    for name, field in STAGES["prune"].options.model_fields.items():
        assert "--" + name.replace("_", "-") in out
        assert " ".join((field.description or "").split()[:3]) in " ".join(out.split())
    assert set(EXAMPLES) == set(STAGES)


def test_help_does_not_import_torch_or_onnxruntime():
    code = "import sys; sys.argv = ['compress', '--help']; from compress.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(*[name for name in ('torch', 'transformers', 'datasets', 'onnxruntime', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_usage_errors(failing, house, tmp_path):
    assert "No such command 'destill'" in failing("destill")
    assert "Missing option '--out'" in failing("export", house / "quantized")
    assert "No such option '--epoch'" in failing("train", house / "data", "--epoch", 3)
    assert "epochs: Input should be greater than 0 (got 0.0)" in failing(
        "train", house / "data", *base(house), "--epochs", 0, "--out", tmp_path / "new"
    )
    assert "'fp8' is not one of" in failing("train", house / "data", *base(house), "--precision", "fp8", "--out", tmp_path / "new")


def test_data_that_cannot_be_used(failing, house, tmp_path):
    out = ("--out", tmp_path / "new", *base(house))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.csv").write_bytes("text,label\na,b\ncaf\xe9,b\n".encode("latin-1"))
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"a{number},only\n" for number in range(30)))
    (tmp_path / "columns.csv").write_text("words,stars\na,1\nb,2\n")
    shutil.copytree(house / "data", tmp_path / "unseen")
    with (tmp_path / "unseen" / "test.jsonl").open("a") as stream:
        stream.write('{"text": "so so", "label": "middling"}\n')
    assert "missing.csv" in failing("train", tmp_path / "missing.csv", *out)
    assert "empty.csv" in failing("train", tmp_path / "empty.csv", *out)
    assert "broken.csv" in failing("train", tmp_path / "broken.csv", *out)
    assert "words, stars" in failing("train", tmp_path / "columns.csv", *out)
    assert "only" in failing("train", tmp_path / "one.csv", *out)
    assert "middling" in failing("train", tmp_path / "unseen", *out)


def test_artifacts_that_do_not_fit(failing, house, tmp_path):
    out = ("--out", tmp_path / "new")
    assert "There is no artifact at" in failing("export", tmp_path / "nothing", *out)
    assert "is an exported model (of export), but a PyTorch model" in failing("export", house / "onnx", *out)
    assert "is quantized already" in failing("prune", house / "quantized", "--data", house / "data", *out)
    other = write_data(tmp_path / "other")
    for part in ("train", "validation", "test"):
        (other / f"{part}.jsonl").write_text((other / f"{part}.jsonl").read_text().replace('"bad"', '"terrible"'))
    assert "terrible" in failing("distill", house / "teacher", "--data", other, *out)
    assert "A model of 9 layers cannot be made of one of 4" in failing(
        "distill", house / "teacher", "--data", house / "data", "--depth", 9, *out
    )
    assert "Layer 0 has 4 heads; 5 cannot be kept" in failing("prune", house / "student", "--data", house / "data", "--heads", 5, *out)
    assert "There is no linear layers.7.up to keep" in failing(
        "quantize", house / "pruned", "--data", house / "data", "--keep", "layers.7.up", *out
    )


@pytest.mark.parametrize("name", [MANIFEST, "model.safetensors", "config.json", "tokenizer.json", "README.md"])
def test_a_flipped_byte_is_found_by_whatever_opens_the_artifact(failing, house, tmp_path, name):
    damaged = tmp_path / "damaged"
    shutil.copytree(house / "teacher", damaged)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    assert name in failing("inspect", damaged)
    assert name in failing("distill", damaged, "--data", house / "data", "--out", tmp_path / "new")


def test_configurations_that_cannot_be(failing, house, tmp_path):
    def scratch(**changes: object) -> str:
        values = {**json.loads((house / "encoder.json").read_text()), **changes}
        (tmp_path / "bad.json").write_text(json.dumps(values))
        given = ("--base", tmp_path / "bad.json", "--tokenizer", house / "tokenizer", "--out", tmp_path / "new", *SMALL)
        return failing("train", house / "data", *given)

    def layers(count: int = 1, **attention: object) -> dict[str, object]:
        return {"count": count, "attention": {"heads": 2, **attention}, "feedforward": {"kind": "mlp", "neurons": 4}}

    (tmp_path / "bad.json").write_text("")
    assert "5 heads do not divide a width of 32" in scratch(layers=layers(heads=5))
    said = scratch(layers=layers(12, kind="window", window=0))
    assert "layers.0.attention.window.window: Input should be greater than or equal to 2 (got 0) (and 11 more like it)." in said
    assert said.count("window.window") == 1 and "Tuple" not in said
    assert "3 key_value_heads do not divide 4 heads" in scratch(layers=layers(heads=4, key_value_heads=3))
    assert "layers.0.feedforward: it does not say its kind" in scratch(layers={**layers(), "feedforward": {"neurons": 4}})
    assert "layers take their attention in turn from a list with nothing in it" in scratch(layers={**layers(), "attention": []})
    assert "layers have a count of 'two'" in scratch(layers={**layers(), "count": "two"})
    assert "there is no kind of model ['encoder']" in scratch(kind=["encoder"])
    assert "early_pooling is for dense attention, but the last layer has window" in scratch(
        layers=layers(kind="window", window=4), early_pooling=True
    )
    assert "landmark attention, whose keys are mixtures" in scratch(layers=layers(kind="landmark"), positions={"kind": "alibi"})
    assert "sinusoidal positions come in pairs, but the embeddings are 33 wide" in scratch(
        width=33, layers=layers(head_width=16), positions={"kind": "sinusoidal"}
    )
    given = ("--base", house / "encoder.json", "--tokenizer", house / "tokenizer", "--out", tmp_path / "new", *SMALL)
    assert "window" in failing("train", house / "data", *given, "--attention", "window:0")
    assert "steers a backbone that has learned something" in failing("train", house / "data", *given, "--prefix", 4)
    # read before a vocabulary is trained
    (tmp_path / "bad.json").write_text(json.dumps({"width": 32, "layers": layers(heads=5)}))
    given = ("--base", tmp_path / "bad.json", "--vocabulary", "unigram:999999", "--out", tmp_path / "new", *SMALL)
    assert "5 heads do not divide a width of 32" in failing("train", house / "data", *given)
    odd = {"count": 1, "attention": {"heads": 2, "head_width": 7}, "feedforward": {"kind": "mlp", "neurons": 4}}
    assert "rotary positions turn pairs" in scratch(positions={"kind": "rotary"}, layers=odd)
    short = {"count": 1, "attention": {"kind": "linformer", "heads": 2, "length": 8}, "feedforward": {"kind": "mlp", "neurons": 4}}
    assert "linformer attention for 8 tokens, but max_length is 24" in scratch(layers=short)
    assert "tags: 'learned', 'sinusoidal', 'rotary', 'alibi', 't5', 'relative', 'none'" in scratch(positions={"kind": "swin"})
    assert "colour: Extra inputs are not permitted" in scratch(colour=1)


def test_a_prefix_without_its_backbone(capsys, failing, house, tmp_path):
    shutil.copytree(house / "teacher", tmp_path / "base")
    trained = ("--prefix", 2, "--train-texts", 32, *SMALL, "--out", tmp_path / "prefix")
    assert run(capsys, "train", house / "data", "--base", tmp_path / "base", *trained)[0] == 0
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    for command in (("export", tmp_path / "prefix", "--out", tmp_path / "new"), ("predict", tmp_path / "prefix", "good")):
        assert "is a prefix without its backbone" in failing(*command)


def test_what_a_student_cannot_learn_from(capsys, failing, house, tmp_path):
    given = ("distill", house / "teacher", "--data", house / "data", "--depth", 1, *SMALL)
    out = ("--out", tmp_path / "new")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "nothing.jsonl").write_text("")
    shutil.copy(house / "data" / "train.jsonl", tmp_path / "known.jsonl")
    assert "empty.txt is empty" in failing(*given, "--unlabelled", tmp_path / "empty.txt", *out)
    assert "nothing.jsonl" in failing(*given, "--unlabelled", tmp_path / "nothing.jsonl", *out)
    assert "no text is left that data does not have already" in failing(*given, "--unlabelled", tmp_path / "known.jsonl", *out)
    assert "unigram:50000 is more than the text allows: only" in failing(*given, "--vocabulary", "unigram:50000", *out)
    assert "unigram:9 is too small" in failing(*given, "--vocabulary", "unigram:9", *out)
    cache = ("--cache", tmp_path / "cache")
    assert run(capsys, *given, *cache, "--out", tmp_path / "student")[0] == 0
    (key,) = (tmp_path / "cache").glob("*/key.json")
    key.write_text(json.dumps({**json.loads(key.read_text()), "teacher": "another"}))
    assert "holds the answers of another teacher or of other texts (teacher another; wanted: teacher" in failing(
        *given, *cache, "--epochs", 2, *out
    )


def test_recipes_are_checked_before_anything_runs(failing, tmp_path):
    def recipe(text: str) -> str:
        (tmp_path / "mine.toml").write_text(text)
        return failing("run", tmp_path / "mine.toml", "--out", tmp_path / "new")

    (tmp_path / "mine.toml").write_text("")
    good = 'data = "tweets"\n[[stage]]\nrun = "train"\nout = "teacher"\nbase = "minilm"\n'
    assert "There is no recipe 'demon'" in failing("run", "demon", "--out", tmp_path / "new")
    assert "is not TOML" in recipe("data = \n")
    assert "names no data" in recipe('[[stage]]\nrun = "train"\n')
    assert "has no [[stage]]" in recipe('data = "tweets"\n')
    assert "unknown key 'epoch'" in recipe(good + "epoch = 3\n")
    assert "there is no stage 'destill'" in recipe(good.replace("train", "destill"))
    assert "train needs `base`" in recipe(good.replace("base", "#base"))
    assert "is not a new plain name" in recipe(good + good.partition("\n")[2])
    assert "learning_rate: Input should be greater than 0" in recipe(good + "learning_rate = -1.0\n")
    assert not (tmp_path / "new").exists()


def test_a_recipe_may_name_environment_variables(failing, house, tmp_path, monkeypatch):
    file = tmp_path / "mine.toml"
    file.write_text('data = "$HOUSE/data"\n[[stage]]\nrun = "train"\nbase = "${HOUSE}/base"\n')
    monkeypatch.setenv("HOUSE", str(house))
    checked = read_recipe(str(file))
    assert (checked.data["source"], checked.steps[0].sources["base"]) == (f"{house}/data", f"{house}/base")
    monkeypatch.delenv("HOUSE")
    said = failing("run", file, "--out", tmp_path / "new")
    assert "says $HOUSE/data, but the environment variable HOUSE is not set" in said
    assert "export HOUSE=FOLDER" in said


def test_shipped_recipes_are_whole(monkeypatch):
    monkeypatch.setenv("ALAMBIC_DATA", "data")
    assert "demo" in shipped()
    for name in shipped():
        assert read_recipe(name).steps


def test_an_output_is_never_replaced_unasked(capsys, failing, house, tmp_path):
    shutil.copytree(house / "student", tmp_path / "student")
    digest = open_artifact(tmp_path / "student").digest
    again = ("distill", house / "teacher", "--data", house / "data", "--out", tmp_path / "student", *SMALL)
    assert "was made otherwise (options.epochs: 2.0, not 1.0)" in failing(*again)
    code, _, err = run(capsys, *again, "--epochs", 2)
    assert code == 0 and "up to date" in err and open_artifact(tmp_path / "student").digest == digest
    code, out, _ = run(capsys, *again, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["digest"] == open_artifact(tmp_path / "student").digest != digest


def test_a_gate_that_says_no_leaves_with_3_and_nothing_written(capsys, house, tmp_path):
    code, out, err = run(capsys, "export", house / "quantized", "--signal", 300, "--out", tmp_path / "onnx")
    assert (code, out) == (3, "") and "dB from PyTorch" in err and not (tmp_path / "onnx").exists()


def test_inspect_shows_the_tree_and_diff_says_why(capsys, house):
    code, out, _ = run(capsys, "inspect", house / "onnx")
    assert code == 0 and "whole" in out and "model: quantize" in out and "base: base" in out and "encoder.json" in out
    code, out, _ = run(capsys, "diff", house / "onnx", house / "onnx")
    assert (code, out) == (0, "The same: equal digests.\n")


def test_diff_follows_parents_to_where_they_part(capsys, house, tmp_path):
    run(capsys, "quantize", house / "student", "--data", house / "data", "--max-length", 24, "--out", tmp_path / "quantized")
    code, out, _ = run(capsys, "diff", house / "quantized", tmp_path / "quantized", "--json")
    assert code == 0 and any(line.startswith("model: stage: prune, not distill") for line in json.loads(out))


def test_options_lists_every_slot(capsys):
    code, out, _ = run(capsys, "options", "--json")
    slots = json.loads(out)
    assert code == 0 and slots["positions"].keys() >= {"learned", "rotary", "t5"} and "window" in slots["attention"]["window"]
    code, out, _ = run(capsys, "options")
    assert "rmsnorm: eps (number, default 1e-06)" in out


def test_the_disk_is_full(house, tmp_path):
    """A process that may write files of 20 kB at most stands for a full disk."""
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    )
    arguments = ["compress", "distill", str(house / "teacher"), "--data", str(house / "data"), "--out", str(tmp_path / "new"), *SMALL]
    code = f"{limit}\nimport sys; sys.argv = {arguments!r}\nfrom compress.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 2 and "No room to write" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "new").exists()


def test_the_command_works_where_somebody_elses_model_py_lies(house, tmp_path):
    for name in ("model", "export", "serve", "compress"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('somebody else')\n")
    script = Path(sys.executable).with_name("compress")
    done = subprocess.run(
        [script, "inspect", house / "teacher"], capture_output=True, text=True, cwd=tmp_path, env={**environment(), "PYTHONPATH": ""}
    )
    assert done.returncode == 0 and "train" in done.stdout, done.stderr


def test_a_bug_of_ours_shows_its_traceback(house, monkeypatch):
    monkeypatch.setattr("model.artifact.open_artifact", lambda path: 1 / 0)
    sys.argv = ["compress", "inspect", str(house / "teacher")]
    with pytest.raises(ZeroDivisionError):
        main()


def test_the_whole_chain_from_a_recipe(capsys, house, tmp_path):
    """Every stage, then the same again: nothing is made twice, and the report names the three things that matter."""
    small = "\n".join(("batch_size = 16", "max_length = 24", "threads = 1", "learning_rate = 2e-3", "train_texts = 96"))
    stages = f"""
data = "{house / "data"}"
[[stage]]
run = "train"
out = "teacher"
base = "{house / "teacher"}"
{small}
[[stage]]
run = "distill"
out = "student"
teacher = "teacher"
{small}
[[stage]]
run = "quantize"
out = "quantized"
model = "student"
max_length = 24
[[stage]]
run = "export"
out = "onnx"
model = "quantized"
[[stage]]
run = "benchmark"
out = "report"
models = ["teacher", "onnx"]
texts = 10
rounds = 3
"""
    (tmp_path / "small.toml").write_text(stages)
    code, out, err = run(capsys, "run", tmp_path / "small.toml", "--out", tmp_path / "new", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert [model["name"] for model in report["models"]] == ["teacher-transformers", "teacher-ort", "onnx"]
    assert {row["baseline"] for row in report["comparisons"] if row["model"] == "onnx"} == {"teacher-transformers", "teacher-ort"}
    assert [row["stage"] for row in report["stages"]] == ["train", "train", "distill", "quantize", "export"]
    assert (tmp_path / "new" / "report" / "report.html").is_file() and "report.html" in err and "smaller" in err
    digests = {name: open_artifact(tmp_path / "new" / name).digest for name in ("teacher", "student", "quantized", "onnx", "report")}
    code, _, err = run(capsys, "run", tmp_path / "small.toml", "--out", tmp_path / "new")
    assert code == 0 and err.count("up to date") == 5
    assert digests == {name: open_artifact(tmp_path / "new" / name).digest for name in digests}


def test_the_process_leaves_with_the_codes(house, tmp_path):
    assert compress("inspect", house / "teacher").returncode == 0
    assert compress("inspect", tmp_path, check=False).returncode == 2
    assert cli.name == "cli"
