"""The three systems: one interface for training and sampling."""

import pytest
import torch
from diffusers import DDPMScheduler

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
    back = frame.restore(torch.full((2, 3, 16, 16), 9.0), pictures)
    assert (back[0, :, 1:11, 38:48] == 9).all()
    back[0, :, 1:11, 38:48] = pictures[0, :, 1:11, 38:48]
    assert torch.equal(back[0], pictures[0])


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
    text = Text(torch.ones(3, 6, 24), torch.zeros(3, 6, 24))
    encoded = []
    lazy.context_norm.register_forward_hook(lambda *_: encoded.append(1))
    paint(system, lazy, edit, text, Steps(DDPMScheduler(), 3, 4.5))
    assert len(calls) == 3 and len(encoded) == 1  # once per edit
    first, second = calls[0]["context"].chunk(2)
    assert torch.equal(first, second) and calls[0]["hole"].counts == [12, 64, 3] * 2
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
