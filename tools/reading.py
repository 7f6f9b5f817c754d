"""What a reader of the product opens, counted by running it and by parsing it.

    python -m tools.reading           # every figure with its bound and its target, and what holds most of it
    python -m tools.reading --json

The exit code is 1 where a figure is above its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_stack
from types import CodeType, FrameType

from . import sources
from .sources import ROOT

OPERATORS = ROOT / "diffratio_kernels"
PRODUCT = (OPERATORS, ROOT / "python" / "diffratio")
LIBRARIES = ("diffratio_native.", "diffratio_cuda.")
BLOCK_FILES = 2 * 7 + 6
"""Of a `mod_block`: two for each of its seven operators, and six around them."""

# Figure -> (bound, target). A bound is what held when it was set, or the target where that allows more. It is
# loosened for what the product can do newly alone, and the commit that does so says for what; targets are
# older than the families beside PixArt and DiT. The functions of a whole call have no target of their own.
LIMITS = {
    "mod_block: files on the stack of a launch": (6, 6),
    "mod_block: functions on the stack of a launch": (12, 12),
    "mod_block: files of a call": (BLOCK_FILES + 1, BLOCK_FILES),
    "mod_block: functions of a call": (57, 57),
    "mod_block, with gradients: files on the stack of a launch": (6, 6),
    "mod_block, with gradients: functions on the stack of a launch": (12, 12),
    "mod_block, with gradients: files of a call": (BLOCK_FILES + 2, BLOCK_FILES),
    "mod_block, with gradients: functions of a call": (113, 72),
    "block of a patched PixArt: files on the stack of a launch": (6, 6),
    "block of a patched PixArt: functions on the stack of a launch": (12, 12),
    "block of a patched PixArt: files of a call": (BLOCK_FILES + 8, BLOCK_FILES + 8),
    "block of a patched PixArt: functions of a call": (74, 67),
    "mod_block on Triton: files on the stack of a launch": (6, 6),
    "mod_block on Triton: functions on the stack of a launch": (12, 12),
    "mod_block on Triton, with gradients: files on the stack of a launch": (6, 6),
    "mod_block on Triton, with gradients: functions on the stack of a launch": (13, 12),
    "shipped lines of Python": (31_950, 14_000),
    "functions of 8 parameters or more": (18, 13),
    "partials and lambdas that bend a call, in diffratio_kernels": (0, 0),
    "modules in circles of imports": (0, 0),
    "modules in circles, with imports in functions": (0, 0),
    "folders in circles of imports": (0, 0),
    "folders in circles, with imports in functions": (0, 0),
}


@dataclass(frozen=True)
class Figure:
    """One count, and what makes it up: the worst first, a stack from outside in."""

    name: str
    value: int
    places: list[str]


# By running


def watch(
    make: Callable[[], Callable[[], object]], folders: Collection[Path] = PRODUCT
) -> tuple[set[CodeType], list[list[CodeType]]]:
    """The functions of `folders` that a call enters, and those on the stack of each kernel launch in it.

    A launch is a call into the compiled library, or of `launch`, which starts a Triton kernel. Comprehensions
    belong to the function around them. Backward on the CPU runs in the caller's thread, and is seen.

    Args:
        make: gives the call. It is asked twice: the first call imports what it needs, the second is watched.
        folders: absolute paths; functions of files in them count.

    Returns:
        The code entered, and a stack for each launch, the outermost function first.
    """
    import torch

    inside = tuple(f"{folder}{os.sep}" for folder in folders)
    torch_calls = {kind.__call__.__code__ for kind in (torch._ops.OpOverload, torch._ops.OpOverloadPacket)}

    def counts(code: CodeType) -> bool:
        named = not code.co_name.startswith("<") or code.co_name == "<lambda>"
        return named and code.co_filename.startswith(inside)

    def launches(frame: FrameType) -> bool:
        if frame.f_code in torch_calls:
            return str(frame.f_locals["self"]).startswith(LIBRARIES)
        return frame.f_code.co_name == "launch" and counts(frame.f_code)

    entered, stacks = set(), []

    def on_event(frame: FrameType, event: str, _) -> None:
        if event != "call":
            return
        if counts(frame.f_code):
            entered.add(frame.f_code)
        if launches(frame):
            outwards = [outer.f_code for outer, _ in walk_stack(frame) if counts(outer.f_code)]
            stacks.append(outwards[::-1])

    make()()
    call, before = make(), sys.getprofile()
    sys.setprofile(on_event)
    try:
        call()
    finally:
        sys.setprofile(before)
    return entered, stacks


def files(codes: Collection[CodeType]) -> set[str]:
    return {code.co_filename for code in codes}


def place(code: CodeType) -> str:
    path = Path(code.co_filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    return f"{name}:{code.co_firstlineno} {code.co_name}"


def of_stacks(name: str, stacks: list[list[CodeType]]) -> list[Figure]:
    """The most files and the most functions on any stack."""
    if not stacks:
        raise ValueError(f"{name}: no kernel was launched")
    by_files = max(stacks, key=lambda stack: len(files(stack)))
    by_functions = max(stacks, key=lambda stack: len(set(stack)))
    on_stack = "on the stack of a launch"
    return [
        Figure(f"{name}: files {on_stack}", len(files(by_files)), list(map(place, by_files))),
        Figure(f"{name}: functions {on_stack}", len(set(by_functions)), list(map(place, by_functions))),
    ]


def of_call(name: str, entered: set[CodeType]) -> list[Figure]:
    """Files and functions that a call enters."""
    number = Counter(sorted(code.co_filename for code in entered))
    places = [f"{Path(file).relative_to(ROOT)} {count}" for file, count in number.most_common()]
    return [
        Figure(f"{name}: files of a call", len(number), places),
        Figure(f"{name}: functions of a call", len(entered), places),
    ]


def mod_block_call(backend: str, gradients: bool = False) -> Callable[[], None]:
    """A call of `mod_block` with cross-attention, and its backward pass where gradients are wanted."""
    import torch

    from diffratio_kernels import mod_block
    from diffratio_kernels.testing.cases import ModBlockCase

    arguments = ModBlockCase(seed=0).arguments()
    for value in arguments.values():
        if isinstance(value, torch.Tensor):
            value.requires_grad_(gradients)

    def call() -> None:
        with torch.set_grad_enabled(gradients):
            out = mod_block(**arguments, backend=backend)
        if gradients:
            out.sum().backward()

    return call


def pixart_block_call() -> Callable[[], None]:
    """The first call of a block of a tiny PixArt after patching, without gradients."""
    import torch
    from diffusers import PixArtTransformer2DModel

    from diffratio import DiffRatioConfig, apply_diffratio

    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=16, cross_attention_dim=32,
        caption_channels=24, in_channels=4, out_channels=4, norm_num_groups=1,
    ).eval()  # fmt: skip
    block, given = model.transformer_blocks[0], []

    hook = block.register_forward_pre_hook(lambda _, *arguments: given.extend(arguments), with_kwargs=True)
    with torch.no_grad():
        model(
            hidden_states=torch.randn(2, 4, 16, 16), encoder_hidden_states=torch.randn(2, 6, 24),
            timestep=torch.full((2,), 500), added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )  # fmt: skip
    hook.remove()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the routers are untrained")
        apply_diffratio(model, DiffRatioConfig(0.5))

    def call() -> None:
        args, kwargs = given
        with torch.no_grad():
            block(*args, **kwargs)

    return call


def by_running() -> list[Figure]:
    """Needs the native library, diffusers, and Triton in its interpreter (TRITON_INTERPRET=1)."""
    found = []
    for name, make in (
        ("mod_block", lambda: mod_block_call("cpu")),
        ("mod_block, with gradients", lambda: mod_block_call("cpu", gradients=True)),
        ("block of a patched PixArt", pixart_block_call),
    ):
        entered, stacks = watch(make)
        found += of_stacks(name, stacks) + of_call(name, entered)
    for name, make in (
        ("mod_block on Triton", lambda: mod_block_call("triton")),
        ("mod_block on Triton, with gradients", lambda: mod_block_call("triton", gradients=True)),
    ):
        found += of_stacks(name, watch(make)[1])
    return found


# By parsing


def by_parsing() -> list[Figure]:
    """Figures of the shipped sources."""
    modules, known = sources.shipped(), sources.schemas()
    folders = Counter()
    for path in modules.values():
        folders[str(path.parent.relative_to(ROOT))] += sources.lines(path)
    sizes = [f"{folder} {count}" for folder, count in folders.most_common()]
    wide = {path: sources.wide_functions(path, known) for path in modules.values()}
    bent = {
        path: sources.bent_calls(path)
        for path in modules.values()
        if path.is_relative_to(OPERATORS) and not path.is_relative_to(OPERATORS / "testing")
    }
    at_import, ever = sources.import_edges(modules)
    return [
        Figure("shipped lines of Python", sum(folders.values()), sizes),
        of_files("functions of 8 parameters or more", wide),
        of_files("partials and lambdas that bend a call, in diffratio_kernels", bent),
        of_circles("modules in circles of imports", at_import),
        of_circles("modules in circles, with imports in functions", ever),
        of_circles("folders in circles of imports", sources.between_folders(at_import, modules)),
        of_circles("folders in circles, with imports in functions", sources.between_folders(ever, modules)),
    ]


def of_circles(name: str, edges: set[tuple[str, str]]) -> Figure:
    """How many modules or folders are in circles, and what they import within them."""
    groups = sources.circles(edges)
    places = [
        f"{start} -> {', '.join(sorted(end for end in group if (start, end) in edges))}"
        for group in groups
        for start in group
    ]
    return Figure(name, sum(map(len, groups)), places)


def of_files(name: str, found: dict[Path, list[str]]) -> Figure:
    """What was found in files, those that hold most of it first."""
    worst = sorted((path for path in found if found[path]), key=lambda path: -len(found[path]))
    places = [f"{path.relative_to(ROOT)} {len(found[path])}: {', '.join(found[path])}" for path in worst]
    return Figure(name, sum(map(len, found.values())), places)


def above(figures: list[Figure]) -> list[Figure]:
    """Those that are above their bound."""
    return [figure for figure in figures if figure.value > LIMITS[figure.name][0]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print everything found as JSON")
    as_json = parser.parse_args().json
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels read it when they are decorated
    figures, repository = by_running() + by_parsing(), sources.lines_by_folder()
    if as_json:
        rows = [dict(zip(("bound", "target"), LIMITS[f.name], strict=True), **vars(f)) for f in figures]
        print(json.dumps({"figures": rows, "lines": repository}, indent=2))
    else:
        print(f"{'value':>7}{'bound':>7}{'target':>7}")
        for figure in figures:
            bound, target = LIMITS[figure.name]
            print(f"{figure.value:7}{bound:7}{target:7}  {figure.name}")
            if figure.value > target:
                print(*(f"{'':23}{place}" for place in figure.places[:15]), sep="\n")
        print("lines of the repository:", ", ".join(f"{name} {n}" for name, n in repository.items()))
    return int(above(figures) != [])


if __name__ == "__main__":
    sys.exit(main())
