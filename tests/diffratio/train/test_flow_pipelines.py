"""Training through the pipelines of flow models: what is computed is what the pipeline computes, and a run
that was interrupted is the uninterrupted one."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from diffratio import DiffRatioConfig, apply_diffratio, record_routing
from diffratio.diffusion.flow import mixed, shifted
from diffratio.diffusion.pipelines import FAMILIES, Family, family_of, load_pipeline, read_index
from diffratio.train import ArgumentError, TrainArguments, Trainer, load_run, train
from diffratio.train.model import load_base
from diffratio.train.objective import FlowObjective

RUN = {
    "resolution": 32,
    "max_sequence_length": 8,
    "max_train_steps": 4,
    "train_batch_size": 4,
    "checkpointing_steps": 2,
    "validation_steps": 4,
    "rank": 2,
    "learning_rate": 1e-3,
    "method": "lt",
    "num_regions": 2,
    "target_compression": 0.5,
    "report_to": "none",
}
CASES = {
    "flux": {"train_mode": "lora", "gradient_checkpointing": True},
    "sd3": {"train_mode": "full", "use_ema": True},
    "qwen_image": {"train_mode": "lora", "weighting_scheme": "none"},
    "z_image": {"train_mode": "full", "method": "l"},
    "wan": {"train_mode": "lora", "method": "mod"},
}


@pytest.fixture(scope="module")
def folders(flow_pipelines, tmp_path_factory):
    """`photos` and a folder for each pipeline, which is made when it is asked for."""
    root, made = tmp_path_factory.mktemp("flow"), {}

    class Folders:
        photos = flow_pipelines.draw_photos(root / "photos")

        def __getitem__(self, name):
            if name not in made:
                made[name] = flow_pipelines.save(name, root / name)
            return made[name]

    return Folders()


def arguments(folders, name, out, **changes):
    given = RUN | {"pretrained_model_name_or_path": str(folders[name]), "dataset_name": str(folders.photos)}
    return TrainArguments(output_dir=str(out), **(given | changes))


def loaded(folder):
    """A pipeline, what knows it, and captions as it reads them."""
    model = load_base(TrainArguments(pretrained_model_name_or_path=str(folder))).model.eval()
    family, pipe = family_of(read_index(str(folder)), model), load_pipeline(str(folder), model)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return family, pipe, family.encode(pipe, ["a red box", "a blue circle"], 8)


def test_every_family_is_tested():
    assert len(CASES) == len(FAMILIES)


def packed(pipe, latents):
    """As the pipeline is given them."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    n, channels, height, width = latents.shape
    return pipe._pack_latents(latents, n, channels, height, width)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_velocity_is_what_the_pipeline_steps_with(name, folders):
    """The first of two steps, without guidance: from noise level s to s', x becomes x + (s' - s) v."""
    family, pipe, text = loaded(folders[name])
    noise, after = torch.randn_like(family.latents(pipe.vae, torch.zeros(2, 3, 32, 32))), []

    def keep(pipe, step, timestep, tensors):
        after.append(tensors["latents"])
        return {}

    told = family.arguments(text, text, 1.0)
    sizes = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    pipe(**told, latents=packed(pipe, noise), callback_on_step_end=keep, **sizes)
    level, following = pipe.scheduler.sigmas[:2]
    told = (pipe.scheduler.timesteps[0] / 1000).expand(2)  # some schedulers round it
    velocity = family.predict(pipe.transformer, noise, told, text, guidance=1.0)
    made = family.unpack(after[0], *noise.shape[-2:])
    torch.testing.assert_close(made, noise + (following - level) * velocity, rtol=1e-4, atol=1e-4)
    assert velocity.square().mean() > 1e-4 and after[1].isfinite().all()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_latents_are_those_that_the_pipeline_decodes(name, folders):
    """The pipeline's last step, of latents that the sampler leaves as they are."""
    family, pipe, text = loaded(folders[name])
    latents = family.latents(pipe.vae, torch.rand(2, 3, 32, 32) * 2 - 1)
    side = latents.shape[-1]
    given = packed(pipe, latents)
    pipe.scheduler.step = lambda *_, **__: (given,)
    sizes = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    out = pipe(**family.arguments(text, text, 1.0), latents=given, **sizes)
    config = pipe.vae.config
    if config.get("latents_mean"):
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        z = latents.view(2, -1, 1, side, side) * std + mean
        wanted = pipe.vae.decode(z).sample[:, :, 0]
    else:
        wanted = pipe.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    torch.testing.assert_close(family.images(out), (wanted / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_regions_are_those_of_the_noise_level(name, folders):
    family, pipe, text = loaded(folders[name])
    apply_diffratio(pipe, DiffRatioConfig(0.0, overrides={0: [0.0, 0.5]}, num_regions=2))
    latents = family.latents(pipe.vae, torch.zeros(2, 3, 32, 32))
    with record_routing(pipe.transformer) as log:
        family.predict(pipe.transformer, latents, torch.tensor([0.2, 0.8]), text, 1.0)
    clean, noisy = next(entry for entry in log if entry.layer == 0).kept().sum(1).tolist()
    assert clean == family.tokens(latents) and noisy == clean // 2


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name, folders, runs, tmp_path, monkeypatch):
    case = CASES[name]
    run = train(arguments(folders, name, tmp_path / "whole", **case), progress=False)
    assert run["loss"] == "velocity-MSE" and run["flow"] and run["step"] == 4
    if "ratios" in run:
        assert sum(map(sum, run["ratios"])) / sum(map(len, run["ratios"])) == pytest.approx(0.5, abs=1e-3)
    original = Trainer._validate_and_save

    def stop(self):
        original(self)
        if self.state.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_validate_and_save", stop)
        train(arguments(folders, name, tmp_path / "cut", **case), progress=False)
    more = {"resume_from_checkpoint": "latest"}
    train(arguments(folders, name, tmp_path / "cut", **case, **more), progress=False)
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut", step=4)
    model, _ = load_run(tmp_path / "whole")
    assert (
        type(model).__name__
        == json.loads((folders[name] / "transformer/config.json").read_text())["_class_name"]
    )


def test_the_loss_is_the_error_of_the_velocity_from_image_to_noise():
    class Knows(Family):
        def predict(self, model, noisy, level, text, guidance):
            wanted.append(torch.lerp(clean, noise, level[:, None, None, None]))
            assert torch.equal(noisy, wanted[-1]) and guidance == 2.0
            return noise - clean + 0.5

    wanted, given = [], TrainArguments(guidance_scale=2.0)
    clean, noise, level = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    family = Knows({"in_channels": 4}, {"vae": ["diffusers", "AutoencoderKL"]})
    objective = FlowObjective(family, FlowMatchEulerDiscreteScheduler(), given)
    loss = objective(None, {"latents": clean, "noise": noise, "timestep": level})
    torch.testing.assert_close(loss, torch.full((3,), 0.25))
    assert objective.times.region(level, 2).tolist() == [0, 1, 1]


def test_training_lowers_the_loss(folders, tmp_path):
    many = {"max_train_steps": 30, "validation_steps": 30, "learning_rate": 3e-3, "method": "mod"}
    many |= {"target_compression": 0.3, "train_mode": "full", "checkpointing_steps": 30}
    train(arguments(folders, "sd3", tmp_path, **many), progress=False)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    before, after = (line["validation_loss"] for line in lines if "validation_loss" in line)
    assert after < 0.9 * before


def test_a_distilled_model_is_told_its_guidance_and_keeps_its_captions(folders, tmp_path):
    trainer = Trainer(arguments(folders, "flux", tmp_path, guidance_scale=7.0), progress=False)
    loader = trainer.accelerator.prepare(trainer.validation)
    seen = []
    model = trainer.state.model
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["guidance"]), with_kwargs=True)
    trainer.base.objective(model, next(iter(loader)))
    assert torch.equal(seen[0], torch.full_like(seen[0], 7.0))
    assert not trainer.base.family.guided


