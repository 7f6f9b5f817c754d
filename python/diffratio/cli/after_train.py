"""What is said after a training: what it learned and what to type next, or how to go on with it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

RESUME = ("--resume_from_checkpoint", "latest")
PROGRAMS = {"diffratio": "python -m diffratio", "train": "accelerate launch -m diffratio.train"}
"""What was typed, by the folder of the `__main__.py` that runs."""
NEXT = {
    "plot": "ratios over training, router maps, quality on the way",
    "sample": "what it draws: of held-out captions, or --prompt TEXT",
    "eval": "quality, latency, FLOPs and memory, dense and sparse",
}


def report(run: dict[str, Any]) -> list[str]:
    """The lines at the end of a training; ``run`` is the content of ``run.json``."""
    folder = run["arguments"]["output_dir"]
    loss = f"validation {run['loss']} {run['validation_loss']:.4f}"
    lines = [f"{folder}: {run['step']} steps in {duration(run['seconds'])}, {loss}", *kept_lines(run)]
    commands = {f"diffratio {name} {shlex.quote(folder)}": what for name, what in NEXT.items()}
    if run["latents"]:
        del commands[f"diffratio sample {shlex.quote(folder)}"]
        commands[f"pipe.transformer, _ = diffratio.train.load_run({folder!r})"] = "in its pipeline, to draw"
    width = max(map(len, commands))
    return [*lines, "", *(f"{command:{width}}  # {what}" for command, what in commands.items())]


def kept_lines(run: dict[str, Any]) -> list[str]:
    """How many tokens are kept: a line for each timestep region, a column for each layer."""
    arguments = run["arguments"]
    if arguments["method"] == "mod":
        return [f"tokens kept in every layer: {1 - arguments['target_compression']:.0%}"]
    if "ratios" not in run:
        return []
    layers, regions = len(run["ratios"]), len(run["ratios"][0])
    mean = sum(map(sum, run["ratios"])) / (layers * regions)
    lines = [f"tokens kept, learned: {mean:.1%} on average; in % by timestep (0 is clean) and layer:"]
    edges = [-(-1000 * region // regions) for region in range(regions + 1)]
    spans = ["", *(f"t {low} to {high - 1}" for low, high in zip(edges[:-1], edges[1:], strict=True))]
    cells = [list(range(layers)), *([round(100 * row[r]) for row in run["ratios"]] for r in range(regions))]
    for span, row in zip(spans, cells, strict=True):
        lines.append(f"  {span or 'layer':12}" + "".join(f"{cell:4}" for cell in row))
    return lines


def how_to_go_on(output_dir: str) -> str:
    """Which checkpoint an interrupted run has, and the command that goes on."""
    from ..train.checkpoints import Checkpoints

    checkpoints = Checkpoints(Path(output_dir))
    whole = [step for step in checkpoints.steps() if checkpoints.why_broken(step) is None]
    kept = f"{checkpoints.path(whole[-1])} is kept, go on" if whole else "no checkpoint yet, start over"
    return f"{kept} with: {command_line()}"


def command_line() -> str:
    """What was typed, for a shell, with ``--resume_from_checkpoint latest``."""
    program, *typed = sys.argv
    path = Path(program)
    name = PROGRAMS[path.parent.name] if path.name == "__main__.py" else path.name
    given = [place for place, word in enumerate(typed) if word.split("=")[0] == RESUME[0]]
    for place in reversed(given):  # of two the last would count, but one reads better
        del typed[place : place + (1 if "=" in typed[place] else 2)]
    return f"{name} {shlex.join([*typed, *RESUME])}"


def duration(seconds: float) -> str:
    """Seconds in words: 8 s, 2 min 13 s, 3 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
