"""`help` of every public name: a summary, its arguments, what it returns and raises, and an example that
runs."""

import ast
import doctest
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from types import SimpleNamespace

import pytest
import torch

import diffratio
import diffratio.baselines
import diffratio_kernels

PACKAGES = diffratio_kernels, diffratio, diffratio.baselines
PUBLIC = [f"{package.__name__}.{name}" for package in PACKAGES for name in package.__all__]
RAISES_NOTHING = {"diffratio_kernels.capabilities", "diffratio_kernels.kept_tokens", "diffratio.by_count"}
"""Functions that check no argument."""
NEEDS_CUDA = {"diffratio.cuda_graphs"}


def public(name: str):
    package, _, attribute = name.rpartition(".")
    return getattr(next(one for one in PACKAGES if one.__name__ == package), attribute)


def sections(document: str) -> dict[str, str]:
    """Title -> text of a docstring; "" is what stands before the first title."""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Warns|Example):\n", document, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def described(text: str) -> set[str]:
    """Names that begin a line: `hidden, branch: ...`, and in Hugging Face's form `name (type): ...`."""
    lines = re.findall(r"^ {4}((?:\w+, )*\w+)(?: \(.*\))?:", text, flags=re.MULTILINE)
    return {name for line in lines for name in line.split(", ")}


def documented_fields(cls: type) -> set[str]:
    """Fields of a dataclass that a string stands below; `a: int` and `b: int` before one share it."""
    [node] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    found, waiting = set(), []
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign):
            waiting.append(statement.target.id)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            found.update(waiting)
            waiting = []
    return found


def faults(name: str, thing) -> list[str]:
    """What the help of a public function or class lacks."""
    found = sections(inspect.getdoc(thing) or "")
    bad = []
    if not re.match(r"[^\n]*\S.*?[.:)](\s|$)", found[""], flags=re.DOTALL):
        bad.append("no summary")
    if ">>> " not in found.get("Example", ""):
        bad.append("no Example")
    parameters = set(inspect.signature(thing).parameters)
    told = described(found.get("Args", ""))
    if inspect.isclass(thing):
        told |= documented_fields(thing) if is_dataclass(thing) else parameters
        checks = hasattr(thing, "__post_init__")
    else:
        checks = name not in RAISES_NOTHING
        returns = inspect.signature(thing).return_annotation not in (None, "None")
        if returns and not {"Returns", "Yields"} & set(found):
            bad.append("no Returns")
    bad += [f"Args: has nothing on {parameter}" for parameter in sorted(parameters - told)]
    if checks and "Raises" not in found:
        bad.append("no Raises")
    return bad


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented(name):
    assert faults(name, public(name)) == []


@pytest.fixture
def names():
    """What the examples speak of: the letters, tensors of these shapes, a small model and a pipeline."""
    B, N, D, H, F, M = 2, 256, 64, 4, 128, 5
    x, modulation = torch.randn(B, N, D), torch.randn(B, 6, D)
    router = torch.randn(D) * 1e-3
    index, cu_seqlens, logits = diffratio_kernels.route(x, router, 180)
    rows, branch, value = torch.randn(3, 2 * 180, D)
    heads = {name: t.view(-1, H, D // H) for name, t in zip("qkv", (rows, branch, value), strict=True)}
    linears = {"qkv": (3 * D, D), "out": (D, D), "fc1": (F, D), "fc2": (D, F)}
    weights = {name: torch.randn(shape) * shape[1] ** -0.5 for name, shape in linears.items()}
    shift, scale, gate = modulation[:, :3].unbind(1)
    return {
        "torch": torch, "nn": torch.nn, "B": B, "N": N, "D": D, "H": H, "F": F, "M": M,
        "x": x, "modulation": modulation, "router": router, "index": index, "cu_seqlens": cu_seqlens,
        "logits": logits, "rows": rows, "hidden": rows, "branch": branch, **heads, **weights,
        "shift": shift, "scale": scale, "gate": gate,
    }  # fmt: skip


@pytest.fixture
def models():
    """A routed model whose routers are new, as its trainer has it, and a pipeline of it."""
    from diffratio.toy import PRETRAINED, load_pixart

    model = load_pixart(PRETRAINED["digits"])
    inputs = {"encoder_hidden_states": torch.randn(1, 4, 32), "timestep": torch.tensor([500])}

    class Pipeline:
        transformer = model

        def __call__(self, prompt):
            return SimpleNamespace(images=[model(torch.randn(1, 1, 8, 8), **inputs).sample])

    return {"model": model, "pipe": Pipeline(), "inputs": inputs, "latents": torch.randn(1, 1, 8, 8)}


@pytest.mark.parametrize("name", PUBLIC)
def test_its_example_runs(name, names, request, tmp_path, monkeypatch):
    if name in NEEDS_CUDA and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.chdir(tmp_path)
    package = name.partition(".")[0]
    if package == "diffratio":
        names |= request.getfixturevalue("models")
    for module in (diffratio_kernels, diffratio) if package == "diffratio" else (diffratio_kernels,):
        names |= {one: getattr(module, one) for one in module.__all__}
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(public(name))):
        if example.want:
            assert repr(eval(example.source, names)) == example.want.rstrip(), example.source
        else:
            exec(example.source, names)


def test_a_gap_in_the_help_is_seen():
    def short(x, k):
        """Keep some.

        Args:
            x: tokens.
        """

    assert faults("f", short) == ["no Example", "no Returns", "Args: has nothing on k", "no Raises"]
