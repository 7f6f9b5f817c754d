"""`accelerate launch -m diffratio.train ...`: the same command in several processes."""

import typer

from ..cli.train import train

typer.run(train)
