"""Recipes: stages in a row, from a TOML file. A recipe holds the same options as the commands, and nothing else.

data = "tweets"

[[stage]]
run = "train"
out = "teacher"
base = "minilm"
epochs = 1

[[stage]]
run = "distill"
out = "student"
teacher = "teacher"        # the `out` of an earlier stage, or a path

What several stages share is said once, before them: `[defaults]` for every stage that knows the option, or `[[defaults]]` tables, each for
the stages that its `run` names (`precision` is another thing to export). A stage's own value counts before them, a later table before
an earlier one.

[[defaults]]
run = ["distill", "prune"]
frozen = "tokens"

A stage that is run for several models is said once; each of their names takes the place of `*`:

[[stage]]
run = "quantize"
each = ["student", "small"]
model = "*"
out = "*-int8"

A recipe can be repeated with another seed (`compress run … --seed 1`): every stage that does not say its seed, and whatever comes from it,
is made once more in OUT/seed-1; a stage that says it, such as a teacher with `seed = 0`, is shared.

A value may name environment variables, so that a recipe says where data lie without a path of one machine: `data = "$ALAMBIC_DATA/sst2"`.

A base from nothing is the encoder's configuration, as a table of the stage: `[stage.base]` after its options. It is written to
OUT/NAME.json, NAME being the stage's `out`.
"""

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.config import Options, read_options
from compress.sources import open_sources, several
from compress.stage import STAGES, Outcome, Stage, run_stage
from model.artifact import canonical
from model.config import read_config
from model.errors import ConfigError

SHIPPED = Path(__file__).parent / "recipes"
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe: its name in the recipe, its options, the names of its sources by role, the configuration of its base.

    `place` is where it is written below the recipe's OUT: its name, in a folder of its own where it is made with another seed.
    """

    stage: Stage
    out: str
    place: str
    options: Options
    sources: dict[str, str]
    base: dict[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; `data` is what `load_data` takes."""

    name: str
    data: dict[str, Any]
    steps: tuple[Step, ...]


def shipped() -> list[str]:
    """Names of the recipes that come with alambic."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read_recipe(value: str, seed: int | None = None) -> Recipe:
    """Read a shipped recipe by name or a TOML file by path, and check all of it before anything runs.

    `seed` is that of every stage that does not say its own; what it changes has another place.

    Raises ConfigError: no such recipe, damaged TOML, an unknown key, stage or source, an environment variable that is not set.
    """
    path = SHIPPED / f"{value}.toml" if value in shipped() else Path(value)
    if not path.is_file():
        raise ConfigError(f"There is no recipe {value!r}.", f"Shipped recipes: {', '.join(shipped())}; or give the path of a TOML file.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.", "Mend that line; `compress run --help` shows a recipe.") from None
    content = _filled_in(content, str(path))
    _known(content, {"data", "text", "label", "defaults", "stage"}, str(path))
    if not isinstance(content.get("data"), str):
        raise ConfigError(f"{path} names no data.", 'Add a line such as data = "tweets" at its top.')
    tables = content.get("stage", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path} has no [[stage]].", "A recipe is a list of [[stage]] tables, each with `run` and `out`.")
    steps: list[Step] = []
    for number, table in enumerate(_with_defaults(tables, content.get("defaults", []), str(path)), start=1):
        where = f"{path}, stage {number}"
        for one in _each(table, where):
            steps.append(_step(one, where, steps, seed))
    text = content.get("text", [])
    data = {"source": content["data"], "text": [text] if isinstance(text, str) else text, "label": content.get("label", "")}
    return Recipe(path.stem, data, tuple(steps))


def run_recipe(recipe: Recipe, out: Path, *, overwrite: bool, done: Callable[[Outcome], None]) -> list[Outcome]:
    """Run every stage into `out`/NAME, skipping what is up to date; `done` is told of each."""
    for step in recipe.steps:
        step.stage.check_environment()
    from compress.data import load_data

    data = load_data(**recipe.data)
    outcomes: list[Outcome] = []
    for number, step in enumerate(recipe.steps):
        places = {earlier.out: str(out / earlier.place) for earlier in recipe.steps[:number]}
        paths = {role: places.get(value, value) for role, value in step.sources.items()}
        if step.base is not None:
            paths["base"] = str(_write(step.base, out / f"{step.place}.json"))
        sources = open_sources(step.stage.kinds, paths)
        used = data if step.stage.needs_data else None
        outcomes.append(run_stage(step.stage, step.options, sources, used, out / step.place, overwrite=overwrite))
        done(outcomes[-1])
    return outcomes


def _filled_in(value: Any, where: str) -> Any:
    """`value` with every $NAME and ${NAME} in its strings replaced by that environment variable; raises ConfigError where it is not set."""
    if isinstance(value, dict):
        return {key: _filled_in(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled_in(inner, where) for inner in value]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ConfigError(
                f"{where} says {value}, but the environment variable {name} is not set.",
                f"Name the folder that it stands for: export {name}=FOLDER.",
            )
        return os.environ[name]

    return VARIABLE.sub(variable, value)


def _each(table: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The tables that one stands for: one for each name in its `each`, which takes the place of `*`; itself without `each`."""
    if "each" not in table:
        return [table]
    names = table["each"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{where}: each = {names!r} is no list of names.", 'Write each = ["student", "pruned"], and "*" where a name is to stand.'
        )
    rest = {key: value for key, value in table.items() if key != "each"}
    return [{key: value.replace("*", name) if isinstance(value, str) else value for key, value in rest.items()} for name in names]


