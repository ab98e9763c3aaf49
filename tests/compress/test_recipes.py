"""Recipes whose base is a configuration of their own: written out, made once, checked before anything runs; and those that are shipped."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.recipe import SHIPPED, read_recipe, shipped
from model.artifact import open_artifact
from model.checkpoint import load_model
from model.config import EncoderConfig, read_config
from model.errors import ConfigError
from tests.compress.chain import write_data

RECIPE = """
data = "{data}"

[[stage]]
run = "train"
out = "teacher"
vocabulary = "unigram:50"
batch_size = 16
max_length = 24
train_texts = 64

[stage.base]
width = 16
positions = {{ kind = "rotary" }}
norm = {{ kind = "rmsnorm" }}

[stage.base.layers]
count = 2
attention = [{{ kind = "dense", heads = 4 }}, {{ kind = "window", heads = 4, window = 4 }}]
feedforward = {{ kind = "glu", neurons = 16 }}

[[stage]]
run = "quantize"
out = "quantized"
model = "teacher"
max_length = 24
"""


def run(recipe: Path, out: Path, *more: str) -> list[str]:
    done = CliRunner().invoke(cli, ["run", str(recipe), "--out", str(out), "--json", *more], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None, done.output
    return [made["digest"] for made in json.loads(done.stdout)]


@pytest.fixture
def recipe(tmp_path) -> Path:
    write_data(tmp_path / "data")
    (tmp_path / "mine.toml").write_text(RECIPE.format(data=tmp_path / "data"))
    return tmp_path / "mine.toml"


def read(recipe: Path, old: str, new: str) -> None:
    changed = recipe.with_name("changed.toml")
    assert old in recipe.read_text()
    changed.write_text(recipe.read_text().replace(old, new, 1))
    read_recipe(str(changed))


def test_a_base_can_be_a_table_of_the_recipe(recipe, tmp_path):
    digests = run(recipe, tmp_path / "one")
    model = load_model(tmp_path / "one" / "teacher")
    assert [layer.attention.kind for layer in model.config.layers] == ["dense", "window"]
    assert (model.config.positions.kind, model.config.vocabulary, model.config.max_length) == ("rotary", 50, 24)
    assert json.loads((tmp_path / "one" / "teacher.json").read_bytes())["width"] == 16
    made = [open_artifact(tmp_path / "one" / name).manifest.made_by for name in ("teacher", "quantized")]
    assert run(recipe, tmp_path / "one") == digests == run(recipe, tmp_path / "two")
    assert made == [open_artifact(tmp_path / "one" / name).manifest.made_by for name in ("teacher", "quantized")]


def test_a_base_that_cannot_be_is_refused_before_anything_runs(recipe):
    with pytest.raises(ConfigError, match=r"Impossible base of .*changed.toml, stage 1: .*3 heads do not divide a width of 16"):
        read(recipe, 'kind = "dense", heads = 4', 'kind = "dense", heads = 3')
    with pytest.raises(ConfigError, match="colour: Extra inputs are not permitted"):
        read(recipe, "width = 16\n", "width = 16\ncolour = 1\n")
    with pytest.raises(ConfigError, match=r"stage 2: quantize has no base") as error:
        read(recipe, 'model = "teacher"', 'model = "teacher"\nbase = { width = 16 }')
    assert error.value.hint == "Move the table to the stage that starts from it."
    with pytest.raises(ConfigError, match="'unigram' is no vocabulary"):
        read(recipe, "unigram:50", "unigram")


SHARED = """
data = "somewhere"

[defaults]
max_length = 24

[[stage]]
run = "train"
out = "teacher"
base = "minilm"
batch_size = 8

[[stage]]
run = "distill"
out = "student"
teacher = "teacher"
max_length = 16

[[stage]]
run = "prune"
out = "pruned"
model = "student"
heads = 2

[[stage]]
run = "export"
model = "pruned"
"""
SEVERAL = """[[defaults]]
max_length = 24
batch_size = 64

[[defaults]]
run = ["train", "prune"]
precision = "bf16"

[[defaults]]
run = ["distill", "prune"]
teacher = "another"
heads = 4
batch_size = 128

