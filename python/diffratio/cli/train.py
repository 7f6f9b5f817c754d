"""`diffratio train`: its options are the fields of `TrainArguments`."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from dataclasses import Field, fields
from typing import Annotated, get_type_hints

import typer

from ..data.images import BrokenImage
from ..train.arguments import ArgumentError, TrainArguments
from .after_train import how_to_go_on, report
from .stop import Stopped


def train(as_json: bool, **values) -> None:
    """Fine-tune a diffusion transformer to a compression target."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            from ..train import train

            run = train(TrainArguments(**values), progress=not as_json)
        except (ArgumentError, BrokenImage) as error:
            sys.exit(f"diffratio train: {error}")
        except KeyboardInterrupt:
            raise Stopped(how_to_go_on(values["output_dir"])) from None
    if not run:
        return
    typer.echo(json.dumps(run, indent=2) if as_json else "\n".join(report(run)))


def _show_warning(message, *_) -> None:
    """One line without the source, above the bar."""
    from tqdm import tqdm

    tqdm.write(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _option(one: Field, kind: type) -> inspect.Parameter:
    choices = one.metadata["choices"]
    # Not in brackets: rich takes those for markup and shows nothing.
    text = one.metadata["help"] + (f" One of {', '.join(choices)}." if choices else "")
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
