"""Checks of `--out` before the work begins."""

import os
from pathlib import Path

import typer


def check_folder(out: Path) -> None:
    """Raise a BadParameter that names `out` where the folder can be neither written to nor made."""
    _check(out, out)


def make_folder(out: Path) -> None:
    """Make the folder; a BadParameter names `out` where it cannot be made after all."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"out={str(out)!r}: {error.strerror}") from None


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
