"""Times any predictor in a process of its own.

`start_worker` starts `python -m serve.timing`, which opens one predictor and then obeys commands, one JSON object a line: on its standard
input a command, on its standard output the reply. Whatever a library prints goes to standard error, so it cannot break the protocol.
A worker that waits for a command is blocked and costs nothing, so several may be open while one of them is timed.

Nothing is cached between answers: every sample is one text through the tokenizer, the model and the choice of its label (or whatever
the answer of its task is).
"""

import base64
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from model.errors import AlambicError, EnvironmentProblem

if TYPE_CHECKING:
    import numpy.typing as npt

    from serve.predictor import Predictor

Clock = Callable[[], float]

WARM_SECONDS = 0.05  # before every timed turn: caches and clock rates come back after the other processes' turns
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
LAST_LINES = 15  # of a dead worker's standard error


# The worker's side


@dataclass
class Desk:
    """What a worker holds: the predictor, the texts that it is timed on, the clock (seconds)."""

    predictor: "Predictor"
    clock: Clock
    texts: list[str] = field(default_factory=list)
    pairs: list[str] | None = None
    answer: Callable[..., Any] | None = None  # outputs to answer, of a predictor that is no classifier

    def part(self, first: int, count: int) -> tuple[list[str], list[str] | None]:
        """`count` texts from number `first` on, with their second texts."""
        part = slice(first, first + count)
        return self.texts[part], None if self.pairs is None else self.pairs[part]


def open_desk(factory: str, arguments: dict[str, Any], clock: Clock, text: str, pair: str | None) -> Desk:
    """The predictor of `factory` ("module:function") after its first answer."""
    module, _, function = factory.partition(":")
    predictor = getattr(importlib.import_module(module), function)(**arguments)
    desk = Desk(predictor, clock, [text], None if pair is None else [pair])
    if (task := getattr(predictor, "task", "classification")) != "classification":
        from serve.tasks import bare_answer  # here: another maker's classifier may live where our tokenizers do not

        desk.answer = partial(bare_answer, task)
    _answer(desk, 0)
    return desk


def _answer(desk: Desk, index: int) -> tuple[float, float]:
    """Seconds of one text: text → answer, and ids → logits within it."""
    text, pair = desk.part(index, 1)
    predictor, clock = desk.predictor, desk.clock
    start = clock()
    batch = predictor.encode(text, pair)
    encoded = clock()
    logits = predictor.logits(batch)
    scored = clock()
    if desk.answer is not None:
        desk.answer(logits, batch, predictor.labels, pair is not None)
    else:
        predictor.labels[int(logits[0].argmax())]
    answered = clock()
    return answered - start, scored - encoded


def _texts(desk: Desk, texts: list[str], pairs: list[str] | None = None) -> dict[str, Any]:
    desk.texts, desk.pairs = texts, pairs
    return {}


def _warm(desk: Desk, seconds: float = WARM_SECONDS) -> dict[str, Any]:
    """Answer texts in turn for `seconds`, each at least once; the mean seconds a text."""
    start, done = desk.clock(), 0
    while done < len(desk.texts) or desk.clock() - start < seconds:
        _answer(desk, done % len(desk.texts))
        done += 1
    return {"seconds_per_text": (desk.clock() - start) / done}


def _round(desk: Desk, warm_seconds: float = WARM_SECONDS) -> dict[str, Any]:
    """Every text once: `answer` (text → answer) and `model` (ids → logits), seconds in the order of the texts.

    `waited` is the share of that time in which it could have run and no core was free, None where the system does not tell.
    """
    gc.collect()
    start, done = desk.clock(), 0
    while desk.clock() - start < warm_seconds:
        _answer(desk, done % len(desk.texts))
        done += 1
    begin, before = time.perf_counter(), waited_seconds()
    samples = [_answer(desk, index) for index in range(len(desk.texts))]
    after, elapsed = waited_seconds(), time.perf_counter() - begin
    waited = None if before is None or after is None else min(1.0, (after - before) / elapsed)
    return {"answer": [answer for answer, _ in samples], "model": [model for _, model in samples], "waited": waited}


