"""`diffratio --version`."""

from typing import Annotated

import typer

from diffratio_kernels import __version__


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"diffratio {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Diffusion transformers that compute only on the tokens that need it."""
