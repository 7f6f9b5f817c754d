"""The CUDA kernels as torch sees them: one set of names in all layers, a library that loads without CUDA."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest
import torch

from diffratio_kernels import _native
from diffratio_kernels._backends import kernels
from diffratio_kernels.ops.cuda import row_map_of
from diffratio_kernels.types import PackedRows

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent.name for path in (ROOT / "diffratio_kernels" / "ops").glob("*/cuda.py"))
BUILT = pytest.mark.skipif(_native.cuda_unavailable is not None, reason=str(_native.cuda_unavailable))


def names(pattern, path):
    return set(re.findall(pattern, (ROOT / path).read_text()))


def test_the_simulator_runs_what_the_library_registers(simulator):
    schemas = names(r'"(\w+)\(Tensor', "csrc/cuda_ops.cpp")
    assert len(schemas) >= 8
    assert schemas == names(r'm\.impl\("(\w+)"', "csrc/cuda_ops.cpp")
    assert schemas == names(r'def\("(\w+)"', "tools/sim/src/operators.h")
    assert all(hasattr(simulator, name) for name in schemas)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_backend_is_called_like_the_one_for_the_cpu(folder):
    """The GPU's may take options behind these arguments, and functions in place."""

    def functions(backend):
        module = kernels(folder, backend)
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_") and function.__module__ == module.__name__
        }

    expected = functions("cpu")
    assert expected
    for backend in ("cuda", "triton"):
        found = functions(backend)
        assert {name: found[name][: len(expected[name])] for name in expected} == expected, backend
    assert functions("cuda").keys() <= functions("triton").keys()


def test_where_there_are_no_kernels_the_reason_is_said(monkeypatch):
    assert (_native.cuda_unavailable is None) == hasattr(torch.ops.diffratio_cuda, "router_logits")
    monkeypatch.setattr(torch.ops, "diffratio_cuda", object())
    assert "without CUDA kernels" in _native._without_cuda()
    monkeypatch.setattr(_native, "unavailable", "no library")
    assert _native._without_cuda() == "no library"


@BUILT
def test_the_library_takes_no_tensors_from_the_cpu():
    with pytest.raises(NotImplementedError, match="diffratio_cuda::row_map.*CPU"):
        row_map_of(PackedRows(torch.zeros(1, dtype=torch.int64), 1), 1)


@BUILT
def test_the_cuda_runtime_stays_inside_the_library():
    """torch may bring another version of it."""

    def symbols(*options):
        command = ["nm", "--demangle", *options, str(_native.LIBRARY)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    runtime = re.compile(r" (cuda|__cuda)\w+$")
    assert any(map(runtime.search, symbols("--defined-only")))
    assert not any(map(runtime.search, symbols("--dynamic")))
