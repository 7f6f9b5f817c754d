"""The CUDA kernels as torch sees them: one set of names in all layers, a library that loads without CUDA."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import torch

from diffratio_kernels.kernels import cuda, native

CSRC = Path(__file__).parents[2] / "csrc"
BUILT = pytest.mark.skipif(cuda.unavailable is not None, reason=str(cuda.unavailable))


def names(pattern, path):
    return set(re.findall(pattern, (CSRC / path).read_text()))


def test_the_simulator_runs_what_the_library_registers(simulator):
    schemas = names(r'"(\w+)\(Tensor', "cuda_ops.cpp")
    assert len(schemas) >= 8
    assert schemas == names(r'm\.impl\("(\w+)"', "cuda_ops.cpp") == names(r'def\("(\w+)"', "sim/operators.h")
    assert all(hasattr(simulator, name) for name in schemas)


def test_launchers_are_called_like_the_native_ones():
    def launchers(module):
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_") and function.__module__ == module.__name__
        }

    ours = launchers(cuda)
    for name, parameters in launchers(native).items():
        if "instruction_set" not in name:
            assert ours[name][: len(parameters)] == parameters, name


def test_where_there_are_no_kernels_the_reason_is_said(monkeypatch):
    assert (cuda.unavailable is None) == hasattr(torch.ops.diffratio_cuda, "router_logits")
    monkeypatch.setattr(cuda, "_ops", object())
    assert "without CUDA kernels" in cuda._why_unavailable()
    monkeypatch.setattr(native, "unavailable", "no library")
    assert cuda._why_unavailable() == "no library"


@BUILT
def test_the_library_takes_no_tensors_from_the_cpu():
    with pytest.raises(NotImplementedError, match="diffratio_cuda::row_places.*CPU"):
        cuda.row_places(torch.zeros(1, dtype=torch.int64), 1)


@BUILT
def test_the_cuda_runtime_stays_inside_the_library():
    """torch may bring another version of it."""

    def symbols(*options):
        command = ["nm", "--demangle", *options, str(native.LIBRARY)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    runtime = re.compile(r" (cuda|__cuda)\w+$")
    assert any(map(runtime.search, symbols("--defined-only")))
    assert not any(map(runtime.search, symbols("--dynamic")))
