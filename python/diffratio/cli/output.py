"""What commands share: errors and tables on the terminal, checks of `--out` before the work begins, and the
option `--baseline`."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

Baseline = Annotated[
    str | None,
    typer.Option(
        help="What to run in place of routers: tome:attn|mlp|all:RATIO, atedm:RATIO[:copy|residual], "
        "mod:RATIO[:ceil|floor]."
    ),
]


def names_errors(command: Callable) -> Callable:
    """Return the command, whose ValueErrors become a `typer.BadParameter`: their text and exit code 2."""

    @functools.wraps(command)
    def run(*arguments, **options):
        try:
            return command(*arguments, **options)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return run


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], **options) -> Table:
    """A table with the first column on the left and the others on the right; `options` are rich's."""
    found = Table(*header, title=title, **options)
    for column in found.columns[1:]:
        column.justify = "right"
    for row in rows:
        found.add_row(*row)
    return found


def print_table(console: Console, title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print such a table."""
    console.print(table(title, header, rows))


def check_folder(out: Path) -> None:
    """Raise a BadParameter that names `out` where the folder can be neither written to nor made."""
    _check(out, out)


def check_file(out: Path) -> None:
    """Raise a BadParameter that names `out` where the file cannot be written."""
    if out.is_dir():
        raise typer.BadParameter(f"out={str(out)!r} is a folder, must be a file")
    _check(out, out.parent)


def _check(out: Path, folder: Path) -> None:
    there = next(one for one in (folder, *folder.absolute().parents) if os.path.lexists(one))
    if not there.is_dir():
        raise typer.BadParameter(f"out={str(out)!r}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise typer.BadParameter(f"out={str(out)!r}: {there} cannot be written to")