[[stage]]"""


def test_defaults_go_to_every_stage_that_knows_them_and_its_own_value_counts_before_them(tmp_path):
    file = tmp_path / "shared.toml"
    file.write_text(SHARED)
    assert [getattr(step.options, "max_length", None) for step in read_recipe(str(file)).steps] == [24, 16, 24, None]
    file.write_text(SHARED.replace("[defaults]\nmax_length = 24\n\n[[stage]]", SEVERAL, 1))
    teacher, student, pruned, _ = read_recipe(str(file)).steps
    assert [step.options.batch_size for step in (teacher, student, pruned)] == [8, 128, 128]
    assert [step.options.precision for step in (teacher, student, pruned)] == ["bf16", "fp32", "bf16"]
    assert (student.options.heads, pruned.options.heads) == ((4,), (2,))
    assert (teacher.sources, student.sources) == ({"base": "minilm"}, {"teacher": "teacher"})
    assert pruned.sources == {"model": "student", "teacher": "another"}


def test_a_recipe_with_defaults_is_the_recipe_that_says_them_in_each_stage(recipe):
    spelled = read_recipe(str(recipe)).steps
    shared = recipe.read_text().replace("max_length = 24\n", "").replace("[[stage]]", "[defaults]\nmax_length = 24\n\n[[stage]]", 1)
    recipe.write_text(shared)
    assert shared.count("max_length") == 1 and read_recipe(str(recipe)).steps == spelled


TABLE, TRAIN, EXPORT = "[defaults]\nmax_length = 24", 'run = "train"', 'run = "export"'


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (TABLE, "[defaults]\ncolour = 3", "wrong.toml, defaults: no stage knows 'colour'."),
        (TABLE, '[defaults]\nrun = "train"\nheads = 3', "wrong.toml, defaults: no stage among train knows 'heads'."),
        (TABLE, '[[defaults]]\nrun = ["distil", "quantize"]\nmax_length = 3', "no stage among distil, quantize knows 'max_length'."),
        (TABLE, "[defaults]\nout = 'here'", "wrong.toml, defaults: no stage knows 'out'."),
        (TABLE, "defaults = 3", "wrong.toml: defaults = 3 is no table."),
        (TRAIN, f"each = []\n{TRAIN}", "stage 1: each = [] is no list of names."),
        (TRAIN, f"each = 'student'\n{TRAIN}", "stage 1: each = 'student' is no list of names."),
        (TRAIN, f'each = ["a", "b"]\n{TRAIN}', "stage 1: out = 'teacher' is not a new plain name."),
        (EXPORT, f'{EXPORT}\neach = ["a", "b"]\nout = "*"\ncolour = 3', "wrong.toml, stage 4: unknown key 'colour'."),
        (SHARED[SHARED.index("[defaults]") :], "stage = [3]", "wrong.toml has no [[stage]]."),
    ],
)  # fmt: skip
def test_a_shared_table_that_cannot_be_is_an_error_that_names_its_place(tmp_path, right, wrong, message):
    file = tmp_path / "wrong.toml"
    file.write_text(SHARED.replace(right, wrong, 1))
    with pytest.raises(ConfigError) as error:
        read_recipe(str(file))
    assert error.value.message.endswith(message)


def test_another_seed_repeats_what_does_not_say_its_own(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace('out = "teacher"', 'out = "teacher"\nseed = 0'))
    first, again = run(recipe, tmp_path / "out"), run(recipe, tmp_path / "out", "--seed", "1")
    assert again[0] == first[0] and again[1] != first[1]
    one, other = (open_artifact(tmp_path / "out" / place).manifest for place in ("quantized", "seed-1/quantized"))
    assert (one.options["seed"], other.options["seed"]) == (0, 1) and one.parents == other.parents
    assert not (tmp_path / "out" / "seed-1" / "teacher").exists()


def test_what_comes_from_a_stage_of_another_seed_has_another_place_too(tmp_path):
    file = tmp_path / "seeded.toml"
    file.write_text(SHARED.replace("batch_size = 8", "seed = 0"))
    places = [step.place for step in read_recipe(str(file), 7).steps]
    assert places == ["teacher", "seed-7/student", "seed-7/pruned", "seed-7/export"]
    assert [step.place for step in read_recipe(str(file)).steps] == [step.out for step in read_recipe(str(file)).steps]


def test_a_stage_can_do_without_a_default(tmp_path):
    file = tmp_path / "alone.toml"
    shared = '[defaults]\nteacher = "teacher"\naugment = "swap:2"\nmax_length = 24'
    alone = 'run = "prune"\nteacher = ""\naugment = []'
    file.write_text(SHARED.replace("[defaults]\nmax_length = 24", shared).replace('run = "prune"', alone))
    _, student, pruned, _ = read_recipe(str(file)).steps
    assert (student.options.augment, pruned.options.augment) == (("swap:2",), ())
    assert pruned.sources == {"model": "student"}


def test_a_stage_for_several_models_is_a_stage_for_each(tmp_path):
    file = tmp_path / "each.toml"
    one = 'run = "quantize"\nmodel = "{0}"\nout = "{0}-int8"\nmethod = "qat"\n'
    file.write_text(SHARED + "".join(f"\n[[stage]]\n{one.format(name)}" for name in ("student", "pruned")))
    spelled = read_recipe(str(file)).steps
    file.write_text(SHARED + f'\n[[stage]]\neach = ["student", "pruned"]\n{one.format("*")}')
    assert read_recipe(str(file)).steps == spelled and [step.out for step in spelled][-2:] == ["student-int8", "pruned-int8"]


@pytest.mark.parametrize("name", ["sst2", "subj", "trec", "banking77", "tweets", "series-fr"])
def test_headlines_share_a_teacher_among_seeds_and_end_in_students_in_int8(name, monkeypatch):
    monkeypatch.setenv("ALAMBIC_DATA", "somewhere")
    recipe = read_recipe(f"headline-{name}")
    steps = {step.out: step for step in recipe.steps}
    assert (SHIPPED / f"headline-{name}.toml").read_text().startswith("# ") and recipe.data["source"].endswith(name)
    assert "seed" in steps["teacher"].options.model_fields_set
    taught = [step for step in recipe.steps if step.sources.get("teacher")]
    assert len({(step.options.unlabelled, step.options.augment, step.options.unlabelled_texts) for step in taught}) == 1
    assert taught[0].options.unlabelled or taught[0].options.augment
    assert "alone" not in steps or (not steps["alone"].options.unlabelled and "teacher" not in steps["alone"].sources)
    exported = [step for step in recipe.steps if step.stage.name == "export"]
    assert len(exported) >= 2 and all(steps[step.sources["model"]].stage.name == "quantize" for step in exported)
    assert all(not step.options.unlabelled for step in recipe.steps if step.stage.name == "quantize")


@pytest.mark.parametrize("name", ["demo", "proposed", "long"])
def test_shipped_recipes_go_through_the_whole_chain(name):
    recipe = read_recipe(name)
    assert name in shipped()
    assert [step.stage.name for step in recipe.steps if step.stage.name != "distill"] == [
        "train",
        "prune",
        "quantize",
        "export",
        "benchmark",
    ]
    assert (SHIPPED / f"{name}.toml").read_text().startswith("# ")


def test_proposed_has_every_module_that_is_proposed():
    step = read_recipe("proposed").steps[0]
    assert step.base is not None
    config: EncoderConfig = read_config({**step.base, "vocabulary": 1, "max_length": step.options.max_length, "head": {"labels": 3}})
    assert step.options.vocabulary.startswith("unigram") and config.token_dropout
    assert config.positions.kind in ("rotary", "t5") and config.norm.kind == "rmsnorm"
    assert {layer.attention.kind for layer in config.layers} == {"dense", "window"}
    assert all(12 <= layer.attention.heads <= 16 for layer in config.layers)
    assert all((layer.feedforward.kind, layer.feedforward.activation) == ("glu", "silu") for layer in config.layers)
    assert all(layer.attention.global_tokens for layer in config.layers if layer.attention.kind == "window")
    assert tomllib.loads((SHIPPED / "proposed.toml").read_text())["data"] == "tweets"


def test_long_reads_whole_articles_with_a_window():
    steps = {step.out: step.options.model_dump() for step in read_recipe("long").steps if step.out not in ("onnx", "report")}
    assert {options["max_length"] for options in steps.values()} == {5304}  # the longest article of the training part has 5,303
    assert steps["student"]["attention"][0].startswith("window:") and not steps["teacher"]["attention"]
