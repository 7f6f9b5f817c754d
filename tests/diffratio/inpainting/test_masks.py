"""Masks: functions of a seed and a number, and what tokens they touch."""

import pytest
import torch

from diffratio.data import load_dataset
from diffratio.inpainting.masks import KINDS, dilated, draw_masks, grown, pooled, token_mask
from diffratio.inpainting.pictures import resized_mask


@pytest.fixture(scope="module")
def objects():
    return load_dataset("shapes").masks(range(40))


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_a_mask_is_a_function_of_seed_and_number(kind, objects):
    items = torch.arange(40)
    masks = draw_masks(kind, items, 32, seed=1, objects=objects)
    assert masks.shape == (40, 1, 32, 32) and masks.dtype == torch.bool
    assert masks.flatten(1).any(1).all() and not masks.flatten(1).all(1).any()
    some = torch.tensor([31, 4])
    assert torch.equal(draw_masks(kind, some, 32, seed=1, objects=objects[some]), masks[some])
    if kind != "object":
        assert not torch.equal(draw_masks(kind, items, 32, seed=2, objects=objects), masks)
        assert len({m.numpy().tobytes() for m in masks}) > 35


def test_an_object_is_covered_and_dilated_covers_more(objects):
    items = torch.arange(40)
    found = {kind: draw_masks(kind, items, 32, objects=objects)[:, 0] for kind in ("object", "dilated")}
    assert torch.equal(found["object"], objects > 0)
    assert (found["dilated"] >= found["object"]).all() and found["dilated"].sum() > found["object"].sum()
    one = torch.zeros(9, 9, dtype=torch.bool)
    one[4, 5] = True
    assert dilated(one, 2).sum() == 25 and dilated(one, 2)[2:7, 3:8].all()


def test_boxes_reach_every_edge():
    reached = draw_masks("box", torch.arange(300), 32).any(dim=0)[0]
    assert reached[[0, -1]].any(dim=1).all() and reached[:, [0, -1]].any(dim=0).all()


def test_what_cannot_be_drawn_is_named(objects):
    with pytest.raises(ValueError, match="kind='circle' must be one of"):
        draw_masks("circle", torch.arange(2), 32)
    with pytest.raises(ValueError, match="kind='object' needs objects"):
        draw_masks("object", torch.arange(2), 32)
    nowhere = torch.zeros_like(objects)
    assert draw_masks("object", torch.arange(40), 32, objects=nowhere).flatten(1).any(1).all()


def test_a_token_is_of_the_hole_where_one_pixel_of_it_is():
    mask = torch.zeros(1, 1, 8, 12, dtype=torch.bool)
    mask[0, 0, 3, 4] = True
    assert token_mask(mask, 4).tolist() == [[False, True, False, False, False, False]]
    assert resized_mask(mask, (2, 3))[0, 0, 0, 1] and resized_mask(mask, (8, 12)) is mask
    assert grown(mask, 4).sum() == 16 and grown(mask, 4)[0, 0, :4, 4:8].all()
    with pytest.raises(ValueError, match="mask is 8 x 12, whose sides 5 must divide"):
        pooled(mask, 5)
