"""The imports that must never exist: reference -> kernels -> ops -> modules -> integrations, one way only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The only places that import Triton.
TRITON = (
    "diffratio_kernels/kernels/triton",
    "diffratio_kernels/aot",
    "diffratio_kernels/testing/interpreter.py",
)

# file or folder -> module prefixes that its files must not import
FORBIDDEN = {
    "diffratio_kernels/reference": [
        "diffratio_kernels.kernels",
        "diffratio_kernels.ops",
        "diffratio_kernels.modules",
        "diffratio_kernels.testing",
    ],
    "diffratio_kernels/kernels": [
        "diffratio_kernels.reference",
        "diffratio_kernels.ops",
        "diffratio_kernels.modules",
        "torch.autograd",
    ],
    "diffratio_kernels/kernels/triton": ["diffratio_kernels.kernels.cuda"],
    "diffratio_kernels/kernels/cuda.py": ["diffratio_kernels.kernels.triton"],
    "diffratio_kernels/ops": ["diffratio_kernels.modules", "diffratio_kernels.testing"],
    "diffratio_kernels/modules": ["diffratio_kernels.kernels", "diffratio_kernels.reference"],
    "diffratio_kernels": ["diffratio", "diffusers", "timm", "numpy", "tests", "benchmarks"],
    "python/diffratio/integrations": ["diffratio_kernels.kernels", "diffratio_kernels.reference"],
    "benchmarks": ["tests"],
    "tests": ["benchmarks"],
}
SEES_TORCH = re.compile(r'# *include *[<"](torch|ATen|c10|Python\.h)\b')


def imported_modules(path: Path, package: str) -> set[str]:
    """Absolute names of everything a file imports, at any level of nesting."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def violations(
    where: str, prefixes: list[str], root: Path = ROOT, allowed: tuple[str, ...] = ()
) -> list[str]:
    bad = []
    for path in sorted([root / where] if where.endswith(".py") else (root / where).rglob("*.py")):
        if not path.exists() or any(path.is_relative_to(root / place) for place in allowed):
            continue
        package = ".".join(path.relative_to(root).parent.parts)
        for module in imported_modules(path, package):
            bad += [
                f"{path.relative_to(root)} imports {module}"
                for prefix in prefixes
                if module == prefix or module.startswith(prefix + ".")
            ]
    return bad


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_import_against_the_flow(folder):
    assert violations(folder, FORBIDDEN[folder]) == []


def test_triton_is_imported_by_its_kernels_and_its_guards_only():
    assert violations("diffratio_kernels", ["triton"], allowed=TRITON) == []
    assert all(violations(place, ["triton"]) for place in TRITON)


def test_the_check_sees_relative_and_nested_imports(tmp_path):
    folder = tmp_path / "diffratio_kernels" / "reference"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text("def f():\n    from ..kernels import native\n    import torch\n")
    assert violations("diffratio_kernels/reference", ["diffratio_kernels.kernels"], tmp_path)


def test_the_check_sees_one_file_and_knows_where_triton_is_allowed(tmp_path):
    kernels = tmp_path / "diffratio_kernels" / "kernels"
    (kernels / "triton").mkdir(parents=True)
    (kernels / "cuda.py").write_text("from .triton import launcher\n")
    (kernels / "triton" / "attention.py").write_text("import triton.language as tl\nfrom .. import cuda\n")
    for where in ("diffratio_kernels/kernels/triton", "diffratio_kernels/kernels/cuda.py"):
        assert violations(where, FORBIDDEN[where], tmp_path)
    assert violations("diffratio_kernels", ["triton"], tmp_path, TRITON) == []
    (kernels / "launch.py").write_text("def f():\n    from triton import cdiv\n")
    assert violations("diffratio_kernels", ["triton"], tmp_path, TRITON)


def test_the_reference_needs_torch_and_math_only():
    for path in (ROOT / "diffratio_kernels/reference").glob("*.py"):
        outside = {
            name.split(".")[0]
            for name in imported_modules(path, "diffratio_kernels.reference")
            if not name.startswith("diffratio_kernels")
        }
        assert outside <= {"__future__", "torch", "math"}, path


@pytest.mark.parametrize("folder", ["csrc/cpu", "csrc/cuda", "csrc/include"])
def test_row_kernels_never_see_torch(folder):
    for path in filter(Path.is_file, (ROOT / folder).rglob("*")):
        assert not SEES_TORCH.search(path.read_text()), path


def test_the_check_sees_both_forms_of_include():
    for line in ("#include <torch/all.h>", '#include "c10/core/Device.h"', "#  include <Python.h>"):
        assert SEES_TORCH.search(line)
    assert not SEES_TORCH.search('#include <cuda_runtime.h>\n#include "diffratio/torchless.h"')


def test_import_has_no_side_effects():
    """A fresh process: no CUDA start, no diffusers, no numpy, no compiler, nothing written to the screen."""
    code = (
        "import sys, torch, diffratio_kernels\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not {'diffusers', 'transformers', 'triton', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_works_without_triton():
    """A fresh process in which Triton cannot be imported runs the reference and says what is missing."""
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import diffratio_kernels, diffratio_kernels.testing.interpreter\n"
        "from diffratio_kernels.kernels import triton\n"
        "from diffratio_kernels.testing.inputs import ModBlockCase\n"
        "assert triton.unavailable\n"
        "arguments = ModBlockCase(seed=0).arguments()\n"
        "for implementation in ('reference', 'auto'):\n"
        "    y = diffratio_kernels.mod_block(**arguments, implementation=implementation)\n"
        "    assert y.shape == arguments['x'].shape and y.isfinite().all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
