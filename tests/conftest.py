"""Seeds, how Triton's kernels run here, and the table of worst error ratios at the end of a run.

Without a GPU they run in Triton's interpreter or, with DIFFRATIO_PTX=80 or 90, compiled, in the executor of
tools/ptx; the CUDA C++ kernels of tests/sim then do so, too.
"""

import os
from contextlib import ExitStack

import pytest
import torch

if not torch.cuda.is_available() and "DIFFRATIO_PTX" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"  # kernels read it when they are decorated
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    # Where oneDNN uses AMX, torch 2.13's fused attention orders bf16 keys for it, and fails without AVX-512.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")  # all but AMX
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses poisoned memory

from diffratio_kernels.testing import budget
from tools.guards.interpreter import interpreted, ordered_products
from tools.guards.quick_interpreter import quick_interpreter

PTX = os.environ.get("DIFFRATIO_PTX")
if PTX:
    from tools.ptx import report
    from tools.ptx.triton_launches import executed

    UNTIL_THE_END = ExitStack()
    LAUNCHES = UNTIL_THE_END.enter_context(executed(int(PTX)))

# Child processes, too, may run without the native library, which is said at its import.
QUIET = "ignore:diffratio_kernels has no native library:RuntimeWarning"
os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), QUIET)))


def pytest_collection_modifyitems(items):
    """CPU tensors reach the Triton kernels in the interpreter only; with a GPU, tests/gpu runs them there."""
    if os.environ.get("TRITON_INTERPRET") == "1" or PTX:
        return
    compiled = pytest.mark.skip(reason="Triton kernels are compiled here: CPU tensors cannot run on them")
    for item in items:
        parameters = getattr(item, "callspec", None) and item.callspec.params.values()
        if item.path.parent.name in ("ops", "properties", "blocks") and "triton" in (parameters or ()):
            item.add_marker(compiled)


@pytest.fixture(autouse=True, scope="session")
def _interpreter():
    """Bits of interpreted kernels are ours to assert only where products are added up in our own order."""
    if not interpreted():
        yield
        return
    with ordered_products(), quick_interpreter():
        yield


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    if PTX:
        LAUNCHES.options.seed = 0


def pytest_unconfigure():
    if PTX:
        report.save(int(PTX), LAUNCHES.variants(), LAUNCHES.counts, budget.worst)
        UNTIL_THE_END.close()


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
