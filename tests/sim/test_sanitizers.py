"""ASan and UBSan see through the simulator; the kernels' own tests run under them."""

import re

import pytest

CALL = """
import runpy, sys
module = runpy.run_path("tests/sim/build.py")["load"]("controls", sanitize=True)
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
    assert "csrc/sim/controls/memory.cu:" in done.stderr


@pytest.mark.parametrize("control", RAISES)
def test_errors_stay_errors(sanitized, control):
    """Fibers left in mid-kernel are no report of their own."""
    done = sanitized("-c", CALL, "broken", control)
    assert "diffratio_controls.Error" in done.stderr
    assert "Sanitizer" not in done.stderr


def test_right_kernels_are_silent(sanitized):
    done = sanitized("-c", CALL, "right", *REPORTS, *RAISES, "rotate", "block_sum", "last_block")
    assert (done.returncode, done.stderr) == (0, "")
