import pytest
import torch
from torch.utils.data import DataLoader

from diffratio.data import load_dataset
from diffratio.data.shapes import _COLOURS, ATTRIBUTES, Shapes

CIRCLE, SQUARE, TRIANGLE, CROSS = range(4)


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return load_dataset("shapes")


def test_an_item_depends_on_its_index_and_the_seed_alone(shapes):
    together = shapes.batch([5, 99_999, 17])
    for row, index in enumerate((5, 99_999, 17)):
        alone = load_dataset("shapes")[index]
        assert all(torch.equal(together[name][row], alone[name]) for name in together)
    assert torch.equal(shapes[-1]["pixel_values"], together["pixel_values"][1])
    other = Shapes("train", seed=1).batch(range(8))["pixel_values"]
    assert not torch.equal(other, shapes.batch(range(8))["pixel_values"])


def test_the_splits_share_no_image(shapes):
    held_out = load_dataset("shapes", split="held_out")
    assert len(held_out) == 2048
    distance = torch.cdist(*(d.batch(range(256))["pixel_values"].flatten(1) for d in (shapes, held_out)))
    assert distance.min() > 1


def test_a_loader_gets_tensors_of_the_stated_shapes(shapes):
    batch = next(iter(DataLoader(shapes, batch_size=4, shuffle=True)))
    assert batch["pixel_values"].shape == (4, shapes.channels, shapes.size, shapes.size) == (4, 3, 32, 32)
    assert batch["tokens"].shape == (4, shapes.text_tokens, shapes.text_width) == (4, 5, 64)
    assert batch["attributes"].shape == (4, len(shapes.attribute_sizes)) and shapes.patch_size == 4
    assert shapes.null_tokens.shape == batch["tokens"].shape[1:]
    assert batch["pixel_values"].dtype == torch.float32 and batch["pixel_values"].abs().max() <= 1


def test_every_value_of_every_attribute_is_equally_frequent(shapes):
    attributes = shapes.batch(range(3000))["attributes"]
    for column, size in zip(attributes.T, shapes.attribute_sizes, strict=True):
        counts = column.bincount(minlength=size)
        assert counts.min() > 0.85 * 3000 / size and len(counts) == size
    # and no attribute tells another one
    assert torch.corrcoef(attributes.T.float()).fill_diagonal_(0).abs().max() < 0.06


def test_the_object_is_what_its_attributes_say(shapes):
    batch, masks = shapes.batch(range(500)), shapes.masks(range(500))
    images, attributes = (batch["pixel_values"] + 1) / 2, batch["attributes"]
    inside = (masks == 1)[:, None]
    colour = (images * inside).sum((2, 3)) / inside.sum((2, 3))
    assert torch.cdist(colour, _COLOURS).argmin(1).equal(attributes[:, 1])

    x = torch.arange(32) + 0.5 - 16
    weight = masks / masks.sum((1, 2), keepdim=True)
    right, low = (weight * x).sum((1, 2)) > 0, (weight * x[:, None]).sum((1, 2)) > 0
    assert (right + 2 * low).equal(attributes[:, 3])

    # Areas in units of the squared radius, which is 6.08 or 8.96 pixels.
    radius = torch.tensor([0.19, 0.28])[attributes[:, 4]] * 32
    area = masks.sum((1, 2)) / radius**2
    # The triangle has an inner radius of 0.6; the cross is two bars less their overlap.
    expected = torch.tensor([torch.pi, 1.76**2, 3 * 3**0.5 * 0.36, 2 * 2.1 * 0.7 - 0.7**2])[attributes[:, 0]]
    assert ((area - expected).abs() / expected).max() < 0.06


def test_outlines_are_anti_aliased_and_masks_are_coverage(shapes):
    masks = shapes.masks(range(64))
    partial = ((masks > 0.01) & (masks < 0.99)).float().mean((1, 2))
    assert partial.min() > 0.005 and partial.max() < 0.15
    assert masks.min() == 0 and masks.max() == 1


def test_backgrounds_differ_in_texture(shapes):
    batch = shapes.batch(range(400))
    grey, kind = batch["pixel_values"].mean(1), batch["attributes"][:, 2]
    outside = shapes.masks(range(400)) == 0
    steps = (grey[:, :, 1:] - grey[:, :, :-1]).abs() * (outside[:, :, 1:] & outside[:, :, :-1])
    roughness = torch.stack([steps[kind == k].mean() for k in range(4)])
    gradient, stripes, checks, clouds = roughness
    assert 1.5 * gradient < clouds and 1.5 * clouds < min(stripes, checks)


def test_captions_name_the_attributes_and_tokens_stand_for_them(shapes):
    batch = shapes.batch(range(50))
    for caption, row in zip(shapes.captions(range(50)), batch["attributes"].tolist(), strict=True):
        assert all(values[v] in caption for values, v in zip(ATTRIBUTES.values(), row, strict=True))
    assert torch.equal(batch["tokens"], shapes.embed(batch["attributes"]))
    for name, a in zip(ATTRIBUTES, range(5), strict=True):
        values = batch["tokens"][:, a].unique(dim=0)
        assert len(values) == len(ATTRIBUTES[name])
    assert 0.8 < batch["tokens"].std() < 1.2


def test_another_resolution_shows_the_same_scene(shapes):
    large = torch.nn.functional.avg_pool2d(Shapes("train", 64).batch(range(32))["pixel_values"], 2)
    assert (large - shapes.batch(range(32))["pixel_values"]).abs().mean() < 0.02


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"split": "test"}, "split must be 'train' or 'held_out', got 'test'"),
        ({"resolution": 30}, "resolution must be a multiple of 4"),
        ({"caption_column": "text"}, "caption_column is not for 'shapes'"),
        ({"text_encoder": len}, "text_encoder is not for 'shapes'"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        load_dataset("shapes", **arguments)


@pytest.mark.parametrize("index", [100_000, -100_001])
def test_an_index_outside_is_refused(shapes, index):
    with pytest.raises(IndexError, match=r"indices must lie in 0\.\.99999"):
        shapes[index]
