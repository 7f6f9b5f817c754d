import pytest
import torch

from diffratio.data import load_dataset
from diffratio.data.digits import load_split, make_class_tokens


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


def test_class_tokens_depend_on_the_seed_alone():
    assert make_class_tokens(0).shape == (11, 4, 32)
    assert torch.equal(make_class_tokens(0), make_class_tokens(0))
    assert not torch.equal(make_class_tokens(0), make_class_tokens(1))


def test_the_training_set_holds_64_augmentations_of_each_image():
    images, labels = load_split("train")
    digits = load_dataset("digits")
    assert len(digits) == 64 * 1437
    rows = [3, 3 + 1437, 3 + 2 * 1437]
    batch = digits.batch(rows)
    assert batch["attributes"].tolist() == [[labels[3]]] * 3
    assert torch.equal(batch["tokens"], make_class_tokens(0)[labels[3]].expand(3, 4, 32))
    assert len(batch["pixel_values"].unique(dim=0)) == 3
    assert torch.equal(digits[rows[1]]["pixel_values"], batch["pixel_values"][1])
    many = digits.batch(range(3, 64 * 1437, 1437))["pixel_values"]
    moved = (many - images[3]).abs().amax((1, 2, 3)) > 1 / 16
    assert 8 <= moved.sum() <= 32  # 30 % of 64


def test_held_out_digits_are_left_as_they_are():
    digits = load_dataset("digits", split="held_out")
    images, labels = load_split("held_out")
    batch = digits.batch(range(len(digits)))
    assert torch.equal(batch["pixel_values"], images) and torch.equal(batch["attributes"][:, 0], labels)
    assert digits.captions([0]) == [str(labels[0].item())] and digits.masks([0]) is None


def test_the_data_set_speaks_the_shipped_models_words():
    """Those that they were trained on, to a few roundings: torch draws normal numbers by loops that depend on
    the processor."""
    digits = load_dataset("digits")
    words = torch.cat([digits.embed(torch.arange(10)[:, None]), digits.null_tokens[None]])
    first = [-1.1258398, -0.8833758, -0.0393725, 0.2942013, -0.5460728, 0.5407566, 0.4974167, 0.2035851,
             -1.0840825, 0.4047103, -0.3459153]  # fmt: skip
    last = [1.3872952, 0.3903958, -0.2344734, -1.6612948, -1.3792051, -0.2326160, -0.4621997, -1.7104684,
            0.1253823, -1.8938605, 1.0651280]  # fmt: skip
    torch.testing.assert_close(words[:, 0, 0], torch.tensor(first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(words[:, 3, 31], torch.tensor(last), rtol=1e-5, atol=1e-5)
    assert words.sum().item() == pytest.approx(49.614632, abs=1e-3)


def test_another_resolution_is_refused():
    with pytest.raises(ValueError, match="resolution must be 8 for digits, got 16"):
        load_dataset("digits", resolution=16)
