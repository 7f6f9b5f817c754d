"""Extras x commands: each extra gives the commands that it can serve, the others name what to install."""

import json
from pathlib import Path

import pytest

from diffratio.cli import COMMANDS

ROOT = Path(__file__).parents[2]
WALK = Path(__file__).with_name("walk.py")
OPERATORS = {"flops", "plan", "bench", "doctor"}
SERVES = {
    None: {"doctor"},
    "triton": OPERATORS,
    "diffusers": OPERATORS | {"eval", "inpaint"},
    "demo": OPERATORS | {"eval", "inpaint", "demo", "sample", "plot"},
    "train": OPERATORS | {"eval", "inpaint", "demo", "sample", "plot", "train"},
}
SMALLEST = {command: extra for extra in reversed(SERVES) for command in SERVES[extra]}
PICTURE = ROOT / "docs/flow-shapes.png"
EDIT = f"--image {PICTURE} --mask {PICTURE} --prompt red"
SMALL = "--batch 1 --tokens 16 --width 16 --heads 2 --text 4 --kept 0.5 --rounds 1"
RUN = "--train_mode full --max_train_steps 1 --train_batch_size 2 --output_dir run"
CALLS = {
    "demo": (f"--out {WALK}", 2, "is not a folder"),  # said after its imports; the demo itself takes minutes
    "train": (f"--pretrained_model_name_or_path digits {RUN}", 0, "run"),
    "sample": ("shapes --rows 1 --columns 2 --steps 1 --out samples.png", 0, "samples.png written"),
    "inpaint": (
        f"shapes --system image --image {PICTURE} --mask {PICTURE} --prompt red",
        2,
        "2 C + 1 input channels",
    ),
    "eval": ("shapes --samples 2 --steps 1 --batch 1", 0, "shapes: 2 samples"),
    "plot": (f"{ROOT / 'benchmarks/results/amd-epyc.jsonl'} --out plots", 0, "roofline"),
    "bench": (f"block {SMALL}", 2, "needs a checkout of the repository"),
    "plan": ("--batch 2", 0, "time of dense"),
    "flops": ("--compression 0.3", 0, "GFLOP"),
    "doctor": ("--json", 0, "backends"),
}
"""Command -> arguments, exit code and words of the answer; larger extras than the smallest show its help."""
FURTHER = {
    "diffusers": {
        "eval digits --samples 2": 'digits needs sklearn: {}".[demo]"',
        "eval shapes --dataset a/b": "install the datasets package: pip install datasets",
    },
}
"""Extra -> calls of commands that it serves which ask for what it does not bring, and what they are told."""
WHERE = "in a checkout of diffratio-kernels, pip install "


def expected(command: str, extra: str | None) -> tuple[str, int, str]:
    """A call of the command, its exit code and words of the answer."""
    arguments, code, words = CALLS[command]
    if command not in SERVES[extra]:
        return arguments, 2, f'{WHERE}".[{COMMANDS[command][0]}]"'
    return ("--help", 0, command) if SMALLEST[command] != extra else (arguments, code, words)


@pytest.mark.parametrize("extra", SERVES)
def test_every_command_answers_or_names_the_extra(extra, installed):
    calls = {}
    for command in COMMANDS:
        arguments, *answer = expected(command, extra)
        calls[f"{command} {arguments}"] = answer
    for call, told in FURTHER.get(extra, {}).items():
        calls[call] = [2, told.format(WHERE)]
    environment = installed(extra)
    asked = json.dumps([call.split() for call in calls])
    done = environment.call("python", WALK, stdin=asked, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(file.startswith(str(environment.site)) for file in found["files"]), "the checkout was imported"
    for (code, words), answer in zip(calls.values(), found["answers"], strict=True):
        assert answer["code"] == code and words in answer["out"] + answer["err"], answer


@pytest.mark.parametrize(
    "extra, code, told",
    [
        (None, "from diffratio import apply_diffratio", 'diffratio.apply_diffratio needs {} ".[diffusers]"'),
        ("diffusers", "from diffratio.train import Trainer", 'diffratio.train.Trainer needs {} ".[train]"'),
    ],
)
def test_the_library_names_the_extra(extra, code, told, installed):
    done = installed(extra).call("python", "-c", code)
    who, extra = told.split("{}")
    last = done.stderr.splitlines()[-1]
    assert who in last and last.endswith(WHERE + extra.strip())


def test_the_script_lists_the_commands_without_importing_anything(bare):
    shown = bare.call("diffratio")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(f"  {command} " in shown.stdout for command in COMMANDS)
    unknown = bare.call("diffratio", "paint")
    assert unknown.returncode == 2 and "no command 'paint'; there are demo, train" in unknown.stderr
