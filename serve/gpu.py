"""Faster ways to run an exported model, most of them for a GPU: bound inputs and outputs, captured CUDA graphs, TensorRT.

All are the predictor of serve.predictor with another `logits`, which takes and gives arrays of the host as ever: what is copied to the
device and back is part of it. `device_seconds` leaves the copies out. Binding and fixed shapes work on the CPU too, where they are tested.
"""

import bisect
import importlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.artifact import read_manifest
from model.errors import ArtifactError, ConfigError
from model.tokenizer import Batch, open_tokenizer
from serve.predictor import GRAPH, OrtPredictor, open_predictor, read_encoder, token_names
from serve.sessions import open_session

REPEATS = 20  # runs that one figure of device time is the mean of
LENGTHS = (16, 32, 64, 128, 256, 512)
BATCHES = (1, 8, 32, 128)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, eq=False)
class BoundPredictor(OrtPredictor):
    """Inputs and outputs bound to the device's memory, so that ONNX Runtime looks nothing up and copies each once."""

    def logits(self, batch: Batch) -> npt.NDArray[np.float32]:
        """As OrtPredictor.logits."""
        binding = self._bound(batch)
        self.session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0], np.float32)

    def device_seconds(self, batch: Batch) -> float:
        """Mean seconds of a run whose inputs are on the device already and whose logits stay there."""
        binding = self._bound(batch)
        return _mean_seconds(lambda: self.session.run_with_iobinding(binding), binding)

    def _bound(self, batch: Batch) -> Any:
        binding = self.session.io_binding()
        for name, array in batch.items():
            if name in self.inputs:
                binding.bind_ortvalue_input(name, _on_device(array, self.provider))
        binding.bind_output(self.session.get_outputs()[0].name, _device(self.provider))
        return binding


@dataclass(frozen=True)
class Bucket:
    """Memory of one shape, at addresses that stay: what a captured graph reads and writes."""

    inputs: dict[str, Any]
    output: Any
    binding: Any
    options: Any


@dataclass(frozen=True, eq=False)
class GraphPredictor(OrtPredictor):
    """Fixed shapes: a batch is padded up to a bucket of `batches` × `lengths`, and each bucket has memory and a captured graph of its own.

    ONNX Runtime captures the graph of a bucket when it is first run, under the number that the run option `gpu_graph_id` gives. Texts of
    a bucket take turns: the memory is one.
    """

    batches: tuple[int, ...] = BATCHES
    lengths: tuple[int, ...] = LENGTHS
    buckets: dict[tuple[int, int], Bucket] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def logits(self, batch: Batch) -> npt.NDArray[np.float32]:
        """As OrtPredictor.logits, in parts where there are more texts than a bucket has; raises ConfigError for a text too long."""
        count, most = len(batch["input_ids"]), self.batches[-1]
        parts = [self._run({name: array[start : start + most] for name, array in batch.items()}) for start in range(0, count, most)]
        return np.concatenate(parts)

    def device_seconds(self, batch: Batch) -> float:
        """Mean seconds of the bucket's graph alone."""
        with self.lock:
            bucket = self._filled(batch)
            return _mean_seconds(lambda: self.session.run_with_iobinding(bucket.binding, bucket.options), bucket.binding)

    def _run(self, batch: Batch) -> npt.NDArray[np.float32]:
        with self.lock:
            bucket = self._filled(batch)
            self.session.run_with_iobinding(bucket.binding, bucket.options)
            found = bucket.output.numpy()
        texts, longest = batch["input_ids"].shape
        return np.array(found[:texts, :longest] if found.ndim == 3 else found[:texts], np.float32)

    def _filled(self, batch: Batch) -> Bucket:
        """The bucket for `batch`, holding it."""
        texts, longest = batch["input_ids"].shape
        shape = (_at_least(self.batches, texts, "texts"), _at_least(self.lengths, longest, "tokens"))
        if shape not in self.buckets:
            self.buckets[shape] = self._new(shape)
        bucket = self.buckets[shape]
        for name, value in bucket.inputs.items():
            padded = np.full(shape, self.tokenizer.pad_id if name == "input_ids" else 0, np.int64)
            padded[:texts, :longest] = batch[name]
            value.update_inplace(padded)
        return bucket

    def _new(self, shape: tuple[int, int]) -> Bucket:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        inputs = {name: _on_device(np.zeros(shape, np.int64), self.provider) for name in sorted(self.inputs)}
        given = self.session.get_outputs()[0]
        sizes = [shape[0], *(size if isinstance(size, int) else shape[1] for size in given.shape[1:])]
        output = _on_device(np.zeros(sizes, np.float32), self.provider)
        binding = self.session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(given.name, output)
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(len(self.buckets) + 1))
        return Bucket(inputs, output, binding, options)


WAYS: dict[str, type[OrtPredictor]] = {
    "ort": OrtPredictor,
    "ort-iobinding": BoundPredictor,
    "ort-cuda-graph": GraphPredictor,
    "ort-tensorrt": BoundPredictor,
}


