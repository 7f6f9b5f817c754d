"""Trains in children and kills them: `killer.py FOLDER KILLS ARGUMENTS`.

Writes two runs, `whole` and `killed`, and prints where the second one died. Children are forked from a
process that has everything imported and has computed nothing, so that a child starts at once.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from diffratio.train import TrainArguments, data, train


def start(arguments: TrainArguments) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            train(arguments, progress=False)
            status = 0
        finally:
            os._exit(status)
    return child


def lines(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def kill_one(arguments: TrainArguments, dice: random.Random, while_saving: bool) -> str | None:
    """Start a child and kill it, in the middle of a checkpoint or anywhere; None if it ended before."""
    folder = Path(arguments.output_dir)
    before, child, wait = lines(folder), start(arguments), dice.randrange(1, 5)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        saving = any(folder.glob(".checkpoint-*"))
        if saving if while_saving else lines(folder) >= before + wait:
            time.sleep(dice.random() * (0.01 if while_saving else 0.05))
            saving = any(folder.glob(".checkpoint-*"))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "while saving" if saving else "between"
        time.sleep(0.0002)
    return None


def main(folder: Path, kills: int, arguments: TrainArguments) -> None:
    torch.set_num_threads(1)
    data.VALIDATION_IMAGES = 8
    dice, deaths = random.Random(kills), []
    killed = replace(arguments, output_dir=str(folder / "killed"), resume_from_checkpoint="latest")
    while len(deaths) < kills:
        death = kill_one(killed, dice, while_saving=len(deaths) % 2 == 0)
        if death is None:
            sys.exit(f"the run ended after {deaths}")
        deaths.append(death)
    for one in (killed, replace(arguments, output_dir=str(folder / "whole"))):
        if os.waitstatus_to_exitcode(os.waitpid(start(one), 0)[1]):
            sys.exit(f"{one.output_dir} failed after {deaths}")
    print(json.dumps(deaths))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), TrainArguments(**json.loads(sys.argv[3])))