def waited_seconds(statistics: Path = Path("/proc/thread-self/schedstat")) -> float | None:
    """Seconds for which this thread has waited for a core so far, by the second number of Linux's `schedstat`."""
    try:
        return int(statistics.read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return None


def _throughput(desk: Desk, batch: int, seconds: float = 0.5) -> dict[str, Any]:
    """Texts a second in batches of `batch` (long texts: fewer), in the order given, over whole passes of at least `seconds` together."""
    _pass(desk, batch, len(desk.texts[:batch]))  # memory for the larger shape is asked for once
    begin, elapsed, done = desk.clock(), 0.0, 0
    while not done or elapsed < seconds:
        done += _pass(desk, batch, len(desk.texts))
        elapsed = desk.clock() - begin
    return {"texts_per_second": done / elapsed}


def _pass(desk: Desk, batch: int, count: int) -> int:
    from serve.predictor import batches

    for first in range(0, count, batch):
        for part in batches(desk.predictor, *desk.part(first, batch)):
            desk.predictor.logits(part)
    return count


def _scores(desk: Desk, texts: list[str], pairs: list[str] | None = None, batch: int = 32) -> dict[str, Any]:
    """What the model gives for other texts (`serve.predictor.scores`), packed, for quality; nothing is timed."""
    from serve.predictor import scores  # here: what a cold start needs is the predictor's own imports

    return {"logits": packed(scores(desk.predictor, texts, pairs, batch))}


def _lessons(desk: Desk, lessons: list[dict[str, list[int]]], batch: int = 32) -> dict[str, Any]:
    """What the model says at the places of other texts (`serve.places.at_places`), packed, for quality; nothing is timed."""
    from serve.places import at_places

    return {"outputs": packed(at_places(desk.predictor, lessons, batch))}


def packed(array: "npt.NDArray[Any]") -> dict[str, Any]:
    """An array as JSON: float32 in base64, since the tags of a thousand sentences are millions of numbers."""
    return {"shape": list(array.shape), "float32": base64.b64encode(array.astype("<f4").tobytes()).decode()}


def unpacked(value: dict[str, Any]) -> "npt.NDArray[Any]":
    """The array that was `packed`."""
    import numpy as np

    return np.frombuffer(base64.b64decode(value["float32"]), "<f4").reshape(value["shape"])


def _lengths(desk: Desk) -> dict[str, Any]:
    """Tokens of each text, as this predictor counts them; None where its batches have neither a mask nor ids."""
    batches = [desk.predictor.encode(*desk.part(index, 1)) for index in range(len(desk.texts))]
    known = [int(batch["attention_mask"].sum()) for batch in batches if "attention_mask" in batch]
    known = known or [batch["input_ids"].shape[1] for batch in batches if "input_ids" in batch]  # without a mask nothing is padding
    return {"lengths": known if len(known) == len(batches) else None}


def _device(desk: Desk) -> dict[str, Any]:
    """Seconds of each text on the device alone, its inputs there already; None where the predictor cannot tell."""
    measure = getattr(desk.predictor, "device_seconds", None)
    return {"device": measure and [measure(desk.predictor.encode(*desk.part(index, 1))) for index in range(len(desk.texts))]}


def _shape(desk: Desk, batch: int, length: int, samples: int, vocabulary: int = 1000) -> dict[str, Any]:
    """Random ids of one shape, without padding: `model`, seconds of ids → logits, and `device`, the mean on the device alone, or None."""
    import numpy as np

    ids = np.random.default_rng(0).integers(1, vocabulary, (batch, length))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for _ in range(3):  # memory, captured graphs, compiled kernels
        desk.predictor.logits(given)
    seconds = []
    for _ in range(samples):
        start = desk.clock()
        desk.predictor.logits(given)
        seconds.append(desk.clock() - start)
    measure = getattr(desk.predictor, "device_seconds", None)
    return {"model": seconds, "device": measure and measure(given)}


def _memory(desk: Desk) -> dict[str, Any]:
    """The most memory that was resident so far, MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage: a new process inherits its parent's peak there
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return {"peak_rss_mb": int(peak.split()[1]) * 1024 / 1e6}
    import resource

    return {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # bytes on macOS


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "texts": _texts,
    "warm": _warm,
    "round": _round,
    "throughput": _throughput,
    "scores": _scores,
    "lessons": _lessons,
    "memory": _memory,
    "lengths": _lengths,
    "device": _device,
    "shape": _shape,
}


def obey(commands: IO[str], replies: IO[str], clock: Clock = time.perf_counter) -> None:
    """Open what the first line asks for, then obey a command a line until `quit` or the end.

    What a user can mend goes back as `{"error": …, "hint": …}`; anything else ends the process with its traceback.
    """

    def reply(values: dict[str, Any]) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    try:
        desk = open_desk(**json.loads(commands.readline()), clock=clock)
        predictor = desk.predictor
        reply({"labels": list(predictor.labels), "engine": predictor.engine, "provider": predictor.provider})
        for line in commands:
            arguments = json.loads(line)
            if (command := arguments.pop("command")) == "quit":
                return
            reply(COMMANDS[command](desk, **arguments))
    except AlambicError as error:
        reply({"error": error.message, "hint": error.hint})


def main() -> None:
    """Keep standard input and output for the protocol alone, then obey."""
    commands, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    obey(commands, replies)


# The parent's side


@dataclass
class Worker:
    """One predictor in its own process; a context manager that ends it."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[bytes]
    timeout: float
    labels: tuple[str, ...] = ()
    engine: str = ""
    provider: str = ""
    cold_start_ms: float = 0.0

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The worker's reply to one of COMMANDS.

        Raises AlambicError with what the worker refused, or EnvironmentProblem with the end of its standard error if it died or took
        longer than `timeout` seconds.
        """
        return self.exchange({"command": command, **arguments})

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a line, wait for a line."""
        assert self.process.stdin and self.process.stdout
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        watch = threading.Timer(self.timeout, end)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            raise self._death(message.get("command", "open"), late.is_set())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise AlambicError(f"Timing {self.name}: {reply['error']}", reply["hint"])
        return reply

    def _death(self, command: str, late: bool) -> EnvironmentProblem:
        code = self.process.wait()
        if late:
            what = f"gave no answer within {self.timeout:g} s"
        else:
            what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.errors.seek(0)
        tail = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-LAST_LINES:]
        words = "\n".join(["Its last words:", *tail]) if tail else "It said nothing."
        hint = "Time fewer texts or ways at once." if late or code < 0 else "Its last words say what to mend."
        return EnvironmentProblem(f"The process that times {self.name} {what} (at the command {command!r}). {words}", hint)

    def close(self) -> None:
        """Ask it to end; a worker that does not within 5 s is killed."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"command": "quit"}) + "\n")
            self.process.stdin.close()
            self.process.wait(5)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def start_worker(
    name: str,
    factory: str,
    arguments: dict[str, Any],
    text: str,
    pair: str | None = None,
    *,
    threads: int = 1,
    timeout: float = 600.0,
    python: str = sys.executable,
    folders: Sequence[str] | None = None,
    clock: Clock = time.perf_counter,
) -> Worker:
    """A worker that has given its first answer, to `text`; `cold_start_ms` is the time from the process's start to that answer.

    `factory` is "module:function" of a function that returns a Predictor for `arguments`; it is imported in the worker only, from the
    same places as here. The worker of another interpreter, `python`, has that one's packages and imports from `folders` besides (which
    must hold this package). The model's files may be in the page cache already. Raises as `Worker.ask` does.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in (sys.path if folders is None else folders))
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the worker's close() closes it
    start = clock()
    process = subprocess.Popen(
        [python, "-P", "-m", "serve.timing"],  # -P: a serve.py in the working directory is somebody else's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        encoding="utf-8",
    )
    worker = Worker(name, process, errors, timeout)
    try:
        ready = worker.exchange({"factory": factory, "arguments": arguments, "text": text, "pair": pair})
    except BaseException:
        worker.close()
        raise
    worker.cold_start_ms = (clock() - start) * 1000
    worker.labels, worker.engine, worker.provider = tuple(ready["labels"]), ready["engine"], ready["provider"]
    return worker


if __name__ == "__main__":
    main()
