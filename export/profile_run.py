"""What each node costs: ONNX Runtime's own profiler over the optimised graph, at a few shapes.

The profiler costs some microseconds a node itself, so whole runs are timed without it. On a GPU it times the launch of a kernel, not
the kernel: there a node's time tells where the host waits, and only the whole runs tell how long an answer takes.
"""

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.audit import INTEGER, Audit, read_graph
from model.tokenizer import Batch
from serve.sessions import PROVIDERS, open_session

SHAPES = ((1, 16), (1, 64), (8, 64))
WARM = 3  # runs that are not counted
LEAST, MOST, SECONDS = 5, 50, 1.0  # counted runs a shape: as many as fit into a second, within limits
SUFFIX = "_kernel_time"
FLOATS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
NAMES = {name: short for short, name in PROVIDERS.items()}


@dataclass(frozen=True)
class Node:
    """A node as it ran: types of its first input (`given`) and of its computing (`precision`), and for each shape a mean time."""

    name: str
    operator: str
    provider: str
    given: str
    precision: str
    microseconds: tuple[float, ...]

    @property
    def widens(self) -> bool:
        """Whether it does nothing but turn one width of floats into another."""
        return self.operator == "Cast" and {self.given, self.precision} <= set(FLOATS.values())


@dataclass(frozen=True)
class Profile:
    """The `nodes` in the order in which they ran, and for each of the `shapes` (batch, length) the median of a whole run, ms."""

    provider: str
    shapes: tuple[tuple[int, int], ...]
    runs: tuple[float, ...]
    nodes: tuple[Node, ...]

    @property
    def fallen(self) -> tuple[Node, ...]:
        """Nodes that compute on the CPU though the session runs elsewhere; arithmetic on shapes, which is in int64, belongs there."""
        return tuple(node for node in self.nodes if node.provider == "cpu" != self.provider and node.precision not in ("int64", "bool"))


def profile(
    file: Path, *, vocabulary: int, longest: int, shapes: Sequence[tuple[int, int]] = SHAPES, provider: str = "cpu", threads: int = 1
) -> tuple[Audit, Profile]:
    """Run the graph in `file` at `shapes`, none longer than `longest` tokens, and look at what it became; raises as `open_session` does.

    Ids are drawn from `vocabulary`; nothing is padded.
    """
    cut = tuple(dict.fromkeys((batch, min(length, longest)) for batch, length in shapes))
    owners: list[int | None] = []  # of each run the number of its shape, None while it warms
    with tempfile.TemporaryDirectory() as folder:
        session, used = open_session(file, provider, threads, record=Path(folder))
        taken = {entry.name for entry in session.get_inputs()}
        batches = [{name: array for name, array in _batch(shape, vocabulary).items() if name in taken} for shape in cut]
        for number, batch in enumerate(batches):
            warm = [_seconds(session, batch) for _ in range(WARM)]
            count = max(LEAST, min(MOST, int(SECONDS / min(warm))))
            owners += [None] * WARM + [number] * count
            for _ in range(count):
                session.run(None, batch)
        events = json.loads(Path(session.end_profiling()).read_bytes())
        runs = tuple(
            round(1000 * statistics.median(_seconds(session, batch) for _ in range(owners.count(number))), 4)
            for number, batch in enumerate(batches)
        )
        audited = read_graph(onnx.load(Path(folder) / "optimized.onnx", load_external_data=False).graph)
    return audited, Profile(used, cut, runs, read_events(events, owners))


def read_events(events: Iterable[Mapping[str, Any]], owners: Sequence[int | None]) -> tuple[Node, ...]:
    """The nodes in ONNX Runtime's list of `events`, whose runs belong to `owners` in turn."""
    facts: dict[str, Mapping[str, Any]] = {}
    times: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    current: dict[str, float] = defaultdict(float)  # a node in the body of a loop runs several times
    turns = iter(owners)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(SUFFIX):
            name = event["name"].removesuffix(SUFFIX)
            facts.setdefault(name, event["args"])
            current[name] += event["dur"]
        elif event["name"] == "model_run":
            owner = next(turns)
            if owner is not None:
                for name, microseconds in current.items():
                    times[name][owner].append(microseconds)
            current.clear()
    shapes = sorted({owner for owner in owners if owner is not None})
    return tuple(
        Node(
            name,
            facts[name]["op_name"],
            NAMES.get(facts[name]["provider"], facts[name]["provider"]),
            _type(facts[name].get("input_type_shape")),
            "int8" if facts[name]["op_name"] in INTEGER else _type(facts[name].get("output_type_shape")),
            tuple(round(_middle(found[shape]), 1) for shape in shapes),
        )
        for name, found in times.items()
    )


def _batch(shape: tuple[int, int], vocabulary: int) -> Batch:
    ids = np.random.default_rng(0).integers(0, vocabulary, shape)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _seconds(session: Any, batch: Batch) -> float:
    started = time.perf_counter()
    session.run(None, batch)
    return time.perf_counter() - started


def _middle(samples: Sequence[float]) -> float:
    """Mean of the middle half: the profiler counts in whole microseconds, which a median would keep, and has outliers, as a mean would."""
    ordered = sorted(samples)
    spare = len(ordered) // 4
    return statistics.fmean(ordered[spare : len(ordered) - spare]) if ordered else 0.0


def _type(shapes: Sequence[Mapping[str, Any]] | None) -> str:
    """The type of the first of a node's inputs or outputs, as the profile notes them: [{"float": [1, 16]}, …]."""
    name = next((kind for entry in shapes or () for kind in entry), "")
    return FLOATS.get(name, name)