def test_noise_levels_are_shifted_as_the_sampler_shifts_them():
    levels = torch.linspace(0.05, 1.0, 7)
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    static.set_timesteps(sigmas=levels.flip(0).tolist())
    torch.testing.assert_close(shifted(static, levels, 64), static.sigmas[:-1].flip(0))
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    dynamic.set_timesteps(sigmas=levels.flip(0).tolist(), mu=calculate_shift(1024))
    torch.testing.assert_close(shifted(dynamic, levels, 1024), dynamic.sigmas[:-1].flip(0))
    assert shifted(dynamic, levels, 4096)[3] > shifted(dynamic, levels, 256)[3]
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    torch.testing.assert_close(shifted(unipc, torch.tensor(0.5), 64), torch.tensor(5 / 6))


def test_noise_is_mixed_in_by_its_level():
    clean, noise = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    assert mixed(clean, noise, torch.tensor([0.25, 1.0]))[:, 0, 0].tolist() == [0.25, 1.0]


def test_what_cannot_be_trained_is_named(flow_pipelines, folders, tmp_path):
    with pytest.raises(ArgumentError, match="^snr_gamma=5.0 is not for flow models"):
        Trainer(arguments(folders, "sd3", tmp_path / "1", snr_gamma=5.0), progress=False)
    folder = flow_pipelines.save("wan", tmp_path / "two", boundary_ratio=0.9)
    given = {"pretrained_model_name_or_path": str(folder)}
    with pytest.raises(ArgumentError, match="^pretrained_model_name_or_path=.*: its two transformers"):
        Trainer(arguments(folders, "wan", tmp_path / "2", **given), progress=False)
    index = json.loads((folders["sd3"] / "model_index.json").read_text())
    other = tmp_path / "other"
    for part in ("transformer", "scheduler"):
        (other / part).parent.mkdir(exist_ok=True)
        (other / part).symlink_to(folders["sd3"] / part)
    (other / "model_index.json").write_text(json.dumps(index | {"_class_name": "AuraFlowPipeline"}))
    given = {"pretrained_model_name_or_path": str(other)}
    with pytest.raises(ArgumentError, match="flow models are trained in the pipelines FluxPipeline, "):
        Trainer(arguments(folders, "sd3", tmp_path / "3", **given), progress=False)
    (other / "model_index.json").write_text("{")
    with pytest.raises(ArgumentError, match="^pretrained_model_name_or_path=.*_index.json cannot be read"):
        Trainer(arguments(folders, "sd3", tmp_path / "4", **given), progress=False)
