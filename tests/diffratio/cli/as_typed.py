"""Runs commands as typed, each in a child of its own, forked from here, where everything is imported already.

Reads a line of JSON for each command: `words`, `cwd`, the files `out` and `err`, and whether the latter is to
look like a `terminal`, on which there are progress bars. Writes the child's
process id when it has begun and its exit status when it has ended. A child that looks for another machine
ends at once, with status 99.
"""

import importlib
import io
import json
import os
import signal
import sys
import traceback

HEAVY = (
    "accelerate",
    "diffusers",
    "peft",
    "sklearn.model_selection",
    "diffratio.demo.run",
    "diffratio.evaluation.evaluate",
    "diffratio.plots.run",
    "diffratio.train.trainer",
)
NETWORK = 99


class Screen(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def no_network(event: str, arguments: tuple) -> None:
    elsewhere = event == "socket.connect" and not isinstance(
        arguments[1], str
    )  # a path is a socket of this machine
    if elsewhere or event == "socket.getaddrinfo":
        os.write(2, f"network: {event} {arguments}\n".encode())
        os._exit(NETWORK)


def status_of(words: list[str]) -> int:
    from diffratio.cli import main

    sys.argv = ["diffratio", *words]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run(words: list[str], cwd: str, out: str, err: str, terminal: bool) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if terminal:
        sys.stderr = Screen(sys.stderr.detach(), line_buffering=True)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(no_network)
    status = status_of(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)  # without taking all of that apart


if __name__ == "__main__":
    main()
