"""Ctrl-C leaves one line that says how to go on; `--resume_from_checkpoint` says what it found."""

import os
import shlex
import subprocess
import sys

import pytest

from diffratio.cli import stoppable
from diffratio.cli.train import how_to_resume

NAMES = ["--pretrained_model_name_or_path", "shapes", "--dataset_name", "photos", "--report_to", "none"]
QUICK = [*NAMES, "--train_mode", "full", "--method", "mod", "--train_batch_size", "4"]


def last_line(ended):
    assert "Traceback" not in ended.err and ended.status == 130, ended.err
    return ended.err.splitlines()[-1]


def test_an_interrupted_training_goes_on_with_the_command_that_it_names(terminal, home):
    steps = ["--max_train_steps", "16", "--checkpointing_steps", "4"]
    run = home / "my runs" / "one"
    words = ["train", *QUICK, *steps, "--output_dir", "my runs/one"]
    ended = terminal(home, *words, interrupt_when=lambda _: (run / "checkpoint-4").is_dir())
    said, command = last_line(ended).split(" is kept, go on with: ")
    assert said.startswith("diffratio train: stopped; my runs/one/checkpoint-")
    assert shlex.split(command) == ["diffratio", *words, "--resume_from_checkpoint", "latest"]
    again = terminal(home, *shlex.split(command)[1:])
    assert again.status == 0 and again.out.startswith("my runs/one: 16 steps"), again.words
    refused = terminal(home, *words, "--resume_from_checkpoint", "checkpoint-5")
    assert refused.status == 1
    assert (
        "resume_from_checkpoint='checkpoint-5' is no checkpoint of my runs/one, which has checkpoint-4, "
        in refused.err
    )
    other = terminal(home, *words, "--resume_from_checkpoint", "out/other/checkpoint-4")
    assert other.status == 1 and "'out/other/checkpoint-4' is no checkpoint of my runs/one" in other.err


def test_a_training_without_a_checkpoint_starts_over(terminal, home):
    words = ["train", *QUICK, "--max_train_steps", "1000", "--output_dir", "out/early"]
    words += ["--resume_from_checkpoint", "latest"]
    ended = terminal(home, *words, interrupt_when=lambda err: "training mod" in err)
    assert "warning: out/early is not there yet: the run starts from the beginning" in ended.err
    said, command = last_line(ended).split(" with: ")
    assert said == "diffratio train: stopped; no checkpoint yet, start over"
    assert shlex.split(command)[1:] == words  # once, not twice
    steps = [word if word != "1000" else "1" for word in shlex.split(command)[1:]]
    again = terminal(home, *steps)
    assert again.status == 0, again.words
    assert "warning: out/early holds no checkpoint: the run starts from the beginning" in again.err


def test_latest_on_an_empty_folder_says_so_and_a_named_checkpoint_is_an_error(terminal, home):
    (home / "empty").mkdir()
    words = ["train", *QUICK, "--max_train_steps", "1", "--output_dir"]
    ended = terminal(home, *words, "empty", "--resume_from_checkpoint", "latest")
    assert ended.status == 0, ended.words
    assert [line for line in ended.err.splitlines() if "warning" in line] == [
        "warning: empty holds no checkpoint: the run starts from the beginning"
    ]
    ended = terminal(home, *words, "missing", "--resume_from_checkpoint", "checkpoint-3")
    assert ended.status == 1 and ended.err == (
        "diffratio train: resume_from_checkpoint='checkpoint-3' is no checkpoint of missing, which has none\n"
    )
    assert not (home / "missing").exists()


@pytest.mark.parametrize(
    "words, under_way",
    [
        (["demo"], "dense samples"),
        (["eval", "shapes"], "sampling"),
        (["sample", "shapes", "--steps", "1000"], "sampling"),
        (["bench", "operator", "--tokens", "64", "--width", "64", "--heads", "1"], "operator"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_every_command_ends_with_one_line(words, under_way, terminal, tmp_path):
    ended = terminal(tmp_path, *words, interrupt_when=lambda err: under_way in err)
    line = last_line(ended)
    if words[0] == "bench":  # keeps what it has measured
        assert line.startswith("stopped: ") and "subjects measured, not stored (--out)" in line
    else:
        assert line == f"diffratio {words[0]}: stopped; the same command starts over"
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    "program, launched, name",
    [
        ("/bin/diffratio", False, "diffratio"),
        ("/lib/diffratio/__main__.py", False, "python -m diffratio"),
        ("/lib/diffratio/__main__.py", True, "accelerate launch -m diffratio"),
    ],
)
def test_a_training_is_resumed_as_it_was_started(program, launched, name, tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    typed = ["train", "--resume_from_checkpoint", "checkpoint-1", "--rank=2"]
    monkeypatch.setattr("sys.argv", [program, *typed])
    command = f"{name} train --rank=2 --resume_from_checkpoint latest"
    assert how_to_resume(str(tmp_path)) == f"no checkpoint yet, start over with: {command}"


def test_what_is_no_interrupt_passes():
    def fails(path: str) -> None:
        raise ValueError(path)

    with pytest.raises(ValueError, match="here"):
        stoppable(fails)("here")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["doctor"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_has_enough_is_no_error(words):
    """As in `diffratio doctor | head -1`."""
    command = [sys.executable, "-c", "from diffratio.cli import main; main()", *words]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 1)
