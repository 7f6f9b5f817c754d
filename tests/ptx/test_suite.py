"""A part of `make ptx`: compiled kernels in the executor, through the tests that the interpreter and the
simulator pass, in processes of their own, where Triton compiles."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRITON = "tests/kernels/triton/test_"
IN_BUDGET = "test_launchers_stay_within_the_error_budget"
CUDA = "tests/sim/test_block.py::test_block_is_within_the_error_budget"
PARTS = {
    "short": f"{TRITON}random_shapes.py::{IN_BUDGET}[0] {TRITON}two_bin.py::{IN_BUDGET}[0] "
    f"{TRITON}layouts.py::test_layout_of_inputs_and_gradients_does_not_matter[linear_gate_residual] "
    "tests/ops/properties/test_budget.py::test_block_of_triton_kernels_is_within_the_error_budget[0]",
    "long": f"{TRITON}long.py -k 'bfloat16 and (blocks and 64 or text and 72 or width)'",
    "cuda": " ".join(f"{CUDA}[{seed}]" for seed in range(6)),
}


IN_MAKE_TEST = [("90", "short")]
"""The others take minutes: `make ptx` runs them."""
RUNS = [
    pytest.param(*run, marks=[] if run in IN_MAKE_TEST else pytest.mark.fuzz)
    for run in itertools.product(["80", "90"], PARTS)
]


@pytest.mark.parametrize(("architecture", "part"), RUNS)
def test_compiled_kernels_stay_within_the_error_budget(architecture, part):
    if part == "cuda" and not shutil.which("nvcc"):
        pytest.skip("no nvcc, which compiles the CUDA C++ kernels")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += shlex.split(PARTS[part])
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"DIFFRATIO_PTX": architecture}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 3 and "skipped" not in done.stdout
