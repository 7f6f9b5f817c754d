"""`diffratio`: one file per command, imported when it is called, so that each needs its own packages only."""

import os
import sys
from importlib import import_module

from ..extras import missing

COMMANDS = {
    "demo": ("demo", "handwritten digits, dense and token-sparse: a table and a picture"),
    "train": ("train", "fine-tune a model to a compression target"),
    "sample": ("demo", "a picture of what a trained model draws"),
    "eval": ("diffusers", "quality, latency, FLOPs and memory of a model"),
    "plot": ("demo", "figures of training runs and of results of bench"),
    "bench": ("diffusers", "latency and memory beside what a user would run instead"),
    "plan": ("diffusers", "what compression would save on a device, before any training"),
    "flops": ("diffusers", "count a model's FLOPs"),
    "kernels": ("triton", "compile every GPU kernel: registers, spills, instructions"),
    "doctor": (None, "what can run here, and why the rest cannot"),
}
"""Command -> the extra that it needs, and what it does."""


def main() -> None:
    """Entry point of the `diffratio` script."""
    try:
        dispatch(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has what it wanted; 1 says that it did not get all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:  # while packages were imported: commands have an answer of their own
        _stop("\ndiffratio: stopped", 130)


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

        from .stop import stoppable

        command = getattr(import_module(f".{name}", __name__), name)
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(stoppable(command))
        app(arguments, prog_name=f"diffratio {name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("diffratio", "diffratio_kernels"):
            raise
        extra, _ = COMMANDS[name]
        told = missing(f"diffratio {name}", error, extra)
        _stop(f"diffratio {name}: {error}" if told is error else str(told))


def usage() -> str:
    """The commands, and what each needs."""
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


def _stop(text: str, code: int = 2) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)
