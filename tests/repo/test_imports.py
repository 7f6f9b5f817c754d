"""The imports that must never exist: each part of the package imports only from what stands before it.

What ships (diffratio_kernels, diffratio) imports nothing of tools, tests and benchmarks.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "diffratio_kernels"

ORDER = (
    ("types", "_autocast", "_native", "_triton"),
    ("_checks", "_backends"),
    ("_choice", "_register"),
    ("ops",),
    ("blocks",),
    ("flops",),
    ("reference",),
    ("testing",),
)
"""The parts of diffratio_kernels, lowest first: one imports those before it, and of its own line `types`."""
SHARED = {"cpu", "cuda"}
"""Modules of ops/ that hold what the launchers of every operator share."""
OF_ANOTHER = {
    "attention": {"route.reference"},
    "adaln": {"route.reference"},
    "activation": {"route.reference"},
    "mlp": {"activation.reference", "activation.triton"},
    "gate_residual": {"route.reference", "attention.sdpa", "adaln.triton"},
    "qk_norm_rope": {"route.reference"},
    "scatter_rescale": {"route.reference", "gate_residual.triton"},
    "fused_linear": {"scatter_rescale.triton"},
    "two_bin_gelu": {"route.reference", "activation.triton"},
    "two_bin_blend": {"route.reference", "two_bin_gelu.reference", "two_bin_gelu.op"},
    "two_bin_attention": {
        *(f"attention.{name}" for name in ("op", "reference", "sdpa", "triton")),
        "two_bin_gelu.reference",
    },
}
"""Operator -> the modules of other operators that it imports."""

# file or folder -> expressions of modules that its files must not import
FORBIDDEN = {
    "diffratio_kernels": ["diffratio", "diffusers", "timm", "numpy", "tests", "tools"],
    "python/diffratio": ["tests", "tools"],
    "python/diffratio/families": [
        *(f"diffratio_kernels.{part}" for part in ("_native", "_triton", "reference")),
        r"diffratio_kernels.ops.\w+.(cpu|cuda|triton)",
        "diffratio.routing",
    ],
    "benchmarks": ["tests"],
    "benchmarks/harness": ["tools", "benchmarks.peers", "benchmarks.performance"],
    "benchmarks/suites": ["tools", "benchmarks.performance"],
    "benchmarks/peers": ["tools", "benchmarks.suites"],
    "benchmarks/a100": ["tools", "benchmarks.performance"],
    "tools": ["tests"],
}
# Folders of python/diffratio: each imports only those before it.
FOLDERS = (
    "families", "routing", "baselines", "data", "diffusion", "toy", "inpainting", "train", "evaluation",
    "plots", "plan", "demo", "cli",
)  # fmt: skip
# Who sees the benchmarks: the entry of `diffratio bench`, what measures on a GPU, and the tests of both.
SEES_BENCHMARKS = (
    "python/diffratio/cli/bench.py",
    "tools/gpu",
    "tools/tune",
    "tests/benchmarks",
    "tests/tools",
    "tests/gpu/test_bench.py",
)
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


def imports(root: Path) -> dict[str, set[str]]:
    """Module of diffratio_kernels -> those of it that it imports, both without the package's name."""
    files = {}
    for path in sorted((root / "diffratio_kernels").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts)] = path
    found = {}
    for module, path in files.items():
        names = imported_modules(path, module.rpartition(".")[0])
        own = {name for name in names if name in files or f"{name}.__init__" in files}
        found[module.partition(".")[2]] = {name.partition(".")[2] for name in own} - {""}
    return found


def against_the_flow(root: Path = ROOT) -> list[str]:
    """Imports of a part that does not stand before the importing one."""
    line = {part: number for number, parts in enumerate(ORDER) for part in parts}
    bad = []
    for module, targets in imports(root).items():
        part = module.partition(".")[0]
        for target in targets if part != "__init__" else ():
            other = target.partition(".")[0]
            before = line[other] < line[part] or other == "types"
            if other != part and not before:
                bad.append(f"{module} imports {target}")
    return bad


def of_other_operators(root: Path = ROOT) -> dict[str, set[str]]:
    """Operator -> the modules of other operators, and those beside the operators, that it imports."""
    found = {}
    for module, targets in imports(root).items():
        part, _, name = module.partition(".")
        operator = name.partition(".")[0]
        if part != "ops" or operator in ("__init__", *SHARED):
            continue
        others = {target.removeprefix("ops.") for target in targets if target.startswith("ops.")}
        folders = {target for target in others if "." not in target and target not in SHARED}
        others = {target for target in others - SHARED - folders if target.partition(".")[0] != operator}
        if others:
            found.setdefault(operator, set()).update(others)
    return found


def violations(where: str, forbidden: list[str], root: Path = ROOT) -> list[str]:
    """Imports of a file, or of all files in a folder, that are forbidden."""
    bad = []
    for path in sorted([root / where] if where.endswith(".py") else (root / where).rglob("*.py")):
        package = ".".join(path.relative_to(root).parent.parts)
        for module in imported_modules(path, package):
            if re.match(rf"({'|'.join(forbidden)})(\.|$)", module):
                bad.append(f"{path.relative_to(root)} imports {module}")
    return bad


def imports_triton(root: Path = ROOT) -> set[str]:
    """Files of diffratio_kernels that import Triton."""
    return {line.split()[0] for line in violations("diffratio_kernels", ["triton"], root)}


def may_import_triton(file: str) -> bool:
    return bool(re.fullmatch(r"diffratio_kernels/(_triton/|ops/fused_linear/|ops/\w+/triton\.py$).*", file))


