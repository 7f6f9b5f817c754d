"""The simulator modules, and processes in which they run under ASan and UBSan."""

import os
import subprocess
import sys

import pytest

from tools.sim import build

SANITIZE = "DIFFRATIO_SANITIZE"
"""Set in the processes that test_sanitizers.py starts."""


@pytest.fixture(scope="session")
def controls():
    """The small kernels of tools/sim/controls."""
    return build.load("controls")


@pytest.fixture(scope="session")
def simulator():
    """The kernels of csrc/cuda on the CPU: in the simulator or, with DIFFRATIO_PTX, in the executor."""
    if "DIFFRATIO_PTX" in os.environ:
        from tools.ptx import report
        from tools.ptx.cuda_launches import CudaLaunches

        launches = CudaLaunches(int(os.environ["DIFFRATIO_PTX"]))
        yield launches
        report.save(launches.architecture, launches.variants(), launches.counts, {})
        return
    yield build.load("simulator", sanitize=SANITIZE in os.environ)


@pytest.fixture
def simulated(simulator, monkeypatch):
    """Inside, the CUDA C++ backend calls the simulator in place of the library."""
    from diffratio_kernels.ops import cuda

    monkeypatch.setattr(cuda, "operators", simulator)


@pytest.fixture(scope="session")
def sanitized():
    """Runs Python with these arguments in a process that can load sanitized modules."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = build.sanitizer_environment() | {SANITIZE: "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=build.ROOT, env=environment, capture_output=True, text=True
        )

    return run
