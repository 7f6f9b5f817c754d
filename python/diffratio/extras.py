"""The extras of the package, and which one to install where a package is missing."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

EXTRAS = ("triton", "diffusers", "demo", "train")
"""From the smallest on: demo holds diffusers, train holds demo."""

EXTRA_OF = {
    **dict.fromkeys(("rich", "tqdm", "triton", "typer"), "triton"),
    **dict.fromkeys(("PIL", "diffusers", "numpy", "safetensors"), "diffusers"),
    **dict.fromkeys(("matplotlib", "sklearn"), "demo"),
    **dict.fromkeys(("accelerate", "peft", "sentencepiece", "tensorboard", "transformers"), "train"),
}
"""Package, as it is imported -> the first extra that brings it."""


def missing(who: str, error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The same error with a text that names the extra to install.

    Args:
        who: what cannot run, as in "diffratio demo".
        error: what its import raised.
        extra: the one that `who` needs; a package of a later one asks for that.

    Returns:
        The error to raise; `error` itself where no extra brings the package.
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        return error
    wanted = max(extra, EXTRA_OF[package], key=EXTRAS.index)
    text = f'{who} needs {package}: in a checkout of diffratio-kernels, pip install ".[{wanted}]"'
    return ModuleNotFoundError(text, name=error.name)


def on_first_use(package: str, names: dict[str, tuple[str, ...]], extra: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports the `names` of its modules when they are asked for.

    Where a module misses another package, the error names the extra to install, from `extra` on.
    """
    homes = {name: module for module, some in names.items() for name in some}

    def get(name: str):
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{homes[name]}", package), name)
        except ModuleNotFoundError as error:
            raise missing(f"{package}.{name}", error, extra) from error
        setattr(sys.modules[package], name, value)
        return value

    return get
