import pytest
import torch

from diffratio.demo.digits import augment, load_split, make_class_tokens


def test_the_split_is_fixed_and_disjoint():
    train, train_labels = load_split("train")
    held_out, held_out_labels = load_split("held_out")
    assert train.shape == (1437, 1, 8, 8) and held_out.shape == (360, 1, 8, 8)
    assert train.dtype == torch.float32 and train_labels.dtype == torch.int64
    assert train.min() == -1 and train.max() == 1
    assert train_labels.bincount().min() > 130 and held_out_labels.bincount().min() > 30
    assert torch.cdist(train.flatten(1), held_out.flatten(1)).min() > 0


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        load_split("test")


def test_augment_shifts_by_at_most_a_pixel_and_jitters_by_half_a_level():
    images, _ = load_split("train")
    result = augment(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1), value=-1.0)
    candidates = torch.stack([images, padded[..., 2:], padded[..., :-2]])
    distance = (candidates - result).abs().amax(dim=(2, 3, 4))
    assert distance.amin(0).max() <= 1 / 16
    assert distance.argmin(0).bincount().min() > 150
    assert result.abs().max() <= 1
    assert torch.equal(result, augment(images, torch.Generator().manual_seed(0)))


def test_class_tokens_depend_on_the_seed_alone():
    assert make_class_tokens(0).shape == (11, 4, 32)
    assert torch.equal(make_class_tokens(0), make_class_tokens(0))
    assert not torch.equal(make_class_tokens(0), make_class_tokens(1))
