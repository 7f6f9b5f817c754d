"""One class holds the arguments: what it refuses, and the command line that follows from it."""

import dataclasses
import json
import subprocess
import sys
import warnings

import pytest
import typer
from typer.testing import CliRunner

from diffratio.cli.train import train as command
from diffratio.train import ArgumentError, TrainArguments

BAD = [
    ("method", "LT"),
    ("train_mode", None),
    ("seed", -1),
    ("seed", 1.5),
    ("train_batch_size", 0),
    ("train_batch_size", True),
    ("rank", 0),
    ("resolution", "512"),
    ("learning_rate", float("nan")),
    ("learning_rate", -1e-4),
    ("lr_scheduler", "cosin"),
    ("lr_warmup_steps", 2000),
    ("mixed_precision", "fp16"),
    ("adam_beta2", 1.0),
    ("ema_max_decay", 1.5),
    ("snr_gamma", float("inf")),
    ("checkpoints_total_limit", 0),
    ("report_to", "wandb"),
    ("target_compression", 1.2),
    ("target_compression", 0.8),
    ("num_regions", 1001),
    ("ramp", 0.9),
    ("dense_regions", 1),
    ("ratio_loss_weight", "much"),
    ("ratio_loss_weight", "-1"),
    ("ratio_mode", "paper"),
    ("smallest_bin", 0.25),
    ("smallest_bin", 1.0),
    ("rescale", "router"),
    ("recipe", "t2v"),
    ("router_start", "zero"),
    ("rounding", "even"),
    ("proportion_empty_prompts", -0.1),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda x: str(x))
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ArgumentError, match=f"^{name}="):
        TrainArguments(**{name: value})


def test_a_warmup_that_the_schedule_ignores_is_refused():
    with pytest.raises(ArgumentError, match="^lr_warmup_steps=5 .* lr_scheduler=constant_with_warmup"):
        TrainArguments(lr_warmup_steps=5)
    assert TrainArguments(lr_warmup_steps=5, lr_scheduler="constant_with_warmup").lr_warmup_steps == 5


def test_uniform_compression_takes_tenths_and_ratios_take_any_target():
    with pytest.raises(ArgumentError, match="^target_compression=0.25 must be a tenth"):
        TrainArguments(method="mod", target_compression=0.25)
    with pytest.raises(ArgumentError, match="^target_compression=1.0 must be a tenth below 1"):
        TrainArguments(method="mod", target_compression=1.0)
    assert TrainArguments(method="mod", target_compression=0.8).regions == 1
    assert TrainArguments(method="lt", target_compression=0.25).regions == 4
    assert TrainArguments(method="l", target_compression=0).regions == 1


def test_a_ramp_is_of_what_compresses_towards_a_constraint():
    assert TrainArguments(method="mod", ramp=0.4).ramp == 0.4
    for other in ({"method": "dense"}, {"ratio_loss_weight": "0.3"}, {"ratio_mode": "faithful"}):
        with pytest.raises(ArgumentError, match="^ramp=0.4 is not for method dense, nor for the penalty"):
            TrainArguments(ramp=0.4, **other)


@pytest.mark.parametrize(
    ("target", "dense", "kept"),
    [(0.3, 1, [10, 6, 6, 6]), (0.2, 1, [10, 8, 7, 7]), (0.5, 2, [10, 10, 0, 0]), (0.3, 0, [7])],
)
def test_what_dense_regions_keep_the_others_skip(target, dense, kept):
    arguments = TrainArguments(method="mod", target_compression=target, dense_regions=dense)
    assert arguments.tenths_by_region == kept and arguments.regions == len(kept)
    assert sum(kept) == pytest.approx(10 * (1 - target) * len(kept))


def test_dense_regions_that_leave_too_little_are_refused():
    with pytest.raises(ArgumentError, match="^target_compression=0.6 must not exceed 0.5 with dense_regions"):
        TrainArguments(method="mod", target_compression=0.6, dense_regions=2)
    with pytest.raises(ArgumentError, match="^dense_regions=4 is for mod, and must be below num_regions=4"):
        TrainArguments(method="mod", dense_regions=4)


def test_bins_bound_the_target():
    with pytest.raises(
        ArgumentError, match="^target_compression=0.75 must not exceed 0.7, since smallest_bin=0.3"
    ):
        TrainArguments(target_compression=0.75)
    assert TrainArguments(target_compression=0.75, smallest_bin=0.0).bins == tuple(range(10, -1, -1))
    with pytest.raises(ArgumentError, match="^smallest_bin=0.1 must be 0.3 with ratio_mode=faithful"):
        TrainArguments(smallest_bin=0.1, ratio_mode="faithful")


