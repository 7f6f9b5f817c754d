"""Files that a command writes from what is there, and a test compares."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def print_or_write(about: str | None, path: Path, text: Callable[[], str]) -> int:
    """The command: prints the text; `--write` puts it where it belongs.

    Args:
        about: what `--help` says.
        path: where that is.
        text: the whole of it.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {path.name}")
    if parser.parse_args().write:
        path.write_text(text())
    else:
        print(text(), end="")
    return 0
