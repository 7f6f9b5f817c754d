"""The pipeline and `inpaint`: call conventions of diffusers, and pixels outside of the mask."""

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.data import load_dataset
from diffratio.evaluation.editor import editor_of
from diffratio.evaluation.target import load_target
from diffratio.inpainting import SYSTEMS, DiffRatioInpaintPipeline, LazyPixArt, inpaint, pipeline, system_of
from diffratio.inpainting.compose import poisson_blended
from diffratio.inpainting.edit import pipeline_of
from diffratio.inpainting.masks import draw_masks, grown, pooled
from diffratio.toy import PRETRAINED, load_pixart

NAMES = tuple(SYSTEMS)


@pytest.fixture(scope="module")
def base(flow_pipelines):
    """A PixArt pipeline of random weights: 32 x 32 pixels, latents of 8 x 8, 16 tokens."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=8, in_channels=4,
        out_channels=8, cross_attention_dim=32, caption_channels=flow_pipelines.WIDTH,
    )  # fmt: skip
    parts = flow_pipelines.tokenizer(), flow_pipelines.t5().eval(), flow_pipelines.vae().eval()
    return PixArtAlphaPipeline(*parts, transformer, DDPMScheduler())


@pytest.fixture(scope="module")
def pipes(base):
    def pipe(name):
        parts = base.components | {"transformer": system_of(name).from_pixart(base.transformer).eval()}
        found = DiffRatioInpaintPipeline(**parts, system=name)
        found.set_progress_bar_config(disable=True)
        return found

    return {name: pipe(name) for name in NAMES}


@pytest.fixture
def photo():
    """33 x 27 pixels, which no token's side divides."""
    colours = np.random.default_rng(0).integers(0, 256, (27, 33, 3), dtype=np.uint8)
    mask = np.zeros((27, 33), dtype=np.uint8)
    mask[5:17, 9:30] = 255
    return PIL.Image.fromarray(colours), PIL.Image.fromarray(mask)


@pytest.mark.parametrize("name", NAMES)
def test_a_photo_comes_back_with_another_inside_and_the_same_outside(pipes, photo, name):
    image, mask = photo
    made = pipes[name]("a red box", image=image, mask_image=mask, num_inference_steps=2).images
    assert len(made) == 1 and made[0].size == image.size and made[0].mode == "RGB"
    inside = np.asarray(mask) > 127
    before, after = (np.asarray(x) for x in (image, made[0]))
    assert np.array_equal(before[~inside], after[~inside])
    assert (before[inside] != after[inside]).any(1).mean() > 0.9


def test_its_call_is_that_of_diffusers(pipes, photo):
    image, mask = photo
    pipe, seen = pipes["lazy"], []
    generator = torch.Generator().manual_seed(3)

    def after_step(self, number, timestep, given):
        seen.append((self is pipe, number, int(timestep), sorted(given)))
        return {"latents": torch.zeros_like(given["latents"])} if number == 1 else {}

    def call(**options):
        given = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"} | options
        return pipe(["a box", "a circle"], image=image, mask_image=mask, **given)

    made = call(strength=0.5, num_images_per_prompt=2, generator=generator, callback_on_step_end=after_step)
    assert made.images.shape == (4, 3, 27, 33) and made.images.dtype == torch.float32
    assert seen == [(True, 0, 250, ["latents"]), (True, 1, 0, ["latents"])]
    latents = call(output_type="latent", return_dict=False)[0]
    assert latents.shape == (2, 4, 8, 10)  # 27 x 33 rounded up to tokens of 8 pixels: 32 x 40
    last = {"num_inference_steps": 2, "callback_on_step_end": after_step, "output_type": "latent"}
    assert (call(**last).images[:, :, 2:4, 4:6] == 0).all()  # in the hole stands what it returned
    assert call(output_type="np", height=16, width=16).images.shape == (2, 27, 33, 3)
    same = [call(generator=torch.Generator().manual_seed(7)).images for _ in range(2)]
    assert torch.equal(*same) and not torch.equal(same[0], call().images)
    noise = torch.randn(2, 4, 8, 10)
    first, second = (call(latents=noise, negative_prompt=text, output_type="latent") for text in ("", "red"))
    assert not torch.equal(first.images, second.images)


