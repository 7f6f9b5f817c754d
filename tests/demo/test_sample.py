import pytest
import torch

from diffratio.data.digits import CLASSES
from diffratio.demo.model import ASSETS, build_model, load_model
from diffratio.demo.sample import balanced_labels, sample
from diffratio.demo.score import accuracy, held_out_accuracy
from diffratio.evaluation.target import load_target


@pytest.fixture(scope="module")
def dense():
    return load_model(ASSETS / "dense")


def test_labels_are_ordered_by_class():
    assert balanced_labels(2).tolist() == [c for c in range(CLASSES) for _ in range(2)]


def test_samples_are_images_in_range_and_depend_on_the_seed_alone(dense):
    labels = balanced_labels(1)
    images = sample(*dense, labels, seed=5, steps=3, progress=False)
    assert images.shape == (10, 1, 8, 8) and images.dtype == torch.float32
    assert images.abs().max() <= 1
    assert torch.equal(images, sample(*dense, labels, seed=5, steps=3, progress=False))
    assert not torch.equal(images, sample(*dense, labels, seed=6, steps=3, progress=False))


def test_guidance_0_ignores_the_class(dense):
    model, tokens = dense
    twos, sevens = (torch.full((3,), digit) for digit in (2, 7))
    options = {"seed": 0, "steps": 3, "progress": False}
    ignored = [sample(model, tokens, labels, guidance=0.0, **options) for labels in (twos, sevens)]
    heeded = [sample(model, tokens, labels, guidance=2.0, **options) for labels in (twos, sevens)]
    assert torch.equal(*ignored)
    assert not torch.allclose(*heeded)


def test_the_classifier_knows_real_digits():
    assert held_out_accuracy() >= 0.97


@pytest.mark.parametrize("name", ["dense", "lt30"])
def test_the_classifier_recognises_the_shipped_models_samples(name: str, dense):
    labels = balanced_labels(3)
    images = sample(load_target(ASSETS / name).model, dense[1], labels, seed=0, progress=False)
    assert accuracy(images, labels) >= 0.9


def test_the_classifier_does_not_recognise_an_untrained_model(dense):
    labels = balanced_labels(3)
    untrained = sample(build_model(0), dense[1], labels, seed=0, steps=3, progress=False)
    assert accuracy(untrained, labels) <= 0.3