def open_gpu_predictor(
    path: str | Path, way: str, provider: str = "cuda", precision: str = "", threads: int = 1, cache: str | Path = "engines"
) -> OrtPredictor:
    """Open an exported model to run in one of WAYS; `cache` keeps the engines of TensorRT between runs.

    `precision` is the file's own, or on CUDA "tf32" for an fp32 file (fp32 is exact, which is not ONNX Runtime's default), and for
    TensorRT, which converts by itself, "fp16" or "bf16". int8 is for files of `compress quantize --scheme tensorrt` by ort-tensorrt.
    Raises as `open_predictor` does, and ConfigError for a way that does not exist or a file of another precision.
    """
    if way not in WAYS:
        raise ConfigError(f"There is no way {way} to run a file.", f"Ways: {', '.join(WAYS)}.")
    if provider == "cpu" and (precision == "tf32" or way in ("ort-cuda-graph", "ort-tensorrt")):
        raise ConfigError(f"The way {way} in {precision or 'fp32'} needs a GPU.", "On the CPU run ort or ort-iobinding.")
    if way == "ort-tensorrt":
        pairs = bool((read_manifest(Path(path)).data or {}).get("pairs"))
        encoder, own = read_encoder(Path(path))
        if encoder.quantization and not encoder.quantization.linears:
            own = "fp32"  # nothing that it computes is int8
        if precision and (precision == "int8") != (own == "int8"):
            raise _other_precision(path, own, precision, way)
        settings = tensorrt_settings(precision or own, Path(cache), INPUTS if pairs else INPUTS[:2])
        provider = "tensorrt"
    else:
        settings = cuda_settings(precision, graphs=way == "ort-cuda-graph") if provider == "cuda" else {}
    try:
        opened = open_predictor(path, provider, threads, settings=settings)
    except ArtifactError as error:
        if "graph capture" not in error.message:
            raise
        hint = (
            "A captured graph needs every node on the GPU: `compress audit` names those that are not. The way ort-iobinding takes them all."
        )
        raise ConfigError(error.message, hint) from None
    converts = ("", "fp32", "tf32") if way != "ort-tensorrt" else ("", "fp32", "fp16", "bf16")
    if opened.precision != precision and not (opened.precision == "fp32" and precision in converts) and precision:
        raise _other_precision(path, opened.precision, precision, way)
    more: dict[str, Any] = {"engine": way, "precision": precision or opened.precision}
    if way == "ort-cuda-graph":
        longest = opened.tokenizer.max_length
        more["lengths"] = (*(length for length in LENGTHS if length < longest), longest)
    return WAYS[way](**{one.name: getattr(opened, one.name) for one in fields(opened)} | more)


def _other_precision(path: str | Path, own: str, wanted: str, way: str) -> ConfigError:
    what = f"{path} is exported in {own} and cannot run in {wanted} by the way {way}."
    hints = {"fp16": "Export it with --precision fp16.", "int8": "Quantize the model with --scheme tensorrt and export that."}
    return ConfigError(what, hints.get(wanted, "Choose another way or precision."))


def open_plain_graph(
    path: str | Path,
    labels: Sequence[str],
    max_length: int,
    way: str = "ort",
    provider: str = "cpu",
    threads: int = 1,
    task: str = "classification",
) -> OrtPredictor:
    """A predictor over a directory with a graph and a tokenizer that is no artifact, such as a foreign model's export."""
    session, used = open_session(Path(path) / GRAPH, provider, threads)
    inputs = frozenset(entry.name for entry in session.get_inputs())
    tokenizer = open_tokenizer(Path(path), max_length)
    if task == "masked":
        labels = token_names(tokenizer, session.get_outputs()[0].shape[-1])
    return WAYS[way](session, inputs, tokenizer, tuple(labels), used, "fp32", task, engine=way)


def cuda_settings(precision: str, *, graphs: bool) -> dict[str, str]:
    """Options of the CUDA provider: TF32 only where asked, memory asked for as it is needed, graphs captured or not."""
    settings = {"use_tf32": str(int(precision == "tf32")), "arena_extend_strategy": "kSameAsRequested"}
    return {**settings, "enable_cuda_graph": "1"} if graphs else settings


def tensorrt_settings(precision: str, cache: Path, inputs: Sequence[str]) -> dict[str, str]:
    """Options of the TensorRT provider: one profile over all shapes, so that no engine is built while serving; engines and timings kept.

    int8 are the linears that the file quantizes; everything else is then fp16.
    """
    cache.mkdir(parents=True, exist_ok=True)

    def profile(batch: int, length: int) -> str:
        return ",".join(f"{name}:{batch}x{length}" for name in inputs)

    switches: Mapping[str, tuple[str, ...]] = {
        "fp16": ("trt_fp16_enable",),
        "bf16": ("trt_bf16_enable",),
        "int8": ("trt_int8_enable", "trt_fp16_enable"),
    }
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_profile_min_shapes": profile(1, 1),
        "trt_profile_opt_shapes": profile(8, 64),
        "trt_profile_max_shapes": profile(BATCHES[-1], LENGTHS[-1]),
        **dict.fromkeys(switches.get(precision, ()), "1"),
    }


def _on_device(array: npt.NDArray[Any], provider: str) -> Any:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), _device(provider), 0)


def _device(provider: str) -> str:
    """Where ONNX Runtime puts a tensor for `provider`."""
    return "cpu" if provider == "cpu" else "cuda"


def _mean_seconds(run: Any, binding: Any) -> float:
    """Mean seconds of `run`, which may return before the device is done; the first, which may compile or capture, does not count."""
    run()
    binding.synchronize_outputs()
    start = time.perf_counter()
    for _ in range(REPEATS):
        run()
    binding.synchronize_outputs()
    return (time.perf_counter() - start) / REPEATS


def _at_least(sizes: Sequence[int], wanted: int, what: str) -> int:
    place = bisect.bisect_left(sizes, wanted)
    if place == len(sizes):
        raise ConfigError(f"There is no bucket for {wanted} {what}; the largest has {sizes[-1]}.", "Cut the texts, or add a bucket.")
    return sizes[place]
