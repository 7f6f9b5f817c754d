"""Samples by number: the same whoever asks, in whatever batches."""

import torch
from torch.utils.data import DataLoader

from diffratio.data import load_dataset
from diffratio.train.samples import TrainingSamples, ValidationSamples
from diffratio.train.times import Timesteps

DIGITS = load_dataset("digits", split="held_out")


def samples(first, count, seed=0, drop=0.3):
    return TrainingSamples(DIGITS, seed, first, count, times=Timesteps(1000), drop=drop)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_sample_depends_on_its_number_alone():
    whole = [samples(0, 1000)[i] for i in range(350, 380)]  # across the end of an epoch of 360
    part = samples(350, 30)
    assert all(same(one, part[i]) for i, one in enumerate(whole))
    batched = [row for batch in DataLoader(part, batch_size=7, num_workers=1) for row in batch["noise"]]
    assert all(torch.equal(noise, one["noise"]) for noise, one in zip(batched, whole, strict=True))


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    seen = [torch.stack([samples(start, 360)[i]["pixel_values"] for i in range(360)]) for start in (0, 360)]
    assert not torch.equal(*seen)
    everything = sorted(map(tuple, torch.stack([one["pixel_values"] for one in DIGITS]).flatten(1).tolist()))
    for epoch in seen:
        assert sorted(map(tuple, epoch.flatten(1).tolist())) == everything


def test_numbers_and_seeds_draw_differently():
    one, next_one, other_seed = samples(0, 2)[0], samples(0, 2)[1], samples(0, 2, seed=1)[0]
    assert not torch.equal(one["noise"], next_one["noise"])
    assert not torch.equal(one["noise"], other_seed["noise"])


def test_noise_timesteps_and_dropped_captions_are_distributed_as_they_should():
    drawn = [samples(0, 2000)[i] for i in range(2000)]
    noise = torch.stack([one["noise"] for one in drawn])
    timesteps = torch.stack([one["timestep"] for one in drawn]).float()
    dropped = sum(torch.equal(one["tokens"], DIGITS.null_tokens) for one in drawn)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert timesteps.min() >= 0 and timesteps.max() <= 999 and abs(timesteps.mean() - 499.5) < 25
    assert abs(dropped / 2000 - 0.3) < 0.04
    assert not any(torch.equal(samples(0, 50, drop=0.0)[i]["tokens"], DIGITS.null_tokens) for i in range(50))


def test_validation_spreads_the_timesteps_and_never_changes():
    first, second = (ValidationSamples(DIGITS, 100, times=Timesteps(1000)) for _ in range(2))
    assert all(same(first[i], second[i]) for i in range(100))
    assert sorted(int(first[i]["timestep"]) for i in range(100)) == list(range(0, 1000, 10))
    assert len(ValidationSamples(DIGITS, 1000, times=Timesteps(1000))) == 360
