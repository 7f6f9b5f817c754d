"""The imports that must never exist: reference -> kernels -> ops -> modules -> integrations, one way only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# folder -> module prefixes that its files must not import
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
    "diffratio_kernels/ops": ["diffratio_kernels.modules", "diffratio_kernels.testing"],
    "diffratio_kernels/modules": ["diffratio_kernels.kernels", "diffratio_kernels.reference"],
    "diffratio_kernels": ["diffratio", "diffusers", "timm", "numpy", "tests", "benchmarks", "triton"],
    "python/diffratio/integrations": ["diffratio_kernels.kernels", "diffratio_kernels.reference"],
    "benchmarks": ["tests"],
    "tests": ["benchmarks"],
}


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


def violations(folder: str, prefixes: list[str], root: Path = ROOT) -> list[str]:
    bad = []
    for path in sorted((root / folder).rglob("*.py")):
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


def test_the_check_sees_relative_and_nested_imports(tmp_path):
    folder = tmp_path / "diffratio_kernels" / "reference"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text("def f():\n    from ..kernels import native\n    import torch\n")
    assert violations("diffratio_kernels/reference", ["diffratio_kernels.kernels"], tmp_path)


def test_the_reference_needs_torch_and_math_only():
    for path in (ROOT / "diffratio_kernels/reference").glob("*.py"):
        outside = {
            name.split(".")[0]
            for name in imported_modules(path, "diffratio_kernels.reference")
            if not name.startswith("diffratio_kernels")
        }
        assert outside <= {"__future__", "torch", "math"}, path


def test_row_kernels_never_see_torch():
    for path in (ROOT / "csrc/cpu").iterdir():
        text = path.read_text()
        assert not any(f"#include <{name}" in text for name in ("torch", "ATen", "c10", "Python")), path


def test_import_has_no_side_effects():
    """A fresh process: no CUDA start, no diffusers, no numpy, no compiler, nothing written to the screen."""
    code = (
        "import sys, torch, diffratio_kernels\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not {'diffusers', 'transformers', 'triton', 'safetensors'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
