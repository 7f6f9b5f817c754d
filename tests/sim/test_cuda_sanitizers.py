"""All tests of the CUDA C++ again, with every access seen by ASan and UBSan."""

import re

FILES = ("tests/sim/test_cuda_select.py", "tests/sim/test_cuda_rows.py")


def test_no_report(sanitized):
    done = sanitized("-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *FILES)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 400
