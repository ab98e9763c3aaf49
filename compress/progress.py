"""What a person at the terminal sees while something runs: on stderr, since stdout belongs to results. Torch-free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compress.ranks import rank
from compress.tasks import first_score, quality_words

if TYPE_CHECKING:
    from compress.stage import Outcome

CONSOLE = Console(stderr=True, highlight=False, quiet=rank() > 0)


def say(text: str) -> None:
    """A line for the person."""
    CONSOLE.print(text, markup=False, soft_wrap=True)


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; the function given is told (done, total, a few words)."""
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=CONSOLE, transient=True, disable=not CONSOLE.is_terminal) as shown:
        task = shown.add_task(description, total=None, words="")

        def tell(done: int, total: int, words: str = "") -> None:
            shown.update(task, completed=done, total=total, words=words)

        yield tell


def stage_line(outcome: "Outcome") -> str:
    """One line: what a stage did to accuracy, latency and size."""
    manifest = outcome.manifest
    metrics = manifest.metrics
    parts = []
    if quality := metrics.get("validation"):
        parts.append(f"{quality_words(quality)} on validation{_change(manifest, quality)}")
    if "torch_ms" in metrics:
        parts.append(f"{metrics['torch_ms']:.2f} ms in PyTorch")
    if "ort_ms" in metrics:
        parts.append(f"{metrics['ort_ms']:.3f} ms in ONNX Runtime")
    if metrics.get("integer_linears", {}).get("integer"):
        parts.append("{integer} of {total} encoder linears run as integers".format(**metrics["integer_linears"]))
    parts.append(f"{sum(file.bytes for file in manifest.files.values()) / 1e6:.1f} MB")
    parts.append(f"{manifest.made_by['seconds']:.0f} s" if outcome.fresh else "up to date")
    return f"{manifest.stage:>9} → {outcome.path}: {', '.join(parts)}"


def _change(manifest: Any, quality: dict[str, Any]) -> str:
    """The difference to the model that it was made from, in points."""
    for role in ("model", "teacher"):
        parent = manifest.ancestors.get(manifest.parents.get(role, ""), {}).get("metrics", {})
        now, before = first_score(quality), first_score(parent.get("validation", {}))
        if now and before:
            return f" ({100 * (now[1] - before[1]):+.1f} points)"
    return ""