def _with_defaults(tables: list[dict[str, Any]], defaults: Any, where: str) -> list[dict[str, Any]]:
    """The tables of the stages, each with the defaults that it knows and does not say itself; ConfigError for one that none knows."""
    if isinstance(defaults, dict):
        defaults = [defaults]
    if not isinstance(defaults, list) or not all(isinstance(default, dict) for default in defaults):
        raise ConfigError(f"{where}: defaults = {defaults!r} is no table.", "Write [defaults] above a line for each option.")
    shared: list[dict[str, Any]] = [{} for _ in tables]
    for default in defaults:
        runs = default.get("run", list(STAGES))
        runs = [runs] if isinstance(runs, str) else runs
        for key in sorted(default.keys() - {"run"}):
            knowing = [number for number, table in enumerate(tables) if table.get("run") in runs and key in _keys(table["run"])]
            if not knowing:
                among = f" among {', '.join(map(str, runs))}" if "run" in default else ""
                raise ConfigError(
                    f"{where}, defaults: no stage{among} knows {key!r}.", "Mend its name, or the `run` of the table that says it."
                )
            for number in knowing:
                shared[number][key] = default[key]
    return [{**known, **table} for known, table in zip(shared, tables, strict=True)]


def _keys(name: str) -> set[str]:
    """What a stage's table may say beside `run` and `out`; nothing if there is no such stage."""
    return {*STAGES[name].roles, *STAGES[name].options.model_fields} if name in STAGES else set()


def _step(table: dict[str, Any], where: str, before: list[Step], seed: int | None) -> Step:
    earlier, name = [step.out for step in before], table.pop("run", None)
    if name not in STAGES:
        raise ConfigError(f"{where}: there is no stage {name!r}.", f"Stages: {', '.join(STAGES)}.")
    stage = STAGES[name]
    out = table.pop("out", name)
    if not isinstance(out, str) or "/" in out or out in earlier:
        raise ConfigError(f"{where}: out = {out!r} is not a new plain name.", "Each stage writes its own folder.")
    base = table.pop("base") if isinstance(table.get("base"), dict) else None
    sources: dict[str, str] = {}
    for role, optional in stage.roles.items():
        value = table.pop(role, None) or None  # "" is none, whatever the defaults say
        if value is None and not optional and not (role == "base" and base):
            raise ConfigError(
                f"{where}: {name} needs `{role}`.", f"Give the `out` of an earlier stage ({', '.join(earlier) or 'none yet'}) or a path."
            )
        if value is not None:
            paths = [str(item) for item in (value if isinstance(value, list) else [value])]
            if role not in stage.repeated and len(paths) > 1:
                raise ConfigError(f"{where}: {role} is a list; {name} takes one.", "Give one, or `also` for more teachers.")
            sources |= several(role, paths) if role in stage.repeated else {role: paths[0]}
    _known(table, {"run", "out", *_keys(name)}, where)
    again = seed is not None and "seed" in stage.options.model_fields and "seed" not in table
    if again:
        table["seed"] = seed
    options = read_options(stage.options, table, where)
    if base is not None:
        if "base" not in stage.roles:
            raise ConfigError(f"{where}: {name} has no base.", "Move the table to the stage that starts from it.")
        later = {"vocabulary": 1, "max_length": getattr(options, "max_length", 512), "head": {"labels": 2}}
        read_config({**base, **later}, f"base of {where}")
    if again or any(step.out in sources.values() and step.place != step.out for step in before):
        return Step(stage, out, f"seed-{seed}/{out}", options, sources, base)
    return Step(stage, out, out, options, sources, base)


def _write(base: dict[str, Any], file: Path) -> Path:
    """The configuration as a JSON file whose bytes depend on its content alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".json.partial")
    partial.write_bytes(canonical(base))
    return partial.replace(file)


def _known(table: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(table.keys() - known):
        raise ConfigError(f"{where}: unknown key {', '.join(map(repr, unknown))}.", f"Known keys: {', '.join(sorted(known))}.")
