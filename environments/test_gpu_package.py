"""onnxruntime-gpu on a machine without a GPU: it lists CUDA, takes it, and answers from the CPU without a word. We must not."""

import subprocess

import pytest

ENVIRONMENT = ".venv-gpu"
NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture(scope="module")
def cpu_package(run, tmp_path_factory):
    """A folder with the CPU package, to be put beside the GPU one."""
    folder = tmp_path_factory.mktemp("both")
    done = run(ENVIRONMENT, "pip", "install", "--quiet", "--no-deps", "--target", folder, "onnxruntime==1.31.1")
    assert done.returncode == 0, done.stderr
    return folder


def test_onnxruntime_lists_cuda(run):
    """Else the tests below would prove nothing."""
    done = run(ENVIRONMENT, "python", "-c", "import onnxruntime; print(*onnxruntime.get_available_providers())")
    assert "CUDAExecutionProvider" in done.stdout.split()


def predict(run, artifact, *options, **variables) -> subprocess.CompletedProcess[str]:
    return run(ENVIRONMENT, "compress", "predict", artifact, "a good film", *options, **NO_GPU, **variables)


def test_the_cpu_works(run, artifact):
    done = predict(run, artifact)
    assert done.returncode == 0, done.stderr
    assert "pos" in done.stdout or "neg" in done.stdout


def test_a_silent_fall_back_is_an_error(run, artifact):
    done = predict(run, artifact, "--provider", "cuda")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Error: CUDA was asked for, but ONNX Runtime could not load it and would run on the CPU." in done.stderr
    assert "--allow-fallback" in done.stderr


def test_a_fall_back_that_was_allowed_is_not(run, artifact):
    done = predict(run, artifact, "--provider", "cuda", "--allow-fallback")
    assert done.returncode == 0, done.stderr
    assert done.stdout == predict(run, artifact).stdout


def test_both_packages_are_an_error(run, artifact, cpu_package):
    done = predict(run, artifact, PYTHONPATH=str(cpu_package))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Error: onnxruntime and onnxruntime-gpu are both installed." in done.stderr
    assert "Hint: Mend it with: pip uninstall" in done.stderr