@pytest.fixture
def package(tmp_path):
    """Writes files of a package diffratio_kernels and returns the folder that holds it."""

    def package(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / "diffratio_kernels" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return package


def test_every_part_has_its_place():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    parts = packages | {path.stem for path in PACKAGE.glob("*.py")}
    assert parts == {part for line in ORDER for part in line} | {"__init__"}


def test_imports_run_one_way():
    assert against_the_flow() == []


def test_an_operator_imports_of_others_what_is_listed():
    assert of_other_operators() == OF_ANOTHER


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_import_against_the_flow(folder):
    assert (ROOT / folder).exists()
    assert violations(folder, FORBIDDEN[folder]) == []


def test_a_backend_imports_no_other_one():
    """Launchers of the CPU know nothing of the GPU's, and both nothing of Triton's."""
    backends = {"cpu", "cuda", "triton"}
    for module, targets in imports(ROOT).items():
        name = module.rpartition(".")[2]
        if module.startswith("ops.") and name in backends:
            assert not {target.rpartition(".")[2] for target in targets} & (backends - {name}), module


def test_the_oracle_sees_no_kernel():
    """It needs torch and math, the bundles and other references."""
    for module, targets in imports(ROOT).items():
        if module.startswith(("ops.", "blocks.")) and module.endswith(".reference"):
            path = PACKAGE / f"{module.replace('.', '/')}.py"
            outside = {name.split(".")[0] for name in imported_modules(path, "diffratio_kernels.x.y")}
            assert outside <= {"__future__", "torch", "math", "diffratio_kernels"}, module
            allowed = {"types", "ops.two_bin_attention.two_passes"}
            assert all(target in allowed or target.endswith(".reference") for target in targets), module


def test_triton_is_imported_by_its_kernels_only():
    found = imports_triton()
    assert found and all(may_import_triton(file) for file in found)


def test_an_import_against_the_flow_is_seen(package):
    root = package(
        types="from ._backends import choose\n",
        _backends="def f():\n    from .ops.adaln import op\n",
        _triton__launch="from ..types import Bins\nfrom .._native import LIBRARY\n",
        _native="",
        ops__adaln__op="from ..._backends import choose\nimport diffratio_kernels.blocks.products\n",
        blocks__products="from ..ops.adaln.op import adaln\nfrom .. import reference\n",
        reference="from .blocks.products import x\n",
        testing__cases="from .. import reference\n",
    )
    assert against_the_flow(root) == [
        "_backends imports ops.adaln.op",
        "_triton.launch imports _native",
        "blocks.products imports reference",
        "ops.adaln.op imports blocks.products",
        "types imports _backends",
    ]


def test_an_import_of_another_operator_is_seen(package):
    root = package(
        ops__cpu="",
        ops__route__reference="",
        ops__adaln__cpu="from ..cpu import native\nfrom .reference import adaln\n",
        ops__adaln__reference="def f():\n    from ..route import reference\n",
    )
    assert of_other_operators(root) == {"adaln": {"route.reference"}}


def test_triton_out_of_its_place_is_seen(package):
    lines = "import triton.language as tl\n", "def f():\n    from triton import cdiv\n"
    root = package(
        _triton__launch=lines[0],
        _backends=lines[1],
        ops__adaln__triton=lines[0],
        ops__adaln__op=lines[1],
        ops__fused_linear__scatter=lines[1],
        blocks__triton=lines[1],
    )
    found = imports_triton(root)
    assert len(found) == 6
    assert {Path(file).stem for file in found if not may_import_triton(file)} == {"_backends", "op", "triton"}
    assert not may_import_triton("diffratio_kernels/blocks/triton.py")


def test_the_check_sees_what_ships_import_a_tool(tmp_path):
    for folder, line in {
        "diffratio_kernels": "from tools.guards import fence\n",
        "python/diffratio": "def f():\n    import tools.aot\n",
        "python/diffratio/families": "from diffratio_kernels.ops.adaln import cpu\n",
    }.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "bad.py").write_text(line)
        assert violations(folder, FORBIDDEN[folder], tmp_path)


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
        "from diffratio_kernels.testing.cases import ModBlockCase\n"
        "diffratio_kernels.mod_block(**ModBlockCase(seed=0).arguments())\n"
        "assert 'triton' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_works_without_triton():
    """A fresh process in which Triton cannot be imported runs the reference and says what is missing."""
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import diffratio_kernels\n"
        "from diffratio_kernels import _triton\n"
        "from diffratio_kernels.testing.cases import ModBlockCase\n"
        "assert _triton.unavailable\n"
        "arguments = ModBlockCase(seed=0).arguments()\n"
        "for backend in ('reference', 'auto'):\n"
        "    y = diffratio_kernels.mod_block(**arguments, backend=backend)\n"
        "    assert y.shape == arguments['x'].shape and y.isfinite().all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_stands_before_them(folder):
    later = FOLDERS[FOLDERS.index(folder) + 1 :]
    assert violations(f"python/diffratio/{folder}", [f"python.diffratio.{name}" for name in later]) == []


def test_the_check_sees_a_folder_that_imports_a_later_one(tmp_path):
    folder = tmp_path / "python" / "diffratio" / "toy"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text("from ..evaluation import cost\n")
    assert violations("python/diffratio/toy", ["python.diffratio.evaluation"], tmp_path)


@pytest.mark.parametrize("folder", ["diffratio_kernels", "python/diffratio", "tools", "tests"])
def test_what_ships_does_not_see_the_benchmarks(folder):
    found = violations(folder, ["benchmarks"])
    assert [line for line in found if not line.startswith(SEES_BENCHMARKS)] == []


def test_each_exception_is_one():
    assert all(violations(place, ["benchmarks"]) for place in SEES_BENCHMARKS)
