"""Counts of the product's sources, by parsing them: lines, wide functions, bent calls, circles of imports."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDE = 8
"""Parameters from which on a function is wide."""


def shipped(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file, of the packages that setup.py puts into the wheel."""
    ask = (
        "import json, runpy, setuptools\n"
        "setuptools.setup = lambda **given: print(json.dumps([given['packages'], given['package_dir']]))\n"
        "runpy.run_path('setup.py')\n"
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=root, capture_output=True, text=True, check=True)
    packages, folders = json.loads(done.stdout)
    found = {}
    for package in packages:
        top, _, rest = package.partition(".")
        for path in (root / folders[top] / rest.replace(".", "/")).glob("*.py"):
            found[package if path.name == "__init__.py" else f"{package}.{path.stem}"] = path
    return found


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def lines_by_folder() -> dict[str, int]:
    """Lines of sources that git tracks, by the folder at the top."""
    patterns = ("*.py", "*.cpp", "*.h", "*.cuh", "*.cu")
    done = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = Counter()
    for name in done.stdout.splitlines():
        found[name.partition("/")[0] if "/" in name else "."] += lines(ROOT / name)
    return dict(found.most_common())


def schemas() -> set[tuple[str, ...]]:
    """The arguments of every operator, by name: all of them, those that its backends get, and these behind a
    backend."""
    import torch

    import diffratio_kernels  # noqa: F401  registers them

    found = set()
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("diffratio::"):
            operator = getattr(torch.ops.diffratio, name.partition("::")[2].partition(".")[0])
            names = [argument.name for argument in operator.default._schema.arguments]
            given = [name for name in names if name != "backend"]
            found |= {tuple(names), tuple(given), ("backend", *given)}
    return found


def wide_functions(path: Path, schemas: Collection[tuple[str, ...]] = ()) -> list[str]:
    """`line name parameters` of functions with WIDE parameters or more, self, cls and ctx left out.

    Kernels of Triton, commands of typer, functions that take exactly a schema's arguments and the `bind` of a
    spec, which takes those of a block's forward, are as wide as they must be, and do not count.
    """
    tree = ast.parse(path.read_text())
    options = {  # names of annotated options: Seed = Annotated[int, typer.Option(...)]
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and "typer." in ast.unparse(node.value)
        for target in node.targets
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if names and names[0] in ("self", "cls", "ctx"):
            del names[0]
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        kernel = any(name.startswith("triton.jit") for name in decorators)
        used = {name.id for name in ast.walk(node.args) if isinstance(name, ast.Name)}
        command = used & {"typer", *options} or any(".command(" in name for name in decorators)
        given = kernel or command or node.name == "bind" or tuple(names) in schemas
        if len(names) >= WIDE and not given:
            found.append(f"{node.lineno} {node.name} {len(names)}")
    return found


def bent_calls(path: Path) -> list[str]:
    """Calls of functools.partial, and lambdas that only pass arguments on to another function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(
                func=ast.Name(id="partial") | ast.Attribute(value=ast.Name(id="functools"), attr="partial")
            ):
                found.append((node.lineno, "partial"))
            case ast.Lambda(args=given, body=ast.Call(args=passed, keywords=keywords)):
                own = {arg.arg for arg in ast.walk(given) if isinstance(arg, ast.arg)}
                passed = [*passed, *(keyword.value for keyword in keywords)]
                if (passed and not own) or any(_passed_on(value) in own for value in passed):
                    found.append((node.lineno, "lambda"))
    return [f"{line} {kind}" for line, kind in sorted(found)]


def _passed_on(value: ast.expr) -> str | None:
    """The name in x, x[...], *x and *x[...]; None of what is computed from it."""
    while isinstance(value, ast.Starred | ast.Subscript):
        value = value.value
    return value.id if isinstance(value, ast.Name) else None


def imports(module: str, path: Path, modules: Collection[str]) -> Iterator[tuple[str, bool]]:
    """The modules of `modules` that a file imports, each with whether that is at the file's own import.

    Imports in functions, and those for type checkers only, are not.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        names = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=source, level=level):
                base = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
                base = ".".join([*base, *([source] if source else [])])
                names = [f"{base}.{alias.name}" for alias in node.names]
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_import = False
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                at_import = False
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name:
                yield name, at_import
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import)

    yield from visit(ast.parse(path.read_text()), True)


def import_edges(modules: dict[str, Path]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Pairs (module, what it imports): of imports at the module's own import, and of all."""
    found = [
        (module, target, at_import)
        for module, path in modules.items()
        for target, at_import in imports(module, path, modules)
        if target != module
    ]
    return {(a, b) for a, b, at_import in found if at_import}, {(a, b) for a, b, _ in found}


def between_folders(edges: Collection[tuple[str, str]], modules: dict[str, Path]) -> set[tuple[str, str]]:
    """The same between the packages that hold the modules; one beside the top `__init__` stands for itself.

    What `__init__` exports, or `__main__` starts, of its own package is no import.
    """

    def package(module: str) -> str:
        if modules[module].name == "__init__.py":
            return module
        folder = module.rpartition(".")[0]
        return folder if "." in folder else module

    found = set()
    for module, target in edges:
        start, end = package(module), package(target)
        face = modules[module].name in ("__init__.py", "__main__.py") and end.startswith(f"{start}.")
        if start != end and not face:
            found.add((start, end))
    return found


def circles(edges: Collection[tuple[str, str]]) -> list[list[str]]:
    """The groups in which each reaches every other one."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)

    def reached(start: str) -> set[str]:
        found, todo = set(), [start]
        while todo:
            new = after.get(todo.pop(), set()) - found
            found |= new
            todo += new
        return found

    reach = {start: reached(start) for start in after}
    groups = {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in reach}
    return sorted((sorted(group) for group in groups if len(group) > 1), key=len, reverse=True)
