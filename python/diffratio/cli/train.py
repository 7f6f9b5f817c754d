"""`diffratio train`: its options are the fields of `TrainArguments`."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import Field, fields
from typing import Annotated, get_type_hints

import typer

from ..train.arguments import ArgumentError, TrainArguments


def train(as_json: bool, **values) -> None:
    """Fine-tune a diffusion transformer to a compression target."""
    from ..train import train

    try:
        run = train(TrainArguments(**values), progress=not as_json)
    except ArgumentError as error:
        sys.exit(f"diffratio train: {error}")
    if not run:
        return
    if as_json:
        typer.echo(json.dumps(run, indent=2))
    else:
        typer.echo(f"{values['output_dir']}: validation loss {run['validation_loss']:.5f}")


def _option(one: Field, kind: type) -> inspect.Parameter:
    choices = one.metadata["choices"]
    text = one.metadata["help"] + (f" [{'|'.join(choices)}]" if choices else "")
    annotation = Annotated[kind, typer.Option(f"--{one.name}", help=text)]
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=annotation
    )


def _options() -> list[inspect.Parameter]:
    kinds = get_type_hints(TrainArguments)
    found = [_option(one, kinds[one.name]) for one in fields(TrainArguments)]
    quiet = Annotated[bool, typer.Option("--json", help="Print the run's description as JSON, and no bar.")]
    return [
        *found,
        inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=quiet),
    ]


# typer reads the command line off the signature.
train.__signature__ = inspect.Signature(_options())
train.__annotations__ = {one.name: one.annotation for one in train.__signature__.parameters.values()}
