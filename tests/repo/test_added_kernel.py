"""docs/add-a-kernel.md is true: its files, put into a copy of the package, pass its tests and those that
apply by themselves."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffratio_kernels import _triton

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-kernel.md").read_text()
INTERPRETED = _triton.unavailable is None and os.environ.get("TRITON_INTERPRET") == "1"
BY_ITSELF = (
    "tests/repo/test_imports.py::test_imports_run_one_way",
    "tests/repo/test_imports.py::test_a_backend_imports_no_other_one",
    "tests/repo/test_imports.py::test_the_oracle_sees_no_kernel",
    "tests/repo/test_imports.py::test_triton_is_imported_by_its_kernels_only",
    "tests/ops/properties/test_signatures.py::test_help_tells_every_argument[squared_relu]",
    "tests/repo/test_docstrings.py::test_a_public_name_is_documented[diffratio_kernels.squared_relu]",
    "tests/repo/test_docstrings.py::test_its_example_runs[diffratio_kernels.squared_relu]",
)


def blocks(kind: str) -> list[tuple[str, str]]:
    """File and text of the page's blocks of a kind."""
    return re.findall(rf"^```{kind}\n# (\S+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def apply_diff(text: str, diff: str) -> str:
    lines = [(line[0], line[1:]) for line in diff.splitlines()]
    old, new = ("".join(f"{line}\n" for sign, line in lines if sign in (" ", own)) for own in "-+")
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The package, its tests and tools, with the page's files and changes."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("diffratio_kernels", "tools", "tests"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for file, text in blocks("python"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    for file, diff in blocks("diff"):
        (root / file).write_text(apply_diff((root / file).read_text(), diff))
    return root


def run_tests(root: Path, *tests: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(root), str(ROOT / "python")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *tests]
    return subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
def test_the_operator_of_the_page_passes_its_tests(checkout):
    done = run_tests(checkout, "tests/ops/test_squared_relu.py", *BY_ITSELF)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
def test_a_wrong_kernel_fails_them(checkout):
    kernel = checkout / "diffratio_kernels/ops/squared_relu/triton.py"
    right = kernel.read_text()
    kernel.write_text(right.replace("out = 2 * x * tl.load", "out = x * tl.load"))
    try:
        done = run_tests(checkout, "tests/ops/test_squared_relu.py")
    finally:
        kernel.write_text(right)
    assert done.returncode == 1 and "squared_relu: d rows" in done.stdout, done.stdout
