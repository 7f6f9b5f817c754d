"""An explicit choice of backend never falls back; without the native library the reference runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffratio_kernels
from diffratio_kernels import _native, _triton, capabilities, mod_block, two_bin_block
from diffratio_kernels._backends import BACKENDS, choose
from diffratio_kernels.testing.cases import ModBlockCase, TwoBinCase
from tools.guards.interpreter import interpreted

GPU_ONLY = {"cuda", "cublaslt", "cudnn", "varlen", "flash_attn"} | (set() if interpreted() else {"triton"})
REASON = "the library was left at home"
CPU_OPS = [op for op, names in BACKENDS.items() if "cpu" in names]
BLOCKS = {  # block, its case, and the row steps of it alone
    "mod_block": (mod_block, ModBlockCase(seed=0), ["scatter_rescale"]),
    "two_bin_block": (two_bin_block, TwoBinCase(seed=0), ["two_bin_gelu", "two_bin_blend"]),
}


def operators_of(call):
    """Names of all operators that run, also those inside other operators."""
    with torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()}


def native_kernels(names):
    return {name for name in names if name.startswith("diffratio_native::")}


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(_native, "unavailable", REASON)


@pytest.mark.parametrize("op", CPU_OPS)
def test_cpu_without_its_library_is_an_error_with_the_reason(op, without_library):
    with pytest.raises(ValueError, match=f"{op}: backend='cpu' is not available: {REASON}"):
        choose(op, "cpu", torch.device("cpu"))
    assert choose(op, "auto", torch.device("cpu")) == "reference"


@pytest.mark.parametrize("block", BLOCKS)
def test_block_without_the_library_runs_the_reference_or_says_why_not(block, without_library):
    block, case, _ = BLOCKS[block]
    arguments = case.arguments()
    expected = block(**arguments, backend="reference")
    # Attention needs no library and stays with SDPA: other roundings, fp32 values up to 4.
    torch.testing.assert_close(block(**arguments), expected, rtol=0, atol=1e-5)
    assert not native_kernels(operators_of(lambda: block(**arguments)))
    with pytest.raises(ValueError, match=REASON):
        block(**arguments, backend="cpu")
    with pytest.raises(ValueError, match=REASON):
        block(**arguments | {"x": arguments["x"].requires_grad_()}, backend="cpu")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_each_choice_runs_its_own_kernels(training, block):
    block, case, own_steps = BLOCKS[block]
    arguments = case.arguments()
    arguments["x"].requires_grad_(training)
    for backend, kernels in (("cpu", True), ("auto", True), ("reference", False)):
        names = operators_of(lambda name=backend: block(**arguments, backend=name))
        assert bool(native_kernels(names)) == kernels, backend
    native_used = native_kernels(operators_of(lambda: block(**arguments)))
    steps = ["router_logits", "topk_select", "gather_adaln", *own_steps]
    assert {f"diffratio_native::{step}" for step in steps} <= native_used


def test_capabilities_tell_the_reason(without_library):
    rows = [row for row in capabilities() if row["device"] == "cpu"]
    assert {(row["op"], row["backend"]) for row in rows} == {
        (op, name) for op, names in BACKENDS.items() for name in names
    }
    for row in rows:
        assert row["available"] is (row["reason"] is None)
        if row["backend"] == "cpu":
            assert row["reason"] == REASON
        elif row["backend"] in GPU_ONLY:
            assert "CUDA" in row["reason"] or "interpreter" in row["reason"]
        else:
            assert row["available"]


def test_everything_for_the_cpu_is_available_here():
    """The suite is run with the native library built: no backend hides from the other tests."""
    missing = {r["backend"] for r in capabilities() if r["device"] == "cpu" and not r["available"]}
    assert missing == GPU_ONLY, _native.unavailable


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_auto_on_the_cpu_never_interprets(dtype):
    cpu = torch.device("cpu")
    chosen = {op: choose(op, "auto", cpu, dtype) for op in BACKENDS}
    products = {"attention": "sdpa", "two_bin_attention": "sdpa"}
    assert chosen == dict.fromkeys(CPU_OPS, "cpu") | products | {"mlp": "reference"}


def test_auto_on_a_gpu_takes_our_kernels_and_leaves_exact_products_to_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_triton, "capability", lambda device: 90)
    monkeypatch.setattr(_native, "cuda_unavailable", None)
    gpu, half, single = torch.device("cuda"), torch.bfloat16, torch.float32
    products = ["attention", "two_bin_attention", "mlp"]
    for op in BACKENDS:
        ours = "triton" if op in products else "cuda"
        assert choose(op, "auto", gpu, half) == ("cublaslt" if op == "mlp" else ours), op
        assert op in products or choose(op, "auto", gpu, single) == ours, op
    assert [choose(op, "auto", gpu, single) for op in products] == ["sdpa", "sdpa", "reference"]


def test_a_dtype_that_a_backend_does_not_take_is_an_error():
    with pytest.raises(ValueError, match="route: backend='triton' .* do not take float64"):
        choose("route", "triton", torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta", "xpu"])
@pytest.mark.parametrize("op", BACKENDS)
def test_auto_finds_a_backend_for_every_device(op, device):
    assert choose(op, "auto", torch.device(device)) in BACKENDS[op]


@pytest.mark.parametrize("op", CPU_OPS)
def test_cpu_is_for_cpu_tensors_only(op):
    with pytest.raises(ValueError, match=f"{op}: backend='cpu' is not available: .*meta"):
        choose(op, "cpu", torch.device("meta"))


FRESH = """
import pathlib, sys, torch, diffratio_kernels as dk
assert pathlib.Path(dk.__file__).is_relative_to(sys.argv[1]), dk.__file__
from diffratio_kernels.testing.cases import ModBlockCase
arguments = ModBlockCase(seed=0).arguments()
arguments["x"].requires_grad_()
out = dk.mod_block(**arguments)
out.sum().backward()
assert torch.allclose(out, dk.mod_block(**arguments, backend="reference"), rtol=0, atol=1e-5)
assert arguments["x"].grad.isfinite().all()
try:
    dk.mod_block(**arguments, backend="cpu")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("library", ["missing", "broken"])
def test_a_package_without_its_library_imports_and_runs(library, tmp_path):
    package = Path(diffratio_kernels.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library == "broken":
        (tmp_path / package.name / _native.LIBRARY.name).write_bytes(b"\x7fELF, but no more than that")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reason = {"missing": "was not built", "broken": "did not load"}[library]
    assert "mod_block: backend='cpu' is not available" in done.stdout and reason in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "RuntimeWarning" in line]
    assert "no native library" in line and reason in line and "DIFFRATIO_BUILD_NATIVE=1" in line
