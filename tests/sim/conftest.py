"""The simulator modules, and processes in which they run under ASan and UBSan."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SANITIZE = "DIFFRATIO_SANITIZE"
"""Set in the processes that test_sanitizers.py starts."""


def _builder():
    spec = importlib.util.spec_from_file_location("diffratio_sim_build", Path(__file__).with_name("build.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builder():
    """tests/sim/build.py"""
    return _builder()


@pytest.fixture(scope="session")
def controls(builder):
    """The small kernels of csrc/sim/controls."""
    return builder.load("controls")


@pytest.fixture(scope="session")
def simulator(builder):
    """The kernels of csrc/cuda on the CPU: in the simulator or, with DIFFRATIO_PTX, in the executor."""
    if "DIFFRATIO_PTX" in os.environ:
        import report
        from cuda_launches import CudaLaunches

        launches = CudaLaunches(int(os.environ["DIFFRATIO_PTX"]))
        yield launches
        report.save(launches.architecture, launches.variants(), launches.counts, {})
        return
    yield builder.load("simulator", sanitize=SANITIZE in os.environ)


@pytest.fixture
def cuda(simulator, monkeypatch):
    """diffratio_kernels.kernels.cuda with the simulator in place of the library."""
    from diffratio_kernels.kernels import cuda

    monkeypatch.setattr(cuda, "_ops", simulator)
    return cuda


@pytest.fixture(scope="session")
def sanitized(builder):
    """Runs Python with these arguments in a process that can load sanitized modules."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = builder.sanitizer_environment() | {SANITIZE: "1"}
        return subprocess.run(
            [sys.executable, *arguments], cwd=builder.ROOT, env=environment, capture_output=True, text=True
        )

    return run
