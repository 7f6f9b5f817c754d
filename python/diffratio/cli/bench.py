"""`diffratio bench`: the entry to the benchmarks of a checkout; they are in no wheel."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

NO_CHECKOUT = (
    'diffratio bench: needs a checkout of the repository; clone it, then pip install -e ".[diffusers]" in it'
)


def bench_of(repository: Path) -> Callable[..., None]:
    """Return the command of a checkout's benchmarks, or one that says what it needs where there are none."""
    if not (repository / "benchmarks" / "harness").is_dir():
        return _without_checkout
    sys.path.insert(0, str(repository))
    from benchmarks.harness.command import bench

    return bench


def _without_checkout(words: Annotated[list[str] | None, typer.Argument(metavar="SUITE")] = None) -> None:
    """Measure peak, operator, block, family, training, model, inpaint or sampling: in a checkout only."""
    typer.echo(NO_CHECKOUT, err=True)
    raise typer.Exit(2)


_without_checkout.context_settings = {"ignore_unknown_options": True}

bench = bench_of(Path(__file__).parents[3])