def test_a_call_is_made_of_the_vae_s_latents_and_blended_into_the_picture(pipes):
    pipe, image, mask = pipes["lazy"], torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., 9:24, 6:20] = 1
    given = {"image": image, "mask_image": mask, "latents": torch.randn(1, 4, 8, 8)}
    given |= {"num_inference_steps": 1, "generator": torch.Generator()}
    latents, made = (pipe("a box", **given, output_type=kind).images for kind in ("latent", "pt"))
    with torch.no_grad():
        known = 0.5 * pipe.vae.encode(2 * image - 1).latent_dist.mode()
        decoded = (pipe.vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    outside = ~grown(pooled(mask, 4), 2).expand_as(latents)
    torch.testing.assert_close(latents[outside], known[outside])
    torch.testing.assert_close(made, poisson_blended(decoded, image, mask > 0).clamp(0, 1))


def test_settings_of_a_call_reach_its_steps(pipes, photo, monkeypatch):
    found, generator = [], torch.Generator()

    def paint(system, model, edit, text, how, **options):
        found.append((how.steps, how.guidance, how.strength, how.size, how.generator is generator))
        return edit.clean

    monkeypatch.setattr(pipeline, "paint", paint)
    given = {"num_inference_steps": 7, "guidance_scale": 2.0, "strength": 0.5, "generator": generator}
    pipes["lazy"]("a box", image=photo[0], mask_image=photo[1], **given)
    assert found == [(7, 2.0, 0.5, (32, 40), True)]  # pixels, which some models are told


def test_a_data_set_s_text_is_that_of_prompts_and_negative_prompts(monkeypatch):
    data, found = load_dataset("shapes"), []
    pipe = pipeline_of(LazyPixArt.from_pixart(load_pixart(PRETRAINED["shapes"])), "lazy", dataset=data)

    def paint(system, model, edit, text, how, **options):
        found.append(text)
        return edit.clean

    monkeypatch.setattr(pipeline, "paint", paint)
    prompts, mask = data.captions([0, 1]), torch.ones(1, 1, 32, 32)
    pipe(prompts, torch.rand(1, 3, 32, 32), mask, negative_prompt=["", prompts[0]])
    assert torch.equal(found[0].tokens, data.encode(prompts))
    assert torch.equal(found[0].null_tokens, torch.stack([data.null_tokens, data.encode(prompts[:1])[0]]))


def test_guidance_leads_from_the_negative_prompt_to_the_prompt(base, pipes, photo):
    image, mask = photo
    encoded = base.encode_prompt("a box", negative_prompt="red", max_sequence_length=120)
    names = "prompt_embeds", "prompt_attention_mask"
    names += tuple(f"negative_{name}" for name in names)
    given = {"image": image, "mask_image": mask, "latents": torch.randn(1, 4, 8, 10), "output_type": "latent"}
    given["num_inference_steps"] = 1
    made = pipes["image"]("a box", negative_prompt="red", **given).images
    given |= dict(zip(names, encoded, strict=True))
    torch.testing.assert_close(pipes["image"](**given).images, made)


def test_results_of_a_picture_follow_each_other(pipes):
    images, mask = torch.rand(2, 3, 32, 32), torch.zeros(1, 1, 32, 32)
    mask[..., :9, :9] = 1
    given = {"num_inference_steps": 1, "num_images_per_prompt": 2, "output_type": "pt"}
    made = pipes["lazy"]("a box", image=images, mask_image=mask, **given).images
    assert torch.equal(made[..., 9:, :], images.repeat_interleave(2, 0)[..., 9:, :])


def test_from_one_half_on_a_mask_is_white(pipes, photo):
    given = {"image": torch.rand(1, 3, 32, 32), "num_inference_steps": 1, "output_type": "pt"}
    made = pipes["lazy"]("a box", mask_image=torch.full((1, 1, 32, 32), 0.5), **given).images
    assert not torch.equal(made, given["image"])
    with pytest.raises(ValueError, match="mask_image is empty"):
        pipes["lazy"]("a box", mask_image=torch.full((1, 1, 32, 32), 0.499), **given)


def test_arrays_of_doubles_and_bools_come_back_as_they_were(pipes, photo):
    image, mask = np.random.default_rng(0).random((27, 33, 3)), np.asarray(photo[1]) > 127
    given = {"image": image, "mask_image": mask, "num_inference_steps": 1, "output_type": "np"}
    [made] = pipes["lazy"]("a box", **given).images
    assert made.dtype == np.float64 and np.array_equal(made[~mask], image[~mask])
    [again] = pipes["lazy"]("a box", **given | {"mask_image": torch.from_numpy(mask)[None]}).images
    assert np.array_equal(again[~mask], image[~mask])


def test_a_callback_may_look_alone_and_may_interrupt(pipes, photo):
    image, mask = photo
    seen = []

    def look(pipe, number, timestep, given):
        seen.append(number)
        pipe._interrupt = number == 1

    pipe, given = pipes["lazy"], {"image": image, "mask_image": mask, "num_inference_steps": 4}
    [made] = pipe("a box", **given, callback_on_step_end=look).images
    assert seen == [0, 1] and made.size == image.size
    pipe("a box", **given, callback_on_step_end=lambda _, number, *more: seen.append(number))
    assert seen == [0, 1, 0, 1, 2, 3]


def test_a_batch_of_ragged_holes_is_each_picture_alone(pipes):
    apply_diffratio(pipes["lazy"], DiffRatioConfig(0.3))
    images, masks = torch.rand(3, 3, 32, 32), draw_masks("mixed", torch.arange(3), 32).float()
    noise = torch.randn(3, 4, 8, 8)
    options = {"num_inference_steps": 3, "output_type": "latent"}
    pipe = pipe_without_noise(pipes["lazy"])
    whole = pipe("a box", image=images, mask_image=masks, latents=noise, **options).images
    for row in range(3):
        some = slice(row, row + 1)
        given = {"image": images[some], "mask_image": masks[some], "latents": noise[some]}
        assert torch.allclose(pipe("a box", **given, **options).images, whole[some], atol=1e-4)


def pipe_without_noise(pipe):
    """With a scheduler that adds none, so that a sample does not depend on the others of its batch."""
    from diffusers import DDIMScheduler

    return pipeline_of(pipe, "lazy", DDIMScheduler.from_config(pipe.scheduler.config))


def test_it_is_saved_and_loaded(pipes, photo, tmp_path):
    image, mask = photo
    pipes["crop"].save_pretrained(tmp_path)
    loaded = DiffRatioInpaintPipeline.from_pretrained(tmp_path)
    assert loaded.config.system == "crop"
    of_command = editor_of(load_target(tmp_path), str(tmp_path), "crop")
    given = {"image": image, "mask_image": mask, "num_inference_steps": 1, "output_type": "pt"}
    given["latents"] = torch.ones(1, 4, 4, 4)
    one, *others = (pipe("a box", **given).images for pipe in (pipes["crop"], loaded, of_command))
    assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "variance"),
    [("ddpm", "DDPMScheduler", "learned_range"), ("dpm++", "DPMSolverMultistepScheduler", None)],
)
def test_a_run_s_recipe_says_how_its_pipeline_samples(sampler, scheduler, variance, pipes, photo, tmp_path):
    pipes["crop"].save_pretrained(tmp_path)
    target = load_target(tmp_path)
    target.run = {"arguments": {"system": "crop"}, "sampling": {"sampler": sampler}}
    target.run |= {"latents": True, "base_model": str(tmp_path)}
    pipe = editor_of(target, str(tmp_path))
    config = pipe.scheduler.config
    assert (type(pipe.scheduler).__name__, config.variance_type) == (scheduler, variance)
    assert pipe("a box", image=photo[0], mask_image=photo[1], num_inference_steps=2).images


