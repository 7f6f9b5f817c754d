"""`diffratio`: one file per command."""

import typer

from .bench import bench
from .demo import demo
from .doctor import doctor
from .flops import flops

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
for command in (demo, bench, flops, doctor):
    app.command()(command)


def main() -> None:
    """Entry point of the `diffratio` script."""
    app()
