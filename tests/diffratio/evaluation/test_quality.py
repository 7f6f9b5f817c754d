from types import SimpleNamespace

import pytest
import torch

from diffratio.data import load_dataset
from diffratio.evaluation import quality
from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.target import Target, load_target
from diffratio.toy import DIGITS_LT30
from tools.toy_pretrain import small_pixart

SETTINGS = SampleSettings(samples=40, seed=0, steps=6, guidance=2.0)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge("digits", SETTINGS, progress=False)


def test_real_images_are_nearly_perfect(judge):
    assert judge.real["accuracy_joint"] >= 0.95 and judge.real["accuracy"].keys() == {"digit"}
    assert judge.real["frechet"] < 8


def test_fid_compares_with_held_out_images_and_with_no_more_than_the_paper(judge, monkeypatch):
    own = judge.held_out.batch(range(360))["pixel_values"]
    assert torch.equal(torch.cat(list(judge.held_out_images())), own)
    monkeypatch.setattr(quality, "REFERENCE", 100)
    assert torch.equal(torch.cat(list(judge.held_out_images())), own[:100])


def test_a_trained_model_is_better_than_one_that_draws_noise(judge):
    images, trained = judge(load_target("digits"))
    assert images.shape == (40, 1, 8, 8)
    _, fresh = judge(Target(small_pixart(judge.held_out, 0, layers=1, heads=1), "fresh"))
    assert trained["accuracy_joint"] >= 0.85 and fresh["accuracy_joint"] <= 0.3
    assert judge.real["frechet"] < trained["frechet"] < 0.5 * fresh["frechet"]
    assert trained["v_mse"] < 0.5 * fresh["v_mse"]
    assert len(trained["v_mse_by_quartile"]) == 4


@pytest.mark.parametrize("path", ["digits", DIGITS_LT30], ids=["dense", "sparse"])
def test_the_shipped_models_draw_what_is_asked_for(path):
    judge, target = Judge("digits", SampleSettings(samples=30), progress=False), load_target(path)
    images, figures = judge(target)
    assert figures["accuracy_joint"] >= 0.9
    assert figures == judge.figures(target, images)


def test_wanted_attributes_are_those_of_the_held_out_captions():
    judge = Judge("digits", SampleSettings(samples=400), progress=False)
    assert judge.wanted.tolist() == [*range(360), *range(40)]
    assert judge.held_out.captions(judge.wanted)[:2] == load_dataset("digits", split="held_out").captions(
        [0, 1]
    )


@pytest.mark.parametrize(
    "name, words",
    [("shapes", "1 channels instead of 3, 8 pixels a side instead of 32, 32 text channels instead of 64")],
)
def test_a_model_of_other_images_is_refused(name, words):
    judge = Judge(name, SETTINGS, progress=False)
    other = Target(small_pixart(load_dataset("digits"), 0, layers=1, heads=1), "other")
    assert judge.why_not(other).endswith(words)
    with pytest.raises(ValueError, match="model: the model does not fit 'shapes'"):
        judge(other)
    assert judge.why_not(Target(small_pixart(judge.held_out, 0, layers=1, heads=1), "own")) is None


@pytest.mark.parametrize("name, least", [("samples", 2), ("steps", 1)])
def test_impossible_settings_are_refused(name, least):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        SampleSettings(**{name: least - 1})


def test_a_sampler_that_is_not_there_or_cannot_be_is_refused():
    with pytest.raises(ValueError, match="sampler='euler' must be one of dpm"):
        SampleSettings(sampler="euler")
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        SampleSettings(sampler="ddpm", steps=1)
    pipeline = SimpleNamespace(family=SimpleNamespace(flow=True))
    flow = Target(small_pixart(load_dataset("digits"), 0, layers=1, heads=1), "flow", pipeline=pipeline)
    with pytest.raises(ValueError, match="sampler is not for flow models"):
        SampleSettings.of(flow, sampler="ddpm")


def test_the_seed_decides_the_samples(judge):
    target = load_target("digits")
    other = Judge("digits", SampleSettings(samples=40, seed=1, steps=1), progress=False)
    first = Judge("digits", SampleSettings(samples=40, seed=0, steps=1), progress=False)
    assert torch.equal(first.samples(target), first.samples(target))
    assert not torch.equal(first.samples(target), other.samples(target))