def test_a_model_on_pixels_is_edited_with_the_noise_of_its_training(tmp_path):
    LazyPixArt.from_pixart(load_pixart(PRETRAINED["shapes"])).save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    pipe = editor_of(load_target(tmp_path, dataset="shapes"), str(tmp_path))
    assert pipe.scheduler.config.prediction_type == "epsilon" and pipe.dataset.text_width == 64


def test_the_pipeline_of_a_run_may_be_of_a_hub(pipes, tmp_path, monkeypatch):
    pipes["crop"].transformer.save_pretrained(tmp_path)
    target, asked = load_target(tmp_path), []
    target.run = {"arguments": {"system": "crop", "revision": "main"}, "latents": True}
    target.run["base_model"] = "someone/model"

    def from_pretrained(name, **options):
        asked.append((name, options["revision"], options["local_files_only"]))
        return pipes["crop"]

    monkeypatch.setattr(DiffRatioInpaintPipeline, "from_pretrained", from_pretrained)
    assert editor_of(target, str(tmp_path)) is pipes["crop"] and asked == [("someone/model", "main", False)]


def test_a_lazy_pipeline_is_saved_and_loaded(pipes, tmp_path):
    pipes["lazy"].save_pretrained(tmp_path)
    loaded = DiffRatioInpaintPipeline.from_pretrained(tmp_path)
    assert type(loaded.transformer) is LazyPixArt and loaded.config.system == "lazy"
    assert editor_of(load_target(tmp_path), str(tmp_path)).config.system == "lazy"


