"""The table of looks: what it names exists, and its seconds add up."""

import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.harness.command import bench
from tools.gpu import looks

ROOT = Path(__file__).parents[2]


@pytest.fixture
def steps():
    return [step for look in looks.LOOKS.values() for step in look.steps]


def test_each_command_of_the_first_look_takes_less_than_five_minutes_and_the_next_two_ten():
    for name, most in (("correct", 300), ("speed", 300), ("second", 600), ("third", 600)):
        look = looks.LOOKS[name]
        assert looks.START + look.limit <= most, name
        assert looks.START + look.predicted <= most, name


def test_a_step_has_the_time_that_it_is_predicted_to_take():
    for look in looks.LOOKS.values():
        assert len({step.name for step in look.steps}) == len(look.steps)
        assert look.steps[0].essential
        for step in look.steps:
            assert step.limit == 0 or 0 < step.predicted <= step.limit, step.name


def test_files_that_steps_name_exist_and_every_gpu_test_is_in_a_look(steps):
    words = {word for step in steps for word in step.command.split()}
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word).exists(), word
        assert not word.startswith("tools.") or (ROOT / f"{word.replace('.', '/')}.py").exists(), word
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests/gpu").glob("test_*.py")} <= words


def test_bench_takes_the_words_of_the_steps_and_of_their_rehearsals(steps, monkeypatch):
    """Without measuring: every suite is asked for its subjects at the step's sizes."""
    asked = []

    def subjects(suite, options):
        asked.append((suite, options.batch))
        return iter(())

    monkeypatch.setattr("benchmarks.suites.subjects", subjects)
    app = typer.Typer()
    app.command()(bench)
    commands = [c for s in steps for c in (s.command, s.rehearsal) if c and " -m diffratio bench " in c]
    assert len(commands) > 30
    for command in commands:
        asked.clear()
        words = shlex.split(command.format(python="python", folder="results"))[4:]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, (words, done.output)
        assert {suite for suite, _ in asked} == {words[0]}
        assert all(f"--batch {batch}" in command for _, batch in asked if words[0] != "peak")


def test_the_warm_up_compiles_what_the_speed_look_times():
    speed = {step.name: step.command for step in looks.LOOKS["speed"].steps}
    names = list(speed)
    for name, (suite, options) in looks.SUITES.items():
        assert speed[name] == looks.bench_command(suite, options)
        assert names.index("warm-up") < names.index(name)
