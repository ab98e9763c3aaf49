"""Sessions of ONNX Runtime, and which provider they really use.

Asked for CUDA, ONNX Runtime answers from the CPU without a word if a library is missing; here that is an error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from model.errors import ArtifactError, ConfigError, EnvironmentProblem

if TYPE_CHECKING:
    from types import ModuleType

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
NEEDED = {"cuda": ("CUDA", "CUDA 13 and cuDNN 9"), "tensorrt": ("TensorRT", "TensorRT 10, CUDA 13 and cuDNN 9")}
ERRORS_ONLY = 3  # ONNX Runtime's log level: its warnings are about the graph, which is the exporter's business


def open_session(
    graph: Path,
    provider: str = "cpu",
    threads: int = 1,
    allow_fallback: bool = False,
    record: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> tuple[Any, str]:
    """An `onnxruntime.InferenceSession` and the provider that it really uses; `settings` are options of that provider.

    Raises ConfigError for an unknown provider, ArtifactError for a graph that cannot be run, EnvironmentProblem if ONNX Runtime is not
    there, is there twice, or would not run on `provider`; with `allow_fallback` the CPU will do. Into the folder `record` go the graph as
    ONNX Runtime optimised it (`optimized.onnx`) and, until `end_profiling`, a profile.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"There is no provider {provider!r}.", f"Choose one of {', '.join(PROVIDERS)}.")
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = ERRORS_ONLY
    if record is not None:
        options.optimized_model_filepath = str(record / "optimized.onnx")
        options.enable_profiling, options.profile_file_prefix = True, str(record / "profile")
    wanted: list[Any] = [PROVIDERS["cpu"]]
    if provider == "tensorrt":
        wanted = [PROVIDERS["cuda"], *wanted]  # for what TensorRT does not take
    there = PROVIDERS[provider] in onnxruntime.get_available_providers()
    if provider != "cpu" and there:
        wanted = [(PROVIDERS[provider], dict(settings)) if settings else PROVIDERS[provider], *wanted]
    try:
        with redirect_stdout(sys.stderr):  # it prints what it misses of CUDA, and stdout is for answers
            if provider != "cpu" and there and hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # finds the CUDA and cuDNN that pip installed
            session = onnxruntime.InferenceSession(graph, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no class in common but this one
        hint = "Export the model again, or upgrade ONNX Runtime."
        raise ArtifactError(f"ONNX Runtime {onnxruntime.__version__} cannot run {graph}: {error}", hint) from None
    used = next(known for known, name in PROVIDERS.items() if name == session.get_providers()[0])
    if used != provider and not allow_fallback:
        raise _fallback(onnxruntime, provider, there)
    return session, used


class Later:
    """A session that is opened by `opening` when it is first used; safe to use from several threads."""

    def __init__(self, opening: Callable[[], Any]) -> None:
        self._opening, self._lock, self._session = opening, Lock(), None

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._session is None:
                self._session = self._opening()
        return getattr(self._session, name)


def import_onnxruntime() -> ModuleType:
    """ONNX Runtime; raises EnvironmentProblem if neither of its two packages is installed, or both are."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise EnvironmentProblem(
            "This needs ONNX Runtime, which is not installed.",
            "Install it with: pip install 'alambic[cpu]' (or 'alambic[gpu]' for CUDA, not both).",
        )
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        raise EnvironmentProblem(
            "onnxruntime and onnxruntime-gpu are both installed. They are one module in two builds: the one installed last has overwritten "
            "files of the other.",
            "Mend it with: pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'alambic[cpu]' (or 'alambic[gpu]').",
        )
    return importlib.import_module("onnxruntime")


def _fallback(onnxruntime: Any, provider: str, tried: bool) -> EnvironmentProblem:
    called, needed = NEEDED[provider]
    if tried:
        return EnvironmentProblem(
            f"{called} was asked for, but ONNX Runtime could not load it and would run on the CPU.",
            f"Check `nvidia-smi`, and that {needed} are installed: pip install 'alambic[gpu]'. "
            "`compress predict --allow-fallback` takes the CPU.",
        )
    return EnvironmentProblem(
        f"{called} was asked for, but this build of ONNX Runtime ({onnxruntime.__version__}) has only the CPU.",
        "Install the other: pip uninstall -y onnxruntime && pip install 'alambic[gpu]'. `compress predict --allow-fallback` takes the CPU.",
    )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
