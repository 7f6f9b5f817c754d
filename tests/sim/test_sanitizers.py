"""ASan and UBSan see through the simulator; the kernels' own tests run under them."""

import re
from pathlib import Path

import pytest
import torch

CALL = """
import sys
from tools.sim import build
module = build.load("controls", sanitize=True)
for name in sys.argv[2:]:
    getattr(module, name)(sys.argv[1] == "broken")
"""

REPORTS = {
    "beyond_the_end": "AddressSanitizer: heap-buffer-overflow",
    "beyond_shared": "AddressSanitizer: heap-buffer-overflow",
    "beyond_local": "AddressSanitizer: stack-buffer-overflow",
    "misaligned": "within misaligned address .* requires 16 byte alignment",
    "misaligned_shared": "store to misaligned address .* requires 16 byte alignment",
    "overflow": "signed integer overflow: 600000 [*] 4096",
}
RAISES = ["part_of_a_block", "ended_lane"]


@pytest.mark.parametrize("control", REPORTS)
def test_reports(sanitized, control):
    done = sanitized("-c", CALL, "broken", control)
    assert done.returncode != 0
    assert re.search(REPORTS[control], done.stderr), done.stderr
    assert "tools/sim/controls/memory.cu:" in done.stderr


@pytest.mark.parametrize("control", RAISES)
def test_errors_stay_errors(sanitized, control):
    """Fibers left in mid-kernel are no report of their own."""
    done = sanitized("-c", CALL, "broken", control)
    assert "diffratio_controls.Error" in done.stderr
    assert "Sanitizer" not in done.stderr


def test_right_kernels_are_silent(sanitized):
    done = sanitized("-c", CALL, "right", *REPORTS, *RAISES, "rotate", "block_sum", "last_block")
    assert (done.returncode, done.stderr) == (0, "")


KERNEL_TESTS = sorted(str(path) for path in Path(__file__).parent.glob("test_cuda_*.py"))
# Reports go to the file descriptor, past what pytest would keep to itself when the process ends.
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=sys")


def control_weight_too_long(simulator):
    """Not collected unless asked for: reads one element beyond the last row of x."""
    x, weight, logits = torch.randn(4, 8), torch.randn(9), torch.empty(4)
    simulator.router_logits(x, weight, None, logits, 0)


def test_kernel_tests_run_sanitized(sanitized):
    done = sanitized(*PYTEST, "tests/sim/test_sanitizers.py", "-o", "python_functions=control_*")
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "csrc/include/diffratio/" in done.stderr


def test_kernels(sanitized):
    done = sanitized(*PYTEST, *KERNEL_TESTS)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 400
