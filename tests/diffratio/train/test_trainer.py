"""What the options do to a run."""

import math
import sys

import pytest
import torch

from diffratio.train import ArgumentError, Trainer
from diffratio.train.objective import Objective
from diffratio.train.optimizer import group_of


def losses(runs, folder):
    return [line["loss"] for line in runs.lines(folder) if "loss" in line]


def test_weights_routers_and_ratios_have_groups_of_their_own(tiny, tmp_path):
    given = {"learning_rate": 1e-3, "router_lr": 2e-3, "ratio_lr": 3e-3, "adam_weight_decay": 0.1}
    one = Trainer(tiny.arguments(tmp_path, method="lt", **given), progress=False)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in one.optimizer.param_groups}
    assert found == {"weights": (1e-3, 0.1), "routers": (2e-3, 0.0), "ratios": (3e-3, 0.0)}
    sizes = {group["name"]: sum(p.numel() for p in group["params"]) for group in one.optimizer.param_groups}
    assert sizes["routers"] == 3 * 32 and sizes["ratios"] == 3 * 4
    assert sum(sizes.values()) == sum(p.numel() for p in one.state.model.parameters())
    assert group_of("transformer_blocks.0.diffratio.router_weight") == "routers"
    assert group_of("base_model.model.diffratio_ratios.ratios") == "ratios"


def test_lora_trains_lora_routers_and_ratios_alone(tiny, tmp_path):
    given = {"method": "lt", "train_mode": "lora", "rank": 4, "mixed_precision": "bf16"}
    one = Trainer(tiny.arguments(tmp_path, **given), progress=False)
    names = {name: p for name, p in one.state.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "diffratio" in name for name in names)
    assert {p.dtype for p in names.values()} == {torch.float32}
    frozen = {p.dtype for name, p in one.state.model.named_parameters() if name not in names}
    assert frozen == {torch.bfloat16}


def test_gradient_checkpointing_changes_no_bit(tiny, runs, tmp_path):
    for name, on in (("plain", False), ("checkpointed", True)):
        tiny.train(tmp_path / name, method="lt", gradient_checkpointing=on)
    assert runs.lines(tmp_path / "plain") == runs.lines(tmp_path / "checkpointed")


def test_accumulation_and_workers_see_the_samples_of_one_large_batch(tiny, runs, tmp_path):
    tiny.train(tmp_path / "large", method="mod")
    split = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
    tiny.train(tmp_path / "split", method="mod", **split)
    assert losses(runs, tmp_path / "split") == pytest.approx(losses(runs, tmp_path / "large"), rel=1e-4)


def test_the_limit_of_the_gradient_leaves_the_ratios_alone(tiny, runs, tmp_path):
    settings = {
        "method": "lt",
        "ratio_loss_weight": "0.3",
        "ratio_lr": 1e-2,
        "adam_epsilon": 1.0,
        "adam_weight_decay": 0.0,
    }
    for name, limit in (("free", 1e9), ("held", 1e-9)):
        one = Trainer(tiny.arguments(tmp_path / name, max_grad_norm=limit, **settings), progress=False)
        before = one.state.model.proj_out.weight.detach().clone()
        one.fit()
        moved = (one.state.model.proj_out.weight - before).abs().max()
        assert (moved > 1e-5) == (name == "free")
    first = [runs.lines(tmp_path / name, "ratios.jsonl")[0]["ratios"] for name in ("free", "held")]
    assert first[0] == first[1] and first[0] != [[1.0] * 4] * 3


def test_learning_rates_follow_the_schedule(tiny, runs, tmp_path):
    tiny.train(tmp_path, method="dense", lr_scheduler="linear", lr_warmup_steps=2)
    rates = [line["lr"] for line in runs.lines(tmp_path) if "loss" in line]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_a_fixed_weight_is_the_penalty_of_the_paper(tiny, runs, tmp_path):
    tiny.train(tmp_path, method="l", ratio_loss_weight="0.3", target_compression=0.2)
    line = [line for line in runs.lines(tmp_path) if "loss" in line][0]
    assert line["ratio_weight"] == 0.3 and line["ratio_loss"] == pytest.approx(0.3 * 0.2**2, rel=1e-5)


def test_what_accelerate_is_configured_for_does_not_change_a_run_unseen(tiny, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert tiny.train(tmp_path / "steps", method="dense", max_train_steps=2)["step"] == 2
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ArgumentError, match="^mixed_precision='no' differs from accelerate's .*'bf16'"):
        tiny.train(tmp_path / "precision")


def spoil(monkeypatch, one, factor, training):
    """The losses of training or of validation get a factor once three steps are done."""
    original = Objective.__call__

    def spoiled(self, model, batch):
        return original(self, model, batch) * (
            factor if one.state.step == 3 and model.training == training else 1
        )

    monkeypatch.setattr(Objective, "__call__", spoiled)


@pytest.mark.parametrize("method", ["dense", "lt"])
def test_a_loss_that_is_no_number_ends_the_run(method, tiny, runs, tmp_path, monkeypatch):
    one = Trainer(tiny.arguments(tmp_path, method=method), progress=False)
    spoil(monkeypatch, one, math.nan, training=True)
    with pytest.raises(ArgumentError, match="^learning_rate=0.001: the loss of step 4 is nan"):
        one.fit()
    assert runs.lines(tmp_path)[-1]["step"] == 3 and one.output.checkpoints.find("latest") == 3


def test_a_validation_loss_that_is_no_number_leaves_no_checkpoint(tiny, tmp_path, monkeypatch):
    one = Trainer(tiny.arguments(tmp_path, method="mod"), progress=False)
    spoil(monkeypatch, one, math.inf, training=False)
    with pytest.raises(ArgumentError, match="^learning_rate=0.001: the validation loss of step 3 is inf"):
        one.fit()
    assert one.output.checkpoints.steps() == []


def test_validation_shows_a_bar_of_its_own(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Trainer(tiny.arguments(tmp_path, method="dense", max_train_steps=1)).fit()
    shown = capsys.readouterr()
    assert "validating" in shown.err and "training dense" in shown.err and not shown.out


def test_runs_repeat_and_seeds_differ(tiny, runs, tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        tiny.train(tmp_path / name, method="lt", seed=seed, max_train_steps=3)
    assert losses(runs, tmp_path / "one") == losses(runs, tmp_path / "again")
    assert losses(runs, tmp_path / "one") != losses(runs, tmp_path / "other")
