"""Seeds, the choice of Triton's interpreter, and the table of worst error ratios at the end of a run."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels read it when they are decorated
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    # Where oneDNN uses AMX, torch 2.13's fused attention orders bf16 keys for it, and fails without AVX-512.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # all but AMX
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses poisoned memory

from diffratio_kernels.testing import budget
from diffratio_kernels.testing.interpreter import (
    interpreted,
    language_exchanged_once,
    ordered_products,
)

# Child processes, too, may run without the native library, which is said at its import.
QUIET = "ignore:diffratio_kernels has no native library:RuntimeWarning"
os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET)))


def pytest_collection_modifyitems(items):
    """CPU tensors reach the Triton kernels in the interpreter only; with a GPU, tests/gpu runs them there."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    compiled = pytest.mark.skip(reason="Triton kernels are compiled here: CPU tensors cannot run on them")
    for item in items:
        parameters = getattr(item, "callspec", None) and item.callspec.params.values()
        if item.path.parent.name == "ops" and "triton" in (parameters or ()):
            item.add_marker(compiled)


@pytest.fixture(autouse=True, scope="session")
def _interpreter():
    """Bits of interpreted kernels are ours to assert only where products are added up in our own order."""
    if not interpreted():
        yield
        return
    with ordered_products(), language_exchanged_once():
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["budget"] = budget.worst


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for name, used in getattr(node, "workeroutput", {}).get("budget", {}).items():
        budget.worst[name] = max(budget.worst.get(name, 0.0), used)


def pytest_terminal_summary(terminalreporter):
    if budget.worst:
        terminalreporter.section("largest part of the error budget used (1.00 is the limit)")
        for name, used in sorted(budget.worst.items()):
            terminalreporter.write_line(f"{used:6.2f}  {name}")