def encoded(**options):
    return {"prompt": None, "prompt_embeds": torch.zeros(2, 5, 16)} | options


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"image": None}, "image must be given"),
        ({"prompt": None}, "prompt must be given, or prompt_embeds"),
        ({"mask_image": torch.zeros(1, 1, 27, 33)}, "mask_image is empty"),
        ({"mask_image": torch.ones(1, 1, 27, 32)}, "mask_image is 32 x 27, image is 33 x 27"),
        ({"image": torch.zeros(1, 4, 27, 33)}, "image has 4 channels, must have 3"),
        ({"image": "photo.png"}, "image must be pictures"),
        ({"image": PIL.Image.new("RGBA", (33, 27))}, "image of mode RGBA is more than RGB can hold"),
        ({"image": PIL.Image.new("I;16", (33, 27))}, "image of mode I;16 is more than RGB can hold"),
        ({"prompt": ["a", "b", "c"], "image": torch.zeros(2, 3, 27, 33)}, "image: 2 where there are 3"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt: 2 of them for 1 prompts"),
        ({"height": 20}, "height=20 must be a multiple of 8"),
        ({"strength": 0.0}, "strength=0.0 must be"),
        ({"output_type": "jpg"}, "output_type='jpg' must be one of pil, np, pt, latent"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"generator": [torch.Generator()] * 2}, "generator: 2 of them for 1 pictures"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents must have the shape \(1, 4, 8, 10\)"),
        ({"callback_on_step_end_tensor_inputs": ["mask"]}, "callback_on_step_end_tensor_inputs"),
        ({"image": torch.full((3, 27, 33), 255.0)}, r"image must be in \[0, 1\], got 255 to 255"),
        ({"image": torch.full((3, 27, 33), torch.nan)}, r"image must be in \[0, 1\]"),
        ({"mask_image": PIL.Image.new("RGBA", (33, 27), (255,) * 3 + (0,))}, "mask_image is transparent"),
        ({"prompt": []}, "prompt must be one or more"),
        (encoded(negative_prompt="red"), "negative_prompt goes with prompt, negative_prompt_embeds with"),
        ({"negative_prompt_embeds": torch.zeros(1, 5, 16)}, "negative_prompt_embeds goes with prompt_embeds"),
        (encoded(negative_prompt_embeds=torch.zeros(1, 6, 16)), r"\(1, 6, 16\) does not fit .* \(2, 5, 16\)"),
        (encoded(negative_prompt_embeds=torch.zeros(3, 5, 16)), "3 where|2 where there are 3"),
        (
            encoded(prompt_embeds=torch.zeros(2, 5, 9), guidance_scale=1.0),
            r"prompt_embeds must be \[B, M, 16\]",
        ),
        ({"num_inference_steps": 2.5}, r"steps \(num_inference_steps\)=2.5 must be an integer"),
        ({"num_inference_steps": "2"}, r"steps \(num_inference_steps\)='2' must be"),
        ({"num_inference_steps": -1}, r"steps \(num_inference_steps\)=-1 must be"),
        ({"strength": 1.5}, "strength=1.5 must be"),
        ({"strength": "all"}, "strength='all' must be a number"),
        ({"guidance_scale": torch.nan}, r"guidance \(guidance_scale\)=nan must be a number"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt=1.5 must be an integer"),
        ({"max_sequence_length": 0}, "max_sequence_length=0 must be an integer"),
        ({"width": 40.0}, "width=40.0 must be a multiple of 8"),
        ({"generator": 3}, "generator must be a torch.Generator"),
        ({"latents": [1]}, r"latents must have the shape .* got a list"),
        ({"prompt": 5}, "prompt must be a text or a list of texts, got 5"),
        ({"negative_prompt": [None]}, "negative_prompt must be a text or a list of texts"),
        ({"mask_image": torch.ones(3, 1, 27, 33), "image": torch.zeros(2, 3, 27, 33)}, "mask_image|image: 2"),
    ],
)
def test_wrong_arguments_are_named(pipes, photo, wrong, said):
    image, mask = photo
    given = {"prompt": "a box", "image": image, "mask_image": mask, "num_inference_steps": 1} | wrong
    with pytest.raises(ValueError, match=said):
        pipes["lazy"](**given)


