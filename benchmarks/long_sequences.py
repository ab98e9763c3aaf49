"""What each kind of attention costs as texts grow: latency and peak memory, in ONNX Runtime and in PyTorch.

Four layers of width 256 (8 heads of 32, as MiniLM's; MLP of 1,024), one text, one thread, weights at random: only time and memory are
looked at. All kinds and lengths take turns in one process, round after round; peak memory is that of a process of its own for each
kind and length, above what it held once the model was loaded. A slope is log(t(8192) / t(2048)) / log 4: 1 is linear, 2 is quadratic.

    python benchmarks/long_sequences.py --json long_sequences.json
"""

import argparse
import ctypes
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compress.cli import boundary
from serve.machine import machine_facts

WIDTH, LAYERS, HEADS, NEURONS, VOCABULARY, LONGEST = 256, 4, 8, 1024, 1000, 8192
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "window-128": {"kind": "window", "window": 128, "global_tokens": 4},
    "window-512": {"kind": "window", "window": 512, "global_tokens": 4},
    "linformer": {"kind": "linformer", "length": LONGEST, "landmarks": 256},
    "landmark": {"kind": "landmark", "landmarks": 256},
    "sparse-strided": {"kind": "sparse_strided", "stride": 128},  # that of Child et al. 2019, §7, for 3,072 to 12,288 tokens
    "sparse-fixed": {"kind": "sparse_fixed", "stride": 128, "summary": 2},
    "sparse-bigbird": {"kind": "sparse_bigbird", "block": 64, "global_blocks": 1, "random_blocks": 3},
}
ENGINES = ("ort", "torch")
SHORT, LONG = 2048, LONGEST
Run = Callable[[int], None]
Samples = dict[str, dict[int, list[float]]]


def build(kind: str) -> Any:
    """The encoder of a kind, with fresh weights."""
    import torch

    from model.config import read_config
    from model.encoder import Encoder

    layers = {"count": LAYERS, "attention": {"heads": HEADS, **KINDS[kind]}, "feedforward": {"kind": "mlp", "neurons": NEURONS}}
    shape = {"vocabulary": VOCABULARY, "width": WIDTH, "max_length": LONGEST, "positions": {"kind": "none"}, "head": {"labels": 2}}
    torch.manual_seed(0)
    return Encoder(read_config({**shape, "layers": layers})).eval()


