"""`diffratio`: one file per command, imported when it is called, so that each needs its own packages only."""

import functools
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from ..extras import missing

COMMANDS = {
    "demo": ("demo", "handwritten digits, dense and token-sparse: a table and a picture"),
    "train": ("train", "fine-tune a model to a compression target"),
    "sample": ("demo", "a picture of what a trained model draws"),
    "inpaint": ("diffusers", "repaint the masked part of a picture"),
    "eval": ("diffusers", "quality, latency, FLOPs and memory of a model"),
    "plot": ("demo", "figures of training runs and of results of bench"),
    "bench": ("diffusers", "latency and memory beside what a user would run; in a checkout"),
    "plan": ("diffusers", "what compression would save on a device, before any training"),
    "flops": ("diffusers", "count a model's FLOPs"),
    "doctor": (None, "what can run here, and why the rest cannot"),
}
"""Command -> the extra that it needs, and what it does."""
INTERRUPTED = 130  # 128 + SIGINT


def main() -> None:
    """Entry point of the `diffratio` script."""
    try:
        dispatch(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has what it wanted; 1 says that it did not get all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:  # while packages were imported; commands catch it themselves
        _stop("\ndiffratio: stopped", INTERRUPTED)


def dispatch(arguments: list[str]) -> None:
    """Run what the arguments ask for. Help, version and doctor need torch alone."""
    match arguments:
        case [] | ["--help" | "-h", *_]:
            print(usage())
        case ["--version", *_]:
            from diffratio_kernels import __version__

            print(f"diffratio {__version__}")
        case ["doctor", *arguments]:
            from .doctor import doctor

            doctor(arguments)
        case [name, *arguments] if name in COMMANDS:
            run(name, arguments)
        case [name, *_]:
            _stop(f"diffratio: no command {name!r}; there are {', '.join(COMMANDS)}")


def run(name: str, arguments: list[str]) -> None:
    """Run one command; where a package that it needs is missing, name the extra and exit with code 2."""
    try:
        import typer

        command = getattr(import_module(f".{name}", __name__), name)
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(context_settings=getattr(command, "context_settings", None))(stoppable(command))
        app(arguments, prog_name=f"diffratio {name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("diffratio", "diffratio_kernels"):
            raise
        extra, _ = COMMANDS[name]
        advice = missing(f"diffratio {name}", error, extra)
        _stop(f"diffratio {name}: {error}" if advice is error else str(advice))


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command, which ends with one line instead of a traceback when it is interrupted.

    The line is the text of the KeyboardInterrupt, where a command knows better than to start over.
    """

    @functools.wraps(command)
    def run(*arguments, **options) -> None:
        try:
            return command(*arguments, **options)
        except KeyboardInterrupt as interrupt:
            how = str(interrupt) or "the same command starts over"
        # Only here are the frames of the command gone, and with them the bars that they were drawing.
        _stop(f"\ndiffratio {command.__name__}: stopped; {how}", INTERRUPTED)

    return run


def usage() -> str:
    """Return the commands, and what each needs."""
    rows = [
        f"  {name:8} {does:66} {'torch alone' if extra is None else f'.[{extra}]'}"
        for name, (extra, does) in COMMANDS.items()
    ]
    return "\n".join([
        "usage: diffratio [--help] [--version] COMMAND ...",
        "",
        "Diffusion transformers that compute only on the tokens that need it.",
        "",
        f"  {'command':8} {'':66} needs",
        *rows,
        "",
        'Install what a command needs with pip install ".[...]" in a checkout; train holds demo, demo holds '
        "diffusers.",
        "`diffratio COMMAND --help` shows its options.",
    ])  # fmt: skip


def _stop(text: str, code: int = 2) -> NoReturn:
    print(text, file=sys.stderr)
    sys.exit(code)
