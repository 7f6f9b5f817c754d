"""The three systems: one interface for training and sampling."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PixArtTransformer2DModel

from diffratio.diffusion import noise_schedule
from diffratio.diffusion.sampling import guided
from diffratio.diffusion.schedules import target_of
from diffratio.inpainting.regenerate import regenerate_from_pixart
from diffratio.inpainting.sampling import Steps, Text, paint
from diffratio.inpainting.systems import SYSTEMS, system_of

NAMES = tuple(SYSTEMS)


@pytest.fixture
def models(lazy, wide):
    return {"lazy": lazy, "image": wide, "crop": wide}


def edit_of(name, clean, masks):
    system = system_of(name)
    return system, system.edit(system.frame(clean, masks, 2), 2)


def test_a_wide_pixart_begins_as_pixart(pixart, tiny):
    inputs = tiny.inputs(pixart)
    wide = regenerate_from_pixart(pixart)
    assert wide.config.in_channels == 9 and wide.out_channels == 4
    more = torch.cat([inputs["hidden_states"], torch.randn(2, 5, 16, 16)], dim=1)
    with torch.no_grad():
        made = wide(**inputs | {"hidden_states": more}).sample
        assert torch.allclose(made, pixart(**inputs).sample, atol=1e-6)


def test_channels_that_were_left_to_their_default_are_widened():
    sizes = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    wide = regenerate_from_pixart(PixArtTransformer2DModel(**sizes, sample_size=8, caption_channels=8))
    assert (wide.config.in_channels, wide.out_channels) == (9, 8)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_begins_in_the_dtype_and_the_mode_of_another(name, pixart):
    made = system_of(name).from_pixart(pixart.to(torch.bfloat16))
    assert not made.training and {p.dtype for p in made.parameters()} == {torch.bfloat16}
    assert system_of(name).from_pixart(pixart.train()).training


@pytest.mark.parametrize("name", NAMES)
def test_training_needs_no_more_than_an_edit(name, models, masks):
    model, schedule = models[name].train(), noise_schedule()
    system, edit = edit_of(name, torch.randn(3, 4, 16, 16), masks)
    timestep = torch.tensor([10, 500, 990])
    noise = torch.randn(edit.clean.shape)
    noisy = schedule.add_noise(edit.clean, noise, timestep)
    text = torch.randn(3, 6, 24)
    predicted = system.predict(model, edit, noisy, timestep=timestep, encoder_hidden_states=text)
    error = edit.mean((predicted - target_of(schedule, edit.clean, noise, timestep)).square())
    assert error.shape == (3,)
    error.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():  # outside of the hole's patches nothing counts
        other = torch.where(edit.where, predicted, torch.tensor(7.0))
        target = target_of(schedule, edit.clean, noise, timestep)
        assert torch.equal(edit.mean((other - target).square()), error)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_hidden_is_not_seen(name, models, masks):
    """The picture in the hole decides nothing but what noise is added to."""
    masks = masks[[0, 2]]
    clean = torch.randn(2, 4, 16, 16)
    other = torch.where(masks, torch.randn_like(clean), clean)
    found = []
    for picture in (clean, other):
        system, edit = edit_of(name, picture, masks)
        noisy = torch.ones(edit.clean.shape)
        inputs = {"timestep": torch.tensor([500, 20]), "encoder_hidden_states": torch.ones(2, 6, 24)}
        with torch.no_grad():
            found.append(system.predict(models[name], system.encoded(models[name], edit), noisy, **inputs))
    assert torch.equal(*found)


def test_a_crop_is_the_smallest_square_around_the_mask():
    system = system_of("crop")
    mask = torch.zeros(2, 1, 32, 48, dtype=torch.bool)
    mask[0, :, 4:9, 40:46] = True  # 5 x 6 and 2 pixels around it
    mask[1, :, 2:30, 3:45] = True  # wider than the picture is high
    pictures = torch.rand(2, 3, 32, 48)
    frame = system.frame(pictures, mask, 4)
    assert frame.boxes == [(1, 38, 11, 48), (0, 1, 32, 47)]
    assert frame.pictures.shape == (2, 3, 16, 16) and frame.mask.flatten(1).any(1).all()
    assert system.frame(pictures, mask, 6).pictures.shape == (2, 3, 18, 18)  # whole tokens
    before, made = pictures.clone(), torch.tensor([9.0, 7.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16)
    back = frame.restore(made, pictures)
    assert torch.equal(pictures, before)
    wanted = before.clone()
    wanted[0, :, 1:11, 38:48], wanted[1, :, :, 1:47] = 9, 7
    assert torch.equal(back, wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_it_samples_with_any_scheduler(name, variance, tiny, pixart, masks):
    model = tiny.pixart(out_channels=8) if variance == "learned_range" else pixart
    model = system_of(name).from_pixart(model)
    system, edit = edit_of(name, torch.randn(3, 4, 16, 16), masks)
    text = Text(torch.randn(3, 6, 24), torch.zeros(3, 6, 24))
    seen = []
    how = Steps(DDPMScheduler(variance_type=variance), 4, 3.0, 0.5, torch.Generator().manual_seed(0))
    made = paint(system, model, edit, text, how, after_step=lambda *step: seen.append(step[0]) or step[2])
    assert seen == [0, 1] and made.isfinite().all()
    outside = ~edit.where.expand_as(made)
    assert torch.equal(made[outside], edit.clean[outside])
    assert not torch.equal(made[~outside], edit.clean[~outside])


class Watched:
    """A system that predicts zeros; `seen` is what its model was given, step by step."""

    def __init__(self):
        self.seen = []

    def encoded(self, model, edit):
        return edit

    def predict(self, model, edit, noisy, timestep, **_):
        self.seen.append((int(timestep[0]), noisy))
        return torch.zeros_like(noisy)


@pytest.mark.parametrize(("strength", "begun"), [(1.0, 750), (0.5, 250)])
def test_strength_says_how_much_noise_lies_on_the_picture_at_first(strength, begun, wide, masks):
    clean, noise = torch.randn(2, 3, 4, 16, 16)
    _, edit = edit_of("image", clean, masks)
    watched, scheduler = Watched(), DDPMScheduler()
    paint(watched, wide, edit, Text(torch.ones(3, 6, 24)), Steps(scheduler, 4, 1.0, strength), noise=noise)
    assert [timestep for timestep, _ in watched.seen] == [750, 500, 250, 0][-int(4 * strength) :]
    first = noise if strength == 1 else scheduler.add_noise(clean, noise, torch.tensor([begun] * 3))
    assert watched.seen[0][0] == begun and torch.equal(watched.seen[0][1], first)


def test_schedulers_that_scale_their_samples_paint_the_same(wide, masks):
    """DDIM's steps are Euler's on samples over their signal's part, with more noise to begin with."""
    noise, text = torch.randn(3, 4, 16, 16), Text(torch.randn(3, 6, 24), torch.zeros(3, 6, 24))
    system, edit = edit_of("image", torch.randn(3, 4, 16, 16), masks)
    plain = DDIMScheduler(clip_sample=False)
    one, other = (
        paint(system, wide, edit, text, Steps(scheduler, 4, 2.0), noise=noise)
        for scheduler in (plain, EulerDiscreteScheduler(timestep_spacing="leading"))
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_told_sizes_is_told_those_of_the_pixels(tiny, masks):
    sized = {"num_attention_heads": 3, "cross_attention_dim": 48, "use_additional_conditions": True}
    model = system_of("lazy").from_pixart(tiny.pixart(**sized))
    told = []
    model.register_forward_pre_hook(lambda m, args, kwargs: told.append(kwargs), with_kwargs=True)
    system, edit = edit_of("lazy", torch.randn(3, 4, 16, 16), masks)
    text = Text(torch.ones(3, 6, 24), torch.zeros(3, 6, 24))
    paint(system, model, edit, text, Steps(DDPMScheduler(), 1, size=(64, 128)))
    sizes = told[0]["added_cond_kwargs"]
    assert sizes["resolution"].tolist() == [[64, 128]] * 6 and sizes["aspect_ratio"].tolist() == [[0.5]] * 6


def test_guidance_changes_the_text_and_not_the_context(lazy, masks):
    calls = []
    lazy.register_forward_pre_hook(lambda m, args, kwargs: calls.append(kwargs), with_kwargs=True)
    system, edit = edit_of("lazy", torch.randn(3, 4, 16, 16), masks)
    masked = torch.ones(3, 6), torch.eye(3, 6)
    text, encoded = Text(torch.ones(3, 6, 24), torch.zeros(3, 6, 24), *masked), []
    lazy.context_norm.register_forward_hook(lambda *_: encoded.append(1))
    paint(system, lazy, edit, text, Steps(DDPMScheduler(), 3, 4.5))
    assert len(calls) == 3 and len(encoded) == 1  # once per edit
    first, second = calls[0]["context"].chunk(2)
    assert torch.equal(first, second) and calls[0]["hole"].counts == [12, 64, 3] * 2
    assert torch.equal(calls[0]["hole"].places, torch.cat([edit.hole.places] * 2))
    assert torch.equal(calls[0]["encoder_attention_mask"], torch.cat(masked[::-1]))
    assert calls[0]["encoder_hidden_states"].flatten(1).amax(1).tolist() == [0, 0, 0, 1, 1, 1]


def test_the_mean_is_guided_and_the_variance_is_that_of_the_text():
    without, with_text = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 7.0])  # mean, variance
    predicted = torch.stack([without, with_text])[:, :, None, None]
    assert guided(predicted, 1, 4.0).flatten().tolist() == [1 + 4 * (3 - 1), 7]


def test_bad_settings_are_named(lazy, masks):
    scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match=r"steps \(num_inference_steps\)=0 must be"):
        Steps(scheduler, 0)
    with pytest.raises(ValueError, match="strength=0.1 must be"):
        Steps(scheduler, 5, strength=0.1)
    system, edit = edit_of("lazy", torch.randn(3, 4, 16, 16), masks)
    learned = Steps(DDPMScheduler(variance_type="learned_range"), 2)
    with pytest.raises(ValueError, match="variance_type='learned_range', but the model predicts no variance"):
        paint(system, lazy, edit, Text(torch.ones(3, 6, 24)), learned)
    with pytest.raises(ValueError, match="system='eager' must be one of lazy, image, crop"):
        system_of("eager")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_another_system_is_refused(name, models, pixart):
    assert system_of(name).why_not(models[name]) is None
    other = models["image" if name == "lazy" else "lazy"]
    for wrong in (pixart, other):
        assert f"system={name!r} wants" in system_of(name).why_not(wrong)
