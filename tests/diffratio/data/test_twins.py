"""Two objects alike: the mask covers one, tells nothing of it, and the text is silent about both."""

import pytest
import torch

from diffratio.data import load_dataset
from diffratio.data.shapes import ATTRIBUTES

MANY = range(256)


@pytest.fixture(scope="module", params=[None, 64])
def twins(request):
    return load_dataset("twins", resolution=request.param)


def test_a_mask_and_its_margin_hold_one_object_and_none_of_the_other(twins):
    side, batch, masks = twins.size, twins.batch(MANY), twins.masks(MANY).bool()
    edge = side // 32
    assert (masks.flatten(1).sum(1) == (side // 2 - 2 * edge) ** 2).all()
    around = torch.nn.functional.max_pool2d(masks[:, None].float(), 4 * edge + 1, stride=1, padding=2 * edge)
    near = around[:, 0] > 0
    # An object's colour is far from every background, which is grey with a tint.
    saturated = (batch["pixel_values"].amax(1) - batch["pixel_values"].amin(1)) > 0.75
    opposite = near.flip(1, 2)
    assert saturated[masks].any() and not (saturated & ~masks & ~opposite).any()
    inside, outside = ((saturated & where).flatten(1).sum(1) for where in (masks, ~near))
    assert (inside > 0).all() and (outside > 0).all() and not (saturated & near & ~masks).any()
    assert (inside - outside).abs().max() <= 0.4 * inside.max()


def test_the_text_tells_the_background_alone(twins):
    batch, null = twins.batch(MANY), twins.null_tokens
    assert batch["attributes"].shape == (256, 2) and twins.attribute_sizes == (4, 6)
    assert len({tuple(row) for row in batch["attributes"].tolist()}) == 24
    told = (batch["tokens"] != null).any(-1)
    assert told[:, 2].all() and not told[:, [0, 1, 3, 4]].any()
    captions = twins.captions(MANY)
    assert {caption.removeprefix("twins on ") for caption in captions} == set(ATTRIBUTES["background"])
    assert torch.equal(twins.encode(captions), batch["tokens"])
    with pytest.raises(ValueError, match="must name one background"):
        twins.encode(["a red circle"])
