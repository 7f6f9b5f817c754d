"""Sources that the oldest supported Python can run, whichever runs the tests."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = (3, 10)
# Of the standard library since: whole modules (empty), or these names of a module.
NEWER = {
    "tomllib": (),
    "asyncio": ("Barrier", "Runner", "TaskGroup", "timeout"),
    "contextlib": ("chdir",),
    "datetime": ("UTC",),
    "enum": ("EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "member", "nonmember", "verify"),
    "hashlib": ("file_digest",),
    "inspect": ("getmembers_static", "markcoroutinefunction"),
    "itertools": ("batched",),
    "math": ("cbrt", "exp2", "fma", "sumprod"),
    "operator": ("call",),
    "sys": ("exception", "monitoring"),
    "typing": (
        "LiteralString", "Never", "NotRequired", "ReadOnly", "Required", "Self", "TypeAliasType", "TypeIs",
        "TypeVarTuple", "Unpack", "assert_never", "assert_type", "dataclass_transform", "override",
    ),
    "warnings": ("deprecated",),
}  # fmt: skip
BUILT_IN = ("BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError")


def too_new(source: str) -> list[str]:
    """What a source says that the oldest Python does not understand; code for one version may."""
    try:
        todo: list[ast.AST] = [ast.parse(source, feature_version=OLDEST)]
    except SyntaxError as error:
        return [str(error)]
    found = []
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "sys.version_info" in ast.unparse(node.test):
            continue
        todo += ast.iter_child_nodes(node)
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names if NEWER.get(alias.name) == ()]
            case ast.ImportFrom(module=module, names=names) if module in NEWER:
                found += [f"{module}.{a.name}" for a in names if a.name in NEWER[module] or not NEWER[module]]
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in NEWER.get(module, ()):
                found.append(f"{module}.{name}")
            case ast.Name(id=name) if name in BUILT_IN:
                found.append(name)
    return found


def test_every_source_is_of_the_oldest_python():
    assert f'requires-python = ">={OLDEST[0]}.{OLDEST[1]}"' in (ROOT / "pyproject.toml").read_text()
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    sources = {path: (ROOT / path).read_text() for path in listed.stdout.splitlines()}
    assert len(sources) > 100
    assert {path: found for path, source in sources.items() if (found := too_new(source))} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import tomllib", "tomllib"),
        ("from tomllib import loads", "tomllib.loads"),
        ("from typing import Any, Self", "typing.Self"),
        ("now = datetime.UTC", "datetime.UTC"),
        ("class A(enum.StrEnum): pass", "enum.StrEnum"),
        ("try:\n    pass\nexcept ExceptionGroup:\n    pass", "ExceptionGroup"),
    ],
)
def test_what_is_newer_is_found(source, found):
    assert too_new(source) == [found]


def test_newer_syntax_is_found():
    (found,) = too_new("try:\n    pass\nexcept* ValueError:\n    pass")
    assert "3.11" in found


@pytest.mark.parametrize(
    "source",
    [
        "match x:\n    case [a]:\n        from typing import Any",
        "call = self.UTC",
        "if sys.version_info >= (3, 11):\n    import tomllib\nelse:\n    import tomli as tomllib",
    ],
)
def test_what_is_not_newer_is_not_found(source):
    assert too_new(source) == []