def test_a_recipe_fills_in_what_is_not_given():
    made = TrainArguments.of(recipe="inpaint", num_regions=4)
    assert (made.train_mode, made.adam_weight_decay, made.learn_variance) == ("full", 3e-2, True)
    assert (made.num_regions, made.fixed_ratio_weight()) == (4, 0.3)
    images = TrainArguments.of(recipe="inpaint", task="t2i", train_mode="lora")
    assert (images.task, images.train_mode) == ("t2i", "lora"), "also where it is the default"
    assert TrainArguments.of() == TrainArguments()


def run(*given):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(given))


def test_the_command_has_an_option_for_every_argument_and_its_default(monkeypatch):
    seen = []
    monkeypatch.setattr("diffratio.train.train", lambda arguments, progress: seen.append(arguments) or {})
    assert run().exit_code == 0
    assert seen == [TrainArguments()]
    for one in dataclasses.fields(TrainArguments):
        value = {"int": 3, "float": 0.25, "bool": True}.get(one.type.split(" | ")[0], "x")
        if one.metadata["choices"]:
            value = one.metadata["choices"][-1]
        value = {"ratio_loss_weight": "0.3", "lr_warmup_steps": 5, "smallest_bin": 0.2}.get(one.name, value)
        given = [f"--{one.name}", *([] if value is True else [str(value)])]
        fitting = {
            "lr_warmup_steps": ["--lr_scheduler", "linear"],
            "task": ["--train_mode", "full"],
            "dense_regions": ["--method", "mod", "--target_compression", "0.2"],
        }
        result = run(*given, *fitting.get(one.name, []))
        assert result.exit_code == 0, result.output
        assert getattr(seen[-1], one.name) == value


def test_the_command_prints_a_recipe_and_what_was_typed_wins(monkeypatch):
    seen = []
    monkeypatch.setattr("diffratio.train.train", lambda arguments, progress: seen.append(arguments) or {})
    told = run("--recipe", "inpaint", "--num_regions", "4", "--no_learn_variance").output
    assert seen[-1] == TrainArguments.of(recipe="inpaint", num_regions=4, learn_variance=False)
    assert told.startswith(
        "recipe inpaint: learn_variance False (given), ratio_loss_weight 0.3, task inpaint"
    )
    assert "num_regions 4 (given); samples with sampler ddpm, steps 100, guidance 4.5" in told
    assert run("--recipe", "t2i", "--json").output == ""
    monkeypatch.setenv("RANK", "1")  # of several processes one speaks
    assert run("--recipe", "t2i").output == ""


def test_the_command_names_a_bad_argument_without_a_traceback():
    result = run("--rank", "0")
    assert isinstance(result.exception, SystemExit)
    assert result.exception.code == "diffratio train: rank=0 must be at least 1"
    assert run("--no_such_option").exit_code == 2


def test_the_help_lists_every_choice():
    app = typer.Typer()
    app.command()(command)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "400"}).output
    lines = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│ --")}
    for one in dataclasses.fields(TrainArguments):
        if one.metadata["choices"]:
            assert f"One of {', '.join(one.metadata['choices'])}." in lines[f"--{one.name}"]


def test_a_warning_is_one_plain_line(monkeypatch):
    def train(arguments, progress):
        warnings.warn("the run\nstarts anew", stacklevel=1)
        return {"validation_loss": 1.0}

    monkeypatch.setattr("diffratio.train.train", train)
    shown = warnings.showwarning
    result = run("--json")
    assert result.exit_code == 0 and result.stderr == "warning: the run starts anew\n"
    assert warnings.showwarning is shown


def test_the_command_shows_its_help_without_diffusers():
    code = (
        "import sys, runpy\n"
        "sys.modules['diffusers'] = sys.modules['accelerate'] = sys.modules['peft'] = None\n"
        "sys.argv = ['diffratio', 'train', '--help']\n"
        "runpy.run_module('diffratio', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--target_compression" in done.stdout or "target_comp" in done.stdout


def test_the_command_prints_the_run_as_json(tiny, tmp_path):
    given = dataclasses.asdict(tiny.arguments(tmp_path, method="mod", max_train_steps=2))
    options = [f"--{name}={value}" for name, value in given.items() if value not in (None, False)]
    result = run(*options, "--json")
    assert result.exit_code == 0, result.output
    run_json = json.loads((tmp_path / "run.json").read_text())
    assert json.loads(result.stdout) == run_json
    assert run_json["arguments"] == given and run_json["step"] == 2 and run_json["finished"]
