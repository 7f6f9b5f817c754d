"""What a reader opens stays within its bounds (tools/reading.py), and every counter sees what it counts."""

import importlib.util
import os

import pytest
import torch

from diffratio_kernels import _native
from tools import reading, sources

RUNS = _native.unavailable is None and os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(not RUNS, reason="needs the native library and Triton's interpreter")
def test_a_call_enters_few_files_and_functions():
    figures = reading.by_running()
    assert reading.above(figures) == []
    assert all(figure.value > 0 for figure in figures)


def test_the_sources_stay_within_their_bounds():
    assert reading.above(reading.by_parsing()) == []


def test_no_bound_is_tighter_than_its_target():
    assert all(bound >= target for bound, target in reading.LIMITS.values())


def test_a_figure_above_its_bound_is_seen():
    name = "modules in circles of imports"
    bound, _ = reading.LIMITS[name]
    bad = reading.Figure(name, bound + 1, [])
    assert reading.above([reading.Figure(name, bound, []), bad]) == [bad]


@pytest.fixture
def written(tmp_path):
    """Writes a module into tmp_path and returns its file."""

    def written(text, name="module.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return written


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEEP = """
import torch

def a(n):
    return b([n for _ in range(2)])

def b(numbers):
    return c(*numbers)

def c(n, m):
    deepest = n + m
    start(deepest)
    return not_on_the_stack()

def not_on_the_stack():
    return (lambda: 1)()
"""
LAUNCHES = {
    "triton": "def launch(n): pass\nstart = launch\n",
    "library": "def start(n): torch.ops.diffratio_native.instruction_sets()\n",
    "overload": "def start(n): torch.ops.diffratio_native.instruction_sets.default()\n",
}


@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_deep_stack_is_seen(kind, written, tmp_path):
    if kind != "triton" and _native.unavailable is not None:
        pytest.skip(_native.unavailable)
    module = imported(written(DEEP + LAUNCHES[kind]))
    entered, (stack,) = reading.watch(lambda: lambda: module.a(1), [tmp_path])
    last = "launch" if kind == "triton" else "start"
    assert [code.co_name for code in stack] == ["a", "b", "c", last]
    assert {code.co_name for code in entered} == {"a", "b", "c", last, "not_on_the_stack", "<lambda>"}
    files, functions = reading.of_stacks("mod_block", [stack])
    assert (files.value, functions.value) == (1, 4)


def test_a_stack_in_backward_is_seen_and_other_operators_are_no_launch(written, tmp_path):
    module = imported(
        written("""
import torch

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        launch()
        return torch.ops.aten.mul(grad, 2)

def launch(): pass

def call(x):
    Twice.apply(x).backward()
""")
    )
    _, (stack,) = reading.watch(lambda: lambda: module.call(torch.ones((), requires_grad=True)), [tmp_path])
    assert [code.co_name for code in stack] == ["call", "backward", "launch"]


def test_a_call_without_a_launch_is_an_error(written, tmp_path):
    module = imported(written("def call(): pass"))
    _, stacks = reading.watch(lambda: module.call, [tmp_path])
    with pytest.raises(ValueError, match="mod_block: no kernel was launched"):
        reading.of_stacks("mod_block", stacks)


def test_the_first_call_of_what_is_made_is_watched_without_its_imports(written, tmp_path, monkeypatch):
    """What a first call fills and a second one finds counts, so each call is made anew."""
    monkeypatch.syspath_prepend(tmp_path)
    written("def inner(): pass\nclass A:\n    pass\ninner()\n", "imported_late.py")
    module = imported(
        written("""
class Cached:
    filled = False

    def __call__(self):
        import imported_late
        if not self.filled:
            self.fill()

    def fill(self):
        self.filled = True
""")
    )
    entered, _ = reading.watch(module.Cached, [tmp_path])
    assert {code.co_name for code in entered} == {"__call__", "fill"}


EIGHT = "a, b, c, d, e, f, g, h"


@pytest.mark.parametrize(
    "source",
    [
        f"def wide({EIGHT}): pass",
        "def wide(a, b, c, d, /, e, f, *, g, h=1): pass",
        f"class A:\n    def wide(self, {EIGHT}): pass",
        f"async def wide({EIGHT}): pass",
        f"def outer():\n    def wide({EIGHT}): pass",
    ],
)
def test_a_wide_function_is_counted(source, written):
    (found,) = sources.wide_functions(written(source), {tuple("abcdefgx")})
    assert found.endswith(" wide 8")


@pytest.mark.parametrize(
    "source",
    [
        "def f(a, b, c, d, e, f, g): pass",
        "class A:\n    def f(self, a, b, c, d, e, f, g): pass",
        f"@triton.jit\ndef f({EIGHT}): pass",
        f"@triton.jit(do_not_specialize=['a'])\ndef f({EIGHT}): pass",
        f"@app.command()\ndef f({EIGHT}): pass",
        "def f(a, b, c, d, e, f, g, h: Annotated[int, typer.Option()] = 1): pass",
        "Seed = Annotated[int, typer.Option()]\ndef f(a, b, c, d, e, f, g, h: Seed = 0): pass",
        f"def as_in_the_schema({EIGHT}, x=1): pass",
    ],
)
def test_what_must_be_wide_is_not_counted(source, written):
    assert sources.wide_functions(written(source), {tuple("abcdefghx")}) == []


def test_schemas_are_those_of_the_operators_with_the_backend_and_without():
    arguments = ("x", "index", "shift", "scale", "eps", "norm", "groups")
    assert {arguments, (*arguments, "backend"), ("backend", *arguments)} <= sources.schemas()


@pytest.mark.parametrize(
    "source",
    [
        "from functools import partial\nf = partial(g, 1)",
        "import functools\nf = functools.partial(g, x=1)",
        "f = lambda x: g(x, 1)",
        "f = lambda x: g(y=x)",
        "f = lambda *args: g(*args[:-1], place=args[-1])",
        "f = lambda: g(y)",
    ],
)
def test_bent_calls_are_counted(source, written):
    assert len(sources.bent_calls(written(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "f = lambda meta: (meta['M'] // 2,)",
        "f = lambda x: x.new_empty(x.shape)",
        "f = lambda row: row[0]",
        "f = lambda: g()",
        "partial, out = sums(x)",
    ],
)
def test_other_lambdas_are_not(source, written):
    assert sources.bent_calls(written(source)) == []


@pytest.fixture
def edges(written, tmp_path):
    """Import edges, at import and ever, of a package p with these files."""

    def edges(**texts):
        texts = {name.replace("__", "/"): text for name, text in texts.items()}
        modules = {"p": written("", "p/__init__.py")}
        for name, text in texts.items():
            is_package = any(other.startswith(f"{name}/") for other in texts)
            file = f"p/{name}/__init__.py" if is_package else f"p/{name}.py"
            modules[f"p.{name.replace('/', '.')}"] = written(text, file)
        return modules, *sources.import_edges(modules)

    return edges


@pytest.mark.parametrize(
    "back",
    ["from . import a", "from .a import x", "import p.a", "from p import a", "if x:\n    from . import a"],
)
def test_a_circle_at_import_is_found(back, edges):
    _, at_import, _ = edges(a="from .b import y", b="from . import c", c=back, d="from . import a")
    assert sources.circles(at_import) == [["p.a", "p.b", "p.c"]]


@pytest.mark.parametrize("back", ["def f():\n    from . import a", "if TYPE_CHECKING:\n    from .a import X"])
def test_a_circle_through_a_function_is_apart(back, edges):
    _, at_import, ever = edges(a="from . import b", b=back)
    assert sources.circles(at_import) == []
    assert sources.circles(ever) == [["p.a", "p.b"]]


def test_a_circle_between_folders_has_none_between_modules(edges):
    modules, at_import, _ = edges(
        q="from .one import x",  # its own: no import of another folder
        q__one="from ..r import two",
        r="",
        r__two="",
        r__three="from ..q import one",
    )
    assert sources.circles(at_import) == []
    folders = sources.between_folders(at_import, modules)
    assert folders == {("p.q", "p.r"), ("p.r", "p.q")}
    assert sources.circles(folders) == [["p.q", "p.r"]]


def test_modules_at_the_top_stand_for_themselves(edges):
    modules, at_import, _ = edges(
        types="", q="", q__one="from ..types import x", backends="from .q import one"
    )
    assert sources.circles(sources.between_folders(at_import, modules)) == []
    modules, at_import, _ = edges(types="from .q import one", q="", q__one="from .. import types")
    assert sources.circles(sources.between_folders(at_import, modules)) == [["p.q", "p.types"]]


def test_the_modules_are_those_of_the_wheel(written, tmp_path):
    written(
        "from setuptools import find_packages, setup\n"
        "setup(packages=[*find_packages(include=['one', 'one.*']), *find_packages('src', include=['two'])],\n"
        "      package_dir={'one': 'one', 'two': 'src/two'})\n",
        "setup.py",
    )
    shipped = {"one/__init__.py", "one/a.py", "one/sub/__init__.py", "src/two/__init__.py"}
    for name in (*shipped, "one/no_package/b.py", "tests/c.py"):
        written("", name)
    found = sources.shipped(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in found.values()} == shipped
    assert set(found) == {"one", "one.a", "one.sub", "two"}
