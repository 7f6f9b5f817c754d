from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffratio.data import load_dataset
from diffratio.data.digits import Digits
from diffratio.data.shapes import Shapes
from diffratio.data.twins import MaskedTwins
from diffratio.evaluation import classifier as module
from diffratio.evaluation.classifier import ASSETS, attribute_accuracy, classifier, train_classifier
from diffratio.evaluation.frechet import frechet_distance


@pytest.mark.parametrize(
    "dataset, least",
    [(Digits("held_out"), 0.97), (Shapes("held_out"), 0.97), (MaskedTwins("held_out"), 0.99)],
    ids=lambda one: getattr(one, "name", None),
)
def test_the_shipped_classifier_knows_held_out_images(dataset, least: float):
    batch = dataset.batch(range(360))
    features, seen = classifier(dataset).judge(batch["pixel_values"])
    each, joint = attribute_accuracy(seen, batch["attributes"])
    assert min(each) >= least and joint >= least - 0.01
    assert features.shape == (360, 64)


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_real_images_are_near_and_noise_is_far(name: str):
    train, held_out = (load_dataset(name, split=split) for split in ("train", "held_out"))
    judge = classifier(train)
    real, floor = (judge.judge(d.batch(range(360))["pixel_values"])[0] for d in (train, held_out))
    noise, _ = judge.judge(torch.randn(360, train.channels, train.size, train.size).clamp(-1, 1))
    blurred = torch.nn.functional.avg_pool2d(held_out.batch(range(360))["pixel_values"], 3, 1, 1)
    soft, _ = judge.judge(blurred)
    near, middle, far = (frechet_distance(real, features) for features in (floor, soft, noise))
    assert near < 2.5 and min(middle, far) > 3 * near


def test_training_repeats_itself_and_leaves_the_global_generator_alone():
    dataset, state = load_dataset("digits"), torch.get_rng_state()
    first, second = (train_classifier(dataset, steps=4, progress=False).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())


def test_training_learns():
    dataset, held_out = load_dataset("digits"), load_dataset("digits", split="held_out")
    batch = held_out.batch(range(len(held_out)))
    _, seen = train_classifier(dataset, steps=40, progress=False).judge(batch["pixel_values"])
    assert attribute_accuracy(seen, batch["attributes"])[1] > 0.8


def test_a_new_classifier_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch):
    for i in range(12):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(path)
    dataset = load_dataset(tmp_path / "data", resolution=16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_STEPS", 2)
    monkeypatch.setattr(module.train_classifier, "__defaults__", (2, True))
    first = classifier(dataset, progress=False)
    (stored,) = (tmp_path / "cache" / "diffratio").iterdir()
    assert stored.name == f"classifier-{dataset.name}.safetensors"
    monkeypatch.setattr(module, "train_classifier", None)
    again = classifier(dataset).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.state_dict().items())
    other = load_dataset(tmp_path / "data", resolution=32)
    assert other.name != dataset.name


def test_a_data_set_without_attributes_is_refused(tmp_path: Path):
    for name in "ab":
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    dataset = load_dataset(tmp_path, resolution=16)
    for make in (classifier, train_classifier):
        with pytest.raises(ValueError, match="dataset 'images-.*' has no attributes"):
            make(dataset)


def test_accuracy_counts_each_attribute_and_all_together():
    seen = torch.tensor([[0, 1], [0, 1], [2, 2], [3, 0]])
    wanted = torch.tensor([[0, 1], [0, 0], [1, 2], [3, 0]])
    assert attribute_accuracy(seen, wanted) == ([0.75, 0.75], 0.5)
    with pytest.raises(ValueError, match="must have one shape"):
        attribute_accuracy(seen, wanted[:2])


def test_the_shipped_classifiers_are_small():
    assert max(path.stat().st_size for path in ASSETS.iterdir()) < 300_000
