"""What a run leaves behind: logs, curves, and a model that `load_run` brings back."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel

from diffratio import load_diffratio, summary
from diffratio.data import load_dataset
from diffratio.routing.find import routed_layers, routed_model
from diffratio.train import ArgumentError, Trainer, load_run
from diffratio.train.objective import validate

REGIONS = 4


def held_out_loss(trainer, model):
    """The validation loss of a model outside of the trainer."""
    return validate(trainer.accelerator, model, trainer.base.objective, trainer.validation, REGIONS)


@pytest.mark.parametrize("train_mode", ["full", "lora"])
@pytest.mark.parametrize("method", ["dense", "mod", "l", "lt"])
def test_the_result_is_the_model_that_was_validated(method, train_mode, tiny, tmp_path):
    arguments = tiny.arguments(tmp_path, method=method, train_mode=train_mode, rank=4)
    trainer = Trainer(arguments, progress=False)
    run = trainer.fit()
    model, info = load_run(tmp_path)
    assert type(model) is PixArtTransformer2DModel and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert info == run | {"checkpoint": None}
    found = held_out_loss(trainer, model)
    assert found["validation_loss"] == pytest.approx(info["validation_loss"], rel=1e-5)
    assert found["validation_by_region"] == pytest.approx(info["validation_by_region"], rel=1e-5)
    if method != "dense":
        assert all(row.path == "mod_block" for row in summary(model, tokens=16))
        assert routed_model(model).config.num_regions == arguments.regions


def test_checkpoints_are_by_products(tiny, tmp_path):
    tiny.train(tmp_path, method="lt", use_ema=True)
    first, last = load_run(tmp_path, checkpoint=3), load_run(tmp_path)
    assert first[1]["checkpoint"] == 3
    ratios = json.loads((tmp_path / "ratios.jsonl").read_text().splitlines()[2])["ratios"]
    kept = [[sorted(range(3, 11), key=lambda t: abs(t / 10 - r))[0] for r in row] for row in ratios]
    assert [layer.kept for layer in routed_layers(first[0])] == kept
    weights = [model.transformer_blocks[0].attn1.to_q.weight for model, _ in (first, last)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize("train_mode", ["full", "lora"])
def test_results_and_checkpoints_tell_the_noise_of_the_training(train_mode, tiny, tmp_path):
    model = shutil.copytree(tiny.root / "pixart", tmp_path / "model")
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(model / "scheduler")
    given = {"pretrained_model_name_or_path": str(model), "train_mode": train_mode, "rank": 4}
    tiny.train(tmp_path / "run", method="mod", max_train_steps=3, **given)
    shutil.rmtree(model / "scheduler")
    for folder in ("final", "checkpoint-3/adapter"):
        config = DDPMScheduler.from_pretrained(tmp_path / "run" / folder, subfolder="scheduler").config
        assert (config.prediction_type, config.beta_schedule) == ("epsilon", "scaled_linear")


def test_the_moving_average_is_the_result(tiny, tmp_path):
    trainer = Trainer(tiny.arguments(tmp_path, method="mod", use_ema=True, ema_max_decay=0.5), progress=False)
    trainer.fit()
    model, _ = load_run(tmp_path)
    raw = dict(trainer.state.model.named_parameters())
    with trainer.state.averaged():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, raw[name].detach()) or name.startswith("pos_embed.pos_embed"), name
    assert not torch.equal(model.proj_out.weight, raw["proj_out.weight"])


def test_lora_is_in_the_layout_of_peft_and_leaves_the_weights_alone(tiny, tmp_path):
    from peft import PeftModel

    tiny.train(tmp_path, method="mod", train_mode="lora", rank=4)
    final = tmp_path / "final"
    assert (final / "adapter_model.safetensors").exists() and not list(tmp_path.rglob("final/*.bin"))
    base = PixArtTransformer2DModel.from_pretrained(tiny.root / "pixart", subfolder="transformer")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = PeftModel.from_pretrained(base, final)
    adapted = [name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name]
    assert {name.split("blocks.0.")[1] for name in adapted if "blocks.0." in name} == {
        *(f"{a}.{b}" for a in ("attn1", "attn2") for b in ("to_q", "to_k", "to_v", "to_out.0")),
        *("ff.net.0.proj", "ff.net.2"),
    }
    plain = model.unload()
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert load_diffratio(plain, final) is plain


def test_the_logs_tell_the_run(tiny, runs, tmp_path):
    run = tiny.train(tmp_path, method="lt", gradient_accumulation_steps=2)
    assert run["dataset"] == "digits" and run["processes"] == 1 and run["seed"] == 0
    model = tiny.make("pixart")
    added = 3 * 32 + 3 * REGIONS  # routers and ratios
    assert run["parameters"]["total"] == sum(p.numel() for p in model.parameters()) + added
    assert {"torch", "diffusers", "python"} < set(run["versions"])
    steps = [line for line in runs.lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert set(steps[0]) == {"step", "loss", "ratio_loss", "ratio_weight", "mean_ratio", "target", "lr"}
    checks = [line for line in runs.lines(tmp_path) if "validation_loss" in line]
    assert [line["step"] for line in checks] == [0, 3, 6] and len(
        checks[0]["validation_by_region"]
    ) == REGIONS
    ratios = runs.lines(tmp_path, "ratios.jsonl")
    assert [line["step"] for line in ratios] == [1, 2, 3, 4, 5, 6]
    assert [len(ratios[0]["ratios"]), len(ratios[0]["ratios"][0])] == [3, REGIONS]
    mean = sum(map(sum, ratios[-1]["ratios"])) / (3 * REGIONS)
    assert mean == pytest.approx(steps[-1]["mean_ratio"]) and mean == pytest.approx(0.7, abs=0.01)


def test_tensorboard_gets_curves_a_curve_per_layer_and_the_table_as_an_image(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny.train(tmp_path, method="lt", report_to="tensorboard", max_train_steps=3)
    events = EventAccumulator(str(tmp_path / "logs" / "diffratio"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "mean_ratio", "target", "validation_loss", "ratio/layer 00"} <= set(tags["scalars"])
    assert tags["images"] == ["ratios"]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_what_is_no_run_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="directory: .* holds no run"):
        load_run(tmp_path)
    tiny.train(tmp_path / "run", method="dense", max_train_steps=3)
    with pytest.raises(ValueError, match="without checkpoint 4"):
        load_run(tmp_path / "run", checkpoint=4)
    (tmp_path / "run/run.json").write_text('{"arguments": {"colour": "blue"}}')
    with pytest.raises(ValueError, match="holds no run"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"pretrained_model_name_or_path": "no/such/folder"},
            "^pretrained_model_name_or_path='no/such/folder'",
        ),
        ({"dataset_name": "no/such/folder"}, "^dataset_name='no/such/folder'"),
        ({"dataset_name": "shapes"}, "^pretrained_model_name_or_path=.* needs a vae"),
        ({"resolution": 16}, "^resolution must be 8 for digits, got 16"),
        ({"image_column": "photo"}, "^image_column is not for 'digits'"),
    ],
)
def test_what_does_not_fit_the_model_is_named(changes, text, tiny, tmp_path):
    with pytest.raises(ArgumentError, match=text):
        tiny.train(tmp_path, **changes)


def test_weights_that_are_missing_beside_their_config_are_named(tiny, tmp_path):
    with pytest.raises(ArgumentError, match="no transformer: .*fp16.safetensors.*; outside of"):
        tiny.train(tmp_path, variant="fp16")


def test_text_of_another_width_is_refused(tiny, tmp_path):
    torch.manual_seed(0)
    settings = dict(tiny.make("pixart").config) | {"caption_channels": 16}
    PixArtTransformer2DModel.from_config(settings).save_pretrained(tmp_path / "model")
    with (
        pytest.warns(UserWarning, match="has no scheduler"),
        pytest.raises(ArgumentError, match="^dataset_name='digits' has text of width 32, the model takes 16"),
    ):
        tiny.train(tmp_path / "run", pretrained_model_name_or_path=str(tmp_path / "model"))
    assert load_dataset("digits").text_width == 32


def test_a_model_of_flow_matching_is_refused(tiny, tmp_path):
    tiny.make("pixart").save_pretrained(tmp_path / "model" / "transformer")
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "model" / "scheduler")
    with pytest.raises(ArgumentError, match="was trained for FlowMatchEulerDiscreteScheduler"):
        tiny.train(tmp_path / "run", pretrained_model_name_or_path=str(tmp_path / "model"))


def test_a_result_does_not_tell_where_the_package_is_installed(tiny, tmp_path):
    run = {"pretrained_model_name_or_path": "digits", "max_train_steps": 1, "train_batch_size": 2}
    tiny.train(tmp_path / "run", **run)
    assert json.loads((tmp_path / "run/final/config.json").read_text())["_name_or_path"] == "digits"
