"""The command line: a command builds a configuration, calls one function, echoes.

Results go to stdout (`--json` for programs), everything else to stderr. Errors that a user can cause leave through one `boundary`:
a line `Error:`, a line `Hint:`, exit code 2, or 3 if a gate said no. This file is torch-free until a stage runs.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click

from compress.config import Options, read_options
from compress.ranks import processes
from compress.stage import STAGES, Stage
from model.errors import AlambicError, ConfigError

EXAMPLES = {
    "train": """\b
        compress train tweets --base minilm --out runs/teacher
        compress train reviews.csv --text title --text body --label stars --base minilm --out runs/teacher
        compress train tweets --base encoder.json --vocabulary unigram:8000 --epochs 3 --out runs/scratch""",
    "distill": """\b
        compress distill runs/teacher --data tweets --out runs/student
        compress distill runs/teacher --data tweets --student convolution:256 --epochs 10 --batch-size 128 --out runs/student
        compress distill runs/teacher --data tweets --depth 3 --teacher-layers 1,3,5 --epochs 4 --out runs/student
        compress distill runs/teacher --data tweets --vocabulary unigram:16000 --out runs/student
        compress distill runs/teacher --data tweets --unlabelled reviews.txt,forum.csv --split-sentences --out runs/student
        compress distill runs/teacher --data tweets --depth 2 --heads 4 --neurons 192 --out runs/student
        compress distill runs/teacher --also runs/teacher-1 --also runs/teacher-2 --data tweets --out runs/student
        compress distill runs/teacher --student runs/pruned --data tweets --out runs/further
        compress distill transformers-directory --base minilm --hidden 0 --data tweets --out runs/student""",
    "prune": """\b
        compress prune runs/student --teacher runs/teacher --data tweets --heads 4 --neurons 192 --out runs/pruned
        compress prune runs/student --teacher runs/teacher --data tweets --heads 4 --allocation global --out runs/pruned""",
    "quantize": """\b
        compress quantize runs/pruned --data tweets --out runs/quantized
        compress quantize runs/pruned --teacher runs/teacher --data tweets --method qat --epochs 1 --out runs/quantized
        compress quantize runs/pruned --data tweets --scheme tensorrt --out runs/for-tensorrt""",
    "export": """\b
        compress export runs/quantized --out runs/onnx
        compress export runs/quantized --ensemble runs/convolution-int8 --out runs/together
        compress export runs/teacher --precision fp16 --attention ort --out runs/gpu""",
    "benchmark": """\b
        compress benchmark runs/teacher runs/onnx --data tweets --out runs/report
        compress benchmark runs/teacher runs/onnx --data tweets --way transformers,torch,ort --rounds 11 --out runs/report
        compress benchmark bert-directory runs/onnx --data reviews.csv --seconds 600 --sweep 1,8,32 --out runs/report
        compress benchmark runs/teacher runs/onnx --data private.csv --no-examples --price 0.10 --out runs/report""",
}
SUMMARIES = {
    "train": "Fine-tune a base on DATA: the teacher.",
    "distill": "Teach a smaller student what TEACHER knows.",
    "prune": "Remove the least important heads and neurons of MODEL, then recover.",
    "quantize": "Make MODEL's linears and embeddings int8, for the CPU or for TensorRT.",
    "export": "Write MODEL as ONNX, checked against PyTorch and against what ONNX Runtime really runs.",
    "benchmark": "Measure MODELS against the first of them: latency, quality, size.",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="alambic")
def cli() -> None:
    """Make a text encoder small, fast and deployable, and prove it.

    Train a teacher, distill it into a student, prune and quantize that, export it to ONNX, and benchmark it under ONNX Runtime
    against the full model. `compress run demo --out runs/demo` does all of it on real text.
    """


@contextmanager
def boundary() -> Iterator[None]:
    """The one place where errors become lines on stderr and exit codes: of `compress`, and of the scripts in benchmarks."""
    try:
        yield
    except AlambicError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(f"Hint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "compress"
        click.echo(f"Error: {error.format_message()}", err=True)
        click.echo(f"Hint: `{command} --help` shows how it is used.", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped. The same command goes on from the last checkpoint.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has left
        sys.exit(0)


def main() -> None:
    """Entry point of `compress`."""
    with boundary():
        cli.main(standalone_mode=False)


def _epilog(text: str) -> str:
    return "\b\nExamples:\n" + "\n".join("  " + line.strip() for line in text.splitlines() if line.strip() not in ("", "\b"))


def _options(kind: type[Options]) -> Callable[[Any], Any]:
    """One click option for each field of `kind`."""

    def decorate(function: Any) -> Any:
        for name, field in reversed(kind.model_fields.items()):
            inner = [part for part in get_args(field.annotation) if part is not type(None)]
            annotation = inner[0] if type(None) in get_args(field.annotation) else field.annotation
            choices = get_args(annotation) if get_origin(annotation) is Literal else ()
            several = get_origin(annotation) is tuple
            shown = ",".join(map(str, field.default)) if several else field.default
            flag = "--" + name.replace("_", "-")
            function = click.option(
                f"{flag}/--no-{flag[2:]}" if annotation is bool else flag,
                name,
                type=click.Choice(choices) if choices else str if several else annotation,
                metavar="LIST" if several else None,
                multiple=several,
                default=None,
                help=f"{field.description}" + (f" [default: {shown}]" if shown not in (None, "") else ""),
            )(function)
        return function

    return decorate


def _data_options(function: Any) -> Any:
    function = click.option("--label", default="", help="Column with the label [default: label].")(function)
    return click.option("--text", multiple=True, help="Column with the text; twice for pairs [default: text].")(function)


def _make(
    stage: Stage, values: dict[str, Any], paths: dict[str, str], data: dict[str, Any] | None, out: str, overwrite: bool, as_json: bool
) -> None:
    """Run one stage and tell what it did."""
    stage.check_environment()
    from compress.data import load_data
    from compress.progress import say, stage_line
    from compress.sources import open_sources
    from compress.stage import run_stage

    # A list is one value, with commas, or its flag again and again.
    given = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in values.items() if value not in (None, ())}
    options = read_options(stage.options, given, f"compress {stage.name}")
    sources = open_sources(stage.kinds, paths)
    loaded = load_data(**data) if data else None
    outcome = run_stage(stage, options, sources, loaded, Path(out), overwrite=overwrite)
    say(stage_line(outcome))
    if as_json:
        click.echo(json.dumps({"out": out, "digest": outcome.manifest.digest, "fresh": outcome.fresh, "metrics": outcome.manifest.metrics}))


def _stage_command(name: str) -> None:
    """Register the command of a stage: its sources as arguments, its options from their model."""
    stage = STAGES[name]

    def run(out: str, overwrite: bool, as_json: bool, **values: Any) -> None:
        from compress.sources import several

        data = {"source": values.pop("data"), "text": values.pop("text"), "label": values.pop("label")} if stage.needs_data else None
        given = {role: values.pop(role) for role in stage.roles}
        paths: dict[str, str] = {}
        for role, value in given.items():
            if value:
                paths |= several(role, value) if role in stage.repeated else {role: value}
        _make(stage, values, paths, data, out, overwrite, as_json)

    command: Any = _options(stage.options)(run)
    command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")(command)
    command = click.option("--overwrite", is_flag=True, help="Replace OUT if it was made otherwise.")(command)
    command = click.option("--out", required=True, metavar="OUT", help="Directory of the artifact to make.")(command)
    if stage.needs_data:
        command = _data_options(command)
        if name != "train":
            command = click.option("--data", required=True, help="Built-in set, file, folder, or id on the hub.")(command)
    for position, (role, optional) in enumerate(reversed(stage.roles.items())):
        if name != "train" and position == len(stage.roles) - 1:
            command = click.argument(role, nargs=-1 if role in stage.repeated else 1, required=True)(command)
        else:
            many = role in stage.repeated
            command = click.option(f"--{role}", required=not optional, multiple=many, help=ROLES[role])(command)
    if name == "train":
        command = click.argument("data")(command)
    cli.command(name, help=SUMMARIES[name], epilog=_epilog(EXAMPLES[name]))(command)


ROLES = {
    "base": "What to start from: minilm, a directory or hub id of transformers, an artifact, or a JSON model configuration.",
    "tokenizer": "Directory or SentencePiece model of the tokenizer, where the base has none.",
    "generator": "Masked language model that finds words: for --augment infill; for --task replaced (default: other words of the texts).",
    "backbone": "Where the backbone of a prefix is now, if it is not where it was.",
    "teacher": "What the model learns from while it recovers: an artifact, or a directory or hub id of a classifier of transformers.",
    "also": "Another teacher of the same labels, again and again: what is learnt is the mean of what all say (an ensemble).",
    "ensemble": "Another model of the same labels and tokens, again and again: the file gives the mean of what all say.",
    "student": "A student without layers (static[:WIDTH[:NEURONS]], convolution[:CHANNELS[:NEURONS]], a JSON configuration), or an "
    "artifact that goes on.",
}
for _name in STAGES:
    _stage_command(_name)


@cli.command(epilog=_epilog("compress run demo --out runs/demo\ncompress run my-recipe.toml --out runs/mine --seed 1"))
@click.argument("recipe")
@click.option("--out", required=True, metavar="OUT", help="Directory under which each stage writes its own.")
@click.option("--seed", type=click.IntRange(min=0), help="Repeat with another seed, in OUT/seed-N, all but the stages that say their own.")
@click.option("--overwrite", is_flag=True, help="Replace what was made otherwise.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
def run(recipe: str, out: str, seed: int | None, overwrite: bool, as_json: bool) -> None:
    """Run a RECIPE (shipped name or TOML file): stages in order, skipping what is made."""
    from compress.progress import say, stage_line
    from compress.recipe import read_recipe, run_recipe

    if processes() > 1:
        raise ConfigError("torchrun was given a recipe.", "Several processes train one stage at a time: `torchrun … compress train`.")
    checked = read_recipe(recipe, seed)
    say(f"{checked.name}: {' → '.join(step.stage.name for step in checked.steps)} on {checked.data['source']}, into {out}")
    outcomes = run_recipe(checked, Path(out), overwrite=overwrite, done=lambda outcome: say(stage_line(outcome)))
    last = outcomes[-1]
    if last.manifest.kind == "report":
        from compress.report import headline

        report = json.loads((last.path / "report.json").read_bytes())
        say(f"\nReport: {last.path / 'report.html'}\n        {last.path / 'report.json'}")
        for line in headline(report):
            say(line)
        if as_json:
            click.echo(json.dumps(report))
    elif as_json:
        click.echo(json.dumps([{"out": str(outcome.path), "digest": outcome.manifest.digest} for outcome in outcomes]))


PREDICT = """\b
        compress predict runs/demo/onnx "what a lovely day" "I missed my train"
        cat texts.txt | compress predict runs/demo/onnx --json
        compress predict runs/demo/onnx --file reviews.csv --text body --out labelled.csv"""


@cli.command(epilog=_epilog(PREDICT))
@click.argument("artifact")
@click.argument("texts", nargs=-1)
@click.option("--file", type=click.Path(path_type=Path), help="CSV, TSV, JSONL (also .gz) or Parquet file with the texts.")
@click.option("--text", multiple=True, help="Column of the file with the text; twice for pairs [default: text].")
@click.option("--out", type=click.Path(path_type=Path), help="Write the file's columns and the predictions here; the format by its ending.")
@click.option("--overwrite", is_flag=True, help="Replace OUT.")
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where ONNX Runtime runs.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads on the CPU.")
@click.option("--allow-fallback", is_flag=True, help="Take the CPU where CUDA was asked for and is not to be had.")
@click.option("--backbone", help="Where the backbone of a prefix is now, if it is not where it was.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every probability.")
def predict(
    artifact: str,
    texts: tuple[str, ...],
    file: Path | None,
    text: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    provider: str,
    threads: int,
    allow_fallback: bool,
    backbone: str | None,
    as_json: bool,
) -> None:
    """Label TEXTS, the rows of a file, or the lines of standard input with ARTIFACT, or with the model in a directory of transformers."""
    from compress.prediction import Device, label_texts
    from compress.sources import open_source

    count = label_texts(
        Path(artifact),
        texts=texts,
        file=file,
        stdin=sys.stdin.buffer,
        columns=text,
        out=out,
        overwrite=overwrite,
        as_json=as_json,
        device=Device(provider, threads, allow_fallback),
        backbone=open_source(backbone).path if backbone else None,
        echo=click.echo,
    )
    if out is not None:
        click.echo(f"{count:,} rows → {out}", err=True)


@cli.command(epilog=_epilog("compress inspect runs/demo/onnx"))
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def inspect(directory: str, as_json: bool) -> None:
    """Show what an artifact is, where it comes from and whether it is whole."""
    from compress.inspection import describe, tree
    from model.artifact import open_artifact

    artifact = open_artifact(directory)
    click.echo(json.dumps(describe(artifact)) if as_json else tree(artifact))


AUDIT = """\b
        compress audit runs/demo/onnx
        compress audit runs/demo/onnx --nodes --threads 4
        compress audit runs/demo/onnx --json > audit.json"""


@cli.command(epilog=_epilog(AUDIT))
@click.argument("artifact")
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where ONNX Runtime is to run it.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads on the CPU.")
@click.option("--nodes", is_flag=True, help="Show every node, not only the slowest.")
@click.option("--json", "as_json", is_flag=True, help="Print everything that was found as JSON.")
def audit(artifact: str, provider: str, threads: int, nodes: bool, as_json: bool) -> None:
    """Show how ONNX Runtime runs an exported ARTIFACT: operators, precision, time; leave with 3 if it is not as planned."""
    from rich.console import Console

    from compress import auditing
    from model.artifact import open_artifact

    found = auditing.examine(open_artifact(artifact, "onnx"), provider, threads)
    if as_json:
        click.echo(json.dumps(found))
    else:
        Console(highlight=False).print(auditing.show(found, nodes))
    auditing.gate(found)


@cli.command(epilog=_epilog("compress diff runs/a/onnx runs/b/onnx"))
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def diff(a: str, b: str, as_json: bool) -> None:
    """Say which option, parent, data or version made two artifacts differ."""
    from compress.inspection import compare
    from model.artifact import open_artifact

    lines = compare(open_artifact(a), open_artifact(b))
    if as_json:
        click.echo(json.dumps(lines))
    else:
        click.echo("\n".join(lines) if lines else "The same: equal digests.")


@cli.command(epilog=_epilog("compress compare main/report.json new/report.json\ncompress compare runs/a/report runs/b/report --json"))
@click.argument("old")
@click.argument("new")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
def compare(old: str, new: str, as_json: bool) -> None:
    """Say what changed from report OLD to report NEW beyond noise; leave with 3 if something is worse."""
    from compress.comparison import compare_reports, gate, read_report

    found = compare_reports(read_report(Path(old)), read_report(Path(new)))
    click.echo(found.model_dump_json() if as_json else found.text())
    gate(found)


@cli.command("cache", epilog=_epilog("compress cache\ncompress cache --clear"))
@click.option("--cache", "folder", help="Its folder [default: $ALAMBIC_CACHE, or alambic in the user's cache].")
@click.option("--clear", "emptied", is_flag=True, help="Delete what nobody is making; a stage that needs it makes it again.")
@click.option("--json", "as_json", is_flag=True, help="Print the entries as JSON.")
def cache_(folder: str | None, emptied: bool, as_json: bool) -> None:
    """Show or clear what stages keep for each other, such as the answers of teachers."""
    from compress.cache import cache_folder, clear, describe, lines

    where = cache_folder(folder)
    if emptied:
        click.echo(f"{where}: {clear(where) / 1e6:,.1f} MB freed")
    else:
        click.echo(json.dumps(describe(where)) if as_json else "\n".join(lines(where)))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def options(as_json: bool) -> None:
    """List the encoder's slots, their kinds and parameters."""
    from compress.inspection import slots

    found = slots()
    if as_json:
        click.echo(json.dumps(found))
        return
    for slot, kinds in found.items():
        click.echo(slot)
        for kind, parameters in kinds.items():
            click.echo(f"  {kind}: {', '.join(f'{name} ({text})' for name, text in parameters.items()) or 'no parameters'}")
