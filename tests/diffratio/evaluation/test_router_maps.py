import pytest
import torch

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.data import load_dataset
from diffratio.evaluation.router_maps import auc, router_auc, router_logits, token_masks
from diffratio.routing.find import routed_blocks
from tools.toy_pretrain import small_pixart


@pytest.fixture(scope="module")
def model():
    shapes = load_dataset("shapes")
    model = apply_diffratio(small_pixart(shapes, 0, layers=2, heads=1).eval(), DiffRatioConfig(0.5))
    for block in routed_blocks(model):
        block.diffratio.router_weight.data.normal_()
    return model


def test_auc_counts_pairs_within_a_sample():
    covered = torch.tensor([[1.0, 0.6, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5])
    scores = torch.tensor([[3.0, 1.0, 99.0, 2.0, 1.0], [0.0, -1.0, 5.0, 6.0, -1.0], [1.0] * 5])
    # First sample: 3 beats both, 1 loses to 2 and ties with 1; second: -1 loses three times and ties once.
    assert auc(scores, covered) == pytest.approx((2.5 / 4 + 0.5 / 4) / 2)
    assert auc(covered, covered) == 1.0 and auc(-covered, covered) == 0.0
    with pytest.raises(ValueError, match="covered: no sample"):
        auc(scores[2:], covered[2:])


def test_token_masks_are_shares_of_the_tokens_in_their_order():
    masks = torch.zeros(1, 8, 8)
    masks[0, :2, 4:] = 1  # upper half of the second token of the first row
    assert token_masks(masks, 4).tolist() == [[0.0, 0.5, 0.0, 0.0]]


def test_router_logits_are_what_the_blocks_choose_by(model):
    shapes = load_dataset("shapes", split="held_out")
    batch = shapes.batch(range(3))
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda b, args: seen.append(args[0] @ b.diffratio.router_weight))
        for block in routed_blocks(model)
    ]
    logits = router_logits(model, batch["pixel_values"], batch["tokens"], 500)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logits, torch.stack(seen), atol=1e-4, rtol=1e-4)
    assert logits.shape == (2, 3, 64)
    again = router_logits(model, batch["pixel_values"], batch["tokens"], 500)
    assert torch.equal(logits, again)
    assert not any(block._forward_pre_hooks for block in routed_blocks(model))


def test_the_table_has_a_value_for_every_layer_and_timestep(model):
    shapes = load_dataset("shapes", split="held_out")
    table = router_auc(model, shapes, samples=8, timesteps=(100, 900))
    assert len(table) == 2 and all(len(row) == 2 for row in table)
    assert all(0 < value < 1 for row in table for value in row)
    assert table[0][0] != table[0][1] != table[1][1]


def test_a_router_that_scores_like_the_mask_has_auc_1(model, monkeypatch):
    shapes = load_dataset("shapes", split="held_out")
    covered = token_masks(shapes.masks(range(8)), 4)
    monkeypatch.setattr(
        "diffratio.evaluation.router_maps.router_logits", lambda *_: torch.stack([covered, -covered])
    )
    assert router_auc(model, shapes, samples=8, timesteps=(1,)) == [[1.0], [0.0]]


def test_data_without_objects_has_no_table(model):
    assert router_auc(model, load_dataset("digits", split="held_out")) is None