def test_a_scheduler_of_a_flow_is_named(pipes, photo):
    parts = pipes["lazy"].components | {"scheduler": FlowMatchEulerDiscreteScheduler()}
    pipe = DiffRatioInpaintPipeline(**parts, system="lazy")
    with pytest.raises(ValueError, match="scheduler: FlowMatchEulerDiscreteScheduler is of a flow"):
        pipe("a box", image=photo[0], mask_image=photo[1], num_inference_steps=1)


def test_a_pipeline_wants_a_model_of_its_system(base, pipes, photo):
    with pytest.raises(ValueError, match="transformer: system='lazy' wants a LazyPixArt"):
        pipeline_of(base, "lazy")
    with pytest.raises(ValueError, match="transformer: system='image' wants .* got a LazyPixArt"):
        pipeline_of(pipes["lazy"], "image")
    with pytest.raises(ValueError, match="transformer: system='image' wants .* got a LazyPixArt"):
        inpaint(pipes["lazy"], *photo, "a box", "image")


@pytest.mark.parametrize("name", NAMES)
def test_pixels_outside_of_200_masks_are_bit_equal(name):
    """The package's own model of drawn shapes, on pixels: in bytes and in floats."""
    data = load_dataset("shapes", split="held_out")
    model = system_of(name).from_pixart(load_pixart(PRETRAINED["shapes"]))
    pipe = pipeline_of(model, name, dataset=data)
    rows = torch.arange(100)
    images = data.batch(rows)["pixel_values"] / 2 + 0.5
    masks = draw_masks("mixed", rows, 32, objects=data.masks(rows))
    prompts, options = data.captions(rows), {"system": name, "steps": 1, "guidance": 1.0}
    made = inpaint(pipe, images, masks.float(), prompts, output_type="pt", **options)
    outside = ~masks.expand_as(images)
    assert torch.equal(made[outside].view(torch.int32), images[outside].view(torch.int32))
    assert (made[~outside] != images[~outside]).float().mean() > 0.9
    photos = [PIL.Image.fromarray(np.uint8(image.permute(1, 2, 0).numpy() * 255)) for image in images]
    white = [PIL.Image.fromarray(np.uint8(255 * mask[0].numpy())) for mask in masks]
    made = inpaint(pipe, photos, white, prompts, **options)
    for before, after, mask in zip(photos, made, masks, strict=True):
        outside = ~mask[0].numpy()
        assert np.array_equal(np.asarray(before)[outside], np.asarray(after)[outside])
