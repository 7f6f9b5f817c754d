"""Ctrl-C: one line that says how to go on, and the exit status that shells know."""

from __future__ import annotations

import functools
from collections.abc import Callable

import typer

INTERRUPTED = 130  # 128 + SIGINT


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a point that knows how to go on: the text says it."""


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command, which ends with one line instead of a traceback when it is interrupted."""

    @functools.wraps(command)
    def run(*arguments, **options) -> None:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as interrupt:
            how = str(interrupt) or "the same command starts over"
        # Only here are the frames of the command gone, and with them the bars that they were drawing.
        typer.echo(f"\ndiffratio {command.__name__}: stopped; {how}", err=True)
        raise typer.Exit(INTERRUPTED)

    return run
