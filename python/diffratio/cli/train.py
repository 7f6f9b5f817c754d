"""`diffratio train`: its options are the fields of `TrainArguments`."""

import inspect
import json
import os
import shlex
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..data.images import BrokenImage
from ..train.arguments import ArgumentError, TrainArguments
from ..train.checkpoints import Checkpoints
from ..train.recipes import RECIPES

RESUME = ("--resume_from_checkpoint", "latest")
NEXT = {
    "plot": "ratios over training, router maps, quality on the way",
    "sample": "what it draws: of held-out captions, or --prompt TEXT",
    "eval": "quality, latency, FLOPs and memory, dense and sparse",
}
"""What to type after a training, and what for."""


def train(context: typer.Context, as_json: bool, **values) -> None:
    """Fine-tune a diffusion transformer to a compression target."""
    given = {name: value for name, value in values.items() if _typed(context, name)}
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            from ..train import train

            arguments = TrainArguments.of(**given)
            first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
            if arguments.recipe is not None and not as_json and first:
                typer.echo(recipe_line(arguments, given))
            run = train(arguments, progress=not as_json)
        except (ArgumentError, BrokenImage) as error:
            sys.exit(f"diffratio train: {error}")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(how_to_resume(values["output_dir"])) from None
    if not run:
        return
    typer.echo(json.dumps(run, indent=2) if as_json else "\n".join(report(run)))


def _typed(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name != "DEFAULT"


def recipe_line(arguments: TrainArguments, given: dict[str, Any]) -> str:
    """Return what a recipe sets, in one line; ``given`` are the arguments that were typed."""
    settings, sampling = RECIPES[arguments.recipe].arguments, RECIPES[arguments.recipe].sampling
    told = [f"{name} {getattr(arguments, name)}{' (given)' * (name in given)}" for name in settings]
    later = [f"{name} {value}" for name, value in sampling.items()]
    return f"recipe {arguments.recipe}: {', '.join(told)}; samples with {', '.join(later)}"


def _show_warning(message, *_) -> None:
    """One line without the source, above the bar."""
    from tqdm import tqdm

    tqdm.write(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def report(run: dict[str, Any]) -> list[str]:
    """Return the lines at the end of a training; ``run`` is the content of ``run.json``."""
    folder = run["arguments"]["output_dir"]
    loss = f"validation {run['loss']} {run['validation_loss']:.4f}"
    lines = [f"{folder}: {run['step']} steps in {duration(run['seconds'])}, {loss}", *kept_lines(run)]
    commands = {f"diffratio {name} {shlex.quote(folder)}": what for name, what in NEXT.items()}
    if run["arguments"].get("task") == "inpaint":
        del commands[f"diffratio sample {shlex.quote(folder)}"]
        commands[f"diffratio inpaint {shlex.quote(folder)} --image IMAGE --mask MASK --prompt TEXT"] = (
            "an edit"
        )
    elif run["latents"] and not run.get("flow"):
        del commands[f"diffratio sample {shlex.quote(folder)}"]
        commands[f"pipe.transformer, _ = diffratio.train.load_run({folder!r})"] = "in its pipeline, to draw"
    width = max(map(len, commands))
    return [*lines, "", *(f"{command:{width}}  # {what}" for command, what in commands.items())]


def kept_lines(run: dict[str, Any]) -> list[str]:
    """Return how many tokens are kept: a line for each timestep region, a column for each layer."""
    arguments = run["arguments"]
    if arguments["method"] == "mod":
        where = "on average" if arguments.get("dense_regions") else "in every layer"
        return [f"tokens kept {where}: {1 - arguments['target_compression']:.0%}"]
    if "ratios" not in run:
        return []
    return ratio_lines(run["ratios"], run.get("flow", False))


def ratio_lines(ratios: list[list[float]], flow: bool = False) -> list[str]:
    """Return learned kept ratios [L][R] as lines: their mean, and a line for each region of timesteps, or of
    noise levels of a flow."""
    layers, regions = len(ratios), len(ratios[0])
    mean = sum(map(sum, ratios)) / (layers * regions)
    times = "noise" if flow else "timestep"
    lines = [f"tokens kept, learned: {mean:.1%} on average; in % by {times} (0 is clean) and layer:"]
    width = 14 if flow else 12
    lines.append(f"  {'layer':{width}}" + "".join(f"{layer:4}" for layer in range(layers)))
    for region in range(regions):
        first, after = (-(-1000 * edge // regions) for edge in (region, region + 1))
        kept = "".join(f"{round(100 * row[region]):4}" for row in ratios)
        span = f"t {first} to {after - 1}"
        if flow:
            span = f"s {region / regions:.2f} to {(region + 1) / regions:.2f}"
        lines.append(f"  {span:{width}}{kept}")
    return lines


def how_to_resume(output_dir: str) -> str:
    """Return which checkpoint an interrupted run has, and the command that resumes it."""
    checkpoints = Checkpoints(Path(output_dir))
    whole = [step for step in checkpoints.steps() if checkpoints.why_broken(step) is None]
    kept = f"{checkpoints.path(whole[-1])} is kept, go on" if whole else "no checkpoint yet, start over"
    return f"{kept} with: {_resuming_command()}"


def _resuming_command() -> str:
    """The command that was typed, for a shell, with ``--resume_from_checkpoint latest``."""
    program, *typed = sys.argv
    name = Path(program).name
    if name == "__main__.py":
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ
        name = "accelerate launch -m diffratio" if launched else "python -m diffratio"
    given = [place for place, word in enumerate(typed) if word.split("=")[0] == RESUME[0]]
    for place in reversed(given):  # of two the last would count, but one reads better
        del typed[place : place + (1 if "=" in typed[place] else 2)]
    return f"{name} {shlex.join([*typed, *RESUME])}"


def duration(seconds: float) -> str:
    """Return seconds in words: 8 s, 2 min 13 s, 3 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _signature() -> inspect.Signature:
    """An option for each field of `TrainArguments`, and ``--json``."""
    kinds = get_type_hints(TrainArguments)
    options = {}
    for one in fields(TrainArguments):
        choices = one.metadata["choices"]
        # Not in brackets: rich takes those for markup and shows nothing.
        text = one.metadata["help"] + (f" One of {', '.join(choices)}." if choices else "")
        flag = f"--{one.name}/--no_{one.name}" if one.type == "bool" else f"--{one.name}"
        options[one.name] = one.default, Annotated[kinds[one.name], typer.Option(flag, help=text)]
    quiet = typer.Option("--json", help="Print the run's description as JSON, and no bar.")
    options["as_json"] = False, Annotated[bool, quiet]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, keyword, default=default, annotation=annotation)
        for name, (default, annotation) in options.items()
    ]
    return inspect.Signature([inspect.Parameter("context", keyword, annotation=typer.Context), *parameters])


# typer reads the command line off the signature.
train.__signature__ = _signature()
train.__annotations__ = {one.name: one.annotation for one in train.__signature__.parameters.values()}
