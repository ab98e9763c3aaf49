"""Throughput against batch, threads and processes: how a model uses the cores that there are."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from compress.ways import Way
from serve.timing import Worker

SECONDS = 0.5  # each cell


def settings(threads: int, cores: int) -> list[tuple[int, int]]:
    """Threads and processes together: `threads` in one process; then more threads in one, and more processes of one, up to `cores`."""
    powers = [1 << power for power in range(cores.bit_length()) if 1 << power <= cores]
    return list(dict.fromkeys([(threads, 1), *((count, 1) for count in powers), *((1, count) for count in powers)]))


def sweep(
    way: Way,
    batches: Sequence[int],
    threads: int,
    cores: int,
    texts: list[str],
    pairs: list[str] | None,
    start: Callable[..., Worker],
    timeout: float,
) -> list[dict[str, Any]]:
    """Texts a second of `way` for every batch and setting, as rows {"batch", "threads", "processes", "texts_per_second"}.

    The processes of a setting run at the same time and their throughputs are added.
    """
    rows = []
    for count, processes in settings(threads, cores):
        arguments = {**way.arguments, **({"threads": count} if "threads" in way.arguments else {})}
        with ExitStack() as stack:
            workers = [
                stack.enter_context(
                    start(
                        f"{way.name} {number}",
                        way.factory,
                        arguments,
                        texts[0],
                        pairs and pairs[0],
                        threads=count,
                        timeout=timeout,
                        **way.interpreter,
                    )
                )
                for number in range(processes)
            ]
            for worker in workers:
                worker.ask("texts", texts=texts, pairs=pairs)
                worker.ask("warm")
            with ThreadPoolExecutor(processes) as pool:
                for batch in batches:
                    asked = [pool.submit(worker.ask, "throughput", batch=batch, seconds=SECONDS) for worker in workers]
                    speed = sum(one.result()["texts_per_second"] for one in asked)
                    rows.append({"batch": batch, "threads": count, "processes": processes, "texts_per_second": speed})
    return rows
