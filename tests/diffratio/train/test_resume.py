"""A run that was interrupted ends as the one that was not, bit by bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffratio.train import ArgumentError, Trainer, output
from diffratio.train.checkpoints import MANIFEST, Checkpoints

CASES = {
    "everything": {
        "method": "lt",
        "use_ema": True,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "snr_gamma": 5.0,
        "gradient_checkpointing": True,
    },
    "lora": {"method": "l", "train_mode": "lora", "rank": 4, "mixed_precision": "bf16"},
    "class labels dropped at random": {"model": "dit", "method": "mod"},
    "repainting": {"task": "inpaint", "method": "lt", "num_regions": 10, "gradient_checkpointing": True},
    "faithful": {"method": "lt", "ratio_mode": "faithful", "router_start": "faithful"},
}


def cut(tiny, folder, monkeypatch, step, **changes):
    """A run that ends in the middle, after everything that belongs to `step`."""
    original = Trainer._validate_and_save

    def stop(self):
        original(self)
        if self.state.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_validate_and_save", stop)
        tiny.train(folder, **changes)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(case, tiny, runs, tmp_path, monkeypatch):
    tiny.train(tmp_path / "whole", **CASES[case])
    cut(tiny, tmp_path / "cut", monkeypatch, 5, **CASES[case])
    assert runs.lines(tmp_path / "cut")[-1]["step"] == 5
    tiny.train(tmp_path / "cut", **CASES[case], resume_from_checkpoint="latest")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut", step=6)


def test_a_broken_checkpoint_is_skipped_with_a_warning(tiny, runs, tmp_path, monkeypatch):
    many = {"checkpointing_steps": 2, "method": "mod"}
    tiny.train(tmp_path / "whole", **many)
    cut(tiny, tmp_path / "cut", monkeypatch, 4, **many)
    weights = tmp_path / "cut/checkpoint-4/trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArgumentError, match="resume_from_checkpoint='checkpoint-4' is broken: trained"):
        tiny.train(tmp_path / "cut", **many, resume_from_checkpoint="checkpoint-4")
    with pytest.warns(UserWarning, match="checkpoint-4 is broken and skipped"):
        tiny.train(tmp_path / "cut", **many, resume_from_checkpoint="latest")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut", step=6)


def test_a_run_that_goes_back_forgets_what_came_after(tiny, runs, tmp_path, monkeypatch):
    many = {"checkpointing_steps": 2, "method": "lt"}
    tiny.train(tmp_path / "whole", **many)
    for again in range(2):
        cut(tiny, tmp_path / "cut", monkeypatch, 5, **many, resume_from_checkpoint="latest")
        with pytest.warns(UserWarning, match="goes back to step 2: checkpoint-4 is kept as checkpoint-4.old"):
            cut(tiny, tmp_path / "cut", monkeypatch, 3, **many, resume_from_checkpoint="checkpoint-2")
        assert (tmp_path / "cut/checkpoint-4.old/trained.safetensors").is_file(), again
    assert runs.lines(tmp_path / "cut")[-1]["step"] == 3
    tiny.train(tmp_path / "cut", **many, resume_from_checkpoint="latest")
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut", step=6)


def test_the_comparison_of_runs_sees_a_single_bit(tiny, runs, tmp_path):
    for name in ("first", "second"):
        tiny.train(tmp_path / name, method="dense", max_train_steps=3)
    runs.assert_same_run(tmp_path / "first", tmp_path / "second", step=3)
    weights = tmp_path / "second/checkpoint-3/trained.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(AssertionError):
        runs.assert_same_run(tmp_path / "first", tmp_path / "second", step=3)


def test_a_checkpoint_is_named_by_itself_or_by_its_path_alone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (3, 12):
        checkpoints.path(step).mkdir(parents=True)
        (checkpoints.path(step) / MANIFEST).write_text('{"files": {}}')
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoint-3", "checkpoint-3/", "run/checkpoint-3", tmp_path / "run/checkpoint-3/"):
        assert checkpoints.find(str(name)) == 3
    assert checkpoints.find("latest") == 12
    for name in ("checkpoint-1", "other/checkpoint-3", "run", "checkpoint", "checkpoint-03"):
        with pytest.raises(ArgumentError, match="is no checkpoint of .*run, which has checkpoint-3, check"):
            checkpoints.find(name)


def test_only_the_last_checkpoints_are_kept(tiny, tmp_path):
    tiny.train(tmp_path, method="dense", checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    assert not list(tmp_path.glob(".*"))


def test_what_must_not_change_in_a_continuation_is_named(tiny, tmp_path, monkeypatch):
    cut(tiny, tmp_path, monkeypatch, 3, method="dense")
    with pytest.raises(ArgumentError, match="output_dir=.* holds a run: .*resume_from_checkpoint"):
        tiny.train(tmp_path, method="dense")
    with pytest.raises(ArgumentError, match=r"learning_rate=0.5 differs .*\(0.001\)"):
        tiny.train(tmp_path, method="dense", learning_rate=0.5, resume_from_checkpoint="latest")
    with pytest.raises(ArgumentError, match="resume_from_checkpoint='checkpoint-2' is no checkpoint"):
        tiny.train(tmp_path, method="dense", resume_from_checkpoint="checkpoint-2")
    with pytest.raises(ArgumentError, match="max_train_steps=2 lies before the checkpoint .* step 3"):
        tiny.train(tmp_path, method="dense", resume_from_checkpoint="latest", max_train_steps=2)


def test_a_run_from_before_an_argument_existed_goes_on(tiny, tmp_path, monkeypatch):
    cut(tiny, tmp_path, monkeypatch, 3, method="dense")
    run = json.loads((tmp_path / "run.json").read_text())
    for name in ("image_column", "num_regions"):
        del run["arguments"][name]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ArgumentError, match=r"num_regions=5 differs .*\(4\)"):
        tiny.train(tmp_path, method="dense", num_regions=5, resume_from_checkpoint="latest")
    assert tiny.train(tmp_path, method="dense", resume_from_checkpoint="latest")["step"] == 6


def test_another_number_of_processes_is_told(tiny, tmp_path, monkeypatch):
    cut(tiny, tmp_path, monkeypatch, 3, method="dense")
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"processes": 2}))
    with pytest.warns(UserWarning, match="began in 2 processes and goes on in 1: a step sees 4 samples"):
        tiny.train(tmp_path, method="dense", resume_from_checkpoint="latest")


def test_what_another_program_left_in_the_folder_stays(tiny, tmp_path):
    for name in ("final", "checkpoint-3"):
        (tmp_path / name / "inside").mkdir(parents=True)
        with pytest.raises(ArgumentError, match=f"^output_dir=.* is of no run and holds {name}:"):
            tiny.train(tmp_path / name / "..", method="dense", max_train_steps=3)
        (tmp_path / name / "inside").rmdir()
        (tmp_path / name).rmdir()


def test_a_longer_run_goes_on_and_a_finished_one_ends_at_once(tiny, runs, tmp_path):
    tiny.train(tmp_path, method="dense")
    again = tiny.train(tmp_path, method="dense", resume_from_checkpoint="latest")
    assert again["step"] == 6 and len(runs.lines(tmp_path)) == 9
    longer = tiny.train(tmp_path, method="dense", resume_from_checkpoint="latest", max_train_steps=8)
    assert longer["step"] == 8 and [line["step"] for line in runs.lines(tmp_path)][-3:] == [7, 8, 8]


def test_a_killed_run_keeps_its_seconds_up_to_the_checkpoint(tiny, tmp_path, monkeypatch):
    cut(tiny, tmp_path, monkeypatch, 5, method="dense")
    run = json.loads((tmp_path / "run.json").read_text())
    assert 0 < run["seconds"] < 60 and run["finished"] is None
    (tmp_path / "run.json").write_text(json.dumps(run | {"seconds": 1000.0}))
    again = tiny.train(tmp_path, method="dense", resume_from_checkpoint="latest")
    assert 1000 < again["seconds"] < 1060


def test_a_run_killed_after_its_last_checkpoint_ends_with_its_loss(tiny, tmp_path, monkeypatch):
    whole = tiny.train(tmp_path / "whole", method="mod")
    cut(tiny, tmp_path / "cut", monkeypatch, 6, method="mod")
    run = tiny.train(tmp_path / "cut", method="mod", resume_from_checkpoint="latest")
    for name in ("step", "validation_loss", "validation_by_region"):
        assert run[name] == whole[name]


@pytest.mark.parametrize("kills", [3, pytest.param(15, marks=pytest.mark.fuzz)])
def test_killed_runs_end_as_the_one_that_was_not(kills, tiny, runs, tmp_path):
    settings = {
        "max_train_steps": 2 * kills + 4,
        "checkpointing_steps": 2,
        "validation_steps": 5,
        "method": "lt",
    }
    settings |= {"use_ema": True, "checkpoints_total_limit": 3, "train_batch_size": 2}
    arguments = json.dumps(vars(tiny.arguments(tmp_path / "RUN", **settings)))
    script = Path(__file__).with_name("killer.py")
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), str(kills), arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    deaths = json.loads(done.stdout.splitlines()[-1])
    assert len(deaths) == kills and "while saving" in deaths
    runs.assert_same_run(tmp_path / "whole", tmp_path / "killed", step=settings["max_train_steps"])


def test_a_folder_may_be_written_in_several_ways(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for other in ("photos", "./photos", str(tmp_path / "photos")):
        assert output._same("photos/", other)
    assert output._same(None, None) and output._same("digits", "digits")
    assert not output._same("photos", "photos2") and not output._same("photos", None)
