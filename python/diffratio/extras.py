"""The extras of the package, and which one to install where a package is missing."""

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
