"""diffusers' own pipelines, routed: DPM-Solver++ with guidance, kept counts by timestep region."""

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DPMSolverMultistepScheduler, PixArtAlphaPipeline

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    disable_diffratio,
    enable_diffratio,
    record_routing,
    remove_diffratio,
    summary,
)

# Region 3 is the noisiest: trailing spacing visits it first.
REGIONS = {0: [0.1, 0.2, 0.3, 0.4], -1: [0.8, 0.7, 0.6, 1.0]}
KEPT = {0: [39, 45, 52, 58], 1: [32, 32, 32, 32], 2: [0, 26, 20, 13]}
STEPS = [999, 749, 499, 249]


def scheduler():
    return DPMSolverMultistepScheduler(timestep_spacing="trailing")


@pytest.fixture(params=["pixart", "dit"])
def pipeline(request, tiny):
    """(pipe, sample): `sample()` runs four guided steps and returns latents or images."""
    channels = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    vae = AutoencoderKL(latent_channels=4, **channels).eval()
    # Eight output channels: both pipelines drop the learned variance, as with the published weights.
    transformer = tiny.make(request.param, out_channels=8)
    if request.param == "dit":
        pipe = DiTPipeline(transformer, vae, scheduler())
        arguments = {"class_labels": [1, 2], "guidance_scale": 4.0, "output_type": "np"}
    else:
        pipe = PixArtAlphaPipeline(None, None, vae, transformer, scheduler())
        generator = torch.Generator().manual_seed(1)
        text = {"prompt_embeds": torch.randn(2, 6, 24, generator=generator)}
        text["negative_prompt_embeds"] = torch.randn(2, 6, 24, generator=generator)
        text["prompt_attention_mask"] = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0]])
        text["negative_prompt_attention_mask"] = torch.tensor([[1, 0, 0, 0, 0, 0]] * 2)
        sizes = {"height": 16, "width": 16, "use_resolution_binning": False, "output_type": "latent"}
        arguments = {"prompt": None, "negative_prompt": None, "guidance_scale": 4.5, **text, **sizes}
    pipe.set_progress_bar_config(disable=True)

    def sample():
        options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0)}
        return torch.as_tensor(pipe(**arguments, **options).images)

    return pipe, sample


def test_kept_counts_of_a_sampling_run_follow_the_regions(tiny, pipeline):
    pipe, sample = pipeline
    apply_diffratio(pipe, DiffRatioConfig(0.5, num_regions=4, overrides=REGIONS))
    with record_routing(pipe) as log:
        result = sample()
    assert result.isfinite().all()
    assert [(entry.timestep, entry.layer) for entry in log] == [(t, layer) for t in STEPS for layer in KEPT]
    # Two samples, with and without their condition.
    kept = [entry.kept().sum(1).tolist() for entry in log]
    assert kept == [[KEPT[layer][step]] * 4 for step in range(4) for layer in KEPT]


def test_a_routed_pipeline_that_keeps_everything_samples_what_the_dense_one_does(pipeline):
    pipe, sample = pipeline
    dense = sample()
    apply_diffratio(pipe, DiffRatioConfig(0.0, rescale="none"))
    assert {row.path for row in summary(pipe)} == {"mod_block"}
    # Guidance of 4.5 and four steps multiply the rounding of one call.
    assert (sample() - dense).abs().max() <= 1e-4 * dense.abs().max()


def test_sampling_is_repeatable_bit_for_bit_and_undone_exactly(pipeline):
    pipe, sample = pipeline
    dense = sample()
    apply_diffratio(pipe, DiffRatioConfig(0.5, num_regions=4, overrides=REGIONS))
    routed = sample()
    assert not torch.allclose(routed, dense)
    assert torch.equal(sample(), routed)
    disable_diffratio(pipe)
    assert torch.equal(sample(), dense)
    enable_diffratio(pipe)
    assert torch.equal(sample(), routed)
    remove_diffratio(pipe)
    assert torch.equal(sample(), dense)


def test_a_bfloat16_pipeline_runs_routed(pipeline):
    pipe, sample = pipeline
    apply_diffratio(pipe.to(dtype=torch.bfloat16), DiffRatioConfig(0.5, num_regions=4, overrides=REGIONS))
    assert pipe.transformer.dtype == torch.bfloat16
    assert sample().isfinite().all()