def loaded(kind: str, engine: str, device: str, folder: Path) -> Run:
    """What runs the model of a kind once on a text of so many tokens."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, LONGEST))
    if engine == "ort":
        from serve.predictor import open_session

        session, _ = open_session(folder / f"{kind}.onnx", device)

        def run_ort(length: int) -> None:
            session.run(None, {"input_ids": ids[:, :length], "attention_mask": np.ones((1, length), np.int64)})

        return run_ort
    import torch

    torch.set_num_threads(1)
    encoder = build(kind).to(device)
    encoder.kernel = "sdpa" if device == "cpu" else "flex"

    @torch.inference_mode()
    def run_torch(length: int) -> None:
        encoder(torch.from_numpy(ids[:, :length]).to(device), torch.ones(1, length, dtype=torch.long, device=device)).cpu()

    return run_torch


def memory_mb(kind: str, engine: str, device: str, folder: Path, length: int) -> float | None:
    """Peak memory of one run above that of the loaded model, in MB; on a GPU that of PyTorch alone can be asked for."""
    run = loaded(kind, engine, device, folder)
    run(16)
    if device == "cuda":
        if engine == "ort":
            return None
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(length)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    forgotten = Path("/proc/self/clear_refs")
    if forgotten.exists():
        ctypes.CDLL(None).malloc_trim(0)  # what loading has left is handed back
        forgotten.write_text("5")  # the peak so far, such as that of loading, is forgotten
    before = _peak_mb()
    run(length)
    return _peak_mb() - before


def _peak_mb() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def latency_ms(kinds: list[str], engine: str, device: str, folder: Path, lengths: list[int], rounds: int) -> Samples:
    """Milliseconds of every run, by kind and length; kinds and lengths in turn, after a round that does not count."""
    runs = {kind: loaded(kind, engine, device, folder) for kind in kinds}
    samples: Samples = {kind: {length: [] for length in lengths} for kind in kinds}
    for number in range(rounds + 1):
        for length in lengths:
            for kind, run in runs.items():
                if number == 0 and length > SHORT:
                    continue  # warm enough
                started = time.perf_counter()
                run(length)
                if number:
                    samples[kind][length].append(1000 * (time.perf_counter() - started))
            print(f"\r  {engine}: round {number} of {rounds}, {length} tokens   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return samples


def slope(short: float, long: float) -> float:
    """Of a doubly logarithmic line through the two lengths."""
    return float(np.log(long / short) / np.log(LONG / SHORT))


def resampled(statistic: Callable[[list[float], list[float]], float], a: list[float], b: list[float]) -> list[float]:
    """Bounds of `statistic` in 95 of 100 draws of rounds, with replacement."""
    random = np.random.default_rng(0)
    draws = (random.integers(0, len(a), len(a)) for _ in range(2000))
    found = [statistic([a[i] for i in rows], [b[i] for i in rows]) for rows in draws]
    return [round(float(bound), 3) for bound in np.percentile(found, [2.5, 97.5])]


def summary(samples: Samples, memory: dict[str, dict[int, float | None]]) -> dict[str, Any]:
    """Slopes and ratios of one engine."""

    def of_medians(a: list[float], b: list[float]) -> float:
        return slope(statistics.median(a), statistics.median(b))

    def of_ratios(a: list[float], b: list[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    dense, others = samples["dense"], [kind for kind in samples if kind != "dense"]
    pairs = {kind: (by_length[SHORT], by_length[LONG]) for kind, by_length in samples.items()}
    grown = {kind: (by_length[SHORT], by_length[LONG]) for kind, by_length in memory.items()}
    return {
        "slopes": {kind: round(of_medians(*pair), 3) for kind, pair in pairs.items()},
        "slope_intervals": {kind: resampled(of_medians, *pair) for kind, pair in pairs.items()},
        f"speedup_at_{LONG}": {kind: round(of_ratios(dense[LONG], samples[kind][LONG]), 2) for kind in others},
        f"speedup_at_{LONG}_intervals": {kind: resampled(of_ratios, dense[LONG], samples[kind][LONG]) for kind in others},
        "memory_slopes": {kind: round(slope(a, b), 3) for kind, (a, b) in grown.items() if a and b},
        "latency_ms": {kind: {str(at): round(statistics.median(found), 2) for at, found in by.items()} for kind, by in samples.items()},
        "memory_mb": {
            kind: {str(at): None if found is None else round(found, 1) for at, found in by.items()} for kind, by in memory.items()
        },
    }


def table(engine: str, found: dict[str, Any]) -> Iterator[str]:
    """Markdown lines."""
    lengths = list(found["latency_ms"]["dense"])
    yield f"| {engine} | {' | '.join(f'{length} ms' for length in lengths)} | slope | × dense at {LONG} | MB at {LONG} | memory slope |"
    yield "|---" * (len(lengths) + 5) + "|"
    for kind in found["latency_ms"]:
        cells = [f"{found['latency_ms'][kind][length]:.0f}" for length in lengths]
        low, high = found["slope_intervals"][kind]
        faster = found[f"speedup_at_{LONG}"].get(kind, 1.0)
        peak, grows = found["memory_mb"][kind][str(LONG)], found["memory_slopes"].get(kind)
        cells += [f"{found['slopes'][kind]:.2f} [{low:.2f}, {high:.2f}]", f"{faster:.1f}"]
        yield f"| {kind} | {' | '.join(cells)} | {'–' if peak is None else f'{peak:.0f}'} | {'–' if grows is None else f'{grows:.2f}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two lengths and fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")
    parser.add_argument("--engine", choices=ENGINES, help="only this one (default: both)")
    parser.add_argument("--kinds", nargs="+", choices=[kind for kind in KINDS if kind != "dense"], help="dense and these (default: all)")
    parser.add_argument("--rounds", type=int, help="how often each is timed (default: 5, or 4 if quick)")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)  # what a process of its own is asked for
    given = parser.parse_args()
    if given.memory_of:
        kind, engine, length, folder = given.memory_of
        print(json.dumps(memory_mb(kind, engine, given.device, Path(folder), int(length))))
        return
    lengths, rounds = ([SHORT, LONG], 4) if given.quick else ([512, 1024, SHORT, 4096, LONG], 5)
    rounds, kinds = given.rounds or rounds, ["dense", *given.kinds] if given.kinds else list(KINDS)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from export.graph import export_graph

        for kind in kinds:
            print(f"\r  exporting {kind}          ", end="", file=sys.stderr, flush=True)
            export_graph(build(kind), folder / f"{kind}.onnx", opset=20, pairs=False)
        for engine in [given.engine] if given.engine else ENGINES:
            memory: dict[str, dict[int, float | None]] = {}
            for kind in kinds:
                asked = [sys.executable, __file__, "--device", given.device, "--memory-of", kind, engine]
                runs = {
                    length: subprocess.run([*asked, str(length), name], capture_output=True, text=True, check=True) for length in lengths
                }
                memory[kind] = {length: json.loads(done.stdout.splitlines()[-1]) for length, done in runs.items()}
            measured[engine] = summary(latency_ms(kinds, engine, given.device, folder, lengths, rounds), memory)
            print("\n".join(table(engine, measured[engine])), flush=True)
    shape = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "neurons": NEURONS, "batch": 1, "threads": 1, "rounds": rounds}
    report = {
        **measured.pop("ort", {}),
        **measured,
        "device": given.device,
        "shape": shape,
        "kinds": {kind: KINDS[kind] for kind in kinds},
        "machine": machine_facts(),
    }
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with boundary():
        main()
